"""The consistency head: a chain of denoising steps distilled into one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.paths.vp import TableVP

AtLevel = Callable[[Tensor, Tensor], Tensor]
"""(x, levels (batch,)) → the predicted noise."""

# Standard deviation of the data that the scalings assume, and how integer levels are stretched.
_DATA, _STRETCH = 0.5, 10.0


class Boundary(NamedTuple):
    """Weights of f(x, t) = c_skip·x + c_out·x̂0.

    Attributes:
        skip: c_skip, 1 at level 0.
        out: c_out, 0 at level 0.
    """

    skip: Tensor
    out: Tensor


def boundary(level: Int[Tensor, "*shape"]) -> Boundary:
    """c_skip = σ²/((10t)² + σ²), c_out = 10t/√((10t)² + σ²), σ = ½, t the integer level.

    From level 1 on this is nearly x̂0 itself; only level 0 is the exact identity.

    Args:
        level: t.

    Reference: Luo et al. 2023, "Latent Consistency Models", released code; Lei et al. 2025, "RL-100".
    """
    t = level.double() * _STRETCH
    total = t.square() + _DATA**2
    return Boundary(_DATA**2 / total, t / total.sqrt())


def trailing_levels(levels: int, steps: int) -> tuple[int, ...]:
    """(n + 1)·levels//steps − 1 for n = steps − 1 … 0: a single step starts at the noisiest level.

    Args:
        levels: of the table.
        steps: of the student.

    Reference: Luo et al. 2023, released code; note that RL-100's teacher walks other levels, 1, 11, …, 91.

    Example:
        >>> trailing_levels(100, 1), trailing_levels(100, 5)
        ((99,), (99, 79, 59, 39, 19))
    """
    return tuple((n + 1) * (levels // steps) - 1 for n in reversed(range(steps)))


def student_x0(
    path: TableVP,
    x: Float[Tensor, "batch *shape"],
    level: Int[Tensor, "batch"],
    noise: Float[Tensor, "batch *shape"],
    clip: float = 0.0,
) -> Float[Tensor, "batch *shape"]:
    """f(x, t) = c_skip·x + c_out·(x − σ_t·ε)/a_t, what the consistency head says of x.

    Args:
        path: the table.
        x: the state.
        level: t.
        noise: ε, what the network predicts there.
        clip: of x̂0; 1 in use, 0 (none) in the loss.

    Reference: Luo et al. 2023, eq. 9; Lei et al. 2025, "RL-100".
    """
    weights = boundary(level)
    x0 = predicted_x0(path, x, level, noise)
    x0 = x0.clamp(-clip, clip) if clip else x0
    return _like(weights.skip, x) * x + _like(weights.out, x) * x0


def predicted_x0(
    path: TableVP,
    x: Float[Tensor, "batch *shape"],
    level: Int[Tensor, "batch"],
    noise: Float[Tensor, "batch *shape"],
) -> Float[Tensor, "batch *shape"]:
    """(x − σ_t·ε)/a_t; arguments as of `student_x0`."""
    a, _, sigma = path.evaluate(level.double())
    return (x - _like(sigma, x) * noise) / _like(a, x)


class Points(NamedTuple):
    """Two neighbouring levels of a teacher's walk.

    Attributes:
        start: the noisier one.
        end: the other; 0 below the first.
    """

    start: Int[Tensor, "batch"]
    end: Int[Tensor, "batch"]


def neighbours(index: Int[Tensor, "batch"], levels: int, steps: int) -> Points:
    """Levels (k + 1)·levels//steps − 1 and that of k − 1, 0 below the first.

    Args:
        index: k, from 0.
        levels: of the table.
        steps: of the walk.

    Reference: Luo et al. 2023, released code.
    """
    stride = levels // steps
    start = (index + 1) * stride - 1
    return Points(start, (start - stride).clamp(min=0))


def teacher_step(
    path: TableVP,
    x: Float[Tensor, "batch *shape"],
    points: Points,
    noise: Float[Tensor, "batch *shape"],
) -> Float[Tensor, "batch *shape"]:
    """One DDIM step to the lower level: a_s·x̂0 + σ_s·ε, in float64.

    The published code hands on the network's raw output as ε whatever it predicts, which is right for noise
    alone; give the noise.

    Args:
        path: the table.
        x: the state at the start.
        points: where it goes.
        noise: ε, the teacher's.

    Reference: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12 with η = 0; Lei et al.
        2025, "RL-100", released code.
    """
    a, _, sigma = path.evaluate(points.end.double())
    x0 = predicted_x0(path, x, points.start, noise)
    wide = x.double()
    return _like(a, wide) * x0.double() + _like(sigma, wide) * noise.double()


def backup_loss(
    path: TableVP,
    student: AtLevel,
    teacher: AtLevel,
    average: AtLevel,
    clean: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    index: Int[Tensor, "batch"],
    steps: int,
) -> Float[Tensor, ""]:
    """mean (f_θ(x_t, t) − f_average(x̂_s, s))², x̂_s one step of the teacher from x_t: "back_up".

    Args:
        path: the table.
        student: predicts noise, with its graph.
        teacher: the chain's own network.
        average: of the student.
        clean: actions.
        noise: that corrupts them.
        index: k of the teacher's walk, drawn from 0 … steps − 1.
        steps: of the teacher's walk.

    Reference: Luo et al. 2023, "Latent Consistency Models", eq. 14; Lei et al. 2025, "RL-100".
    """
    points = neighbours(index, round(path.t_max) + 1, steps)
    x = path.corrupt(clean, points.start.double(), noise)
    found = student_x0(path, x, points.start, student(x, points.start))
    with torch.no_grad():
        below = teacher_step(path, x, points, teacher(x, points.start))
        wanted = student_x0(path, below, points.end, average(below.to(x.dtype), points.end).to(below.dtype))
    return (found - wanted.to(found.dtype)).square().mean()


def same_noise_loss(
    student_action: Float[Tensor, "batch time numbers"],
    teacher_action: Float[Tensor, "batch time numbers"],
    executed: slice,
) -> Float[Tensor, ""]:
    """mean (a_θ(z) − a_teacher(z))² over the executed actions: both started from the same noise.

    RL-100's default, "action_same_noise", in normalised units here.

    Args:
        student_action: of one call, with its graph.
        teacher_action: of the whole chain, without noise on its steps.
        executed: actions that are carried out.

    Reference: Lei et al. 2025, "RL-100", released code.
    """
    return (student_action - teacher_action.detach())[:, executed].square().mean()


def noisiest(path: TableVP) -> int:
    """The level at which a single step starts."""
    return math.floor(path.t_max)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
