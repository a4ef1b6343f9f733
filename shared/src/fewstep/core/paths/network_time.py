"""What a network is told about the time: the conventions of the published models, by name."""

from collections.abc import Callable

from torch import Tensor

NETWORK_TIMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "t": lambda t, sigma: t,
    "1000t": lambda t, sigma: 1000 * t,
    "999t": lambda t, sigma: 999 * t,  # Score-SDE
    "1000t-1": lambda t, sigma: 1000 * t - 1,  # index of a 1000-step table at t = (index + 1)/1000
    "log-t": lambda t, sigma: t.log(),
    "sigma": lambda t, sigma: sigma,
    "log-sigma/4": lambda t, sigma: sigma.log() / 4,  # EDM's c_noise
}
"""Name → function of (float64 times, float64 sigma at these times)."""
