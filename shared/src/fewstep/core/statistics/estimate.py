"""Estimating the statistics of a network from noised data."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.grids.base import SNR_FLOOR, snr_range
from fewstep.core.paths import Path
from fewstep.core.statistics.stored import ModelStatistics

Draw = Callable[[int, torch.Generator], Tensor]
_ROUNDING = 1e-12  # variances below this share of the second moments are rounding


def estimate_statistics(
    denoise: Callable[..., Tensor],
    path: Path | None = None,
    data: Tensor | Draw | None = None,
    intervals: int = 120,
    samples: int = 1024,
    batch: int = 128,
    seed: int = 0,
    shared: bool = False,
    y: Tensor | None = None,
    derivative: str = "auto",
    smoothing: int = 0,
    step: float = 5e-3,
    floor: float = SNR_FLOOR,
    progress: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """Estimate the statistics of a network from noised data.

    In ybar = z/a and lam = log(a/sigma) the probability-flow ODE of every path is d(ybar)/d(lam) = D − ybar,
    so with J = dD/d(ybar)

        l = 1 − E[v·(J v)], v random signs;   f = (1 − l)·ybar − D,
        f' = (1 − l)·(D − ybar) − D' − l'·ybar,   D' the total derivative along the trajectory,
        s = cov(f, f')/var(f),   b = E f' − s·E f,

    for each pixel, over the distribution of noised data at each lam. All levels use the same data, noise and
    signs, so that l is smooth in lam and l' a plain central difference (the authors draw anew and average it
    over 5 points to both sides, which flattens the ends). D' is a difference quotient along the trajectory:
    it needs no derivative by time, which networks with integer times do not offer. A level costs about five
    network calls a batch.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        path: the denoiser's own by default.
        data: x0, shape (count, ...) (its first `samples` are used), or a function (count, generator) -> x0.
        intervals: of the grid, from the path's noisiest time to t_min; the authors take 120 to 1200.
        samples: number of noised data; the authors take 1024 to 4096.
        batch: how many at a time.
        seed: of noise and signs.
        shared: one number for all pixels, without offset (s minimises E|f' − s·f|²), so that there is a plan.
        y: degraded input of each datum, for paths that have one.
        derivative: J v by "forward" differentiation (torch.func.jvp), by a "difference" quotient, or "auto":
            the second where the first fails.
        smoothing: average l' over so many points to both sides.
        step: of difference quotients, in lam and in noise levels; more for a network in low precision.
        floor: half log-SNR that stands for pure noise where a = 0.
        progress: called with (batches done, batches in all).

    Returns:
        The statistics, float64, on the data's device.

    Raises:
        ValueError: if an argument is missing or out of range.

    Reference: Zheng et al. 2023 (DPM-Solver-v3), section 3.1.2 and appendix C.1.1, there for VP and EDM.
    """
    path = path if path is not None else getattr(denoise, "path", None)
    if path is None:
        raise ValueError("path is missing, and denoise is a plain callable without one")
    if data is None:
        raise ValueError("data are missing: x0 of shape (count, …), or a function (count, generator) -> x0")
    first, last = snr_range(path, floor)
    if min(intervals, samples, batch) < 1 or smoothing < 0:
        raise ValueError(
            "intervals, samples and batch must be at least 1 and smoothing at least 0, not "
            f"{intervals}, {samples}, {batch} and {smoothing}"
        )
    if not 0.0 < step < 0.5 * (last - first) / intervals:
        raise ValueError(f"step must be positive and below half an interval of the grid, it is {step}")
    if derivative not in ("auto", "forward", "difference"):
        raise ValueError(f"derivative must be 'auto', 'forward' or 'difference', not {derivative!r}")
    if path.uses_y and y is None:
        raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
    lam = torch.linspace(first, last, intervals + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    total = min(samples, data.shape[0]) if isinstance(data, Tensor) else samples
    moments = None
    for start in range(0, total, batch):
        count = min(batch, total - start)
        x0 = data[start : start + count] if isinstance(data, Tensor) else data(count, generator)
        part = _Batch(denoise, path, x0, None if y is None else y[start : start + count], generator, step)
        sums = torch.stack([part.sums(float(value), (first, last), derivative) for value in lam])
        moments = sums if moments is None else moments + sums
        if progress is not None:
            progress(start // batch + 1, -(-total // batch))
    assert moments is not None
    means = (moments / total).unbind(1)
    l, s, b = _fit(lam.to(moments.device), means, smoothing, shared)  # noqa: E741
    return ModelStatistics(first, last, l, s, b, path)


class _Batch:
    """Some data with the noise and the signs that they keep at all levels."""

    def __init__(
        self,
        denoise: Callable[..., Tensor],
        path: Path,
        x0: Tensor,
        y: Tensor | None,
        generator: torch.Generator,
        step: float,
    ) -> None:
        given: Any = denoise
        self.denoise = given.given(y=y) if y is not None and hasattr(given, "predict") else denoise
        self.path, self.y, self.step = path, y, step
        self.x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        self.noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(self.x0)
        self.signs = torch.randint(0, 2, x0.shape, generator=generator).mul(2).sub(1).to(self.x0)

    @torch.no_grad()
    def sums(self, lam: float, limits: tuple[float, float], derivative: str) -> Tensor:
        """Sums over the samples of v·Jv, ybar, D, D', and of the products that covariances need; float64."""
        a, sigma, ask = self._at(lam)
        state = a * self.x0 + sigma * self.noise
        denoised, along = self._directional(ask, state, a, sigma, derivative)
        ybar, slope = state / a, denoised - state / a
        # two more points of the tangent, on one side where the path ends
        early, late = -self.step, self.step
        if lam + early < limits[0]:
            early, late = self.step, 2 * self.step
        elif lam + late > limits[1]:
            early, late = -2 * self.step, -self.step
        answers = []
        for offset in (early, late):
            scale, _, ask_there = self._at(lam + offset)
            answers.append(ask_there(scale * (ybar + offset * slope)))
        changes = (answer - denoised for answer in answers)
        rate = (late / early * next(changes) - early / late * next(changes)) / (late - early)
        y, d, p = ybar.double(), denoised.double(), rate.double()
        terms = ((self.signs * along).double(), y, d, p, y * y, y * d, d * d, y * p, d * p)
        return torch.stack([term.sum(0) for term in terms])

    def _at(self, lam: float) -> tuple[float, float, Callable[[Tensor], Tensor]]:
        t = self.path.time_at(lam)
        a, b, sigma = self.path.coefficients(t)

        def ask(z: Tensor) -> Tensor:
            return self.denoise(z if self.y is None else z + b * self.y.to(z), t).to(z.dtype)

        return a, sigma, ask

    def _directional(
        self, ask: Callable[[Tensor], Tensor], state: Tensor, a: float, sigma: float, derivative: str
    ) -> tuple[Tensor, Tensor]:
        """(D, dD/d(ybar)·signs)."""
        if derivative != "difference":
            try:
                denoised, along = torch.func.jvp(ask, (state,), (a * self.signs,))[:2]
                return denoised, along
            except RuntimeError:  # an operation without a forward derivative; NotImplementedError is one too
                if derivative == "forward":
                    raise
        push = self.step * sigma
        change = ask(state + push * self.signs) - ask(state - push * self.signs)
        return ask(state), (0.5 * a / push) * change


def _fit(lam: Tensor, means: Sequence[Tensor], smoothing: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(l, s, b) from the means of v·Jv, ybar, D, D' and their products."""
    along, y, d, p, yy, yd, dd, yp, dp = means
    l = 1.0 - along  # noqa: E741
    if shared:
        l = l.flatten(1).mean(1)  # noqa: E741
    rate = _smoothed((torch.gradient(l, spacing=(lam,), dim=0, edge_order=2)[0]), smoothing)
    shape = (-1,) + (1,) * (y.ndim - 1)
    rest, turn = (value.reshape(shape) if shared else value for value in (1.0 - l, rate))
    # f = rest·y − d and f' = rest·(d − y) − p − turn·y as weights of (y, d, p)
    on_y, on_d = -rest - turn, rest
    products = rest * (on_y * yy + on_d * yd - yp) - (on_y * yd + on_d * dd - dp)
    squares = rest * rest * yy - 2.0 * rest * yd + dd
    f, f_rate = rest * y - d, on_y * y + on_d * d - p
    if shared:
        s = products.flatten(1).sum(1) / squares.flatten(1).sum(1)
        return l, s, torch.zeros_like(s)
    spread = squares - f * f
    # of f that does not vary (Gaussian data) rounding would be left: there s = 0 and b says everything
    s = torch.where(spread > _ROUNDING * (rest * rest * yy + dd), (products - f * f_rate) / spread, 0.0)
    return l, s, f_rate - s * f


def _smoothed(values: Tensor, reach: int) -> Tensor:
    """Moving average over ±reach points, over what there is of them at the ends."""
    total = torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)])
    place = torch.arange(len(values), device=values.device)
    low, high = (place - reach).clamp(min=0), (place + reach + 1).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low).reshape(-1, *[1] * (values.ndim - 1))
