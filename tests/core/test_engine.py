"""The engine carries every family of the literature: plans written with PlanBuilder against plain loops."""

import itertools
import math

import pytest
import torch
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import paths, predictions, solvers
from fewstep.core.builder import PlanBuilder
from fewstep.core.noise import GivenNoise
from fewstep.core.plan import Plan
from fewstep.core.run import run, run_states

MIXTURE = smooth_mixture()
EDM = paths.EDM()
VP = paths.VP.linear()
X0 = predictions.get("x0")


def execute(plan, denoise, x, noise=(), prediction=X0, **options):
    draws = iter(noise)
    return run(plan.folded(prediction), denoise, x, noise=GivenNoise(lambda like: next(draws)), **options)


def test_unic_corrector():
    """UniPC-2 (bh2): predictor and corrector a step, one network call, against the published recursion."""
    grid = kappa_grid(VP, 20.0, 0.05, 8)
    at = [VP.coefficients(t) for t in grid]
    lam = [math.log(a / s) for a, _, s in at]

    def pieces(i):
        """h, e^-h - 1 and the two rhs of the order-2 system for the step i -> i + 1."""
        h = lam[i + 1] - lam[i]
        grow = math.expm1(-h)
        u1 = grow / -h - 1
        return h, grow, u1 / grow, (u1 / -h - 0.5) * 2 / grow

    def solve(r, b):  # [[1, 1], [r, 1]]·rho = b, nodes r (old) and 1 (new)
        det = 1 - r
        return (b[0] - b[1]) / det, (b[1] - r * b[0]) / det

    def loop(x):
        denoise, m = MIXTURE.denoiser(VP), []
        m.append(denoise(x, grid[0]))
        for i in range(len(grid) - 1):
            h, grow, b1, b2 = pieces(i)
            (_, _, s0), (a1, _, s1) = at[i], at[i + 1]
            base = s1 / s0 * x - a1 * grow * m[i]
            r = (lam[i - 1] - lam[i]) / h if i else None
            x_new = base if r is None else base - a1 * grow * 0.5 * (m[i - 1] - m[i]) / r
            if i < len(grid) - 2:
                m.append(denoise(x_new, grid[i + 1]))
                if r is None:
                    x_new = base - a1 * grow * 0.5 * (m[i + 1] - m[i])
                else:
                    old, new = solve(r, (b1, b2))
                    x_new = base - a1 * grow * (old * (m[i - 1] - m[i]) / r + new * (m[i + 1] - m[i]))
            x = x_new
        return x

    build = PlanBuilder(VP, "unipc-2")
    x = build.start(grid[0])
    m = [build.ask(x).d]
    for i in range(len(grid) - 1):
        h, grow, b1, b2 = pieces(i)
        (_, _, s0), (a1, _, s1) = at[i], at[i + 1]
        r = (lam[i - 1] - lam[i]) / h if i else 1.0
        weights = {x: s1 / s0, m[i]: -a1 * grow}
        slope = -a1 * grow * 0.5 / r
        guess = weights if not i else weights | {m[i]: weights[m[i]] - slope, m[i - 1]: slope}
        if i == len(grid) - 2:
            x = build.step(grid[i + 1], guess)
            continue
        stage = build.step(grid[i + 1], guess, inner=True)
        m.append(build.ask(stage).d)
        old, new = solve(r, (b1, b2)) if i else (0.0, 0.5)
        old, new = -a1 * grow * old / r, -a1 * grow * new
        fixed = weights | {m[i]: weights[m[i]] - old - new, m[i + 1]: new}
        x = build.step(grid[i + 1], fixed if not i else fixed | {m[i - 1]: old})
    plan = build.build()
    assert plan.nfe == plan.steps == 8
    x = start_noise()
    for name in ("x0", "eps", "v"):
        prediction = predictions.get(name)
        ask = lambda s, t, p=prediction: p.from_x0(VP, t, s, MIXTURE.denoiser(VP)(s, t))  # noqa: E731
        assert (execute(plan, ask, x, prediction=prediction) - loop(x)).abs().max() < 1e-10


def test_single_step_runge_kutta():
    """Classical Runge-Kutta in kappa, four stages a step."""
    grid = kappa_grid(EDM, 10.0, 0.1, 6)
    denoise = MIXTURE.denoiser(EDM)
    slope = lambda x, t: (x - denoise(x, t)) / t  # noqa: E731

    x = wanted = 10.0 * start_noise()
    for t, s in itertools.pairwise(grid):
        h = s - t
        k1 = slope(wanted, t)
        k2 = slope(wanted + 0.5 * h * k1, t + 0.5 * h)
        k3 = slope(wanted + 0.5 * h * k2, t + 0.5 * h)
        k4 = slope(wanted + h * k3, s)
        wanted = wanted + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    build = PlanBuilder(EDM, "rk4")
    state = build.start(grid[0])
    for t, s in itertools.pairwise(grid):
        h = s - t
        k1 = build.ask(state).e
        k2 = build.ask(build.step(t + 0.5 * h, {state: 1.0, k1: 0.5 * h}, inner=True)).e
        k3 = build.ask(build.step(t + 0.5 * h, {state: 1.0, k2: 0.5 * h}, inner=True)).e
        k4 = build.ask(build.step(s, {state: 1.0, k3: h}, inner=True)).e
        state = build.step(s, {state: 1.0, k1: h / 6, k2: h / 3, k3: h / 3, k4: h / 6})
    plan = build.build()
    assert (plan.nfe, plan.steps) == (24, 6)
    steps = []
    got = execute(plan, denoise, x, on_step=lambda info: steps.append((info.step, info.total, info.nfe)))
    assert (got - wanted).abs().max() < 1e-11
    assert steps == [(i, 6, 4 * i) for i in range(1, 7)]


def test_sde_multistep():
    """SDE-DPM-Solver++(2M, midpoint) against the published update."""
    grid = kappa_grid(VP, 15.0, 0.1, 7)
    noise = [start_noise(seed=50 + i) for i in range(7)]
    wanted, old, old_h = start_noise(), None, 0.0
    for (t, s), w in zip(itertools.pairwise(grid), noise, strict=True):
        (at, _, st), (a, _, sigma) = VP.coefficients(t), VP.coefficients(s)
        h = math.log(a / sigma) - math.log(at / st)
        m = MIXTURE.denoiser(VP)(wanted, t)
        spread = -math.expm1(-2 * h)
        wanted = sigma / st * math.exp(-h) * wanted + a * spread * m + sigma * spread**0.5 * w
        if old is not None:
            wanted = wanted + 0.5 * a * spread * (m - old) * h / old_h
        old, old_h = m, h
    plan = solvers.get("dpmpp-2m", eta=1.0, lower_order_below=0).compile(VP, grid)
    assert (execute(plan, MIXTURE.denoiser(VP), start_noise(), noise) - wanted).abs().max() < 1e-12


def test_momentum():
    """GHVB of order 2: a velocity v <- (1 - beta)·v + beta·eps that is a state of its own."""
    grid, beta = kappa_grid(EDM, 10.0, 0.1, 8), 0.6
    denoise = MIXTURE.denoiser(EDM)
    x = wanted = 10.0 * start_noise()
    v, old = None, None
    for t, s in itertools.pairwise(grid):
        e = (wanted - denoise(wanted, t)) / t
        v, old = e if v is None else (1 - beta) * v + beta * e, v
        mix = v if old is None else ((2 + beta) * v - (2 - beta) * old) / 2
        wanted = wanted + (s - t) / beta * mix

    build = PlanBuilder(EDM, "ghvb")
    state, velocity, before = build.start(grid[0]), None, None
    for t, s in itertools.pairwise(grid):
        e = build.ask(state).e
        velocity, before = (
            build.vector({e: 1.0} if velocity is None else {velocity: 1 - beta, e: beta}),
            velocity,
        )
        d = (s - t) / beta
        mix = {velocity: d} if before is None else {velocity: d * (2 + beta) / 2, before: -d * (2 - beta) / 2}
        state = build.step(s, {state: 1.0} | mix)
    plan = build.build()
    assert plan.steps == 8
    assert (execute(plan, denoise, x) - wanted).abs().max() < 1e-11


def bdia_plan(path, grid, gamma):
    """z_(i-1) = gamma·(z_(i+1) - back) + forward, with DDIM steps back to t_(i+1) and forward to t_(i-1)."""

    def ddim(t, s):
        (at, _, st), (a, _, sigma) = path.coefficients(t), path.coefficients(s)
        return a / at, sigma - a * st / at

    build = PlanBuilder(path, "bdia")
    older = build.start(grid[0])
    keep, change = ddim(grid[0], grid[1])
    newer = build.step(grid[1], {older: keep, build.ask(older).e: change})
    for i in range(1, len(grid) - 1):
        e = build.ask(newer).e
        back, back_e = ddim(grid[i], grid[i - 1])
        on, on_e = ddim(grid[i], grid[i + 1])
        terms = {older: gamma, newer: on - gamma * back, e: on_e - gamma * back_e}
        older, newer = newer, build.step(grid[i + 1], terms)
    return build.build()


@pytest.mark.parametrize(
    ("gamma", "dtype", "limit"), [(1.0, torch.float32, 1e-5), (0.9, torch.float64, 1e-11)]
)
def test_two_state_map_and_its_exact_inverse(gamma, dtype, limit):
    grid = kappa_grid(VP, 20.0, 0.05, 50)
    plan = bdia_plan(VP, grid, gamma).keeping(2)
    denoise = MIXTURE.denoiser(VP)
    x = start_noise().to(dtype)
    before, last = run_states(plan.folded(X0), denoise, (x,))
    inverse = plan.inverse()
    assert (inverse.starts, inverse.nfe) == (2, 49)
    (back,) = run_states(inverse.folded(X0), denoise, (last, before))
    assert (back - x).abs().max() < limit


def test_prepended_first_step():
    """One More Step: a velocity prediction at a = 0 before a noise-prediction plan that starts at a > 0."""
    path = paths.VP.cosine(t_max=1.0)
    grid = (0.9, 0.6, 0.3, 0.1, 0.0)
    (a, _, sigma), w = path.coefficients(0.9), start_noise(seed=4)
    build = PlanBuilder(path, "oms + ddim")
    x = build.start(1.0)
    x = build.step(0.9, {build.ask(x).d: a}, noise=sigma)
    for t, s in itertools.pairwise(grid):
        (at, _, st), (a_s, _, ss) = path.coefficients(t), path.coefficients(s)
        x = build.step(s, {x: ss / st, build.ask(x).d: a_s - ss / st * at})
    v = predictions.get("v")
    ask = lambda s, t: v.from_x0(path, t, s, MIXTURE.denoiser(path)(s, t))  # noqa: E731
    got = execute(build.build(), ask, start_noise(), [w], v)
    mean = (MIXTURE.weight[:, None] * MIXTURE.mean).sum(0).reshape(1, 3, 2, 2)
    start = a * mean + sigma * w
    wanted = execute(solvers.get("ddim").compile(path, grid), MIXTURE.denoiser(path), start)
    assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["ddim", "ancestral", "heun", "dpmpp-3m"])
def test_every_sample_may_have_its_own_grid(name):
    path = paths.OUVE()
    gridded = [(1.0, 0.7, 0.5, 0.2, 0.05), (0.9, 0.8, 0.3, 0.1, 0.03), (0.5, 0.4, 0.2, 0.1, 0.05)]
    plans = [solvers.get(name).compile(path, grid) for grid in gridded]
    x, y = start_noise(3), start_noise(3, seed=1)
    draws = [start_noise(3, seed=i) for i in range(8)]
    denoise = MIXTURE.denoiser(path, y)
    stacked = Plan.stack(plans)
    assert stacked.batch == 3
    for prediction in (X0, predictions.get("eps")):

        def ask(s, t, rows=slice(None), prediction=prediction):
            x0 = MIXTURE.denoiser(path, y[rows])(s, t)
            return prediction.from_x0(path, t, s, x0, y[rows])

        got = execute(stacked, ask, x, draws, prediction, y=y)
        for i, plan in enumerate(plans):
            one = slice(i, i + 1)
            alone = execute(
                plan,
                lambda s, t, one=one, ask=ask: ask(s, t, one),
                x[one],
                [d[one] for d in draws],
                prediction,
                y=y[one],
            )
            assert (got[one] - alone).abs().max() < 1e-11
    assert denoise(x, 0.5).shape == x.shape


def test_two_heads_and_both_estimates_in_one_plan():
    """RDDM's pair (residual, noise): x_s = x - (b_t - b_s)·R - (sigma_t - sigma_s)·eps, here in D and E."""
    path, pair = paths.RDDM(), predictions.get("residual+noise")
    times = [path.t_max * f for f in (1.0, 0.75, 0.5, 0.25)]
    heads = lambda s, t: torch.cat([torch.sin(s), torch.cos(s)], 1)  # noqa: E731
    x = wanted = start_noise()
    build = PlanBuilder(path, "rddm")
    state = build.start(times[0])
    for t, s in itertools.pairwise(times):
        (at, bt, st), (a, b, sigma) = path.coefficients(t), path.coefficients(s)
        wanted = wanted - (bt - b) * torch.sin(wanted) - (st - sigma) * torch.cos(wanted)
        call = build.ask(state)
        keep = b / bt
        state = build.step(s, {state: keep, call.d: a - keep * at, call.e: sigma - keep * st})
    got = execute(build.build(), heads, x, prediction=pair)
    assert (got - wanted).abs().max() < 1e-12
