"""Transports: how a state is brought from time t to an earlier time r."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread
from fewstep.core.objectives.trajectory.base import Situation

Transport = Callable[[Situation, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(situation, x_t, t, r, noise) → x_r."""


def by_data(situation: Situation, x: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """x_r of the same data and noise: an Euler step with the data as estimate; needs no teacher."""
    return situation.path.corrupt(situation.batch.x0, r, noise, situation.batch.y)


def by_euler(situation: Situation, x: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """One DDIM step of the teacher."""
    teacher = situation.taught()
    return teacher.moved(x, t, r, teacher.x0(x, t))


def by_heun(situation: Situation, x: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """One Heun step of the teacher in sigma/a; a DDIM step from a time with a = 0, where that is infinite."""
    path, teacher = situation.path, situation.taught()
    if path.coefficients(path.t_max)[0] > 0:
        return teacher.heun(x, t, r)
    pure = path.evaluate(t)[0] <= 0
    inside = torch.where(pure, 0.5 * (t.double() + r.double()), t.double())
    heun = teacher.heun(x, inside, r)
    return torch.where(spread(pure, x) > 0, by_euler(situation, x, t, r, noise), heun)


def by_clock_heun(situation: Situation, x: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """One Heun step of the teacher on the normalised clock: the usual one of rectified flow.

    Where r lies below t_min the second velocity is taken at t_min.
    """
    path, teacher = situation.path, situation.taught()
    gap = clock_at(path, t) - clock_at(path, r)
    asked = r.double().clamp_min(path.t_min)
    z, y = normalised(path, x, t, teacher.y), teacher.y
    first = teacher.mean_velocity(x, t)
    at_asked = denormalised(path, z - spread(clock_at(path, t) - clock_at(path, asked), x) * first, asked, y)
    second = teacher.mean_velocity(at_asked, asked)
    return denormalised(path, z - spread(gap / 2, x) * (first + second), r, y)


TRANSPORTS: dict[str, Transport] = {
    "data": by_data,
    "euler": by_euler,
    "heun": by_heun,
    "clock-heun": by_clock_heun,
}


def transport_of(name: str | Transport) -> Transport:
    """The transport of that name (a function is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if callable(name):
        return name
    if name not in TRANSPORTS:
        raise ValueError(f"transport must be one of {', '.join(TRANSPORTS)}, got {name!r}")
    return TRANSPORTS[name]
