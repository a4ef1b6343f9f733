"""Bits and errors of the one-step codec beside those of JPEG and WebP."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .codec import Codec

# Qualities that are tried; between two of them the error is interpolated.
_QUALITIES = (1, 4, 7, 10, 14, 20, 28, 38, 50, 62, 73, 82, 88, 93)


@dataclass(frozen=True)
class RatePoint:
    """Means over photographs at one rate.

    Args:
        rate: of the codec.
        bpp: bits per pixel of whole files.
        psnr: of the codec, all colours, dB.
        jpeg: PSNR of JPEG at the same bits per pixel, the better of full and halved colour resolution.
        webp: PSNR of lossy WebP at the same bits per pixel.
    """

    rate: int
    bpp: float
    psnr: float
    jpeg: float
    webp: float


def compare(
    codec: Codec, photographs: Iterable[np.ndarray], rates: Sequence[int] | None = None
) -> list[RatePoint]:
    """Measure a codec and Pillow's at equal size of file, photograph by photograph.

    Args:
        codec: what is measured.
        photographs: (height, width, 3) uint8 each.
        rates: those that are measured (None: all).

    Returns:
        A point per rate; NaN where JPEG or WebP cannot make one of the files as small or as large.
    """
    chosen = list(codec.rates if rates is None else rates)
    found = {rate: [] for rate in chosen}
    for truth in photographs:
        curves = [
            _curve(truth, lambda q, image: _packed(image, "JPEG", quality=q, subsampling=0, optimize=True)),
            _curve(truth, lambda q, image: _packed(image, "JPEG", quality=q, subsampling=2, optimize=True)),
            _curve(truth, lambda q, image: _packed(image, "WEBP", quality=q, method=6)),
        ]
        for rate in chosen:
            data = codec.encode(truth, rate)
            psnr = _psnr(np.asarray(codec.decode(data)), truth)
            full, halved, webp = (_at(np.log(len(data)), *curve) for curve in curves)
            bpp = 8 * len(data) / (truth.shape[0] * truth.shape[1])
            found[rate].append((bpp, psnr, float(np.fmax(full, halved)), webp))
    return [RatePoint(rate, *(float(v) for v in np.mean(found[rate], axis=0))) for rate in chosen]


def _curve(truth: np.ndarray, pack: Callable[[int, Image.Image], bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of sizes, rising, and PSNR at them."""
    points = []
    for quality in _QUALITIES:
        data = pack(quality, Image.fromarray(truth))
        with Image.open(io.BytesIO(data)) as made:
            points.append((np.log(len(data)), _psnr(np.asarray(made.convert("RGB")), truth)))
    sizes, errors = np.asarray(sorted(points)).T
    return sizes, errors


def _at(size: float, sizes: np.ndarray, errors: np.ndarray) -> float:
    return float(np.interp(size, sizes, errors, left=math.nan, right=math.nan))


def _packed(image: Image.Image, format: str, quality: int, **options: int) -> bytes:
    handle = io.BytesIO()
    image.save(handle, format, quality=quality, **options)
    return handle.getvalue()


def _psnr(made: np.ndarray, truth: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(float(((made.astype(float) - truth) ** 2).mean()), 1e-9))
