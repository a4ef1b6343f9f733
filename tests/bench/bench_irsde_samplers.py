"""How many network calls the samplers of an IR-SDE model need: quality by rule and number of calls.

    python -m tests.bench.bench_irsde_samplers MODEL --data FOLDER [--degradation rain] [--crops 8]
        [--side 160] [--rules mrs-2 ir-posterior] [--calls 5 10 20 50 100] [--grid linspace] [--repeats 1]
        [--json FILE]

MODEL is a shipped name or a folder. From the middle of each of the first photographs of FOLDER a square is
cut and degraded, the k-th with the k-th seed. All rules begin with the same noise. A cell is PSNR in dB and
SSIM, both of RGB in 8 bit, and sharpness (mean gradient beside the truth's: below 1 is softer). Rules:
"ir-posterior" and "ir-sde" (Euler's) are the published ones of IR-SDE, "ir-ode" that of Refusion, "mrs-…"
MR-sampler's. Without FOLDER the photographs that ship with scikit-image are taken.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import skimage
import torch

from fewstep.core.grids.mean_reverting import SCHEDULES
from fewstep.restoration.data import list_images, read_rgb, to_signed
from fewstep.restoration.degradations import DEGRADATIONS, degradation
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.irsde_config import RULES
from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.metrics import score, sharpness

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
CALLS = (5, 10, 20, 50, 100)
# What makes the inputs of a task, where nothing else is said.
USUAL = {"derain": "rain", "denoise": "noise", "low-light": "low_light", "jpeg": "jpeg", "inpaint": "mask"}
REFERENCE, FEW = "ir-posterior", "mrs-2"


@dataclass(frozen=True)
class Quality:
    """Mean scores of restored images.

    Args:
        psnr: in dB.
        ssim: structural similarity.
        sharpness: mean gradient, relative to the truth's.
    """

    psnr: float
    ssim: float
    sharpness: float

    def __str__(self) -> str:
        return f"{self.psnr:.2f} / {self.ssim:.4f} / {self.sharpness:.3f}"


@dataclass(frozen=True)
class Cases:
    """Photographs and what was made of them.

    Args:
        truth: (n, side, side, 3) uint8.
        lq: the degraded ones.
        masks: (n, 1, side, side), 1 where unknown; None where nothing is.
    """

    truth: np.ndarray
    lq: np.ndarray
    masks: torch.Tensor | None

    @classmethod
    def cut(cls, files: Sequence[Path], side: int, name: str, scale: int = 1) -> "Cases":
        """The middles of photographs, degraded.

        Raises:
            ValueError: no photograph is as large as a cut, or the model enlarges.
        """
        if scale != 1:
            raise ValueError(f"the model enlarges {scale} times; only tasks that keep the size are measured")
        middles = [middle for file in files if (middle := _middle(read_rgb(file), side)) is not None]
        if not middles:
            raise ValueError(f"--side: no photograph is as large as {side} pixels")
        degrade = degradation(name)
        made = [degrade(image, np.random.default_rng(index)) for index, image in enumerate(middles)]
        masks = [torch.from_numpy(bad.mask)[None].float() for bad in made if bad.mask is not None]
        return cls(
            np.stack(middles), np.stack([bad.lq for bad in made]), torch.stack(masks) if masks else None
        )

    def quality(self, made: np.ndarray) -> Quality:
        """Scores of restored images beside the truth."""
        rows = []
        for image, truth in zip(made, self.truth, strict=True):
            found = score(image, truth, "rgb")
            rows.append((found.psnr, found.ssim, sharpness(image, truth)))
        return Quality(*np.mean(rows, axis=0).tolist())


def _middle(image: np.ndarray, side: int) -> np.ndarray | None:
    """The square in the middle, or None where the image is too small."""
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side] if min(top, left) >= 0 else None


@torch.inference_mode()
def restored(model: IRSDE, cases: Cases, rule: str | None, calls: int | None, seed: int) -> np.ndarray:
    """All images in one batch, (n, side, side, 3) uint8; without a rule by one call, the mean."""
    made = model.restore(
        to_signed(cases.lq),
        mode="mean" if rule is None else "sample",
        mask=cases.masks if "mask" in model.takes else None,
        solver=rule,
        steps=calls,
        seed=seed,
    )
    return made.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def mean_of(qualities: Sequence[Quality]) -> Quality:
    """The mean over repeats."""
    rows = [(each.psnr, each.ssim, each.sharpness) for each in qualities]
    return Quality(*np.mean(rows, axis=0).tolist())


def measure(
    model: IRSDE, cases: Cases, rules: Sequence[str], calls: Sequence[int], repeats: int = 1
) -> dict[str, dict[str, Quality]]:
    """Scores by rule and number of calls.

    Args:
        model: what is measured.
        cases: on what.
        rules: of `RULES`.
        calls: numbers of network calls.
        repeats: seeds that are averaged, each with another noise.

    Returns:
        {rule: {calls: scores}}; also "input", and "mean" where one call gives it, both under "1".
    """
    results = {"input": {"1": cases.quality(cases.lq)}}
    if model.config.prediction != "eps":
        results["mean"] = {"1": cases.quality(restored(model, cases, None, None, 0))}
    for rule in rules:
        results[rule] = {}
        for count in calls:
            seeds = range(0, repeats * len(cases.truth), len(cases.truth))
            results[rule][str(count)] = mean_of(
                [cases.quality(restored(model, cases, rule, count, seed)) for seed in seeds]
            )
    return results


def table(results: dict[str, dict[str, Quality]], calls: Sequence[int]) -> str:
    """The results as a Markdown table, a row for each rule."""
    names = [str(count) for count in calls]
    lines = [
        "PSNR dB / SSIM / sharpness by number of network calls:",
        "",
        f"| rule | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
    ]
    for rule, row in results.items():
        if rule in ("input", "mean"):
            cells = [str(row["1"])] + [""] * (len(names) - 1)
            lines.append(f"| {'mean, 1 call' if rule == 'mean' else rule} | {' | '.join(cells)} |")
        else:
            lines.append(f"| {rule} | {' | '.join(str(row[name]) for name in names)} |")
    return "\n".join(lines)


def verdict(results: dict[str, dict[str, Quality]], calls: Sequence[int]) -> str:
    """How far MR-sampler's results are from those of the most calls of the published rule."""
    most = str(max(calls))
    if not {REFERENCE, FEW} <= set(results):
        return ""
    wanted = results[REFERENCE][most]
    lines = [f"{FEW} beside {REFERENCE} with {most} calls:"]
    for count in calls:
        found = results[FEW][str(count)]
        lines.append(
            f"  {count} calls: {found.psnr - wanted.psnr:+.2f} dB, SSIM {found.ssim - wanted.ssim:+.4f}"
        )
    return "\n".join(lines)


def files_of(data: Path | None, count: int) -> list[Path]:
    """The photographs."""
    if data is None:
        return [Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS[:count]]
    return list_images(data)[:count]


def load(name: str, grid: str | None) -> IRSDE:
    """An IR-SDE model, perhaps with another grid of MR-sampler.

    Raises:
        ValueError: a model of another method.
    """
    model = load_model(name)
    if not isinstance(model, IRSDE):
        raise ValueError(f"MODEL: {name} is a {type(model).__name__}, not an IRSDE")
    model.config = model.config if grid is None else replace(model.config, grid=grid)
    return model.eval()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="shipped name or folder")
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--degradation", choices=DEGRADATIONS, help="(default: the task's)")
    parser.add_argument("--crops", type=int, default=8, help="photographs that are cut")
    parser.add_argument("--side", type=int, default=160, help="of a cut, pixels")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--grid", choices=SCHEDULES, help="times of MR-sampler (default: the model's)")
    parser.add_argument("--repeats", type=int, default=1, help="seeds that are averaged")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model, arguments.grid)
    name = arguments.degradation or USUAL[model.tasks[0]]
    cases = Cases.cut(files_of(arguments.data, arguments.crops), arguments.side, name, model.scale)
    results = measure(model, cases, arguments.rules, arguments.calls, arguments.repeats)
    print(table(results, arguments.calls))
    print("\n" + verdict(results, arguments.calls))
    if arguments.json:
        figures = {rule: {n: vars(q) for n, q in row.items()} for rule, row in results.items()}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
