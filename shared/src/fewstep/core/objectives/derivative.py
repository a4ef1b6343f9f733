"""The rate of change of a network's function along a direction, exactly or by central differences."""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.clock import clock_rate_at, normalised, spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.paths import Path

Mode = str
MODES = ("jvp", "difference")
Function = Callable[..., Tensor]
"""function(flow, *point) → (batch, ...)"""


def check_mode(mode: str, step: float) -> None:
    """Refuse what `value_and_rate` does not know.

    Raises:
        ValueError: unknown mode, or a step that is not positive.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not step > 0:
        raise ValueError(f"step must be positive, got {step!r}")


def value_and_rate(
    function: Function,
    flow: FlowMap,
    point: tuple[Tensor, ...],
    direction: tuple[Tensor, ...],
    mode: Mode = "jvp",
    step: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Return f(p) with its graph, and df(p + h·d)/dh at h = 0 without one.

    "jvp": one pass that carries the derivative along (forward-mode automatic differentiation), exact;
    autocast is off in it and attention takes the kernel that can do this.
    "difference": (f(p + step·d) − f(p − step·d))/(2·step), the two extra passes in float64 with the same
    weights and the same random draws (dropout); for networks with operations that know no forward mode.

    Args:
        function: function(flow, *point), which calls the network through the flow map it is given.
        flow: the network.
        point: where.
        direction: shaped like the point.
        mode: one of the two.
        step: of the difference, in units of the direction.

    Raises:
        ValueError: something in the function knows no forward mode; the message names the way out.

    Example:
        >>> from fewstep.core import paths
        >>> flow = FlowMap(lambda x, t: x.square(), paths.RectifiedFlow(), "velocity")
        >>> three = torch.full((1, 1), 3.0)
        >>> value_and_rate(lambda f, x: f.net(x, None), flow, (three,), (torch.ones(1, 1),))
        (tensor([[9.]]), tensor([[6.]]))
    """
    check_mode(mode, step)
    if mode == "difference":
        return _difference(function, flow, point, direction, step)
    device = point[0].device.type
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            value, rate = jvp(lambda *at: function(flow, *at), point, direction)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if "functorch transform" not in str(error) and "forward AD" not in str(error):
            raise
        raise ValueError(
            f"mode 'jvp' needs a network and a prediction with forward-mode derivatives, and prediction "
            f"{flow.prediction.name!r} on {type(flow.path).__name__} with this network has none; "
            "use mode='difference'"
        ) from error
    return value, rate.detach()


def _difference(
    function: Function, flow: FlowMap, point: tuple[Tensor, ...], direction: tuple[Tensor, ...], step: float
) -> tuple[Tensor, Tensor]:
    exact = in_double(flow)
    sides = []
    with torch.no_grad(), torch.autocast(point[0].device.type, enabled=False):
        for h in (step, -step):
            moved = [at.double() + h * along.double() for at, along in zip(point, direction, strict=True)]
            with _same_draws(point[0].device):
                sides.append(function(exact, *moved))
    value = function(flow, *point)
    return value, ((sides[0] - sides[1]) / (2 * step)).to(value.dtype)


def in_double(flow: FlowMap) -> FlowMap:
    """The same map computed in float64, without gradients of the weights."""
    net = _InDouble(flow.net) if isinstance(flow.net, nn.Module) else flow.net
    return FlowMap(net, flow.path, flow.prediction, flow.conditions)


class _InDouble:
    """A network with its weights in float64."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.__signature__ = inspect.signature(net.forward)
        named = [*net.named_parameters(), *net.named_buffers()]
        self.weights = {
            name: value.detach().double() if value.is_floating_point() else value for name, value in named
        }

    def __call__(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return functional_call(self.net, self.weights, (x, t), conditions)


@contextmanager
def _same_draws(device: torch.device):
    """Leave the random generators as they were, so that the next pass draws the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def along_clock(
    path: Path, x: Tensor, t: Tensor, velocity: Tensor, y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (dx/dtau, dt/dtau) of a state that moves with a velocity on the normalised clock.

    x = (a + sigma)·z + b·y with dz/dtau = velocity; on rectified flow simply (velocity, 1).

    Args:
        path: of the state.
        x: the state, (batch, ...).
        t: its times, (batch,).
        velocity: dz/dtau, such as eps − x0.
        y: the degraded input, on a path that has one.

    Raises:
        ValueError: the path is a table, which has no rates.
    """
    rate = clock_rate_at(path, t)
    a, _, sigma = path.evaluate(t)
    da, db, dsigma = path.derivatives_at(t)
    z = normalised(path, x, t, y)
    moved = spread(a + sigma, x) * velocity + spread((da + dsigma) / rate, x) * z
    return moved if y is None else moved + spread(db / rate, x) * y, 1 / rate
