"""The second-order degradation of Real-ESRGAN: blur, resize, noise and JPEG, twice, for real photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from .base import Degraded, Range, check_clean, check_range, check_share, draw, draw_integer, to_uint8
from .compression import Jpeg, decode_jpeg, encode_jpeg
from .kernels import KernelMix, blur, sinc
from .noise import gaussian_noise, poisson_noise

INTERPOLATIONS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Stage:
    """One of the two rounds of blur, resize, noise and JPEG.

    Args:
        kernels: the blur.
        blur: probability of a blur.
        resize: probabilities of enlarging, reducing and neither.
        factor: least and greatest factor of the size, below and above 1.
        gaussian: probability that the noise is Gaussian; otherwise it is shot noise.
        noise: range of the Gaussian noise's standard deviation on the scale 0 … 255.
        poisson: range of the factor of the shot noise.
        grey: probability that the noise is the same in all channels.
        jpeg: range of the quality, integers.

    Raises:
        ValueError: a field out of its limits.
    """

    kernels: KernelMix = field(default_factory=KernelMix)
    blur: float = 1.0
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    factor: Range = (0.15, 1.5)
    gaussian: float = 0.5
    noise: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    grey: float = 0.4
    jpeg: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        for name in ("blur", "gaussian", "grey"):
            check_share(name, getattr(self, name))
        if len(self.resize) != 3 or min(self.resize) < 0 or not math.isclose(sum(self.resize), 1.0):
            raise ValueError(f"resize must be 3 probabilities that add up to 1, got {self.resize!r}")
        check_range("factor", self.factor, 0.01)
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise ValueError(f"factor must reach from at most 1 to at least 1, got {self.factor!r}")
        check_range("noise", self.noise, 0.0)
        check_range("poisson", self.poisson, 0.0)
        Jpeg(*self.jpeg)


SECOND = Stage(
    kernels=KernelMix(side=(3, 13), sigma=(0.2, 1.5)),
    blur=0.8,
    resize=(0.3, 0.4, 0.3),
    factor=(0.3, 1.2),
    noise=(1.0, 25.0),
    poisson=(0.05, 2.5),
)


@dataclass(frozen=True)
class RealEsrgan:
    """Low-resolution photographs as they are found: degraded twice, at random sizes, and reduced.

    The first round is applied to the clean image; with probability `second_order` the blur, resize and noise
    of the second follow, at about the final size. At the end come, in random order, the JPEG of the second
    round and the resize to the final size with a sinc filter. Each resize interpolates by area, bilinearly or
    bicubically, without antialiasing, drawn uniformly. The defaults are those of ResShift's journal version;
    its kernels have the sides 3 … 19 and 3 … 13.

    Two details differ from the published code: JPEG is the real one, on 8-bit values and with integer
    qualities, where that approximates it in floating point, and both axes are resized by exactly the ratio of
    the sizes.

    Args:
        scale: the reduction.
        first: the first round.
        second: the second round.
        second_order: probability of the second round's blur, resize and noise.
        final_sinc: probability of the sinc filter.

    Raises:
        ValueError: a field out of its limits; an image whose sides are not multiples of `scale`.

    Reference: Wang, Xie, Dong, Shan 2021, "Real-ESRGAN", section 3; Yue, Wang, Loy 2024, "Efficient diffusion
        model for image restoration by residual shifting", section IV.

    Example:
        >>> RealEsrgan(scale=4)(np.full((64, 48, 3), 90, np.uint8), np.random.default_rng(0)).lq.shape
        (16, 12, 3)
    """

    scale: int = 4
    first: Stage = field(default_factory=Stage)
    second: Stage = SECOND
    second_order: float = 0.5
    final_sinc: float = 0.8

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or self.scale < 1:
            raise ValueError(f"scale must be an integer of at least 1, got {self.scale!r}")
        check_share("second_order", self.second_order)
        check_share("final_sinc", self.final_sinc)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Degrade and reduce an image."""
        check_clean(clean)
        height, width = clean.shape[:2]
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"clean must have sides that are multiples of scale {self.scale}, got {height} × {width}"
            )
        final = (height // self.scale, width // self.scale)
        image = clean.transpose(2, 0, 1).astype(np.float32)
        image = add_noise(self.first, soften(self.first, image, (height, width), rng), rng)
        image = compress(self.first, image, rng)
        if rng.random() < self.second_order:
            image = add_noise(self.second, soften(self.second, image, final, rng), rng)
        if rng.random() < 0.5:
            image = compress(self.second, self._finish(image, final, rng), rng)
        else:
            image = self._finish(compress(self.second, image, rng), final, rng)
        return Degraded(to_uint8(np.ascontiguousarray(image.transpose(1, 2, 0))))

    def _finish(self, image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Resize to the final size and, mostly, ring."""
        image = resize(image, size, rng)
        if rng.random() >= self.final_sinc:
            return image
        low, high = self.second.kernels.side
        side = 2 * draw_integer(rng, (low // 2, high // 2)) + 1
        return blur(image, sinc(side, draw(rng, (math.pi / 3, math.pi))))


def soften(stage: Stage, image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Blur an image and resize it to a random factor of a size.

    Args:
        stage: the round.
        image: (3, height, width) float32.
        size: (height, width) of which the factor is taken.
        rng: the source of the draws.

    Returns:
        (3, height', width') float32.
    """
    if rng.random() < stage.blur:
        image = blur(image, stage.kernels(rng))
    ranges = ((1.0, stage.factor[1]), (stage.factor[0], 1.0), (1.0, 1.0))
    factor = draw(rng, ranges[int(rng.choice(3, p=stage.resize))])
    return resize(image, (max(1, int(size[0] * factor)), max(1, int(size[1] * factor))), rng)


def resize(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Resize with a random interpolation, not antialiased.

    Args:
        image: (3, height, width) float32.
        size: (height, width) of the result.
        rng: the source of the draw.

    Returns:
        (3, *size) float32.
    """
    mode = INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
    if image.shape[1:] == size:
        return image
    return F.interpolate(torch.from_numpy(np.ascontiguousarray(image))[None], size=size, mode=mode)[0].numpy()


def add_noise(stage: Stage, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian or shot noise, coloured or grey.

    Args:
        stage: the round.
        image: (3, height, width) float32 on the scale 0 … 255.
        rng: the source of the draws.

    Returns:
        (3, height, width) float32 within 0 … 255.
    """
    channels = 1 if rng.random() < stage.grey else 3
    pixels = image.transpose(1, 2, 0)
    if rng.random() < stage.gaussian:
        noise = gaussian_noise(pixels.shape, rng, draw(rng, stage.noise), channels)
    else:
        noise = poisson_noise(pixels, rng, draw(rng, stage.poisson), channels)
    return np.clip(image + noise.transpose(2, 0, 1), 0.0, 255.0)


def compress(stage: Stage, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress an image as JPEG at a random quality.

    Args:
        stage: the round.
        image: (3, height, width) float32 on the scale 0 … 255.
        rng: the source of the draw.

    Returns:
        (3, height, width) float32.
    """
    pixels = to_uint8(np.array(image.transpose(1, 2, 0), order="C"))
    content = encode_jpeg(pixels, draw_integer(rng, stage.jpeg))
    return decode_jpeg(content).transpose(2, 0, 1).astype(np.float32)
