"""Restored photographs measured against the truth, file by file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .images import MAX_MEGAPIXELS, READABLE_EXTENSIONS, ImageError, Picture, read
from .metrics import CONVENTIONS, score, sharpness
from .result_names import MAP

# Which published tables have which convention.
TABLES = {
    "y": "studio-range luma of 8-bit images: super-resolution, JPEG artefacts (with --border = enlargement)",
    "rgb": "all three colours of 8-bit images: denoising, rain, low light, inpainting",
    "ycrcb": "full-range luma, not rounded: compressed sensing",
}


@dataclass(frozen=True)
class Measured:
    """One photograph and its numbers.

    Args:
        restored: file.
        truth: file.
        scores: PSNR in dB and SSIM by convention.
        sharpness: gradients relative to the truth's.
    """

    restored: Path
    truth: Path
    scores: Mapping[str, tuple[float, float]]
    sharpness: float

    def as_dict(self) -> dict[str, Any]:
        """The numbers for JSON; a PSNR of equal images is null, which infinity would not be."""
        return {
            "restored": str(self.restored),
            "truth": str(self.truth),
            **_scores_dict(self.scores, self.sharpness),
        }


def match(restored: Path, truth: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pair restored files with true ones: the same name, or one that begins with it, as cat_x4 with cat.

    Args:
        restored: a file or a folder.
        truth: likewise.

    Returns:
        The pairs, and a sentence for every restored file that has no partner.

    Raises:
        ValueError: one is a folder and the other is not, or there is nothing.
    """
    for path in (restored, truth):
        if not path.exists():
            raise ValueError(f"{path}: there is no such file or folder")
    if restored.is_dir() != truth.is_dir():
        raise ValueError(f"{restored} and {truth}: expected two files or two folders")
    if not restored.is_dir():
        return [(restored, truth)], []
    files, truths = _images(restored), _images(truth)
    pairs, alone = [], []
    for file in files:
        # The longest name wins: cat_2_x4 belongs to cat_2, not to cat.
        partners = [t for t in truths if _belongs(file.stem, t.stem)]
        partners.sort(key=lambda t: (len(t.stem), t.suffix == file.suffix))
        if partners:
            pairs.append((file, partners[-1]))
        else:
            alone.append(f"{file}: {truth} has no image whose name it begins with")
    if not pairs:
        raise ValueError(f"{restored} and {truth} have no two images of the same name")
    return pairs, alone


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in READABLE_EXTENSIONS and file.is_file() and not file.stem.endswith(f"-{MAP}")
    )


def _belongs(restored: str, truth: str) -> bool:
    return restored == truth or (restored.startswith(truth) and not restored[len(truth)].isalnum())


def evaluate(
    restored: Path,
    truth: Path,
    conventions: Sequence[str],
    border: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Measured:
    """Measure one photograph.

    Args:
        restored: file.
        truth: file of the same size.
        conventions: of `metrics.CONVENTIONS`.
        border: pixels cut from each side before comparing.
        max_megapixels: larger images are refused.

    Returns:
        Its numbers.

    Raises:
        ImageError: a file that cannot be read, different sizes, or too few pixels inside the border.
    """
    first, second = (read(file, max_megapixels) for file in (restored, truth))
    if (first.width, first.height) != (second.width, second.height):
        raise ImageError(
            f"{restored}: has {first.width}×{first.height} pixels, but {truth} has "
            f"{second.width}×{second.height}"
        )
    colours = max(p.colour.shape[2] for p in (first, second))
    x, y = (_values(p, colours) for p in (first, second))
    try:
        scores = {name: score(x, y, name, border) for name in conventions}
    except ValueError as error:
        raise ImageError(f"{restored}: {error}") from error
    inside = slice(border, x.shape[0] - border), slice(border, x.shape[1] - border)
    return Measured(
        restored,
        truth,
        {name: (found.psnr, found.ssim) for name, found in scores.items()},
        sharpness(x[inside], y[inside]),
    )


def _values(picture: Picture, colours: int) -> np.ndarray:
    """Values in [0, 255] without alpha; grey becomes equal colours beside colours."""
    pixels = picture.colour
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float64) * (255.0 / picture.peak)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], colours))
    return pixels[:, :, 0] if colours == 1 else pixels


def mean_of(found: Sequence[Measured]) -> dict[str, Any]:
    """Means over photographs; the PSNR over those whose images are not equal, as equal ones have none.

    Args:
        found: at least one.

    Returns:
        The same fields as `Measured.as_dict`, without files.
    """
    means: dict[str, tuple[float, float]] = {}
    for name in found[0].scores:
        psnrs = [one.scores[name][0] for one in found if np.isfinite(one.scores[name][0])]
        ssims = [one.scores[name][1] for one in found]
        means[name] = (float(np.mean(psnrs)) if psnrs else float("inf"), float(np.mean(ssims)))
    return _scores_dict(means, float(np.mean([one.sharpness for one in found])))


def _scores_dict(scores: Mapping[str, tuple[float, float]], sharp: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: {"psnr": round(psnr, 4) if np.isfinite(psnr) else None, "ssim": round(ssim, 6)}
        for name, (psnr, ssim) in scores.items()
    }
    return {**values, "sharpness": round(sharp, 4) if np.isfinite(sharp) else None}


def check_conventions(convention: str | None) -> tuple[str, ...]:
    """The conventions that a name means: itself, or all for None.

    Raises:
        ValueError: an unknown one.
    """
    if convention is None:
        return tuple(CONVENTIONS)
    if convention not in CONVENTIONS:
        raise ValueError(f"--convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return (convention,)
