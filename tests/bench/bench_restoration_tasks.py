"""Quality of the shipped models of denoising, rain, low light, JPEG and inpainting beside classical tools.

    python -m tests.bench.bench_restoration_tasks --data FOLDER [--tasks denoise jpeg] [--json FILE]

FOLDER holds the photographs: bsd100, kodak, and polyu/test/noisy with polyu/test/clean. Without it the
photographs that ship with scikit-image are measured. Inputs are made by fewstep.restoration.degradations, the
k-th photograph with the k-th seed; PSNR and SSIM are of RGB in 8 bit, without a border left out. Rows of
OpenCV need opencv-python-headless and are left out without it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import skimage
import torch
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from fewstep.core.checkpoints import shipped
from fewstep.restoration import Restorer
from fewstep.restoration.data import list_images, read_rgb
from fewstep.restoration.degradations import Degradation, Degraded, degradation
from fewstep.restoration.images import Picture
from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.metrics import score, sharpness
from fewstep.restoration.quality import estimate_level

try:
    import cv2  # pyright: ignore[reportMissingImports]
except ImportError:
    cv2 = None

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
Tool = Callable[[Degraded], np.ndarray]


HEAD = "| input | set | by | PSNR dB | SSIM | sharpness | s per megapixel |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Case:
    """Photographs under one degradation, and the tools that are tried on them.

    Args:
        task: of `fewstep.restoration.tasks`.
        model: shipped name.
        degrade: makes the input (None: real pairs).
        folders: sets of photographs.
        tools: classical methods by name.
        count: photographs of a set, from the first.
        told: the noise level is told.
    """

    task: str
    model: str
    degrade: Degradation | None
    folders: tuple[str, ...]
    tools: Mapping[str, Tool]
    count: int = 60
    told: bool = False


def nlm(bad: Degraded, level: float | None = None) -> np.ndarray:
    """Non-local means of scikit-image, patches of 5 within 6 pixels, h = 0.6 sigma, as is usual."""
    image = bad.lq / 255.0
    sigma = (level or bad.level or estimate_level(Picture(bad.lq))) / 255
    made = denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return to_bytes(made * 255)


def tv(weight: float, bad: Degraded) -> np.ndarray:
    """Total variation."""
    return to_bytes(255 * denoise_tv_chambolle(bad.lq / 255.0, weight=weight, channel_axis=-1))


def opencv_nlm(bad: Degraded) -> np.ndarray:
    """Non-local means of OpenCV, h = sigma."""
    h = 10.0 if bad.level is None else float(bad.level)
    return cv2.fastNlMeansDenoisingColored(bad.lq, None, h, h, 7, 21)  # type: ignore[union-attr]


def inpainted(rule: str, bad: Degraded) -> np.ndarray:
    """Inpainting of OpenCV, radius 3."""
    assert cv2 is not None
    assert bad.mask is not None
    return cv2.inpaint(bad.lq, bad.mask.astype(np.uint8) * 255, 3, getattr(cv2, f"INPAINT_{rule}"))


def opened(bad: Degraded) -> np.ndarray:
    """Morphological opening by a row of five pixels, which removes thin bright streaks."""
    return ndimage.grey_opening(bad.lq, size=(1, 5, 1))


def gamma(bad: Degraded) -> np.ndarray:
    """The power that brings the mean to 0.45."""
    image = bad.lq / 255.0
    low, high = 0.05, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if (image**middle).mean() > 0.45 else (low, middle)
    return to_bytes(255 * image**low)


def gained(bad: Degraded) -> np.ndarray:
    """The factor that brings the mean to 115."""
    return to_bytes(bad.lq * (115 / max(bad.lq.mean(), 1.0)))


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Clipped and rounded to 8 bit."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def cases() -> dict[str, Case]:
    """Everything that is measured."""
    found = {}
    with_cv2 = cv2 is not None
    for level, weight in ((15, 0.06), (25, 0.10), (50, 0.18)):
        tools: dict[str, Tool] = {"NLM, scikit-image": nlm, f"TV {weight}": partial(tv, weight)}
        tools |= {"NLM, OpenCV": opencv_nlm} if with_cv2 else {}
        made = degradation("noise", low=float(level), high=float(level))
        found[f"noise {level}"] = Case("denoise", "rddm-denoise", made, ("bsd100", "kodak"), tools, told=True)
    # The noise is correlated, which no estimate from fine detail sees: 5 is the best of 3, 5, 7 and 10 on the
    # validation pairs.
    real: dict[str, Tool] = {
        "NLM of sigma 5": partial(nlm, level=5.0),
        "TV 0.02": partial(tv, 0.02),
    }
    found["camera noise"] = Case("denoise", "rddm-denoise", None, ("polyu/test",), real)
    found["rain"] = Case(
        "derain", "irsde-derain", degradation("rain"), ("bsd100",), {"opening 1×5": opened}, 12
    )
    dark: dict[str, Tool] = {"gamma to mean 0.45": gamma, "gain to mean 115": gained}
    found["low light"] = Case("low-light", "rddm-low-light", degradation("low_light"), ("bsd100",), dark, 20)
    for quality in (10, 20, 40):
        made = degradation("jpeg", low=quality, high=quality)
        found[f"JPEG {quality}"] = Case(
            "jpeg", "rddm-jpeg", made, ("bsd100", "kodak"), {"TV 0.02": partial(tv, 0.02)}
        )
    lines = degradation("mask", kinds=("lines",), lines=(12, 12))
    fills = {rule: partial(inpainted, rule) for rule in ("TELEA", "NS")} if with_cv2 else {}
    found["12 lines"] = Case("inpaint", "rddm-inpaint", lines, ("bsd100", "kodak"), fills)
    return found


def photographs(case: Case, data: Path | None) -> Iterator[tuple[str, np.ndarray, Degraded]]:
    """(set, truth, input) of a case."""
    if case.degrade is None:
        if data is None:
            return
        good = list_images(data / case.folders[0] / "clean")
        bad = list_images(data / case.folders[0] / "noisy")
        for clean, noisy in zip(good, bad, strict=True):
            yield case.folders[0], read_rgb(clean), Degraded(read_rgb(noisy))
        return
    home = Path(skimage.__file__).parent / "data"
    sets = (
        {"scikit-image": [home / name for name in PHOTOGRAPHS]}
        if data is None
        else {name: list_images(data / name)[: case.count] for name in case.folders}
    )
    for name, files in sets.items():
        for index, file in enumerate(files):
            truth = read_rgb(file)
            yield name, truth, case.degrade(truth, np.random.default_rng(index))


def restored(restorer: Restorer, mode: str, told: bool, bad: Degraded) -> np.ndarray:
    """By our model."""
    level = bad.level if told else None
    return np.asarray(restorer(bad.lq, mode=mode, level=level, mask=bad.mask, seed=0).pixels)


def contenders(case: Case, models: Mapping[str, str]) -> dict[str, str]:
    """Our models by name: the task's own, if it ships or was given, and further ones given for the task."""
    found = {case.model: case.model} if case.model in shipped("fewstep.restoration") else {}
    for name, source in models.items():
        if name == case.model or case.task in load_model(source).tasks:
            found[name] = source
    return found


def measure(
    case: Case, data: Path | None, models: Mapping[str, str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean metrics by set and tool."""
    tools: dict[str, Tool] = {"input": lambda bad: bad.lq, **case.tools}
    for name, source in contenders(case, models).items():
        restorer = Restorer.from_pretrained(source, device="cpu")
        for mode in restorer.modes:
            tools[f"{name}, {mode}"] = partial(restored, restorer, mode, False)
            if case.told and mode == "faithful":
                tools[f"{name}, {mode}, level told"] = partial(restored, restorer, mode, True)
    rows: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for group, truth, bad in photographs(case, data):
        for tool, run in tools.items():
            start = time.perf_counter()
            made = run(bad)
            seconds = (time.perf_counter() - start) / (truth.shape[0] * truth.shape[1] / 1e6)
            quality = score(made, truth, "rgb")
            row = (quality.psnr, quality.ssim, sharpness(made, truth), seconds)
            rows.setdefault(group, {}).setdefault(tool, []).append(row)
    names = ("psnr", "ssim", "sharpness", "seconds_per_megapixel")
    return {
        group: {tool: _means(names, values) for tool, values in made.items()} for group, made in rows.items()
    }


def _means(names: tuple[str, ...], values: list[tuple[float, ...]]) -> dict[str, float]:
    return dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))


def rows_of(case: str, sets: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures of a case as rows of a Markdown table."""
    return "\n".join(
        f"| {case} | {group} | {tool} | {row['psnr']:.2f} | {row['ssim']:.4f} "
        f"| {row['sharpness']:.3f} | {row['seconds_per_megapixel']:.2f} |"
        for group, tools in sets.items()
        for tool, row in tools.items()
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one folder of photographs per set")
    parser.add_argument("--tasks", nargs="*", help="tasks (default: all)")
    parser.add_argument("--inputs", nargs="*", help="inputs, such as 'noise 25' (default: all)")
    parser.add_argument("--model", nargs="*", default=[], help="NAME=FOLDER in place of a shipped model")
    parser.add_argument("--count", type=int, default=60, help="photographs of a set at most")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = dict(part.split("=", 1) for part in arguments.model)
    print(HEAD)
    results = {}
    for name, case in cases().items():
        if arguments.tasks and case.task not in arguments.tasks:
            continue
        if arguments.inputs and name not in arguments.inputs:
            continue
        few = replace(case, count=min(case.count, arguments.count))
        results[name] = measure(few, arguments.data, models)
        print(rows_of(name, results[name]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
