"""The demo's other tasks: a degraded crop, the strongest classical tool, ours and the truth, with PSNR."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from tests.bench.bench_compressed_sensing import total_variation
from tools.restoration_pictures import Example, examples

from fewstep.core.checkpoints import shipped
from fewstep.restoration import Restorer
from fewstep.restoration.compressed_sensing import Measurement
from fewstep.restoration.data import to_signed
from fewstep.restoration.degradations import degradation
from fewstep.restoration.methods.idm import IDM, from_planes, to_planes
from fewstep.restoration.metrics import score
from fewstep.restoration.settings import AUTO

from .page import Picture, card, strip

SIDE = 160
SENSING = "idm-25"
WORDS = {
    "denoise": ("Noise", "Normal noise of standard deviation 25; both tools estimate how much it is."),
    "derain": ("Rain", "Streaks of rain drawn over the photograph."),
    "jpeg": ("JPEG artefacts", "Stored as JPEG of quality 15."),
    "low-light": ("Darkness", "A dark exposure with the noise of a small sensor."),
    "inpaint": ("Scratches", "Lines whose pixels are lost; where they are is known."),
}


def cards(folder: Path, say: Callable[[str], None]) -> list[str]:
    """A card for every task whose model ships.

    Args:
        folder: the page's folder; files go to its subfolder "restoration".
        say: prints a line of progress.
    """
    there = shipped("fewstep.restoration")
    made = []
    for task, example in examples().items():
        if example.model in there:
            title, words = WORDS[task]
            made.append(
                _card(task, title, f"{words} Ours: {example.model}.", _degraded(example), folder, say)
            )
    if SENSING in there:
        words = (
            "A quarter as many measurements as pixels, each a random mixture of 1024 of them; beside it what "
            f"total variation and {SENSING} rebuild."
        )
        made.append(_card("sensing", "Compressed sensing", words, _sensed(), folder, say))
    return made


def _degraded(example: Example) -> dict[str, np.ndarray]:
    """Pictures of a crop by what they are; the truth is last."""
    name, fields = example.degrade
    whole = degradation(name, **fields)(example.photo, np.random.default_rng(3))
    window = np.s_[example.top : example.top + SIDE, example.left : example.left + SIDE]
    bad = replace(whole, lq=whole.lq[window], mask=None if whole.mask is None else whole.mask[window])
    caption, tool = example.classical
    pictures = {"input": bad.lq, caption: tool(bad)}
    restorer = Restorer.from_pretrained(example.model)
    level = AUTO if "level" in restorer.model.takes else None
    for mode in restorer.modes:
        result = restorer(bad.lq, mode=mode, mask=bad.mask, level=level)
        pictures[_named(mode, result.calls)] = np.asarray(result.image)
    return {**pictures, "truth": example.photo[window]}


@torch.inference_mode()
def _sensed() -> dict[str, np.ndarray]:
    """The same for a crop that is measured and rebuilt."""
    truth = skimage.data.chelsea()[80 : 80 + SIDE, 110 : 110 + SIDE]
    model = IDM.from_pretrained(SENSING).eval()
    planes = to_planes(to_signed(truth[None]))
    taken = model.measure(planes)

    def rebuilt(tool: Callable[[Measurement], torch.Tensor]) -> np.ndarray:
        each = (replace(taken, values=taken.values[:, plane : plane + 1]) for plane in range(3))
        return _bytes(from_planes(torch.cat([tool(one) for one in each], 1)))

    # In grey: without what mixes them, colours are far from the middle.
    blind = taken.sensing.adjoint(taken.values)[:, :1]
    return {
        "measurements, turned back": _bytes(2 * blind.expand(-1, 3, -1, -1) - 1),
        "total variation": rebuilt(lambda one: torch.from_numpy(total_variation(one))[None, None]),
        _named("detailed", model.steps_of("sample")): rebuilt(model.reconstruct),
        "truth": truth,
    }


def _card(
    task: str,
    title: str,
    words: str,
    pictures: dict[str, np.ndarray],
    folder: Path,
    say: Callable[[str], None],
) -> str:
    truth, shown, figures = pictures["truth"], [], []
    for number, (name, picture) in enumerate(pictures.items()):
        file = f"restoration/{task}-{number}.png"
        Image.fromarray(picture).save(folder / file)
        if picture is not truth:
            figures.append(f"{name}: {score(picture, truth, 'rgb').psnr:.1f} dB")
        shown.append(Picture(file, name if picture is truth else figures[-1]))
    say(f"{task}: {'; '.join(figures)}")
    return card(title, words, strip(shown))


def _named(mode: str, calls: int) -> str:
    return f"{mode}, {calls} call{'s' * (calls > 1)}"


def _bytes(image: torch.Tensor) -> np.ndarray:
    """The first image in [-1, 1] as (height, width, 3) uint8."""
    return image[0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
