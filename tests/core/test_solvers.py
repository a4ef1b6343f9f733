"""Every solver: order of convergence, invariances, the ends of a path, distributions, bad input."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.core.solver_problems import Asked, kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.paths import Path
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP, FirstOrder, Heun

MIXTURE = smooth_mixture()
DETERMINISTIC = {
    "ddim": (FirstOrder(), 1.0),
    "heun": (Heun(), 2.0),
    "dpmpp-1": (DPMSolverPP(1), 1.0),
    "dpmpp-2m midpoint": (DPMSolverPP(2), 2.0),
    "dpmpp-2m taylor": (DPMSolverPP(2, "taylor"), 2.0),
    # the first step of order 1 limits the exact form, the published weight of D2 the official one
    "dpmpp-3m official": (DPMSolverPP(3), 2.0),
    "dpmpp-3m exact": (DPMSolverPP(3, variant="exact"), 2.0),
}
each_solver = pytest.mark.parametrize("name", DETERMINISTIC)
FLOAT64_PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "cosine": paths.VP.cosine(),
    "flow": paths.RectifiedFlow(),
}


@dataclass(frozen=True)
class WithoutY(Path):
    """The y-free frame z = x - b·y of another path."""

    inner: Path

    @property
    def t_max(self):
        return self.inner.t_max

    @property
    def t_min(self):
        return self.inner.t_min

    @property
    def t_clean(self):
        return self.inner.t_clean

    @property
    def is_discrete(self):
        return self.inner.is_discrete

    def evaluate(self, t):
        a, b, sigma = self.inner.evaluate(t)
        return a, torch.zeros_like(b), sigma

    def transition(self, s, t):
        return self.inner.transition(s, t)


def reference(path, high, low, x, steps=800):
    """Classical Runge-Kutta on d(z/a)/d(log kappa) = kappa·eps."""

    def slope(state, u):
        kappa = torch.tensor(u).exp()
        return state - MIXTURE.x0(state, 1.0, kappa)  # kappa·eps at a = 1

    state = x
    u, h = math.log(high), (math.log(low) - math.log(high)) / steps
    for _ in range(steps):
        k1 = slope(state, u)
        k2 = slope(state + 0.5 * h * k1, u + 0.5 * h)
        k3 = slope(state + 0.5 * h * k2, u + 0.5 * h)
        k4 = slope(state + h * k3, u + h)
        state, u = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + h
    return state


@pytest.fixture(scope="module")
def exact():
    return reference(paths.EDM(), 5.0, 0.1, 5.0 * start_noise())


@each_solver
@pytest.mark.parametrize("path", [FLOAT64_PATHS["edm"], FLOAT64_PATHS["vp"]], ids=["edm", "vp"])
def test_order_of_convergence(name, path, exact):
    solver, order = DETERMINISTIC[name]
    solver = replace(solver, lower_order_below=0) if isinstance(solver, DPMSolverPP) else solver
    errors = []
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
        got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * start_noise() * first) / last
        errors.append((got - exact).square().mean().sqrt().item())
    slope = math.log2(errors[0] / errors[-1]) / 2
    assert abs(slope - order) < 0.15, errors


def test_third_order_is_reached_with_exact_history_only_by_the_exact_variant():
    """Local error of one step with an exact history: order 4 if exact, 3 with the official weight."""
    path = paths.EDM()

    def local_error(variant, h):
        lams = [0.0, h, 2 * h, 3 * h]
        grid = [math.exp(-lam) for lam in lams]
        plan = DPMSolverPP(3, variant=variant, lower_order_below=0).compile(path, grid)
        last = plan.rows[-1].terms
        denoised = lambda lam: math.sin(lam + 0.7)  # noqa: E731 — any smooth function of lam
        weights: dict[int, Any] = {term.index: term.coefficient for term in last if term.kind == "d"}
        got = sum(w * denoised(lams[i]) for i, w in weights.items())
        # a_s·int e^(lam - lam_s)·D(lam) dlam over the last step, by Simpson on a fine grid
        n, lo, hi = 2000, lams[2], lams[3]
        u = [lo + (hi - lo) * i / n for i in range(n + 1)]
        f = [math.exp(v - hi) * denoised(v) for v in u]
        exact = (hi - lo) / n / 3 * (f[0] + f[-1] + 4 * sum(f[1:-1:2]) + 2 * sum(f[2:-1:2]))
        return abs(got - exact)

    for variant, order in (("exact", 4), ("official", 3)):
        slope = math.log2(local_error(variant, 0.02) / local_error(variant, 0.01))
        assert abs(slope - order) < 0.15, (variant, slope)


@pytest.mark.parametrize("path", FLOAT64_PATHS.values(), ids=FLOAT64_PATHS)
@each_solver
def test_prediction_does_not_matter(name, path):
    solver, _ = DETERMINISTIC[name]
    grid = kappa_grid(path, 10.0, 0.05, 6, clean=True)
    x = 2.0 * start_noise()
    plain = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x)
    for prediction in ("x0", "eps", "v", "score", "velocity"):
        asked = Asked(MIXTURE.denoiser(path), path, predictions.get(prediction))
        got = sample(asked, solver=solver, grid=grid, x=x)
        assert (got - plain).abs().max() < 1e-12 * 50, (
            prediction
        )  # 50: the condition number of D at kappa = 10
        assert len(asked.calls) == solver.compile(path, grid).nfe


@each_solver
def test_paths_with_the_same_noise_levels_give_the_same_trajectory(name):
    solver, _ = DETERMINISTIC[name]
    found = []
    for path in FLOAT64_PATHS.values():
        grid = kappa_grid(path, 20.0, 0.02, 8)
        states = []
        first = path.coefficients(grid[0])[0]
        sample(
            MIXTURE.denoiser(path),
            path,
            solver,
            grid=grid,
            x=20.0 * first * start_noise(),
            on_step=lambda info, path=path, states=states: states.append(
                info.x / path.coefficients(info.t)[0]
            ),
        )
        found.append(torch.stack(states))
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10


Y_PATHS = {
    "resshift": paths.ResShift(),
    "mean-reverting": paths.MeanReverting(),
    "ouve": paths.OUVE(),
    "rddm": paths.RDDM(),
}


@pytest.mark.parametrize("path", Y_PATHS.values(), ids=Y_PATHS)
@pytest.mark.parametrize("name", solvers.names())
def test_a_path_with_y_equals_the_plain_path_on_z(name, path):
    solver = solvers.get(name)
    y, noise = start_noise(seed=1), start_noise(seed=2)
    grid = grids.uniform(path, 4)
    plain = WithoutY(path)
    b_first, b_last = path.coefficients(grid[0])[1], path.coefficients(grid[-1])[1]
    z = path.coefficients(grid[0])[2] * noise
    expected = sample(MIXTURE.denoiser(plain), plain, solver, grid=grid, x=z, noise=_same_draws())
    got = sample(
        MIXTURE.denoiser(path, y), path, solver, grid=grid, x=z + b_first * y, y=y, noise=_same_draws()
    )
    # some methods blow up in four steps, and rounding with them; a step controlled by its error amplifies it
    tolerance = 1e-9 if name.endswith(("-12", "-23")) else 1e-11
    assert (got - b_last * y - expected).abs().max() < tolerance * expected.abs().max().clamp_min(1.0)


def _same_draws():
    seeds = itertools.count(10)
    return lambda like: start_noise(seed=next(seeds))


# their last step takes more than the newest estimate: two states, a history, or a law of its own
OWN_LAST_STEP = {"bdia", "bdia-ddim", "lms", "evodiff", "dmcmc", "langevin", "pc", "ode45"} | {
    name for name in solvers.names() if name.startswith("ts-") or name.endswith(("-12", "-23"))
}
PURE_NOISE = {"cosine to 1": paths.VP.cosine(t_max=1.0), "flow": paths.RectifiedFlow()}


@pytest.mark.parametrize("path", PURE_NOISE.values(), ids=PURE_NOISE)
@pytest.mark.parametrize("name", solvers.names())
def test_pure_noise_start_and_clean_end_are_exact(name, path):
    """At a = 0 the first estimate is the data mean; at sigma = 0 the result is the last estimate."""
    assert path.coefficients(path.t_max)[0] == 0.0
    seen = []

    def denoise(x, t):
        seen.append(MIXTURE.denoiser(path)(x, t))
        return seen[-1]

    grid = grids.uniform(path, 6)
    got = sample(denoise, path, name, grid=grid, x=start_noise(), noise=torch.ones_like)
    assert torch.isfinite(got).all()
    assert name in OWN_LAST_STEP or torch.equal(got, seen[-1])
    mean = (MIXTURE.weight[:, None] * MIXTURE.mean).sum(0)
    assert torch.allclose(seen[0].flatten(1), mean.expand(4, -1), atol=1e-12)
    for prediction in ("x0", "v", "velocity"):
        asked = Asked(MIXTURE.denoiser(path), path, predictions.get(prediction))
        other = sample(asked, solver=name, grid=grid, x=start_noise(), noise=torch.ones_like)
        assert (other - got).abs().max() < (1e-9 if name.endswith(("-12", "-23")) else 1e-11)
    with pytest.raises(ValueError, match=r"'eps' does not determine (x0|an output) at t=1"):
        sample(
            Asked(MIXTURE.denoiser(path), path, predictions.get("eps")),
            solver=name,
            grid=grid,
            x=start_noise(),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.get("dpm"), "solver must be one of .*ddim.* not 'dpm'"),
        (lambda: solvers.get("ancestral", eta=-1.0), "eta must be at least 0, not -1.0"),
        (lambda: solvers.get("ddpm", variance="huge"), "variance must be 'small' or 'large', not 'huge'"),
        (lambda: FirstOrder(0.5, "large"), "variance 'large' belongs to eta = 1"),
        (lambda: DPMSolverPP(4), "order must be 1, 2 or 3, not 4"),
        (lambda: solvers.get("dpmpp-2m", correction="euler"), "correction must be 'midpoint' or 'taylor'"),
        (lambda: solvers.get("dpmpp-3m", variant="mine"), "variant must be 'official' or 'exact'"),
        (lambda: Heun(churn=-1.0), "churn and noise_scale must not be negative"),
        (lambda: FirstOrder().compile(paths.EDM(), (1.0, 1.0)), "strictly decreasing, but 1.0 follows 1.0"),
        (lambda: Heun().compile(paths.EDM(), (1.0,)), "at least two times"),
        (lambda: FirstOrder().compile(paths.EDM(), (1.0, 0.0, -1.0)), r"t must lie in|sigma = 0"),
        (lambda: DPMSolverPP().compile(paths.EDM(), (100.0, 2.0, 3.0)), "3.0 follows 2.0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="eta"):
        solvers.get("heun", eta=1.0)
