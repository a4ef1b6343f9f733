"""MixtureFlow: the exact flow from noise to a finite set of points, and the map noise → point."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core import paths
from fewstep.core.paths import Path

# The grid of `tokens`, kappa = sigma/a as multiples of distances between the points; the exponent is the one
# with the fewest wrong points among logarithmic, Karras-like and uniform grids on random codebooks.
_FIRST, _LAST, _EXPONENT = 2.0, 0.1, 3.0


class MixtureFlow:
    """The closed-form diffusion of a categorical distribution over points e_k.

    With x_t = a·e + sigma·eps and P(e = e_k) = p_k,

    P(k | x, t) = softmax_k(log p_k − ‖x − a·e_k‖²/(2·sigma²)),    D(x, t) = Σ_k P(k | x, t)·e_k,

    so denoiser, score and velocity are known and the ODE sends every noise to one point, the share p_k of all
    noise to e_k. On rectified flow a = 1 − t and sigma = t.

    Every method is batched over samples and positions: x is (batch, ..., features) and log_p
    (batch, ..., codes), or of any shape that broadcasts to it. They compute in x's dtype, but
    `tokens` in float64.

    Args:
        embeddings: the points, (codes, features), all different.
        path: of the states, without y (None: rectified flow).

    Raises:
        ValueError: there are fewer than two points, two are equal, or the path has y.

    Reference: Liu et al. 2024, "Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with
        Flow Matching", section 3.2.

    Example:
        >>> flow = MixtureFlow(torch.tensor([[-1.0], [1.0]]))
        >>> flow.tokens(torch.tensor([[-0.3], [0.9]]), torch.tensor([0.5, 0.5]).log())
        tensor([0, 1])
    """

    def __init__(self, embeddings: Float[Tensor, "codes features"], path: Path | None = None) -> None:
        if embeddings.ndim != 2 or len(embeddings) < 2:
            shape = tuple(embeddings.shape)
            raise ValueError(f"embeddings must be (codes, features) with at least two codes, got {shape}")
        self.embeddings = embeddings.detach()
        self.path: Path = path or paths.RectifiedFlow()
        if self.path.uses_y:
            raise ValueError(f"path must be one without y, got {self.path}")
        self._nearest, self._widest = _distances(self.embeddings.double())

    def log_posterior(
        self, x: Float[Tensor, "batch *positions features"], t: float | Tensor, log_p: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch *positions codes"]:
        """log P(k | x, t).

        Args:
            x: states.
            t: time of the path, for all, or of shape (batch,) or (batch, *positions).
            log_p: log-probabilities of the points (their sum need not be 1); −inf for none.

        Raises:
            ValueError: the last sizes of x and log_p are not those of the points.
        """
        self._check(x, log_p)
        a, _, sigma = (self._spread(value, x) for value in self._at(t, x))
        return self._posterior(x, a, sigma, log_p)

    def x0(
        self, x: Float[Tensor, "batch *positions features"], t: float | Tensor, log_p: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch *positions features"]:
        """D(x, t), the mean of the point given the state; the arguments are those of `log_posterior`."""
        return self.log_posterior(x, t, log_p).exp() @ self.embeddings.to(x)

    def denoiser(self, log_p: Float[Tensor, "..."]) -> Callable[[Tensor, float | Tensor], Tensor]:
        """The flow of one distribution (or one per sample and position) as a denoiser for `sample`.

        Example:
            >>> from fewstep.core import sample
            >>> flow = MixtureFlow(torch.tensor([[-1.0], [1.0]]))
            >>> ask = flow.denoiser(torch.tensor([0.5, 0.5]).log())
            >>> sample(ask, flow.path, "heun", steps=8, x=torch.tensor([[-0.3], [0.9]])).round()
            tensor([[-1.],
                    [ 1.]])
        """
        return lambda x, t: self.x0(x, t, log_p)

    def velocity(
        self, x: Float[Tensor, "batch *positions features"], t: float | Tensor, log_p: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch *positions features"]:
        """dx/dt = a'·D + sigma'·(x − a·D)/sigma, exactly; (x − D)/t on rectified flow."""
        denoised = self.x0(x, t, log_p)
        times = self._times(t, x)
        a, _, sigma = (self._spread(value, x) for value in self.path.evaluate(times))
        da, _, dsigma = (self._spread(value, x) for value in self.path.derivatives_at(times))
        return da * denoised + dsigma * (x - a * denoised) / sigma

    def score(
        self, x: Float[Tensor, "batch *positions features"], t: float | Tensor, log_p: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch *positions features"]:
        """∇ log p(x_t) = (a·D − x)/sigma², exactly."""
        a, _, sigma = (self._spread(value, x) for value in self._at(t, x))
        return (a * self.x0(x, t, log_p) - x) / sigma.square()

    @torch.no_grad()
    def tokens(
        self,
        noise: Float[Tensor, "batch *positions features"],
        log_p: Float[Tensor, "..."],
        steps: int = 64,
    ) -> Int[Tensor, "batch *positions"]:
        """The index of the point to which the ODE carries standard normal noise.

        Heun's rule on the straight path w = (1 − tau)·e + tau·eps (every path is one, see `clock`), with D
        as what is averaged:

            w_s = r·w_t + (1 − r)·(D(w_t) + D(w_s'))/2,   r = tau_s/tau_t,   w_s' the same with D(w_t) alone,

        on times that go from twice the largest distance between points to a tenth of the smallest, in
        sigma/a. The result is independent of the path. Noise that lies next to a border between two points
        may end in the other one; twice the steps leave a quarter of these.

        Args:
            noise: standard normal.
            log_p: as for `log_posterior`.
            steps: of two evaluations each.

        Raises:
            ValueError: steps is below 1, or the sizes do not fit.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._check(noise, log_p)
        w, log_p, points = noise.double(), log_p.double(), self.embeddings.double().to(noise.device)
        times = self._grid(steps)
        for tau, after in pairwise(times):
            ratio = after / tau
            first = self._posterior(w, 1 - tau, tau, log_p).exp() @ points
            euler = ratio * w + (1 - ratio) * first
            second = self._posterior(euler, 1 - after, after, log_p).exp() @ points
            w = ratio * w + (1 - ratio) * (first + second) / 2
        return self._posterior(w, 1 - times[-1], times[-1], log_p).argmax(-1)

    def _grid(self, steps: int) -> list[float]:
        """Decreasing tau, from 1."""
        top, low = ((_FIRST * self._widest) ** (1 / _EXPONENT), (_LAST * self._nearest) ** (1 / _EXPONENT))
        kappas = [(top + (low - top) * i / max(steps - 1, 1)) ** _EXPONENT for i in range(steps)]
        return [1.0, *(kappa / (1 + kappa) for kappa in kappas)]

    def _posterior(self, x: Tensor, a: float | Tensor, sigma: float | Tensor, log_p: Tensor) -> Tensor:
        points = self.embeddings.to(x)
        # −‖x − a·e‖²/2 without ‖x‖², which is common to all points.
        closeness = a * (x @ points.T) - a * a * points.square().sum(-1) / 2
        return torch.log_softmax(log_p.to(x) + closeness / (sigma * sigma), dim=-1)

    def _times(self, t: float | Tensor, x: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        if times.shape != x.shape[: times.ndim] or times.ndim >= x.ndim:
            shape = tuple(times.shape)
            raise ValueError(f"t must be a number or of leading sizes of x {tuple(x.shape)}, got {shape}")
        return times

    def _at(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.path.evaluate(self._times(t, x))

    @staticmethod
    def _spread(value: Tensor, x: Tensor) -> Tensor:
        return value.to(x.dtype).reshape(*value.shape, *[1] * (x.ndim - value.ndim))

    def _check(self, x: Tensor, log_p: Tensor) -> None:
        codes, features = self.embeddings.shape
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(f"x must be (batch, ..., {features}), got {tuple(x.shape)}")
        if log_p.shape[-1:] != (codes,) or log_p.ndim > x.ndim:
            raise ValueError(f"log_p must be (batch, ..., {codes}), got {tuple(log_p.shape)}")


def _distances(points: Tensor) -> tuple[float, float]:
    """The smallest and the largest distance between two points."""
    apart = (points[:, None] - points[None]).norm(dim=-1)
    apart = apart[~torch.eye(len(points), dtype=torch.bool, device=points.device)]
    nearest, widest = float(apart.min()), float(apart.max())
    if nearest <= 1e-6 * widest:
        raise ValueError(f"embeddings must be different points, but two are {nearest:g} apart")
    return nearest, widest
