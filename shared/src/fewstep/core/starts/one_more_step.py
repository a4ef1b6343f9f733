"""One More Step: a module asked at zero signal, so that a sampler need not start from pure noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.noise import GivenNoise, SampleNoise
from fewstep.core.paths import Path

Velocity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OneMoreStep:
    """Turn pure noise into a start for a path that was trained with some signal left at t_max.

    A network that never saw pure noise expects the data's mean, a_T·x0, in its first state. A small module
    that predicts v at zero signal (where v = −x0) supplies it:
        v = v_null + scale·(v_cond − v_null),
        x_T = −a_T·v + b_T·y + sigma_T·(sqrt(1 − eta)·noise + sqrt(eta)·w).
    The module has guidance and conditions of its own and no time. It costs one call, two with guidance.

    Args:
        module: x -> v, conditions bound.
        null: the same without its condition, for scale other than 1.
        scale: guidance weight.
        eta: share of fresh noise w, 0 to 1. 1 as published; 0 keeps the noise that the module saw.

    Raises:
        ValueError: if eta is out of range, or scale is not 1 without null.

    Example:
        >>> from fewstep.core import paths
        >>> oms = OneMoreStep(lambda x: torch.full_like(x, -0.5))  # the data have mean 0.5
        >>> path = paths.VP.from_betas([0.001 + 0.0001 * i for i in range(100)])
        >>> oms.start(path, (2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])

    Reference: Hu et al. 2024, "One More Step: A Versatile Plug-and-Play Module for Rectifying Diffusion
        Schedule Flaws". The published code draws w with sigma_T² where its formula has sigma_T.
    """

    module: Velocity
    null: Velocity | None = None
    scale: float = 1.0
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie between 0 and 1, not {self.eta}")
        if self.scale != 1.0 and self.null is None:
            raise ValueError(f"null is missing: scale = {self.scale} needs the module without its condition")

    @property
    def nfe(self) -> int:
        """Calls of the module."""
        return 1 if self.scale == 1.0 else 2

    def start(
        self,
        path: Path,
        shape: Sequence[int],
        *,
        seed: int | Sequence[int] = 0,
        y: Float[Tensor, "batch *rest"] | None = None,
        noise: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "batch *rest"]:
        """The state at path.t_max, to be passed to `sample` as x.

        Give `sample` another seed if its solver draws noise: one seed gives the same draws again.

        Args:
            path: on which the sampler will run.
            shape: (batch, channels, ...).
            seed: sample i draws from a generator seeded with seed + i; or one seed per sample.
            y: degraded input, if the path uses it.
            noise: `noise(like)` replaces the generators.
            dtype: of the result.
            device: where it lies.

        Raises:
            ValueError: if y is missing or the module returns another shape.
        """
        if path.uses_y and y is None:
            raise ValueError(f"y is missing: {type(path).__name__} starts from the degraded input")
        source = SampleNoise(seed, shape[0], device) if noise is None else GivenNoise(noise)
        pure = torch.empty(tuple(shape), dtype=dtype, device=device)
        source.fill(pure)
        with torch.no_grad():
            velocity = self._velocity(pure)
        if velocity.shape != pure.shape:
            raise ValueError(
                f"module must return shape {tuple(pure.shape)}, it returned {tuple(velocity.shape)}"
            )
        kept = pure
        if self.eta > 0.0:
            fresh = torch.empty_like(pure)
            source.fill(fresh)
            kept = (1.0 - self.eta) ** 0.5 * pure + self.eta**0.5 * fresh
        a, b, sigma = path.coefficients(path.t_max)
        x = sigma * kept - a * velocity.to(pure)
        return x if y is None or not path.uses_y else x + b * y.to(x)

    def _velocity(self, x: Tensor) -> Tensor:
        if self.null is None or self.scale == 1.0:
            return self.module(x)
        return torch.lerp(self.null(x), self.module(x), self.scale)
