"""BOSS: the grid on which first-order steps follow a fine trajectory best, by dynamic programming."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import grids
from fewstep.core.paths import Path
from fewstep.core.sample import sample
from fewstep.core.solvers import levels
from fewstep.core.solvers.unified import StepChoice, UnifiedSolver

_FINE = UnifiedSolver(otherwise=StepChoice(order=2, corrector=False))


def shortest_path(cost: Float[Tensor, "n m"], steps: int) -> tuple[list[int], float]:
    """Return the cheapest way from the first index to the last in exactly `steps` forward jumps.

    V_1(i) = c_{i,n},  V_k(i) = min_{j>i} c_ij + V_{k−1}(j): O(steps·n²), one matrix operation per step.

    Args:
        cost: c_ij of a jump from i to j > i; the rest is not read.
        steps: number of jumps, 1 to n − 1.

    Returns:
        steps + 1 increasing indices and the total cost.

    Raises:
        ValueError: if the matrix is not square or has too few indices for the steps.

    Example:
        >>> shortest_path(torch.tensor([[0.0, 1.0, 5.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 2)
        ([0, 1, 2], 2.0)

    Reference: Nguyen, Nguyen and Nguyen 2023 (BOSS), section 3.2.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be a square matrix, its shape is {tuple(cost.shape)}")
    count = len(cost)
    if not 1 <= steps < count:
        raise ValueError(f"steps must be between 1 and {count - 1} for {count} indices, not {steps}")
    forward = torch.ones_like(cost, dtype=torch.bool).triu(1)
    edges = cost.double().masked_fill(~forward, torch.inf)
    value = edges[:, -1]
    choices: list[Tensor] = []
    for _ in range(steps - 1):
        value, choice = (edges + value).min(1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, count - 1], float(value[0])


def step_costs(
    path: Path,
    times: Sequence[float],
    states: Float[Tensor, "n batch *rest"],
    denoised: Float[Tensor, "m batch *rest"],
) -> Float[Tensor, "n n"]:
    """Return c_ij = E‖(a_j·x0_i + sigma_j·eps_i − z_j)/a_j‖², the error of one first-order step from i to j.

    The states are those of a fine trajectory in the y-free frame z = x − b·y. The error is that of z/a, in
    which first-order steps are straight lines (in sigma/a) on every path; it is exact at a_i = 0 too.

    Args:
        path: the path.
        times: n decreasing times.
        states: z at each of them.
        denoised: the network's x0 at the first m = n − 1 of them.

    Reference: Nguyen, Nguyen and Nguyen 2023 (BOSS), section 3.2, there for the frame of rectified flow.
    """
    points = levels(path, times)
    cost = torch.zeros(len(times), len(times), dtype=torch.float64, device=states.device)
    shape = (-1,) + (1,) * (states.ndim - 1)
    a, sigma = (
        torch.tensor(column, dtype=torch.float64, device=states.device).view(shape)
        for column in ([point.a for point in points], [point.sigma for point in points])
    )
    z = states.double()
    for i, start in enumerate(points[:-1]):
        x0 = denoised[i].double()
        eps = (z[i] - start.a * x0) / start.sigma
        gap = x0 + (sigma[i + 1 :] * eps - z[i + 1 :]) / a[i + 1 :]
        cost[i, i + 1 :] = gap.square().flatten(2).sum(2).mean(1)
    return cost


def boss_times(
    denoise: Callable[..., Tensor],
    path: Path,
    steps: int,
    x: Float[Tensor, "batch *rest"],
    y: Float[Tensor, "batch *rest"] | None = None,
    points: int = 100,
) -> tuple[float, ...]:
    """Return the best `steps` + 1 of the times of a fine trajectory: a grid for `sample`.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        path: the path.
        steps: number of steps of the grid.
        x: start states at t_max, shape (batch, ...); about 100 are enough.
        y: the degraded input, if the path uses it.
        points: steps of the fine trajectory (fewer on a path with fewer times); its states are kept,
            points·x.numel() numbers.

    Returns:
        Decreasing times from t_max to the clean end.

    Raises:
        ValueError: if steps exceeds the steps of the fine trajectory.
    """
    times = fine_grid(path, points)
    states: list[Tensor] = []
    denoised: list[Tensor] = []

    def record(state: Tensor, t: float | Tensor) -> Tensor:
        states.append(state.detach().clone())
        denoised.append(denoise(state, t).detach())
        return denoised[-1]

    y = getattr(denoise, "y", None) if y is None else y
    end = sample(record, path, _FINE, grid=times, x=x, y=y)
    offsets = [0.0 if y is None else b * y for _, b, _ in path.coefficients_at(times)]
    z = torch.stack([state - offset for state, offset in zip([*states, end], offsets, strict=True)])
    indices, _ = shortest_path(step_costs(path, times, z, torch.stack(denoised)), steps)
    return tuple(times[i] for i in indices)


def fine_grid(path: Path, steps: int) -> tuple[float, ...]:
    """Return many times from t_max to the clean end: even in log-SNR, or the integers of a discrete path."""
    if path.is_discrete:
        return grids.uniform(path, min(steps, round(path.t_max - path.t_clean)))
    return grids.logsnr(path, steps)
