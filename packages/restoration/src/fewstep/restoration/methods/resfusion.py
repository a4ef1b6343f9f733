"""Resfusion: restoration from half the degraded image and noise, in the five steps left of twelve."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import BaseDenoiser, Denoiser
from fewstep.core.thresholding import Thresholded

from ..nets.ddim_unet import DDIMUnet
from ..nets.rddm_unet import RDDMUnet
from .base import MODES, Level, PathModel, check_steps
from .resfusion_config import ResfusionConfig

BUILDERS: dict[str, Callable[..., nn.Module]] = {"rddm-unet": RDDMUnet, "ddim-unet": DDIMUnet}


class Resfusion(PathModel):
    """A Resfusion model: network and path.

    x_t = (2r − 1) x0 + (1 − r) y + √(1 − r²) ε with r falling from nearly 1 to ½, where the clean image has
    left the state: from ½ y + √¾ ε down to x0.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes; called as net(x, t, lq, mask).

    Example:
        >>> options = {"dim": 8, "dim_mults": (1, 2), "condition_channels": 3}
        >>> model = Resfusion(ResfusionConfig(network_options=options)).eval()
        >>> model.restore(torch.zeros(1, 3, 10, 7)).shape
        torch.Size([1, 3, 10, 7])

    Reference: Shi et al. 2024, "Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration
        Based on Prior Residual Noise".
    """

    config_class = ResfusionConfig
    solvers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpmpp-2m", "dpmpp-3m")
    config: ResfusionConfig

    def __init__(self, config: ResfusionConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.net = BUILDERS[config.network](**config.network_options) if network is None else network
        self._denoisers: dict[torch.dtype | None, Denoiser] = {}

    @property
    def state_channels(self) -> int:
        """Channels of the image."""
        return 3

    @property
    def takes(self) -> frozenset[str]:
        """A mask, if the network is told one."""
        return frozenset({"mask"}) if self.config.mask else frozenset()

    @property
    def pixel_bytes(self) -> int:
        """Memory in bytes per input pixel, roughly."""
        return 4 * (10 * int(self.config.network_options.get("dim", 64)) + 512)

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        return check_steps(mode, steps, MODES, self.config.times_kept, self.config.times_kept)

    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """The input itself."""
        return lq

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        *,
        steps: int | None = None,
    ) -> BaseDenoiser:
        told: dict[str, Any] = {"lq": lq}
        if mask is not None:
            told["mask"] = classes(mask)
        bound = self.bare_denoiser(self.net).given(**told, y=lq, spatial=tuple(told))
        return bound if self.config.prediction == "resnoise" else Thresholded(bound)

    def bare_denoiser(self, net: Callable[..., Tensor]) -> BaseDenoiser:
        """A network that stands in for the model's own, told nothing yet."""
        if net is not self.net:
            return Denoiser(net, self.config.path(), self.config.prediction)
        dtype = next((p.dtype for p in self.net.parameters()), None)
        if dtype not in self._denoisers:
            self._denoisers[dtype] = Denoiser(net, self.config.path(), self.config.prediction)
        return self._denoisers[dtype]

    def times(self, denoise: BaseDenoiser, mode: str, calls: int) -> Sequence[float]:
        """All times, or so many of them, from the acceleration point to the clean end."""
        last = self.config.times_kept - 1
        kept = [float(round(last * (1 - i / max(calls - 1, 1)))) for i in range(calls)]
        return [*kept, self.config.path().t_clean]

    def image(self, z: Tensor, lq: Tensor, mask: Tensor | None) -> Tensor:
        """A last state cut to the input's size; the mask says where the damage is, not what is unknown."""
        return super().image(z, lq, None)


def classes(mask: Float[Tensor, "batch 1 h w"]) -> Float[Tensor, "batch 2 h w"]:
    """A mask as the network is told it: one channel for 0 and one for 1, +1 where the mask is so, else -1.

    Example:
        >>> classes(torch.tensor([[[[0.0, 1.0]]]])).flatten(1)
        tensor([[ 1., -1., -1.,  1.]])
    """
    return torch.cat([1 - mask, mask], dim=1) * 2 - 1
