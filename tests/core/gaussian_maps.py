"""Exact denoisers and flow maps of Gaussian data on any path, and a student that learns them quickly."""

# pyright: reportArgumentType=false

import torch
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.clock import denormalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.methods import Material, Method
from fewstep.core.paths import Path
from fewstep.core.sampling import Sampling
from fewstep.core.training import Moment

STD = 0.7


class GaussianMap:
    """x0 of the exact jump from t to s (s = t: the denoiser); it is told the times of the path themselves.

    z_s = z_t·sqrt((sigma_s² + a_s²·std²)/(sigma_t² + a_t²·std²)), z = x − b·y.
    """

    def __init__(self, path: Path, consistency: bool = False) -> None:
        self.path, self.consistency = path, consistency

    def __call__(self, x: Tensor, t: Tensor, s: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        a_t, b_t, sigma_t = self.path.evaluate(t)
        total = sigma_t.square() + (a_t * STD).square()
        x = x / spread(self.path.input_scale_at(t), x)
        z = x if y is None else x - spread(b_t, x) * y
        if self.consistency:
            return spread(STD / total.sqrt(), x) * z
        denoised = a_t * STD**2 / total
        if s is None:
            return spread(denoised, x) * z
        a_s, _, sigma_s = self.path.evaluate(s)
        ratio = sigma_s / sigma_t
        lead = a_s - ratio * a_t
        apart = lead.abs() > 1e-9
        moved = ((sigma_s.square() + (a_s * STD).square()) / total).sqrt()
        jump = (moved - ratio) / torch.where(apart, lead, 1.0)
        return spread(torch.where(apart, jump, denoised), x) * z


def exact(path: Path, y: Tensor | None = None, **options: bool) -> FlowMap:
    """The exact map as a network that predicts x0; it takes the second time."""
    return FlowMap(GaussianMap(path, **options), path, "x0", {} if y is None else {"y": y})


class Polynomial(nn.Module):
    """p(t, s)·x + q(t, s) with polynomials of degree 3 in each time: little to compute, quick to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(16, 2))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        powers = torch.arange(4)
        first, second = (time[:, None] ** powers for time in (t, t if s is None else s))
        features = (first[:, :, None] * second[:, None, :]).flatten(1).to(self.weights.dtype)
        scale, shift = (features @ self.weights).chunk(2, dim=1)
        return scale * x + shift


def learned(method: Method, teacher: FlowMap | None, steps: int, rate: float = 0.03, **options) -> Tensor:
    """One-step samples of a Polynomial after a method's updates on N(1, 0.3²), on rectified flow."""
    path, net = paths.RectifiedFlow(time="t"), Polynomial()
    objective = method.make(Material(path, "velocity", net, teacher, (1,), steps), **options)
    (phase,), networks = objective.phases(), {"student": net, **objective.modules()}
    weights = [weight for name in phase.trains for weight in networks[name].parameters()]
    optimizer, generator = torch.optim.Adam(weights, rate), torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        moment = Moment(step, step / steps)
        losses = phase.loss(networks, 1 + 0.3 * torch.randn(256, 1, generator=generator), generator, moment)
        optimizer.zero_grad()
        (losses if isinstance(losses, Tensor) else losses["loss"]).backward()
        optimizer.step()
        objective.after_update("train", networks, moment)
    return method.sampling.run(FlowMap(net, path, "velocity"), (1,), 2000)


def apart(samples: Tensor) -> float:
    """Wasserstein distance to N(1, 0.3²) of a Gaussian with the samples' mean and deviation."""
    return float(((samples.mean() - 1).square() + (samples.std() - 0.3).square()).sqrt())


def euler(calls: int) -> Tensor:
    """Samples of as many Euler steps of the exact flow to N(1, 0.3²): what its students should beat."""
    return Sampling("ode", calls, spacing="clock", solver="euler").run(teacher_of(1.0, 0.3), (1,), 2000)


def teacher_of(mean: float, std: float) -> FlowMap:
    """The exact denoiser of N(mean, std²) on rectified flow."""
    path = paths.RectifiedFlow(time="t")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, _, sigma = (spread(value, x) for value in path.evaluate(t))
        return mean + a * std**2 * (x - a * mean) / ((a * std) ** 2 + sigma**2)

    return FlowMap(denoise, path, "x0")


def states(path: Path, count: int = 6, y: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """States x, times t > s, and y, in float64."""
    generator = torch.Generator().manual_seed(3)
    draw = torch.rand(2, count, generator=generator, dtype=torch.float64)
    tau = 0.3 + 0.6 * draw[0]
    x, other = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    t, s = time_of_clock(path, tau), time_of_clock(path, 0.8 * tau * draw[1])
    return denormalised(path, x, t, other if y else None), t, s, other if y else None
