"""ResShift: restoration by shifting the residual between a degraded and a clean image in a few steps."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.run import OnStep
from fewstep.core.sample import sample
from fewstep.core.thresholding import Thresholded

from ..nets.edsr import ConditionalEDSR
from ..nets.lossless import PixelUnshuffle
from ..nets.unet_swin import UNetModelSwin
from ..nets.vq import VQModel
from .base import Level, RestorationModel, check_steps
from .padding import reflect_to_multiple
from .resshift_config import PREDICTIONS, ResShiftConfig

__all__ = ["SOLVERS", "ResShift", "ResShiftConfig"]

# Rules that ask the network once a step; the first one is the published posterior.
SOLVERS = ("ancestral", "ddim", "dpmpp-2m", "dpmpp-3m")
BICUBIC_REACH = 2
BUILDERS: dict[str, Callable[..., nn.Module]] = {"unet-swin": UNetModelSwin, "edsr": ConditionalEDSR}


class ResShift(RestorationModel):
    """A ResShift model: network, first stage and path.

    x_t = (1 − η_t) x0 + η_t y + κ √η_t ε, from y + κ √η_T ε down to x0, where y is the input enlarged by
    bicubic interpolation and encoded by the first stage.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes.

    Example:
        >>> config = ResShiftConfig(network="edsr", network_options={"width": 8, "blocks": 1}, padding=1,
        ...     first_stage="identity", latent=False, kappa=0.5)
        >>> model = ResShift(config).eval()
        >>> model.restore(torch.zeros(1, 3, 10, 7), mode="mean").shape
        torch.Size([1, 3, 40, 28])

    Reference: Yue, Wang & Loy 2023, "ResShift: Efficient Diffusion Model for Image Super-resolution by
        Residual Shifting".
    """

    config_class = ResShiftConfig
    solvers = SOLVERS
    config: ResShiftConfig

    def __init__(self, config: ResShiftConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        options = dict(config.first_stage_options)
        self.first_stage: PixelUnshuffle | VQModel
        if config.first_stage == "vq":
            self.first_stage = VQModel(**options)
        else:
            self.first_stage = PixelUnshuffle(**({"factor": 1} | options))
        build = BUILDERS[config.network]
        self.net = build(**config.network_options) if network is None else network
        self._denoisers: dict[tuple[Any, ...], Denoiser] = {}

    @property
    def path(self) -> paths.ResShift:
        """The path with all its noise levels."""
        return self.config.path()

    @property
    def state_channels(self) -> int:
        """Channels of the state that is sampled, and so of its noise."""
        return self.first_stage.latent_channels

    @property
    def state_ratio(self) -> int | Fraction:
        """Side of the state per side of the input: where an input pixel lies in the noise."""
        ratio = Fraction(self.config.scale, self.first_stage.factor)
        return ratio.numerator if ratio.denominator == 1 else ratio

    @property
    def reach(self) -> int | None:
        """Input pixels to each side on which the result of one network call depends; None: on all of them.

        Every further call adds the network's receptive field.
        """
        if isinstance(self.first_stage, PixelUnshuffle) and isinstance(self.net, ConditionalEDSR):
            return self.net.receptive_field + BICUBIC_REACH
        return None

    @property
    def pixel_bytes(self) -> int:
        """Memory of a restoration in bytes per input pixel, roughly: what is alive at the worst moment."""
        channels = 8 * self.state_channels * self.state_ratio**2
        if isinstance(self.net, UNetModelSwin):
            channels += 16 * self.net.model_channels * self.state_ratio**2
        elif isinstance(self.net, ConditionalEDSR):
            channels += 8 * self.net.width
        if isinstance(self.first_stage, VQModel):
            channels += 6 * self.first_stage.width * self.config.scale**2
        return int(4 * channels)

    @property
    def takes(self) -> frozenset[str]:
        """A mask, when the network has a channel for it."""
        inpaints = isinstance(self.net, UNetModelSwin) and self.net.condition_channels == 4
        return frozenset({"mask"} if inpaints else ())

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """Network calls of a restoration."""
        published = self.config.calls or self.config.steps
        return check_steps(mode, steps, self.modes, published, self.config.steps)

    def encode(self, image: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """Image in [-1, 1] to a state."""
        return self.first_stage.encode(image)

    def decode(
        self, z: Float[Tensor, "batch channels h w"], force_not_quantize: bool = False
    ) -> Float[Tensor, "batch 3 h2 w2"]:
        """State to image; a VQ first stage quantises it unless told not to."""
        if isinstance(self.first_stage, VQModel):
            return self.first_stage.decode(z, force_not_quantize=force_not_quantize)
        return self.first_stage.decode(z)

    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The degraded end y of the path: the input enlarged (bicubic, not clamped) and encoded."""
        scale = self.config.scale
        return self.encode(lq if scale == 1 else F.interpolate(lq, scale_factor=scale, mode="bicubic"))

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        *,
        steps: int | None = None,
        respacing: str = "end-anchored",
    ) -> Denoiser:
        """The network told its input, as a denoiser of states, (x, t) -> x0, not clamped.

        What does not depend on the step (y, the features of the input) is computed here, once.

        Args:
            lq: input in [-1, 1], sides a multiple of the configuration's padding.
            mask: 1 where the image is unknown, 0 where it is known (inpainting).
            steps: noise levels kept; all by default.
            respacing: which ones: "end-anchored" keeps first and last, "official" leaves out the noisiest.
        """
        path = self.config.path(steps, respacing)
        key = (path, next((p.dtype for p in self.net.parameters()), None))
        if key not in self._denoisers:
            self._denoisers[key] = Denoiser(self.net, path, PREDICTIONS[self.config.prediction])
        told = self._told(lq, mask)
        return self._denoisers[key].given(**told, y=self.prior(lq), spatial=tuple(told))

    @torch.no_grad()
    def restore(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        *,
        mode: str = "sample",
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        steps: int | None = None,
        respacing: str = "end-anchored",
        solver: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: Callable[[Tensor], Tensor] | None = None,
        on_step: OnStep | None = None,
        force_not_quantize: bool = False,
    ) -> Float[Tensor, "batch 3 h2 w2"]:
        """Restore images of any size, not tiled: as every method, and further

        Args:
            lq, mode, mask, level, solver, seed, noise, on_step: as of `RestorationModel.restore`. "mean" asks
                the network once, at the start state; "sample" goes down the levels.
            steps: noise levels visited in mode "sample"; all by default.
            respacing: which ones: "end-anchored" keeps first and last, "official" leaves out the noisiest.
            force_not_quantize: leave out the codebook of a VQ first stage.

        Returns:
            Images in [-1, 1], `scale` times as large as the input.

        Raises:
            ValueError: an unknown mode, respacing or solver; a mask where none is taken, or the reverse.
        """
        calls = self.steps_of(mode, steps)
        solver = self.solver_of(solver)
        self.check_told(mask, level)
        height, width = lq.shape[-2:]
        multiple = self.config.padding
        extended = reflect_to_multiple(lq.to(torch.promote_types(lq.dtype, torch.float32)), multiple)
        unknown = None if mask is None else reflect_to_multiple(mask.to(extended), multiple)
        denoise = self.denoiser(
            extended, unknown, steps=None if mode == "mean" else calls, respacing=respacing
        )
        last = int(denoise.path.t_max)
        times = [last, *range(last - 1, last - calls, -1), denoise.path.t_clean]
        z = sample(
            denoise if self.config.latent else Thresholded(denoise),
            solver=solver,
            grid=times,
            seed=seed,
            noise=noise,
            on_step=on_step,
        )
        scale = self.config.scale
        image = self.decode(z, force_not_quantize)[..., : scale * height, : scale * width].clamp(-1, 1)
        return image if mask is None else torch.lerp(lq.to(image), image, mask.to(image))

    def _told(self, lq: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """What the network is told about its input."""
        self.check_told(mask, None)
        if isinstance(self.net, UNetModelSwin):
            return {"features": self.net.condition(lq, None if mask is None else 2 * mask - 1)}
        return {"lq": lq}

    def __getstate__(self) -> dict[str, Any]:
        # Denoisers hold the network and read-only views, which cannot be copied; they are made anew.
        return self.__dict__ | {"_denoisers": {}}
