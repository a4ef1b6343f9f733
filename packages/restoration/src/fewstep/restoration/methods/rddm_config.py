"""What an RDDM model is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths, predictions
from fewstep.core.predictions import Prediction

from .base import check_name
from .rddm_heads import TwoHeads

NETWORKS = ("unet-res", "small-unet")
CLOCKS = ("index", "coefficients")
CONDITIONS = ("input", "mask", "level")
# Rules that go by residual and noise, both as the heads say them, the residual and the result clamped.
PUBLISHED_RULES = ("rddm", "rddm-posterior", "rddm-residual-first")
# Rules of the core, that go by the clamped result alone: the residual is what it differs from the input.
NATIVE_RULES = ("ddim", "ancestral", "dpmpp-2m", "dpmpp-3m")
# Published names of what a network predicts; "pred_x0" is our own.
OBJECTIVES: dict[str, Prediction] = {
    "pred_res_noise": predictions.get("residual+noise"),
    "pred_x0_noise": TwoHeads("x0+noise", first="x0", second="noise"),
    "pred_res_add_noise": TwoHeads("residual+sum", first="residual", second="sum"),
    "pred_x0_add_noise": TwoHeads("x0+sum", first="x0", second="sum"),
    "pred_res": predictions.get("residual"),
    "pred_noise": predictions.get("eps"),
    "pred_x0": predictions.get("x0"),
}


@dataclass(frozen=True)
class RDDMConfig:
    """Everything an RDDM model is built from; the defaults are the published restoration of 5 steps.

    Args:
        steps: noise levels T of the path.
        sampling_steps: network calls of a restoration.
        sum_scale: variance of the noise at the start: 1 as published for rain drops and shadows, 0.01 where
            the published code is not told.
        schedule: "default", or "converted" from DDPM's linear betas.
        objective: what the network predicts, a key of `OBJECTIVES`.
        clock: the times that it is told: "index" (t for both heads), or "coefficients", which residual and
            noise have at t, (T·A_t, T·B_t), as published for generation that does not depend on the path.
        solver: the rule of the steps when none is named. "rddm" is the published one and clamps the residual;
            "rddm-posterior" draws from the posterior of the chain; "rddm-residual-first" takes away the
            residual in one run over the times and the noise in a second; "ddim" and the others clamp the
            result only, so that residuals beyond [-1, 1] survive.
        eta: share of fresh noise of the published rules, 0 … 1; 0 as published wherever there is an input.
        conditions: what the network is told beside the state, of "input", "mask" and "level".
        network: "unet-res" or "small-unet".
        network_options: arguments of the network.
        padding: the input is extended by reflection to a multiple of this.
        exposure: mean brightness that a photograph is given before by a power (0: as it is).
        fill: whether what a mask hides is filled smoothly in the whole photograph before.
        tasks: what the model was trained for.

    Raises:
        ValueError: for a name that is not known or a number out of its range.

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", sections 3 and 4.
    """

    steps: int = 1000
    sampling_steps: int = 5
    sum_scale: float = 1.0
    schedule: str = "default"
    objective: str = "pred_res_noise"
    clock: str = "index"
    solver: str = "rddm"
    eta: float = 0.0
    conditions: tuple[str, ...] = ("input",)
    network: str = "unet-res"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    padding: int = 8
    exposure: float = 0.0
    fill: bool = False
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("objective", self.objective, OBJECTIVES)
        check_name("clock", self.clock, CLOCKS)
        check_name("solver", self.solver, (*PUBLISHED_RULES, *NATIVE_RULES))
        check_name("network", self.network, NETWORKS)
        for condition in self.conditions:
            check_name("conditions", condition, CONDITIONS)
        self.path()
        if not 1 <= self.sampling_steps <= self.steps:
            raise ValueError(f"sampling_steps must lie in 1 … {self.steps}, got {self.sampling_steps}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in 0 … 1, got {self.eta}")
        if not 0 <= self.exposure < 1:
            raise ValueError(f"exposure must lie in 0 … 1, 1 excluded, got {self.exposure}")
        if self.padding < 1:
            raise ValueError(f"padding must be at least 1, got {self.padding}")
        self.check_rule(self.solver)

    def check_rule(self, solver: str) -> None:
        """Refuse a rule that needs the clean estimate where the network does not determine it."""
        if solver in NATIVE_RULES and self.objective == "pred_noise" and self.schedule == "default":
            raise ValueError(
                f"solver must be one of {', '.join(map(repr, PUBLISHED_RULES))} with objective "
                f"'pred_noise' and schedule 'default', whose start holds nothing of the clean image, "
                f"got {solver!r}"
            )

    @property
    def scale(self) -> int:
        """The result is as large as the input."""
        return 1

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return OBJECTIVES[self.objective]

    def path(self) -> paths.RDDM:
        """The path."""
        return paths.RDDM(steps=self.steps, sum_scale=self.sum_scale, schedule=self.schedule)
