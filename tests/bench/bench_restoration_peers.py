"""Tools of other libraries and our shipped models on the same degraded photographs: quality and seconds.

    python -m tests.bench.bench_restoration_peers FOLDER [--count 3] [--crop 256] [--tasks …] [--json FILE]

FOLDER holds photographs; the middle of the first few is degraded as in `bench_restoration_tasks`, the k-th
with the k-th seed, and given to scikit-image, OpenCV (opencv-python-headless), Pillow, deepinv and the model
that ships for the task, in both of its modes. A library that is not installed is left out, which is printed.
PSNR and SSIM are of RGB in 8 bit, without a border left out; seconds are of one processor thread. Parameters
are the libraries' defaults or usual ones, not searched.

deepinv's learned methods (DRUNet, DDRM, DiffPIR …) need weights that it downloads. What needs none is here:
its denoiser by total variation, and DRUNet with random weights for its cost only.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import equalize_adapthist
from skimage.restoration import denoise_wavelet, inpaint_biharmonic

from fewstep.restoration import Restorer
from fewstep.restoration.data import list_images, read_rgb, reduce_image
from fewstep.restoration.degradations import Degraded
from fewstep.restoration.metrics import score, sharpness
from fewstep.restoration.tasks import TASKS

from . import bench_restoration_tasks as tasks

Tool = Callable[[Degraded], np.ndarray]
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3, "Lanczos": 1}


def module(name: str, package: str) -> Any:
    """A library, or None with a printed reason."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {package} ({error})")
        return None


def wavelet(rule: str, bad: Degraded) -> np.ndarray:
    """Wavelet thresholds of scikit-image in YCbCr, noise estimated where it is not told."""
    sigma = None if bad.level is None else float(bad.level) / 255
    made = denoise_wavelet(
        bad.lq / 255.0, sigma=sigma, method=rule, mode="soft", convert2ycbcr=True, channel_axis=-1
    )
    return tasks.to_bytes(255 * made)


def biharmonic(bad: Degraded) -> np.ndarray:
    """Inpainting of scikit-image by biharmonic equations."""
    assert bad.mask is not None
    return tasks.to_bytes(255 * inpaint_biharmonic(bad.lq / 255.0, bad.mask.astype(bool), channel_axis=-1))


def clahe(bad: Degraded) -> np.ndarray:
    """Contrast-limited adaptive histograms of the lightness, by scikit-image."""
    lab = rgb2lab(bad.lq)
    lab[..., 0] = 100 * equalize_adapthist(lab[..., 0] / 100, clip_limit=0.02)
    return tasks.to_bytes(255 * lab2rgb(lab))


def opencv_inpainted(cv2: Any, rule: str, bad: Degraded) -> np.ndarray:
    """Inpainting of OpenCV, radius 3."""
    assert bad.mask is not None
    return cv2.inpaint(bad.lq, bad.mask.astype(np.uint8) * 255, 3, getattr(cv2, f"INPAINT_{rule}"))


def opencv_nlm(cv2: Any, bad: Degraded) -> np.ndarray:
    """Non-local means of OpenCV, h = sigma."""
    h = 10.0 if bad.level is None else float(bad.level)
    return cv2.fastNlMeansDenoisingColored(bad.lq, None, h, h, 7, 21)


def enlarged(rule: str, scale: int, bad: Degraded) -> np.ndarray:
    """Enlargement by Pillow."""
    height, width = bad.lq.shape[:2]
    size = (scale * width, scale * height)
    return np.asarray(Image.fromarray(bad.lq).resize(size, Image.Resampling(FILTERS[rule])))


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """(h, w, 3) of bytes to (1, 3, h, w) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def tensor_to_image(x: torch.Tensor) -> np.ndarray:
    """The way back."""
    return tasks.to_bytes(255 * x[0].permute(1, 2, 0).detach().numpy())


def deepinv_tv(deepinv: Any, bad: Degraded) -> np.ndarray:
    """deepinv's denoiser by total variation, at most 200 iterations, threshold 0.8 sigma."""
    denoiser = deepinv.models.TVDenoiser(n_it_max=200)
    sigma = 25.0 if bad.level is None else float(bad.level)
    return tensor_to_image(denoiser(image_to_tensor(bad.lq), ths=0.8 * sigma / 255))


@torch.no_grad()
def deepinv_drunet(deepinv: Any, bad: Degraded) -> np.ndarray:
    """deepinv's DRUNet with random weights: one call, for its cost."""
    network = deepinv.models.DRUNet(pretrained=None)
    sigma = 25.0 if bad.level is None else float(bad.level)
    return tensor_to_image(network(image_to_tensor(bad.lq), sigma / 255))


def ours(model: str) -> dict[str, Tool]:
    """A shipped model in each of its modes."""
    restorer = Restorer.from_pretrained(model, device="cpu")
    return {f"{model}, {mode}": partial(tasks.restored, restorer, mode, False) for mode in restorer.modes}


def tools_of(name: str, task: str) -> Mapping[str, Tool]:
    """The libraries' tools for a task, beside those of `bench_restoration_tasks`."""
    cv2, deepinv = LIBRARIES["cv2"], LIBRARIES["deepinv"]
    found: dict[str, Tool] = {}
    if task == "denoise":
        found |= {"wavelets (BayesShrink), scikit-image": partial(wavelet, "BayesShrink")}
        found |= {"wavelets (VisuShrink), scikit-image": partial(wavelet, "VisuShrink")}
        found |= {"NLM, OpenCV": partial(opencv_nlm, cv2)} if cv2 else {}
        found |= {"TV, deepinv": partial(deepinv_tv, deepinv)} if deepinv else {}
        if deepinv and name == "noise 25":
            found["DRUNet, deepinv, random weights (cost only)"] = partial(deepinv_drunet, deepinv)
    elif task == "inpaint":
        found["biharmonic, scikit-image"] = biharmonic
        for rule in ("TELEA", "NS") if cv2 else ():
            found[f"{rule}, OpenCV"] = partial(opencv_inpainted, cv2, rule)
    elif task == "low-light":
        found["CLAHE, scikit-image"] = clahe
    return found


LIBRARIES: dict[str, Any] = {}


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle."""
    top, left = (max(0, (n - side) // 2) for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def inputs(truths: list[np.ndarray], wanted: list[str]) -> dict[str, tuple[dict[str, Tool], list[Degraded]]]:
    """Every case: its tools and degraded photographs."""
    found: dict[str, tuple[dict[str, Tool], list[Degraded]]] = {}
    for name, case in tasks.cases().items():
        if case.degrade is None or (wanted and case.task not in wanted):
            continue
        bad = [case.degrade(truth, np.random.default_rng(k)) for k, truth in enumerate(truths)]
        others = {"input": lambda bad: bad.lq, **case.tools, **tools_of(name, case.task)}
        found[name] = others | ours(case.model), bad
    for scale in (2, 4) if not wanted or "super-resolution" in wanted else ():
        reduced = [Degraded(reduce_image(truth, scale)) for truth in truths]
        found[f"×{scale}"] = {f"{rule}, Pillow": partial(enlarged, rule, scale) for rule in FILTERS}, reduced
        if scale == 4:
            found["×4"][0].update(ours(TASKS["super-resolution"].model))
    return found


def measure(tool: Tool, bad: list[Degraded], truths: list[np.ndarray]) -> dict[str, float] | str:
    """Mean metrics of a tool, or why it fails."""
    rows = []
    for given, truth in zip(bad, truths, strict=True):
        start = time.process_time()
        try:
            made = tool(given)
        except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        seconds = (time.process_time() - start) / (truth.shape[0] * truth.shape[1] / 1e6)
        quality = score(made, truth, "rgb")
        rows.append((quality.psnr, quality.ssim, sharpness(made, truth), seconds))
    names = ("psnr", "ssim", "sharpness", "seconds_per_megapixel")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--crop", type=int, default=256, help="side of what is used of each photograph")
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks (default: all)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    LIBRARIES["cv2"] = module("cv2", "OpenCV")
    LIBRARIES["deepinv"] = module("deepinv", "deepinv")
    if LIBRARIES["cv2"]:
        LIBRARIES["cv2"].setNumThreads(1)
    truths = [middle(read_rgb(file), given.crop) for file in list_images(given.folder)[: given.count]]
    results: dict[str, dict[str, Any]] = {}
    print("| input | by | PSNR dB | SSIM | sharpness | s per megapixel |\n|---|---|---|---|---|---|")
    for name, (tools, bad) in inputs(truths, given.tasks).items():
        for tool, run in tools.items():
            row = results.setdefault(name, {})[tool] = measure(run, bad, truths)
            cells = row if isinstance(row, str) else " | ".join(f"{value:.3f}" for value in row.values())
            print(f"| {name} | {tool} | {cells} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
