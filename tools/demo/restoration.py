"""The demo's photographs, which ship with scikit-image: enlarged ×4, and a row of every other task."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from fewstep.restoration import Restored, Restorer
from fewstep.restoration.data import reduce_image
from fewstep.restoration.metrics import score, sharpness
from fewstep.restoration.resize import imresize

from . import tasks
from .page import Column, Picture, Row, card, paragraph, slider, strip, table

TITLE = "Photographs, enlarged and restored"
SCALE = 4
SHOWN = 1280
COST = (Column("seconds", 2), Column("network calls", 0))
COLUMNS = (
    Column("PSNR Y (dB)", 2, larger_is_better=True),
    Column("SSIM Y", 4, larger_is_better=True),
    Column("PSNR RGB (dB)", 2, larger_is_better=True),
    Column("sharpness", 2),
    *COST,
)


@dataclass(frozen=True)
class Photo:
    """A photograph and the square (left, top, side in pixels of the large picture) shown enlarged."""

    name: str
    crop: tuple[int, int, int]
    words: str


REDUCED = (
    Photo("astronaut", (170, 60, 112), "A portrait with hair, skin, stitched cloth and small letters."),
    Photo("chelsea", (110, 80, 112), "A cat: fur, whiskers and two sharp eyes."),
    Photo("coffee", (330, 230, 112), "Smooth china against coarse wood."),
)
AS_IT_IS = Photo(
    "rocket", (1180, 700, 240), "A JPEG photograph as it was published, 640 × 427; nobody knows the truth."
)


def section(folder: Path, say: Callable[[str], None], model: str) -> str:
    """Restore the photographs, write all pictures below `folder`, and tell the story in HTML.

    Args:
        folder: the page's folder; files go to its subfolder "restoration".
        say: prints a line of progress.
        model: checkpoint name, folder or Hub id.
    """
    (folder / "restoration").mkdir(parents=True, exist_ok=True)
    restorer = Restorer.from_pretrained(model, device="auto")
    # The first call of a process allocates and warms caches; it must not be what the table shows.
    restorer(np.zeros((16, 16, 3), np.uint8))
    cards, measured = [], []
    for photo in REDUCED:
        html, rows = _with_truth(restorer, photo, folder, say)
        cards.append(html)
        measured.append(rows)
    cards.append(_without_truth(restorer, AS_IT_IS, folder, say))
    cards.append(
        paragraph(
            f"The other tasks, on crops of {tasks.SIDE} × {tasks.SIDE} pixels of photographs that no model "
            "was trained on: what is given, the strongest classical tool, ours, the truth. PSNR is over all "
            "colours."
        )
    )
    cards += tasks.cards(folder, say)
    return (
        paragraph(
            "The small pictures were made from the originals by an antialiased bicubic reduction to a "
            "quarter of the side and saved as 8-bit PNG; none of these photographs is in the training data. "
            "Faithful is one network call, the mean of what the picture may have been: highest PSNR. "
            "Detailed is one sample of it in four calls: more texture, a little further from the truth pixel "
            "by pixel."
        )
        + card(
            f"Mean of {len(REDUCED)} photographs",
            "PSNR and SSIM against the original: luma with 4 border pixels cut, and all three colours. "
            "Sharpness is the mean gradient relative to the original's: 1 is as sharp as the truth.",
            table(COLUMNS, _means(measured)),
        )
        + "".join(cards)
    )


def _with_truth(
    restorer: Restorer, photo: Photo, folder: Path, say: Callable[[str], None]
) -> tuple[str, list[Row]]:
    original = getattr(skimage.data, photo.name)()
    height, width = (n - n % SCALE for n in original.shape[:2])
    truth = original[:height, :width]
    small = reduce_image(truth, SCALE)
    source = folder / "restoration" / f"{photo.name}-small.png"
    Image.fromarray(small).save(source)
    pictures = {"truth": truth, **_enlarged(small)}
    rows = [_row("bicubic (MATLAB)", pictures["bicubic"], truth)]
    rows.append(_row("bicubic (PyTorch)", _torch_bicubic(small), truth))
    for mode in ("faithful", "detailed"):
        result = restorer(source, mode=mode)
        result.save(folder / "restoration" / f"{photo.name}-{mode}.png")
        pictures[mode] = np.asarray(result.image)
        rows.append(_row(mode, pictures[mode], truth, result))
        ours, bicubic = rows[-1].cells[0], rows[0].cells[0]
        say(f"{photo.name}: {mode}, PSNR Y {ours:.2f} dB (bicubic {bicubic:.2f}), {result.seconds:.1f} s")
    order = ("input", "bicubic", "faithful", "detailed", "truth")
    text = f"{photo.words} From {small.shape[1]} × {small.shape[0]} to {width} × {height}."
    html = card(
        photo.name.capitalize(),
        text,
        _compare(folder, photo, pictures),
        strip(_crop(folder, photo, name, pictures[name]) for name in order),
        table(COLUMNS, rows),
    )
    return html, rows


def _without_truth(restorer: Restorer, photo: Photo, folder: Path, say: Callable[[str], None]) -> str:
    source = folder / "restoration" / f"{photo.name}.jpg"
    shutil.copyfile(Path(skimage.data.__file__).with_name(f"{photo.name}.jpg"), source)
    with Image.open(source) as opened:
        small = np.asarray(opened.convert("RGB"))
    pictures = _enlarged(small)
    rows = []
    for mode in ("faithful", "detailed"):
        result = restorer(source, mode=mode)
        result.save(folder / "restoration" / f"{photo.name}-{mode}.jpg")
        pictures[mode] = np.asarray(result.image)
        rows.append(Row(mode, (result.seconds, result.calls), ours=True))
        say(f"{photo.name}: {mode}, {result.seconds:.1f} s")
    height, width = pictures["faithful"].shape[:2]
    return card(
        photo.name.capitalize(),
        f"{photo.words} From {small.shape[1]} × {small.shape[0]} to {width} × {height}.",
        _compare(folder, photo, pictures),
        strip(
            _crop(folder, photo, name, pictures[name])
            for name in ("input", "bicubic", "faithful", "detailed")
        ),
        table(COST, rows),
    )


def _enlarged(small: np.ndarray) -> dict[str, np.ndarray]:
    bicubic = imresize(small.astype(np.float64), float(SCALE))
    return {
        "input": small.repeat(SCALE, axis=0).repeat(SCALE, axis=1),
        "bicubic": np.clip(np.rint(bicubic), 0, 255).astype(np.uint8),
    }


def _torch_bicubic(small: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(small.astype(np.float64)).permute(2, 0, 1)[None]
    enlarged = F.interpolate(pixels, scale_factor=SCALE, mode="bicubic", align_corners=False)[0]
    return enlarged.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _row(name: str, picture: np.ndarray, truth: np.ndarray, result: Restored | None = None) -> Row:
    luma, rgb = score(picture, truth, "y", border=SCALE), score(picture, truth, "rgb")
    cost = (result.seconds, result.calls) if result else (None, None)
    return Row(
        name, (luma.psnr, luma.ssim, rgb.psnr, sharpness(picture, truth), *cost), ours=result is not None
    )


def _means(measured: list[list[Row]]) -> list[Row]:
    """Each method's mean over the photographs."""
    rows = []
    for same in zip(*measured, strict=True):
        columns = zip(*(row.cells for row in same), strict=True)
        rows.append(
            Row(same[0].name, [None if None in column else mean(column) for column in columns], same[0].ours)
        )
    return rows


def _compare(folder: Path, photo: Photo, pictures: dict[str, np.ndarray]) -> str:
    size = _shown_size(pictures["detailed"])
    before = _save_shown(folder, f"{photo.name}-shown-bicubic.jpg", pictures["bicubic"], size)
    after = _save_shown(folder, f"{photo.name}-shown-detailed.jpg", pictures["detailed"], size)
    return slider(Picture(before, "bicubic"), Picture(after, "detailed"), size)


def _shown_size(picture: np.ndarray) -> tuple[int, int]:
    height, width = picture.shape[:2]
    factor = min(1.0, SHOWN / max(height, width))
    return round(width * factor), round(height * factor)


def _save_shown(folder: Path, name: str, picture: np.ndarray, size: tuple[int, int]) -> str:
    image = Image.fromarray(picture)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(folder / "restoration" / name, quality=95, subsampling=0)
    return f"restoration/{name}"


def _crop(folder: Path, photo: Photo, variant: str, picture: np.ndarray) -> Picture:
    left, top, side = photo.crop
    name = f"{photo.name}-crop-{variant}.png"
    Image.fromarray(picture[top : top + side, left : left + side]).save(folder / "restoration" / name)
    return Picture(f"restoration/{name}", variant)
