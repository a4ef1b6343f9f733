"""One-step students of small image models: scikit-learn's digits (8×8) and grey natural pictures (16×16).

    python -m tests.bench.bench_distill_images digits                       # everything on the digits
    python -m tests.bench.bench_distill_images grey --data cifar10_gray16.npz --rows teacher cd dmd2
    python -m tests.bench.bench_distill_images digits --report --picture digits.png

The grey data are a file with the arrays train (n, 16, 16), train_label, test and test_label of bytes; any
such file will do. Quality is the Fréchet distance between classifier features ("feature FID") of 5,000
samples and of the training pictures. Runs are kept under runs/images and go on where they were stopped.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from PIL import Image
from tools.distill_table import PAGE
from tools.solver_pages import write_between
from torch import Tensor

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig, UNetConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill import Distillation
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.pictures import grid_of
from fewstep.core.sampling import Sampling
from tests.bench import digit_features, grey_features

RUNS = File("runs/images")
COUNT = 5_000
PAIRS = 10_000
GREY_MINUTES = {"teacher": 45.0, "flow teacher": 45.0, "dmd2": 90.0, "sid": 25.0}
EDM_TEACHER, FLOW_TEACHER = "teacher", "flow teacher"


@dataclass(frozen=True)
class Row:
    """A model.

    Args:
        method: its name.
        teacher: name of the row it starts from (None: from nothing).
        family: of the objective, for the table.
        calls: numbers of calls that are measured.
        recipe: fields of DistillRecipe other than the method's own.
        options: of the method.
        pairs_of: the teacher whose samples it learns from (None: it learns from none).
    """

    method: str
    teacher: str | None
    family: str
    calls: tuple[int, ...] = (1, 2, 4)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs_of: str | None = None


@dataclass(frozen=True)
class Domain:
    """Data, network and rows of one benchmark.

    Args:
        samples: gives the training data as {"x0": ...} and held-out x0.
        features: (n, channels, height, width) → (n, features).
        network: of all rows.
        sigma_data: of the data.
        rows: by name.
    """

    samples: Callable[[], tuple[dict[str, Tensor], Tensor]]
    features: Callable[[Tensor], Tensor]
    network: Any
    sigma_data: float
    rows: Mapping[str, Row]


def _rows(run: Callable[[str, float], dict[str, Any]], straight: str) -> dict[str, Row]:
    """The same students for both domains; `run` gives the recipe of a row of a length, the teacher's being 1.

    `straight` is the teacher of those that learn straight paths.
    """

    def teacher(name: str) -> dict[str, Any]:
        return {**run(name, 1.0), "learning_rate": 1e-3}

    def score(name: str) -> dict[str, Any]:
        return {**run(name, 0.2), "learning_rate": 3e-4}

    return {
        EDM_TEACHER: Row("denoise", None, "denoising", (1, 2, 9, 18), teacher(EDM_TEACHER)),
        FLOW_TEACHER: Row("flow-matching", None, "denoising", (1, 2, 8, 18, 32), teacher(FLOW_TEACHER)),
        "reflow": Row("reflow", straight, "straight paths", (1, 2, 4), run("reflow", 0.8), pairs_of=straight),
        "reflow + distil": Row(
            "instaflow", "reflow", "regression", (1,), run("reflow + distil", 0.6), pairs_of=straight
        ),
        "cd": Row("cd", EDM_TEACHER, "consistency", (1, 2), run("cd", 0.8)),
        "ect": Row("ect", EDM_TEACHER, "consistency", (1, 2), run("ect", 0.8)),
        "ctm": Row("ctm", EDM_TEACHER, "flow map", (1, 2, 4), run("ctm", 0.3)),
        "meanflow": Row("meanflow-distill", straight, "average velocity", (1, 2, 4), run("meanflow", 0.8)),
        "dmd": Row("dmd", EDM_TEACHER, "score, integral KL", (1,), score("dmd")),
        "sid": Row("sid", EDM_TEACHER, "score, Fisher", (1,), score("sid")),
        "dmd2": Row("dmd2", EDM_TEACHER, "score and judge", (1,), score("dmd2")),
        "fdistill": Row("fdistill", EDM_TEACHER, "score and judge", (1,), score("fdistill")),
    }


def _digits() -> Domain:
    (pictures, _), (held, _) = digit_features.split()
    network = MLPConfig(shape=(1, 8, 8), width=384, depth=4, embedding=128)
    base = {"batch_size": 128, "ema": 0.998, "validate_every": 250, "validation_samples": 600}
    return Domain(
        lambda: ({"x0": pictures}, held),
        digit_features.features,
        network,
        0.752,
        _rows(lambda name, share: {**base, "updates": round(5_000 * share)}, FLOW_TEACHER),
    )


def _grey(file: File) -> Domain:
    train, held = grey_features.pictures(file)
    base = {"ema": 0.999, "precision": "bf16", "validation_samples": 1_000, "updates": 100_000}
    teachers = {**base, "batch_size": 64, "validate_every": 1_000}
    students = {**base, "batch_size": 32, "validate_every": 200}

    def run(name: str, share: float) -> dict[str, Any]:
        kind = teachers if share == 1.0 else students
        return {**kind, "max_minutes": GREY_MINUTES.get(name, 5.0)}

    return Domain(
        lambda: ({"x0": torch.cat([train, train.flip(-1)])}, held),
        lambda pictures: grey_features.features(file, pictures),
        UNetConfig(),
        0.461,
        _rows(run, EDM_TEACHER),
    )


class Bench:
    """One domain's models: made when they are asked for, measured once."""

    def __init__(self, name: str, domain: Domain) -> None:
        self.folder, self.domain = RUNS / name, domain

    def model(self, name: str) -> DiffusionModel:
        """The trained model of a row."""
        folder = self.folder / name.replace(" ", "-")
        if not (folder / "model.safetensors").is_file():
            self._train(name, folder)
        return DiffusionModel.from_pretrained(folder)

    def _train(self, name: str, folder: File) -> None:
        row, (data, _) = self.domain.rows[name], self.domain.samples()
        start = self._untrained(name) if row.teacher is None else self.model(row.teacher)
        method = methods.get(row.method)
        recipe = DistillRecipe.of(method, row.method, options=dict(row.options), **row.recipe)
        began = time.process_time()
        pairs = self.pairs(row.pairs_of) if row.pairs_of else None
        run = Distillation(start, method, recipe, folder, data, pairs, device="cpu")
        run.run()
        times = folder / "seconds.json"
        before = json.loads(times.read_text()) if times.is_file() else 0.0
        times.write_text(json.dumps(before + time.process_time() - began))

    def _untrained(self, name: str) -> DiffusionModel:
        torch.manual_seed(0)
        if name == FLOW_TEACHER:
            path = paths.RectifiedFlow(time="t")
            told = Sampling("ode", 18, spacing="clock", solver="euler")
            return DiffusionModel.with_network(self.domain.network, path, "velocity", sampling=told)
        path = paths.EDM(sigma_data=self.domain.sigma_data)
        return DiffusionModel.with_network(self.domain.network, path, "edm", sampling=Sampling("ode", 18))

    def pairs(self, name: str) -> dict[str, Tensor]:
        """Samples of a teacher with their noise: 18 Heun steps, or 32 Euler steps of the flow."""
        file = self.folder / f"pairs-{name.replace(' ', '-')}.pt"
        if not file.is_file():
            model = self.model(name)
            noise = torch.randn(PAIRS, *model.shape, generator=torch.Generator().manual_seed(3))
            steps = 18 if name == EDM_TEACHER else 32
            with torch.inference_mode():
                parts = [model.generate(steps=steps, noise=part) for part in noise.split(500)]
            torch.save({"x0": torch.cat(parts), "noise": noise}, file)
        return torch.load(file, weights_only=True)

    @cache  # noqa: B019 - one Bench lives as long as the program
    def _real(self) -> Tensor:
        return self.domain.features(self.domain.samples()[0]["x0"])

    def quality(self, name: str) -> dict[str, Any]:
        """Feature FID for every number of calls, and the seconds of training."""
        file = self.folder / "results" / f"{name.replace(' ', '-')}.json"
        if not file.is_file():
            model, row = self.model(name), self.domain.rows[name]
            found = {str(calls): self._distance(model, calls, row) for calls in row.calls}
            times = self.folder / name.replace(" ", "-") / "seconds.json"
            seconds = json.loads(times.read_text()) if times.is_file() else None
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"fid": found, "seconds": seconds}, indent=1))
        return json.loads(file.read_text())

    def _distance(self, model: DiffusionModel, calls: int, row: Row) -> float:
        made = samples(model, calls, COUNT, teacher=row.teacher is None)
        return digit_features.frechet(self.domain.features(made), self._real())


@torch.inference_mode()
def samples(model: DiffusionModel, steps: int, count: int, teacher: bool) -> Tensor:
    """Pictures of a student by so many calls; of a teacher by so many steps, Euler for one or two."""
    chosen = model.sampling
    if teacher and steps <= 2:
        chosen = Sampling("ode", steps, spacing=chosen.spacing, solver="euler")
    parts = [model.generate(250, steps=steps, seed=first, sampling=chosen) for first in range(0, count, 250)]
    return torch.cat(parts).clamp(-1, 1)


def report(bench: Bench, names: list[str]) -> str:
    """The table in Markdown."""
    _, held = bench.domain.samples()
    floor = digit_features.frechet(bench.domain.features(held), bench._real())
    lines = [
        "| model | family | calls | feature FID | training, CPU s |",
        "| --- | --- | --- | --- | --- |",
        f"| held-out pictures ({len(held):,}) | | 0 | {floor:.3f} | |",
    ]
    for name in names:
        row, found = bench.domain.rows[name], bench.quality(name)
        for steps, value in found["fid"].items():
            heun = name == EDM_TEACHER and int(steps) > 2
            calls = 2 * int(steps) - 1 if heun else int(steps)
            kind = f" ({steps} Heun steps)" if heun else ""
            seconds = "" if found["seconds"] is None else f"{found['seconds']:.0f}"
            lines.append(f"| {name}{kind} | {row.family} | {calls} | {value:.3f} | {seconds} |")
    return "\n".join(lines)


def picture(bench: Bench, names: list[str], file: File) -> None:
    """Sixteen samples of every model from the same noise: the teachers by 18 steps, students by one call."""
    strips = []
    for name in names:
        teacher = bench.domain.rows[name].teacher is None
        strips.append(grid_of(samples(bench.model(name), 18 if teacher else 1, 16, teacher)[:16]))
    gap = ((0, 0), (0, 4), (0, 0))
    wide = [np.pad(strip, gap[: strip.ndim], constant_values=255) for strip in strips]
    image = Image.fromarray(np.concatenate(wide, axis=1))
    image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domain", choices=["digits", "grey"])
    parser.add_argument("--data", type=File, help="the grey pictures")
    parser.add_argument("--rows", nargs="*", help="names of rows (default: all)")
    parser.add_argument("--report", action="store_true", help="only print what has been measured")
    parser.add_argument("--write", action="store_true", help="put the table into the documentation")
    parser.add_argument("--picture", type=File, help="write samples of the rows to this PNG file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.domain == "grey" and arguments.data is None:
        parser.error("grey needs --data")
    bench = Bench(arguments.domain, _digits() if arguments.domain == "digits" else _grey(arguments.data))
    names = arguments.rows or list(bench.domain.rows)
    if arguments.report:
        done = {file.stem for file in (bench.folder / "results").glob("*.json")}
        names = [name for name in names if name.replace(" ", "-") in done]
    for name in names:
        print(name, bench.quality(name), flush=True)
    table = report(bench, names)
    print(table)
    if arguments.write:
        command = (
            f"<!-- {arguments.domain}: python -m tests.bench.bench_distill_images {arguments.domain} -->"
        )
        write_between(PAGE, table, (command, f"<!-- end of {arguments.domain} -->"))
    if arguments.picture:
        picture(bench, names, arguments.picture)


if __name__ == "__main__":
    main()
