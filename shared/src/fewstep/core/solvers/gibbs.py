"""DMCMC: Langevin–Gibbs chains over samples and their noise levels, each visit denoised from where it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.noise import SampleNoise
from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Listed, Report, StepwiseSolver, levels
from fewstep.core.y_free import Frame, over

Noise = Callable[[Tensor], Tensor]
Classify = Callable[[Tensor], Tensor]


def noise_levels(sigma_max: float = 50.0, sigma_min: float = 0.01, count: int = 1000) -> Tensor:
    """The levels sigma_min·(sigma_max/sigma_min)^u, u from 1 to 0.001, that the published classifier knows.

    Returns:
        Shape (count,), decreasing.

    Raises:
        ValueError: if the levels are not 0 < sigma_min < sigma_max.
    """
    if not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min must lie between 0 and sigma_max = {sigma_max}, not {sigma_min}")
    u = torch.linspace(1.0, 1e-3, count, dtype=torch.float64)
    return sigma_min * (sigma_max / sigma_min) ** u


class Visit(NamedTuple):
    """Where the chains stand: x = z/a, shape (batch, ...), and kappa = sigma/a, shape (batch,)."""

    x: Tensor
    kappa: Tensor


@dataclass(frozen=True)
class LangevinGibbs(StepwiseSolver):
    """Denoising Langevin Gibbs: a Markov chain over (x, kappa), x = x0 + kappa·eps, and short runs.

    One turn of the chain, which is slow to forget and so needs no new start for a new sample:

        x ← x + eta/2·score(x, kappa) + sqrt(eta)·w,    kappa ← classify(x),    score = (D − x)/kappa²,

    `skip` turns a sample; the visit with the smallest kappa among them is denoised with Heun's method on a
    Karras grid of its own from that kappa to sigma_min and 0, and a last call D(x, last_level) removes what
    noise is left. `samples` draws from the chains again and again; `integrate` (the call behind `sample`)
    draws once, with as many steps as the grid has: the cost of making the chain is then not shared.

    Args:
        eta: size of a Langevin step, in units of the squared data; 0.5 to 0.8 for CIFAR-10 in [0, 1].
        skip: turns between samples (n_skip).
        burn_in: turns before the first sample.
        first_steps: Heun steps that make the first visit.
        first_noise: noise that is added to it.
        sigma_min: level from which a denoising run steps to 0.
        rho: exponent of its grid.
        churn: S_churn of EDM in the runs, at levels 0.05 to 1; 0 is deterministic, 80 was published.
        churn_noise: factor on its draws.
        last_level: level of the last call; 0 leaves the call out.
        classify: noise levels (batch,) of x (batch, ...): a network that was trained to tell them, such as
            `lambda x: noise_levels()[net(x).argmax(1)]`. None takes the RMS of x − D(x_before) instead,
            which needs no network, but is too small where the data fill their space.

    Raises:
        ValueError: if an option is out of range.

    Reference: Kim and Ye 2023 (Denoising MCMC), algorithm 1 and section 4.
    """

    eta: float = 0.5
    skip: int = 1
    burn_in: int = 20
    first_steps: int = 20
    first_noise: float = 0.5
    sigma_min: float = 0.01
    rho: float = 7.0
    churn: float = 0.0
    churn_noise: float = 1.007
    last_level: float = 0.01
    classify: Classify | None = None
    name = "dmcmc"
    order = 2

    def __post_init__(self) -> None:
        for name in ("eta", "first_noise", "sigma_min", "rho"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        for name, least in (("skip", 1), ("burn_in", 0), ("first_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("last_level", "churn", "churn_noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}")

    def integrate(
        self, ask: Ask, path: Path, grid: Sequence[float], z: Tensor, noise: Noise, on_step: Report
    ) -> Tensor:
        points = levels(path, grid)
        asked = _Asked(ask, path)
        visit = self._burn_in(asked, asked.from_start(z, points[0].t), noise)
        _, best = self._turns(asked, visit, self.skip, noise)
        x = self._denoise(asked, best, len(points) - 1, noise)
        end = points[-1]
        z = end.a * x + end.sigma * noise(x) if end.sigma else end.a * x
        on_step(z, end.t, x)
        return z

    def samples(
        self,
        denoise: Callable[..., Tensor],
        path: Path,
        x: Float[Tensor, "batch *rest"],
        rounds: int,
        steps: int = 10,
        y: Float[Tensor, "batch *rest"] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Float[Tensor, "batch *rest"]]:
        """Draw `rounds` batches from one chain per sample of the batch.

        A batch takes skip + 2·steps network calls, the first one burn_in + 2·first_steps − 1 more.

        Args:
            denoise: a Denoiser, or any callable (x, t) -> x0; t has shape (batch,).
            path: how data becomes noise.
            x: start state at t_max, shape (batch, ...).
            rounds: number of batches.
            steps: Heun steps of a denoising run.
            y: degraded input of a path that has one.
            seed: chain i draws from a generator seeded with seed + i; or one seed per chain.

        Yields:
            x0, shaped like x; batch mates are independent, successive batches nearly so.

        Raises:
            ValueError: if rounds or steps is less than 1, or y is missing.
        """
        for name, value in (("rounds", rounds), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        frame = Frame(denoise, path, x, y)
        asked = _Asked(frame.ask, path)
        source = SampleNoise(seed, len(x), x.device)

        def noise(like: Tensor) -> Tensor:
            out = torch.empty_like(like)
            source.fill(out)
            return out

        with torch.no_grad():
            start = asked.from_start(frame.with_y(x, path.t_max, -1.0), path.t_max)
            visit = self._burn_in(asked, start, noise)
        for _ in range(rounds):
            with torch.no_grad():
                visit, best = self._turns(asked, visit, self.skip, noise)
                found = self._denoise(asked, best, steps, noise)
            yield found

    def _burn_in(self, asked: "_Asked", start: Visit, noise: Noise) -> Visit:
        """The first visit of a chain and its first turns."""
        clean = self._run(asked, start, self.first_steps, noise)
        x = clean + self.first_noise * noise(clean)
        return self._turns(asked, Visit(x, self._level(x, clean)), self.burn_in, noise)[0]

    def _turns(self, asked: "_Asked", visit: Visit, count: int, noise: Noise) -> tuple[Visit, Visit]:
        """(last visit, the one with the smallest kappa) of some turns; the latter may be the given one."""
        best = visit
        for _ in range(count):
            x, kappa = visit
            denoised = asked(x, kappa)
            x = x + over(0.5 * self.eta / kappa**2, x) * (denoised - x) + math.sqrt(self.eta) * noise(x)
            visit = Visit(x, self._level(x, denoised))
            cleaner = visit.kappa < best.kappa
            best = Visit(torch.where(over(cleaner, x) > 0, x, best.x), torch.minimum(visit.kappa, best.kappa))
        return visit, best

    def _level(self, x: Tensor, denoised: Tensor) -> Tensor:
        if self.classify is None:
            found = (x - denoised).flatten(1).square().mean(1).sqrt()
        else:
            found = self.classify(x)
            if found.shape != x.shape[:1]:
                raise ValueError(
                    f"classify must return one level a sample, ({len(x)},), not {tuple(found.shape)}"
                )
        return found.to(x.device, torch.float64).clamp(min=self.sigma_min * (1.0 + 1e-6))

    def _denoise(self, asked: "_Asked", visit: Visit, steps: int, noise: Noise) -> Tensor:
        x = self._run(asked, visit, steps, noise)
        return asked(x, torch.full_like(visit.kappa, self.last_level)) if self.last_level else x

    def _run(self, asked: "_Asked", visit: Visit, steps: int, noise: Noise) -> Tensor:
        """Heun's method from each sample's own level to 0, each step after a step back with churn."""
        x = visit.x
        first = visit.kappa ** (1.0 / self.rho)
        last = visit.kappa.clamp(max=self.sigma_min) ** (1.0 / self.rho)
        grid = [torch.lerp(first, last, i / max(steps - 1, 1)) ** self.rho for i in range(steps)]
        for i, kappa in enumerate(grid):
            if self.churn:
                back = min(self.churn / (steps + 1), math.sqrt(2.0) - 1.0)
                raised = kappa * torch.where((kappa >= 0.05) & (kappa <= 1.0), 1.0 + back, 1.0)
                x = x + over((raised**2 - kappa**2).sqrt() * self.churn_noise, x) * noise(x)
                kappa = raised
            denoised = asked(x, kappa)
            if i == steps - 1:
                return denoised
            slope, step = (x - denoised) / over(kappa, x), over(grid[i + 1] - kappa, x)
            guess = x + step * slope
            x = x + 0.5 * step * (slope + (guess - asked(guess, grid[i + 1])) / over(grid[i + 1], x))
        return x


class _Asked:
    """A denoiser of x = z/a at noise levels kappa = sigma/a, one per sample."""

    def __init__(self, ask: Ask, path: Path) -> None:
        self.ask, self.path = ask, path

    def __call__(self, x: Tensor, kappa: Tensor) -> Tensor:
        t = self.path.time_at(-kappa.log())
        a, _, _ = self.path.evaluate(t)
        return self.ask(over(a, x) * x, t)

    def from_start(self, z: Tensor, t: float) -> Visit:
        """The start at time t; from a = 0 a step of the flow leads to a finite level."""
        a, _, sigma = self.path.coefficients(t)
        kappa = sigma / a if a > 0.0 else 80.0
        x = z / a if a > 0.0 else self.ask(z, t) + z * (kappa / sigma)
        return Visit(x, torch.full(z.shape[:1], kappa, dtype=torch.float64, device=z.device))


SOLVERS = {
    "dmcmc": Listed(
        LangevinGibbs, "Kim and Ye 2023, DMCMC", "2n + 60", "many samples from one chain; see `samples`"
    ),
}
