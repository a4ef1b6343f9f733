"""RDDM: restoration by taking away a residual and noise, each predicted by a network of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import GivenNoise, SampleNoise
from fewstep.core.run import OnStep
from fewstep.core.thresholding import Thresholded
from fewstep.core.wrapping import BaseDenoiser

from ..nets.cache import Remembered
from ..nets.small_unet import SmallUNet
from ..nets.unet_res import unet_res
from ..preparation import Preparation
from . import rddm_sampler
from .base import MODES, Level, Noise, PathModel, check_steps
from .padding import reflect_to_multiple
from .rddm_config import NATIVE_RULES, PUBLISHED_RULES, RDDMConfig
from .told import map_channels, told_maps

__all__ = ["RDDM", "RDDMConfig"]

BUILDERS: dict[str, Callable[..., nn.Module]] = {"unet-res": unet_res, "small-unet": SmallUNet}
REMEMBERED_TIMES = 32


class RDDM(PathModel):
    """An RDDM model: network and path.

    x_t = x0 + A_t (y − x0) + B_t ε, from y + B_T ε down to x0, where y is the input.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes.

    Example:
        >>> model = RDDM(RDDMConfig(network_options={"dim": 8, "dim_mults": (1, 2)}, padding=2)).eval()
        >>> model.restore(torch.zeros(1, 3, 10, 7)).shape
        torch.Size([1, 3, 10, 7])

    Reference: Liu, Wang, Fan, Wang, Tang & Qu 2024, "Residual Denoising Diffusion Models".
    """

    config_class = RDDMConfig
    config: RDDMConfig
    solvers = (*PUBLISHED_RULES, *NATIVE_RULES)

    def __init__(self, config: RDDMConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.path = config.path()
        self.net = BUILDERS[config.network](**self._network_options()) if network is None else network
        self._denoisers: dict[Any, Denoiser] = {}

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.config.exposure or None, self.config.fill)

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(self.config.conditions) - {"input"}

    @property
    def state_channels(self) -> int:
        return 3

    @property
    def reach(self) -> int | None:
        return self.net.receptive_field if isinstance(self.net, SmallUNet) else None

    @property
    def pixel_bytes(self) -> int:
        if isinstance(self.net, SmallUNet):
            return self.net.pixel_bytes
        # Features of the finest level and what is computed from them, attention's queries and keys.
        return 4 * (14 * int(getattr(self.net, "dim", 64)) + 512)

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        return check_steps(mode, steps, MODES, self.config.sampling_steps, self.config.steps)

    def solver_of(self, name: str | None = None) -> str:
        rule = super().solver_of(name)
        self.config.check_rule(rule)
        return rule

    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        return lq

    def times(self, denoise: BaseDenoiser, mode: str, calls: int) -> Sequence[float]:
        return rddm_sampler.grid(self.config.steps, calls)

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        *,
        steps: int | None = None,
    ) -> BaseDenoiser:
        """The network told its input, as a denoiser of states, (x, t) -> x0, clamped."""
        return Thresholded(self.asked(lq, mask, level))

    def bare_denoiser(self, net: Callable[..., Tensor], dtype: torch.dtype | None = None) -> Denoiser:
        clocked = Clock(net, self.config) if self.config.clock == "coefficients" else net
        return Denoiser(clocked, self.path, self.config.prediction, dtype=dtype)

    def asked(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
    ) -> Denoiser:
        """The network told its input; `predict(x, t)` gives its heads."""
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        if dtype not in self._denoisers:
            self._denoisers[dtype] = self.bare_denoiser(self.net, dtype)
        told = self._told(lq, mask, level)
        return self._denoisers[dtype].given(**told, y=self.prior(lq), spatial=tuple(told))

    @torch.no_grad()
    def restore(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        *,
        mode: str = "sample",
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        steps: int | None = None,
        solver: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "batch 3 h w"]:
        solver = self.solver_of(solver)
        if solver in NATIVE_RULES:
            return super().restore(
                lq,
                mode=mode,
                mask=mask,
                level=level,
                steps=steps,
                solver=solver,
                seed=seed,
                noise=noise,
                on_step=on_step,
            )
        table = rddm_sampler.table(self.path, solver, self.steps_of(mode, steps), self.config.eta)
        self.check_told(mask, level)
        y = reflect_to_multiple(lq.to(torch.promote_types(lq.dtype, torch.float32)), self.config.padding)
        unknown = None if mask is None else reflect_to_multiple(mask.to(y), self.config.padding)
        source = SampleNoise(seed, len(y), y.device) if noise is None else GivenNoise(noise)
        start = torch.empty_like(y)
        source.fill(start)
        z = rddm_sampler.run(
            table,
            self.path,
            self.config.objective,
            self.asked(y, unknown, level).predict,
            # As published: the end of a converted schedule is a little less noisy than this.
            torch.add(y, start, alpha=math.sqrt(self.config.sum_scale)),
            y,
            source,
            on_step,
        )
        return self.image(z, lq, mask)

    def _network_options(self) -> dict[str, Any]:
        """Arguments of the network, with the channels of what it is told."""
        told = self.config.conditions
        if self.config.network == "small-unet":
            return {"maps": map_channels(self.takes), **self.config.network_options}
        if "level" in told:
            raise ValueError("conditions must be of 'input' and 'mask' for network 'unet-res', got 'level'")
        heads = {"share_encoder": 0 if self.config.prediction.heads == 2 else -1}
        return {**heads, "condition_channels": 3 * len(told), **self.config.network_options}

    def _told(self, lq: Tensor, mask: Tensor | None, level: Level) -> dict[str, Tensor]:
        """What the network is told beside the state."""
        self.check_told(mask, level)
        told = {"lq": lq} if "input" in self.config.conditions else {}
        if not isinstance(self.net, SmallUNet):
            # The published mask is an image with three equal channels.
            return told if mask is None else {**told, "mask": mask.expand(-1, 3, -1, -1)}
        if mask is not None and not self.config.fill:
            told = {"lq": torch.where(mask > 0.5, torch.zeros_like(lq), lq)}
        maps = told_maps(self.takes, lq, mask, level)
        return told if maps is None else {**told, "maps": maps}


class Clock(nn.Module):
    """A network that is told where residual and noise are instead of the time: T·A_t and T·B_t.

    Args:
        net: network of one or two heads.
        config: of the model.

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", section 5 (generation that
        does not depend on the path).
    """

    def __init__(self, net: Callable[..., Tensor], config: RDDMConfig) -> None:
        super().__init__()
        self.net = net
        self.path = config.path()
        self.heads = {"pred_noise": [1], "pred_res": [0], "pred_x0": [0]}.get(config.objective, [0, 1])
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Shaped[Tensor, "batch"],
        lq: Float[Tensor, "batch 3 h w"] | None = None,
        mask: Float[Tensor, "batch 3 h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        return self.net(x, self.remembered.get((t,), lambda: self.times(t)), lq=lq, mask=mask)

    def times(self, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch *heads"]:
        """What the heads are told."""
        _, done, sigma = self.path.evaluate(t)
        both = torch.stack([done, sigma], dim=1)[:, self.heads] * self.path.steps
        return (both if len(self.heads) == 2 else both[:, 0]).to(t.dtype)
