"""Tiled: a denoiser that sees its input in overlapping windows, blended at every call."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.conditions import scale_of
from fewstep.core.layout import Lengths, Window, Windowing
from fewstep.core.windows import Blender
from fewstep.core.wrapping import BaseDenoiser, Time, Wrapper


class Tiled(Wrapper):
    """Runs a denoiser on overlapping windows of any number of dimensions and blends its raw prediction.

    out(p) = Σ_w weight_w(p)·out_w(p) with Σ_w weight_w(p) = 1. The same rule then holds for x0, which at
    equal x and y is affine in the prediction: windows agree at every step of a sampler, not only at the end.

    Noise comes from the sampler and is shared by all windows. Spatial conditions are cropped at their own
    scale, the others go to every window. x and the result may live on the host while the windows run on
    `device`. When memory runs out, fewer and then smaller windows are used from then on (`Blender`). An x
    that is not larger than the window runs whole.

    Args:
        inner: any denoiser.
        window: length of a window, one number or one for each axis.
        overlap: samples that neighbours share.
        halo: outer samples of a window that are thrown away; with a halo of at least its reach, a purely
            convolutional network gives exactly its un-tiled result.
        multiple: window borders lie on multiples of this; scales of spatial conditions are added by itself.
        batch: windows that run together.
        device: where the windows run; default: where x is.

    Reference: Bar-Tal et al. 2023, "MultiDiffusion", eq. 5, with smooth weights.

    >>> from fewstep.core.wrapping import as_denoiser
    >>> halve = Tiled(as_denoiser(lambda x, t: x / 2), window=8, overlap=4)
    >>> halve(torch.ones(1, 1, 20), 0.5).unique()
    tensor([0.5000])
    """

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        window: Lengths,
        overlap: Lengths,
        *,
        halo: Lengths = 0,
        multiple: int = 1,
        batch: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(inner)
        self.blender = Blender(Windowing(window, overlap, halo, multiple), batch)
        self.device = device

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch out *space"]:
        """Blended raw prediction, on x's device."""
        size, batch = x.shape[2:], x.shape[0]
        if not size:
            raise ValueError(f"x must have spatial axes to be tiled, not shape {tuple(x.shape)}")
        self._align(size)

        def run(windows: Sequence[Window]) -> Tensor:
            crops = torch.cat([window.crop(x) for window in windows])
            times = t.repeat(len(windows)) if isinstance(t, Tensor) and t.ndim else t
            inner = self.inner.crop(windows, size, batch)
            return inner.predict(crops.to(self.device or x.device), times)

        return self.blender.blend(run, size, device=x.device).to(x.dtype)

    def _align(self, size: Sequence[int]) -> None:
        """Makes window borders fall on samples of every spatial condition, after a back-off as well."""
        windowing = self.blender.windowing
        multiple = windowing.multiple
        for name in self.spatial:
            ratios = scale_of(name, self.bound[name], size)
            for ratio, full, (window, overlap, _) in zip(
                ratios, size, windowing.axes(len(size)), strict=True
            ):
                if window % ratio.denominator == overlap % ratio.denominator == 0:
                    multiple = math.lcm(multiple, ratio.denominator)
                elif full > window:
                    raise ValueError(
                        f"window and overlap must be multiples of {ratio.denominator}, since condition "
                        f"{name!r} has {ratio} of the size of x ({full}), not {window} and {overlap}"
                    )
        if multiple != windowing.multiple:
            self.blender.windowing = replace(windowing, multiple=multiple)
