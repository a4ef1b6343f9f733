"""IR-SDE's denoiser: the noisy input is itself a state of the process, which is run back from there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import BaseDenoiser, Denoiser
from fewstep.core.run import OnStep
from fewstep.core.sample import sample
from fewstep.core.solvers import Solver, get
from fewstep.core.solvers.first_order import FirstOrder

from .base import MODES, Level, Noise, RestorationModel, check_name, check_steps
from .denoising_path import DenoisingODE, DenoisingPath
from .irsde import BUILDERS, features_at_once
from .irsde_config import NETWORKS

RULES: dict[str, Solver] = {
    "denoising-ode": DenoisingODE(),
    **{name: get(name) for name in ("ddim", "dpmpp-2m", "dpmpp-3m")},
}


@dataclass(frozen=True)
class DenoisingSDEConfig:
    """Everything a denoising model is built from; the defaults are the published model of IR-SDE.

    Args:
        steps: times T of the path (Refusion: 1000).
        max_sigma: the most noise, in 8-bit levels (Refusion: 70).
        schedule: θ, "cosine" or "linear".
        eps: how near the last time is to it: σ_T = max_sigma·√(1 − eps²).
        network: "conditional-unet" or "conditional-nafnet"; told no degraded image.
        network_options: arguments of the network but `conditional`.
        solver: rule of the steps; one of `DenoisingSDE.solvers`.
        calls: most network calls of a restoration; None: one per time, as published.
        tasks: what it was trained for.

    Raises:
        ValueError: for a name that is not known or a number out of range.

    Reference: Luo et al. 2023, IR-SDE, section 5 (denoising).
    """

    steps: int = 100
    max_sigma: float = 75.0
    schedule: str = "cosine"
    eps: float = 0.04
    network: str = "conditional-unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    solver: str = "denoising-ode"
    calls: int | None = None
    tasks: tuple[str, ...] = ("denoise",)
    scale: int = 1
    padding: int = 1

    def __post_init__(self) -> None:
        check_name("network", self.network, NETWORKS)
        check_name("solver", self.solver, RULES)
        if (self.scale, self.padding) != (1, 1):
            raise ValueError(f"scale and padding must be 1, got {self.scale} and {self.padding}")
        if self.calls is not None and not 1 <= self.calls <= self.steps:
            raise ValueError(f"calls must lie in 1 … {self.steps}, the times of the path, got {self.calls}")
        self.path()

    def path(self) -> DenoisingPath:
        """The path."""
        return DenoisingPath(self.max_sigma, self.steps, self.schedule, self.eps)


class DenoisingSDE(RestorationModel):
    """A denoiser of Gaussian noise of known standard deviation, up to the path's largest.

    The input is the state at the time whose noise is nearest to `level`; from there the steps lead to the
    clean image. Nothing is drawn. Mode "mean" is one call at that time.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes; called as net(x, t).

    Example:
        >>> model = DenoisingSDE(DenoisingSDEConfig(network_options={"nf": 8, "depth": 1})).eval()
        >>> model.restore(torch.zeros(2, 3, 5, 7), level=torch.tensor([5.0, 25.0])).shape
        torch.Size([2, 3, 5, 7])

    Reference: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations",
        section 5.
    """

    config_class = DenoisingSDEConfig
    solvers: ClassVar[tuple[str, ...]] = tuple(RULES)
    needs_level: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    config: DenoisingSDEConfig

    def __init__(self, config: DenoisingSDEConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        build = BUILDERS[config.network]
        self.net = build(**config.network_options, conditional=False) if network is None else network

    @property
    def state_channels(self) -> int:
        """Channels of the image."""
        return 3

    @property
    def takes(self) -> frozenset[str]:
        """The noise level."""
        return frozenset({"level"})

    @property
    def pixel_bytes(self) -> int:
        """Memory in bytes per input pixel, roughly."""
        return 4 * features_at_once(self.net)

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """Most network calls of a restoration: with little noise fewer times are left."""
        return check_steps(mode, steps, MODES, self.config.calls or self.config.steps, self.config.steps)

    def bare_denoiser(self, net: Callable[..., Tensor]) -> BaseDenoiser:
        """A network that stands in for the model's own."""
        return Denoiser(net, self.config.path(), "eps")

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
        rule = self.solver_of(solver)
        calls = self.steps_of(mode, steps)
        self.check_told(mask, level)
        if level is None:
            raise ValueError("level must be given: the standard deviation of the input's noise, 0 … 255")
        image = (lq.to(torch.promote_types(lq.dtype, torch.float32)) + 1) / 2
        starts = self.starts(level, len(lq))
        method = FirstOrder() if mode == "mean" else RULES[rule]
        made = image.clone()
        for start in sorted(set(starts) - {0}):
            chosen = torch.tensor([k for k, own in enumerate(starts) if own == start], device=lq.device)
            used = min(calls, start)
            times = [float(round(start * (1 - i / used))) for i in range(used + 1)]
            denoise = self.bare_denoiser(self.net)
            made[chosen] = sample(denoise, solver=method, grid=times, x=image[chosen], on_step=on_step)
        return (2 * made - 1).clamp(-1, 1)

    def starts(self, level: float | Float[Tensor, "batch"], batch: int) -> list[int]:
        """Time at which each image is a state; 0 where it has hardly any noise and is left as it is.

        Raises:
            ValueError: a level that is negative or not finite, or not one for each image.
        """
        levels = torch.as_tensor(level, dtype=torch.float64).cpu()
        levels = levels.expand(batch) if levels.ndim == 0 else levels
        if levels.shape != (batch,) or not bool(torch.isfinite(levels).all()) or bool((levels < 0).any()):
            raise ValueError(
                f"level must be one standard deviation ≥ 0, or one for each of {batch} images, got {level}"
            )
        path = self.config.path()
        return [path.time_of_level(value / 255) for value in levels.tolist()]
