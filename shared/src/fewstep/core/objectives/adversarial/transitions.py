"""The forward chain between a few levels of a path, and its posterior given x0."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.paths import Path


class Transitions:
    """Steps between decreasing times t_0 > t_1 > … > t_K of a path, for batches with a step per sample.

    Step i leads from t = t_i to s = t_{i+1}. With z = x − b·y and the chain's coefficient r from s to t,

        z_s = a_s·x0 + sigma_s·n,   z_t = r·z_s + (a_t − r·a_s)·x0 + sqrt(sigma_t² − r²·sigma_s²)·n',
        q(z_s | z_t, x0):  z_s = a_s·x0 + sqrt(sigma_s² − delta²)·(z_t − a_t·x0)/sigma_t + delta·w,
        delta² = (sigma_s²/sigma_t²)·(sigma_t² − r²·sigma_s²),

    so a step is one of the `ancestral` solver. The chain of residual paths (ResShift and its kin) adds x0 in
    every step; elsewhere a_t = r·a_s. A step to the clean end gives x0 itself.

    Args:
        path: of the states.
        times: decreasing, the last with sigma = 0 (or the smallest there is).

    Raises:
        ValueError: fewer than two times, or they do not decrease.

    Reference: Ho, Jain and Abbeel 2020, eq. 6 and 7; Xiao, Kreis and Vahdat 2022 (DDGAN), appendix B.
    """

    def __init__(self, path: Path, times: Sequence[float]) -> None:
        if len(times) < 2 or any(s >= t for t, s in itertools.pairwise(times)):
            raise ValueError(f"levels must be at least two decreasing times, got {tuple(times)}")
        self.path, self.times = path, tuple(float(t) for t in times)
        levels = path.coefficients_at(self.times)
        steps = []
        for (t, (a_t, _, sigma_t)), (s, (a_s, _, sigma_s)) in itertools.pairwise(
            zip(self.times, levels, strict=True)
        ):
            r = path.transition(s, t)
            fresh = max(sigma_t**2 - (r * sigma_s) ** 2, 0.0)
            delta = min(fresh**0.5 * sigma_s / sigma_t, sigma_s)
            keep = max(sigma_s**2 - delta**2, 0.0) ** 0.5 / sigma_t
            steps.append((r, a_t - r * a_s, fresh**0.5, keep, a_s - keep * a_t, delta))
        self._levels = torch.tensor(levels, dtype=torch.float64)
        self._steps = torch.tensor(steps, dtype=torch.float64)
        self._times = torch.tensor(self.times, dtype=torch.float64)

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._steps)

    def time(self, level: Int64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        """Times of levels 0 to K."""
        return self._times.to(level.device)[level]

    def start(
        self, noise: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"] | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """The state that sampling begins with, sigma·noise + b·y at t_0."""
        level = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        _, _, sigma = self._level(level)
        return self._with_y(spread(sigma, noise) * noise, level, y)

    def pair(
        self,
        x0: Float[Tensor, "batch *shape"],
        step: Int64[Tensor, "batch"],
        noise: Float[Tensor, "batch *shape"],
        added: Float[Tensor, "batch *shape"],
        y: Float[Tensor, "batch *shape"] | None = None,
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """States x_s and x_t of the same data, as the forward chain makes them.

        Args:
            x0: data.
            step: of each sample, 0 to K − 1.
            noise: standard normal, of x_s.
            added: standard normal, on the way from x_s to x_t.
            y: of a path that has one.
        """
        a, _, sigma = self._level(step + 1)
        r, shift, fresh, _, _, _ = self._step(step)
        z_s = spread(a, x0) * x0 + spread(sigma, x0) * noise
        z_t = spread(r, x0) * z_s + spread(shift, x0) * x0 + spread(fresh, x0) * added
        return self._with_y(z_s, step + 1, y), self._with_y(z_t, step, y)

    def posterior(
        self,
        x_t: Float[Tensor, "batch *shape"],
        x0: Float[Tensor, "batch *shape"],
        step: Int64[Tensor, "batch"],
        noise: Float[Tensor, "batch *shape"],
        y: Float[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """A draw from q(x_s | x_t, x0).

        Args:
            x_t: states at the beginning of the step.
            x0: clean samples, often estimates.
            step: of each sample, 0 to K − 1.
            noise: standard normal.
            y: of a path that has one.
        """
        _, _, _, keep, weight, delta = self._step(step)
        z = self._without_y(x_t, step, y)
        z_s = spread(keep, x0) * z + spread(weight, x0) * x0 + spread(delta, x0) * noise
        return self._with_y(z_s, step + 1, y)

    def scaled(
        self,
        x: Float[Tensor, "batch *shape"],
        level: Int64[Tensor, "batch"],
        y: Float[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """z/sqrt(a² + sigma²), of order one at every level; z itself where the path preserves variance."""
        a, _, sigma = self._level(level)
        return self._without_y(x, level, y) / spread(torch.hypot(a, sigma), x)

    def _level(self, level: Tensor) -> tuple[Tensor, ...]:
        return self._levels.to(level.device)[level].unbind(1)

    def _step(self, step: Tensor) -> tuple[Tensor, ...]:
        return self._steps.to(step.device)[step].unbind(1)

    def _with_y(self, z: Tensor, level: Tensor, y: Tensor | None) -> Tensor:
        return z if y is None or not self.path.uses_y else z + spread(self._level(level)[1], z) * y

    def _without_y(self, x: Tensor, level: Tensor, y: Tensor | None) -> Tensor:
        return x if y is None or not self.path.uses_y else x - spread(self._level(level)[1], x) * y
