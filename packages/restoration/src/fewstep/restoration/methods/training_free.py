"""Restoration without training for it: an unconditional model and a linear operator that is known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.configs import config_from_dict
from fewstep.core.guidance import (
    AveragePool,
    BlockSensing,
    LinearOperator,
    Mask,
    RangeNull,
    Steering,
    in_turn,
)
from fewstep.core.guidance.base import EstimateWrapper
from fewstep.core.guidance.operators import TightOperator
from fewstep.core.guidance.range_null import residual
from fewstep.core.models import DiffusionModel, DiffusionModelConfig
from fewstep.core.paths import Path
from fewstep.core.run import OnStep
from fewstep.core.sample import sample
from fewstep.core.wrapping import BaseDenoiser, Time

from .base import Level, Noise, RestorationModel, check_name, check_steps
from .blur import Blur
from .padding import reflect_to_multiple

METHODS = ("ddnm", "dps", "flowchef")
OPERATORS = ("average-pool", "mask", "compressed-sensing", "blur")
MOST_STEPS = 1000


@dataclass(frozen=True)
class TrainingFreeConfig:
    """Which operator, how it is used, and the unconditional model.

    Args:
        operator: "average-pool" (super-resolution by `scale`), "mask" (inpainting), "compressed-sensing"
            (blocks seen through orthonormal rows, simulated from the input) or "blur" (Gaussian, circular).
        operator_options: arguments of `BlockSensing` (block, ratio, seed), or {"sigma": …} of `Blur`.
        method: "ddnm" replaces what the operator saw in every estimate; "dps" follows the gradient of the
            likelihood through the network; "flowchef" steers the states without it.
        strength: of the replacement, the gradient or the steering; 1 is the published DDNM.
        noise: standard deviation of the noise in the observation, for "dps".
        variance: of the data around its mean, for "dps".
        steps: network calls.
        scale: how many times larger the result is than the input.
        padding: the input is extended by reflection to a multiple of this.
        tasks: what it is for.
        prior: fields of the core's DiffusionModelConfig.

    Raises:
        ValueError: for a name that is not known or a number out of its range.
    """

    operator: str = "average-pool"
    operator_options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "ddnm"
    strength: float = 1.0
    noise: float = 0.0
    variance: float = 0.25
    steps: int = 100
    scale: int = 1
    padding: int = 1
    tasks: tuple[str, ...] = ()
    prior: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("method", self.method, METHODS)
        check_name("operator", self.operator, OPERATORS)
        if self.operator != "average-pool" and self.scale != 1:
            raise ValueError(f"scale must be 1 for operator {self.operator!r}, got {self.scale}")
        if self.noise < 0 or self.variance <= 0:
            raise ValueError(
                f"noise must be at least 0 and variance above 0, got {self.noise} and {self.variance}"
            )
        for name in ("scale", "padding", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class TrainingFree(RestorationModel):
    """An unconditional diffusion model that restores what a linear operator has degraded.

    Args:
        config: what to do.
        prior: the unconditional model; by default a new one from the configuration.

    Reference: Wang, Yu & Zhang 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space
        Model"; Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems"; Patel et
        al. 2024, "Steering Rectified Flow Models in the Vector Field for Controlled Image Generation".
    """

    config_class = TrainingFreeConfig
    config: TrainingFreeConfig
    modes = ("sample",)
    solvers = ("ddim", "ancestral")

    def __init__(self, config: TrainingFreeConfig, prior: DiffusionModel | None = None) -> None:
        super().__init__()
        self.config = config
        if prior is None:
            prior = DiffusionModel(config_from_dict(DiffusionModelConfig, dict(config.prior), "prior"))
        self.prior = prior

    @property
    def takes(self) -> frozenset[str]:
        return frozenset({"mask"} if self.config.operator == "mask" else ())

    @property
    def state_channels(self) -> int:
        return self.prior.shape[0]

    @property
    def pixel_bytes(self) -> int:
        return 4 * 2048 * self.config.scale**2

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        return check_steps(mode, steps, self.modes, self.config.steps, MOST_STEPS)

    def operator(self, mask: Float[Tensor, "batch 1 h w"] | None = None) -> LinearOperator:
        """The degradation that the configuration names.

        Args:
            mask: 1 where the image is unknown, for "mask".
        """
        name, options = self.config.operator, dict(self.config.operator_options)
        if name == "average-pool":
            return AveragePool(self.config.scale)
        if name == "compressed-sensing":
            return BlockSensing(**options)
        if name == "blur":
            return Blur(**options)
        assert mask is not None
        return Mask((mask < 0.5).to(torch.float32))

    def observed(self, operator: LinearOperator, lq: Float[Tensor, "batch channels h w"]) -> Tensor:
        """What the operator saw: the input itself, what is known of it, or simulated measurements."""
        return operator.forward(lq) if self.config.operator in ("mask", "compressed-sensing") else lq

    @torch.no_grad()
    def restore(
        self,
        lq: Float[Tensor, "batch channels h w"],
        *,
        mode: str = "sample",
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        steps: int | None = None,
        solver: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "batch channels h2 w2"]:
        calls = self.steps_of(mode, steps)
        solver = self.solver_of(solver)
        self.check_told(mask, level)
        if lq.shape[1] != self.state_channels:
            raise ValueError(f"lq must have {self.state_channels} channels as the model, got {lq.shape[1]}")
        multiple, scale = self.config.padding, self.config.scale
        extended = reflect_to_multiple(lq.to(torch.promote_types(lq.dtype, torch.float32)), multiple)
        operator = self.operator(None if mask is None else reflect_to_multiple(mask, multiple))
        observed = self.observed(operator, extended)
        denoise: BaseDenoiser = self.prior.denoiser()
        steer = on_step
        if self.config.method == "ddnm":
            denoise = RangeNull(denoise, operator, observed, self.config.strength)
        elif self.config.method == "dps":
            settings = (self.config.strength, self.config.noise, self.config.variance)
            denoise = PosteriorGuided(denoise, operator, observed, *settings)
        else:
            whole = self.config.strength / largest_singular_value(operator, 2) ** 2
            chef = Steering(operator, observed, whole, "sum")
            steer = chef if on_step is None else in_turn(chef, on_step)
        height, width = (scale * side for side in extended.shape[2:])
        z = sample(
            denoise,
            solver=solver,
            steps=calls,
            shape=(len(lq), self.state_channels, height, width),
            seed=seed,
            noise=noise,
            on_step=steer,
            dtype=extended.dtype,
            device=extended.device,
        )
        made = z[..., : scale * lq.shape[2], : scale * lq.shape[3]].clamp(-1, 1)
        return made if mask is None else torch.lerp(lq.to(made), made, mask.to(made))


class PosteriorGuided(EstimateWrapper):
    """The estimate moved by the gradient of the observation's likelihood, taken through the network.

    x0 <- x0 − strength · (σ²/a) · ∇_x |A x0(x) − y|² / (2 r²),   r² = noise² + s² v σ²/(a² v + σ²),

    s the operator's largest singular value and v the variance of the data. For Gaussian data and a tight
    operator this is the exact mean of what x0 may be, given x and y. The published DPS has one constant in
    place of 1/r² at all levels.

    Args:
        inner: a denoiser that knows its path.
        operator: the degradation A.
        observed: y, one entry for each sample or one for all.
        strength: 1 is the exact one in the Gaussian case.
        noise: standard deviation of the noise in y.
        variance: v.

    Reference: Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", eq. 16;
        the variance: Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", eq. 8.
    """

    path: Path

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        operator: LinearOperator,
        observed: Float[Tensor, "entries *observed"],
        strength: float = 1.0,
        noise: float = 0.0,
        variance: float = 1.0,
    ) -> None:
        super().__init__(inner)
        self.operator, self.observed = operator, observed
        self.strength, self.noise, self.variance = float(strength), float(noise), float(variance)

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """The moved x0; one call of the network and one way back through it."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            x0 = self.inner(point, t)
            gap = residual(self.operator, x0, self.observed)
            (gradient,) = torch.autograd.grad(gap.square().sum() / 2, point)
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        a, _, sigma = self.path.evaluate(times)
        spread = self.variance * sigma**2 / (a**2 * self.variance + sigma**2)
        r2 = self.noise**2 + largest_singular_value(self.operator, x.ndim - 2) ** 2 * spread
        weight = torch.where(a > 0, self.strength * sigma**2 / (a * r2), 0.0)
        return x0.detach() - weight.to(x).view(-1, *[1] * (x.ndim - 1)) * gradient


def largest_singular_value(operator: LinearOperator, axes: int) -> float:
    """That of a tight operator; 1, a mean's, for any other.

    Args:
        operator: the degradation.
        axes: spatial axes of a sample.
    """
    return operator.singular_value(axes) if isinstance(operator, TightOperator) else 1.0
