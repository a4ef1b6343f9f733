"""Make the pictures of docs/restoration.md: `python -m tools.restoration_pictures`.

One picture per task in docs/assets/restoration: input, the strongest classical tool, ours, truth, on
photographs of scikit-image, which no model was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, inpaint_biharmonic
from tests.bench.bench_compressed_sensing import total_variation as rebuilt_by_tv

from fewstep.core.checkpoints import shipped
from fewstep.restoration import Restorer
from fewstep.restoration.degradations import Degraded, degradation
from fewstep.restoration.exposure import exposed
from fewstep.restoration.images import Picture
from fewstep.restoration.methods.idm import IDM
from fewstep.restoration.quality import estimate_level

from .pictures import _crop

ASSETS = Path(__file__).parents[1] / "docs" / "assets" / "restoration"
Classical = Callable[[Degraded], np.ndarray]


@dataclass(frozen=True)
class Example:
    """One row of pictures.

    Args:
        model: shipped name.
        photo: clean.
        degrade: by name, with its fields.
        classical: caption and tool.
        left, top: of the crop.
    """

    model: str
    photo: np.ndarray
    degrade: tuple[str, dict]
    classical: tuple[str, Classical]
    left: int
    top: int


def nlm(bad: Degraded) -> np.ndarray:
    """Non-local means with the estimated noise."""
    image = bad.lq / 255.0
    sigma = estimate_level(Picture(bad.lq)) / 255
    made = denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, channel_axis=2, fast_mode=True
    )
    return _bytes(made)


def total_variation(bad: Degraded) -> np.ndarray:
    """Total variation of weight 0.02."""
    return _bytes(denoise_tv_chambolle(bad.lq / 255.0, weight=0.02, channel_axis=2))


def opening(bad: Degraded) -> np.ndarray:
    """Morphological opening by a row of five pixels."""
    return ndimage.grey_opening(bad.lq, size=(1, 5, 1))


def gamma(bad: Degraded) -> np.ndarray:
    """The power that brings the mean to 0.45."""
    return exposed(bad.lq, 0.45)


def biharmonic(bad: Degraded) -> np.ndarray:
    """Biharmonic equation."""
    return _bytes(inpaint_biharmonic(bad.lq / 255.0, bad.mask, channel_axis=2))


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def examples() -> dict[str, Example]:
    """What is shown."""
    cat, woman, coffee = (getattr(skimage.data, name)() for name in ("chelsea", "astronaut", "coffee"))
    rocket = skimage.data.rocket()
    lines = {"kinds": ["lines"], "lines": [12, 12]}
    return {
        "denoise": Example(
            "rddm-denoise", cat, ("noise", {"low": 25.0, "high": 25.0}), ("NLM", nlm), 110, 80
        ),
        "derain": Example("irsde-derain", coffee, ("rain", {}), ("opening", opening), 150, 90),
        "jpeg": Example(
            "rddm-jpeg", woman, ("jpeg", {"low": 15, "high": 15}), ("TV", total_variation), 170, 60
        ),
        "low-light": Example("rddm-low-light", rocket, ("low_light", {}), ("gamma", gamma), 270, 120),
        "inpaint": Example("rddm-inpaint", woman, ("mask", lines), ("biharmonic", biharmonic), 170, 60),
    }


def row(example: Example) -> np.ndarray:
    """Input, classical, one call, few calls, truth."""
    name, fields = example.degrade
    bad = degradation(name, **fields)(example.photo, np.random.default_rng(3))
    restorer = Restorer.from_pretrained(example.model, device="cpu")
    caption, tool = example.classical
    shown = {"input": bad.lq, caption: tool(bad)}
    for mode in restorer.modes:
        calls = restorer(bad.lq[:8, :8], mode=mode, mask=None if bad.mask is None else _corner()).calls
        label = f"{mode}, {calls} call{'s' * (calls > 1)}"
        shown[label] = np.asarray(restorer(bad.lq, mode=mode, mask=bad.mask).image)
    shown["truth"] = example.photo
    return np.concatenate(
        [_crop(picture, example.left, example.top, text, 104) for text, picture in shown.items()], axis=1
    )


def sensed() -> np.ndarray:
    """Luma rebuilt from a quarter and a tenth as many measurements as pixels, by total variation and IDM."""
    truth = np.asarray(Image.fromarray(skimage.data.astronaut()).convert("L"))[:256, 96:352]
    plane = torch.from_numpy(truth.astype(np.float32) / 255)[None, None]
    shown = {}
    for name in ("idm-25", "idm-10"):
        model = IDM.from_pretrained(name).eval()
        share = f"{100 * model.config.ratio:.0f} %"
        with torch.inference_mode():
            taken = model.measure(plane)
            fista = torch.from_numpy(rebuilt_by_tv(taken))
            ours = model.reconstruct(taken)[0, 0]
        shown[f"TV, {share}"], shown[f"{name}, {model.steps_of('sample')} calls"] = fista, ours
    pictures = {text: _bytes(made.float().numpy()) for text, made in shown.items()} | {"truth": truth}
    return np.concatenate(
        [_crop(np.stack([made] * 3, -1), 80, 60, text, 104) for text, made in pictures.items()], axis=1
    )


def _corner() -> np.ndarray:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    return mask


def main() -> None:
    """Write every picture whose model ships, and say where."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    there = shipped("fewstep.restoration")
    for name, example in examples().items():
        if example.model in there:
            Image.fromarray(row(example)).save(ASSETS / f"{name}.webp", quality=86)
            print(ASSETS / f"{name}.webp")
    Image.fromarray(sensed()).save(ASSETS / "compressed-sensing.webp", quality=86)
    print(ASSETS / "compressed-sensing.webp")


if __name__ == "__main__":
    main()
