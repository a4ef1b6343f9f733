"""What an IR-SDE or Refusion model is built from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths
from fewstep.core.grids.mean_reverting import SCHEDULES
from fewstep.core.solvers import Solver
from fewstep.core.solvers.ir_sde import IRSDE
from fewstep.core.solvers.mean_reverting import MRSampler

from .base import check_name

NETWORKS = ("conditional-unet", "conditional-nafnet")
# The published networks extend what they are given themselves, and are shown states in [0, 1].
OWN_NETWORKS = ("small-unet",)
MRS_CALLS = 10
PREDICTIONS = ("eps", "x0", "v")
INTERPOLATIONS = ("consistent", "official")

RULES: dict[str, Solver] = {
    "ir-posterior": IRSDE("posterior"),
    "ir-sde": IRSDE("sde", "official"),
    "ir-ode": IRSDE("ode", "official"),
    **{f"mrs-{order}": MRSampler(order) for order in (1, 2, 3)},
    **{f"mrs-{order}-noise": MRSampler(order, form="noise") for order in (1, 2, 3)},
    **{f"mrs-sde-{order}": MRSampler(order, "sde") for order in (1, 2)},
    **{f"mrs-sde-{order}-noise": MRSampler(order, "sde", "noise") for order in (1, 2)},
}
"""The published rules; "mrs-…" interpolates the clean image between calls, "mrs-…-noise" the noise."""


@dataclass(frozen=True)
class IRSDEConfig:
    """Everything an IR-SDE model is built from; the defaults are the published ones of Refusion.

    Args:
        steps: times T of the path.
        max_sigma: stationary standard deviation λ of the noise, in 8-bit levels (below 1: of [0, 1]).
        schedule: θ, "cosine", "linear" or "constant".
        eps: what is left of the clean image at the last time.
        subtract_first: θ_0 is left out of the running sum, as in IR-SDE and Refusion; DA-CLIP keeps it. It
            belongs to the checkpoint: the two tables give different noise for the same time.
        prediction: what the network predicts, "eps" (published), "x0" or "v".
        network: "conditional-unet" or "conditional-nafnet"; or "small-unet", our own, which predicts x0.
        network_options: arguments of the network.
        autoencoder: arguments of RefusionAutoencoder; None: states are images.
        scale: the input is enlarged by bicubic interpolation first.
        fill: for inpainting, what unknown pixels are before the restoration, of [0, 1] (published: 1); None:
            the model takes no mask.
        solver: rule of the steps; one of `RULES`.
        calls: network calls of a restoration; None: T for the rules "ir-…", 10 for "mrs-…".
        grid: times of the rules "mrs-…": one of `fewstep.core.grids.mean_reverting.SCHEDULES`.
        interpolation: between the whole times "mrs-…" interpolates log a ("consistent"), or a, σ and
            log(a/σ) each by itself and ends the times where the published code does ("official", which wants
            subtract_first=False).
        tasks: what it was trained for.

    Raises:
        ValueError: for a name that is not known or a number out of range.

    Reference: Luo et al. 2023, IR-SDE, section 3 and appendix; Li et al. 2025 (MR-Sampler), section 5.
    """

    steps: int = 100
    max_sigma: float = 50.0
    schedule: str = "cosine"
    eps: float = 0.005
    subtract_first: bool = True
    prediction: str = "eps"
    network: str = "conditional-nafnet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: Mapping[str, Any] | None = None
    scale: int = 1
    fill: float | None = None
    solver: str = "ir-posterior"
    calls: int | None = None
    grid: str = "linspace"
    interpolation: str = "consistent"
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("prediction", self.prediction, PREDICTIONS)
        check_name("network", self.network, (*NETWORKS, *OWN_NETWORKS))
        if self.network == "small-unet" and self.prediction != "x0":
            raise ValueError(f"prediction must be 'x0' with network 'small-unet', got {self.prediction!r}")
        check_name("solver", self.solver, RULES)
        check_name("grid", self.grid, SCHEDULES)
        check_name("interpolation", self.interpolation, INTERPOLATIONS)
        if self.interpolation == "official" and self.subtract_first:
            raise ValueError("interpolation must be 'consistent' unless subtract_first is False")
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")
        if self.fill is not None and not 0 <= self.fill <= 1:
            raise ValueError(f"fill must lie in 0 … 1, got {self.fill}")
        if self.calls is not None and not 1 <= self.calls <= self.steps:
            raise ValueError(f"calls must lie in 1 … {self.steps}, the times of the path, got {self.calls}")
        self.path()

    @property
    def padding(self) -> int:
        """What sides and places of tiles are multiples of, so that they are reduced as in the whole image."""
        options = self.autoencoder
        levels = None if options is None else len(options.get("ch_mult", (1, 2, 4, 4)))
        whole = self._network_multiple
        if levels is not None:
            whole = math.lcm(2**levels, 2 ** (levels - 1) * whole)
        return whole // math.gcd(whole, self.scale)

    @property
    def _network_multiple(self) -> int:
        """What the network makes the sides of a state multiples of."""
        options = self.network_options
        if self.network == "small-unet":
            return options.get("fold", 2) * 2 ** (len(options.get("widths", (32, 64, 96))) - 1)
        if self.network == "conditional-nafnet":
            return 2 ** len(options.get("enc_blk_nums", (1, 1, 1, 28)))
        return 2 ** (len(options["ch_mult"]) if options.get("ch_mult") else options.get("depth", 4))

    def calls_of(self, rule: str) -> int:
        """Network calls of a restoration by a rule, where no number is asked for."""
        if self.calls is not None and rule == self.solver:
            return self.calls
        return MRS_CALLS if rule.startswith("mrs-") else self.steps

    def path(self) -> paths.MeanReverting:
        """The path."""
        return paths.MeanReverting(
            max_sigma=self.max_sigma,
            steps=self.steps,
            schedule=self.schedule,
            eps=self.eps,
            subtract_first=self.subtract_first,
        )
