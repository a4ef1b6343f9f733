"""Put the model of a finished training run into the package, with its card.

    python -m tools.ship_checkpoint RUN --name NAME --metrics FILE.json … --machine "2 CPU cores"

RUN is the folder that `fewstep restore train` left. The files of figures come from the benchmarks in
tests/bench, each with --json FILE.json: `bench_restoration_tasks --model NAME=RUN/model`,
`bench_super_resolution --model RUN/model`, `bench_compressed_sensing --model RUN/model`. Weights become
float16; what they make is held against what the run's own make before the checkpoint takes its place.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from skimage import data
from tools.shipped_texts import TEXTS
from tools.shipping import known, megabytes, put, run_length
from torch import nn

from fewstep.core.cards import CardFacts
from fewstep.core.checkpoints import shipped
from fewstep.restoration import Restorer
from fewstep.restoration.catalogue import choose, shipped_models
from fewstep.restoration.methods.base import RestorationModel
from fewstep.restoration.methods.loading import class_of, load_model
from fewstep.restoration.settings import MODES
from fewstep.restoration.tasks import TASKS

PACKAGE = Path(__file__).parents[1] / "packages/restoration/src/fewstep/restoration/checkpoints"
MEASURED = {
    "psnr": "PSNR (dB)",
    "psnr_y": "PSNR Y (dB)",
    "ssim": "SSIM",
    "ssim_y": "SSIM Y",
    "sharpness": "sharpness (1 = truth)",
}
FIGURES = " Figures are of the run's float32 weights, in float32 on a CPU; stored are float16 weights."
# Of an 8-bit level: what storing as float16 may change, everywhere on average and anywhere.
ON_AVERAGE, ANYWHERE = 0.25, 6
Rows = Mapping[str, Mapping[str, float]]
Metrics = dict[str, dict[str, tuple[float, float]]]


def tables(results: Mapping, path: str = "") -> Iterator[tuple[str, Rows]]:
    """The tables {tool: {metric: value}} of a file, however deep they lie, with the names above them."""
    for name, inner in results.items():
        label = f"{path}, {name}" if path else name
        if all(isinstance(row, Mapping) and not _deeper(row) for row in inner.values()):
            yield label, inner
        else:
            yield from tables(inner, label)


def metrics_of(results: Mapping, name: str) -> Metrics:
    """Figures of a model beside those of the best of the other tools, by PSNR.

    Args:
        results: of one of the benchmarks.
        name: of the model.

    Example:
        >>> rows = {"input": {"psnr": 20.0}, "NLM": {"psnr": 28.0}, "m, faithful": {"psnr": 30.0}}
        >>> metrics_of({"noise 25": {"bsd100": rows}}, "m")
        {'noise 25, bsd100, faithful (beside NLM)': {'PSNR (dB)': (30.0, 28.0)}}
    """
    found: Metrics = {}
    for label, rows in tables(results):
        ours = {tool: row for tool, row in rows.items() if _is_ours(tool, name)}
        others = {tool: row for tool, row in rows.items() if not _is_a_model(tool)}
        if not ours or not others:
            continue
        best = max(others, key=lambda tool: _psnr(others[tool]))
        for tool, row in ours.items():
            mode = tool.removeprefix(name).lstrip(", ") or "reconstructed"
            mode = "reconstructed" if mode == "model" else mode
            found[f"{label}, {mode} (beside {best})"] = {
                MEASURED[key]: (row[key], others[best][key]) for key in MEASURED if key in row
            }
    if not found:
        raise ValueError(f"metrics: the file has no rows of {name}")
    return found


def facts(name: str, run: Path, files: Sequence[Path], machine: str) -> CardFacts:
    """What the card says."""
    texts, (steps, minutes) = TEXTS[name], run_length(run)
    metrics: Metrics = {}
    for file in files:
        metrics |= metrics_of(json.loads(file.read_text(encoding="utf-8")), name)
    return CardFacts(
        title=name,
        summary=texts.summary,
        data=texts.data,
        data_licence=texts.data_licence,
        command=texts.command.replace("{minutes:.0f}", f"{minutes:.0f}"),
        steps=steps,
        minutes=round(minutes, 1),
        machine=machine,
        metrics=metrics,
        baseline="best of the other tools",
        limits=texts.limits + (FIGURES if metrics else ""),
    )


def model_at(folder: Path) -> nn.Module:
    """The model of a folder, whatever its class."""
    if class_of(folder) != "Oscar":
        return load_model(folder)
    from fewstep.restoration.methods.oscar import Oscar

    return Oscar.from_pretrained(folder)


def difference(one: RestorationModel, other: RestorationModel) -> tuple[float, int]:
    """Mean and largest difference, in 8-bit levels, of what two models make of a photograph."""
    photo = data.astronaut()[40:136, 150:246]
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:44] = mask[:, 60:63] = True
    told = {"mask": mask if "mask" in one.takes else None, "level": 25.0 if "level" in one.takes else None}
    gaps = []
    for mode in (name for name, inner in MODES.items() if inner in one.modes):
        made = [Restorer(model, "cpu", "float32")(photo, mode=mode, **told).pixels for model in (one, other)]
        gaps.append(np.abs(made[0].astype(int) - made[1].astype(int)))
    return float(np.mean([gap.mean() for gap in gaps])), int(max(gap.max() for gap in gaps))


def check(original: nn.Module, stored: nn.Module) -> str:
    """Hold stored weights against the original ones.

    Raises:
        ValueError: they make another picture.
    """
    if not isinstance(original, RestorationModel) or not isinstance(stored, RestorationModel):
        pairs = zip(original.state_dict().values(), stored.state_dict().values(), strict=True)
        worst = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
        return f"weights differ by at most {worst:.2g}"
    mean, largest = difference(original, stored)
    if mean > ON_AVERAGE or largest > ANYWHERE:
        raise ValueError(f"float16 makes another picture: {mean:.3f} of 255 on average, {largest} at most")
    return f"pictures differ by {mean:.4f} of 255 on average, {largest} at most"


def check_found(name: str) -> list[str]:
    """The tasks that a shipped checkpoint is the default of, after trying that they find it.

    Raises:
        ValueError: it is not found under its name, or was not trained for a task that it is the default of.
    """
    if name not in shipped("fewstep.restoration"):
        raise ValueError(f"{name} is not among the shipped checkpoints")
    tasks = [task for task, about in TASKS.items() if about.model == name]
    for task in tasks:
        if choose(task, None, None, shipped_models()) != name:
            raise ValueError(f"{task} does not find {name}, which was not trained for it")
    return tasks


def ship(name: str, run: Path, files: Sequence[Path], machine: str, package: Path = PACKAGE) -> Path:
    """Write a checkpoint into the package.

    Args:
        name: of the checkpoint.
        run: folder of the training run.
        files: of figures.
        machine: that it was trained on.
        package: folder of the shipped checkpoints.

    Returns:
        Its folder.

    Raises:
        ValueError: no such name, no figures of it, or float16 is not enough for it.
    """
    known(name, TEXTS)
    model = model_at(run / "model")
    card = facts(name, run, files, machine)
    return put(model, package / name, card, lambda stored: check(model, model_at(stored)))


def main() -> None:
    """Write the package's checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help=", ".join(TEXTS))
    parser.add_argument("--metrics", type=Path, nargs="*", default=[])
    parser.add_argument("--machine", required=True)
    arguments = parser.parse_args()
    try:
        ship(arguments.name, arguments.run, arguments.metrics, arguments.machine)
        tasks = check_found(arguments.name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"ship_checkpoint: {error}") from error
    print(f"default of {', '.join(tasks) or 'no task'}")
    print(f"all checkpoints together: {megabytes(PACKAGE):.1f} MB")


def _deeper(row: Mapping) -> bool:
    return any(isinstance(value, Mapping) for value in row.values())


def _psnr(row: Mapping[str, float]) -> float:
    return row.get("psnr", row.get("psnr_y", float("-inf")))


def _is_ours(tool: str, name: str) -> bool:
    plain = tool.startswith(("faithful", "detailed"))
    return plain or tool in (name, "model") or tool.startswith(f"{name}, ")


def _is_a_model(tool: str) -> bool:
    """Whether a row is of one of our models, not of another tool."""
    return any(_is_ours(tool, name) for name in TEXTS)


if __name__ == "__main__":
    main()
