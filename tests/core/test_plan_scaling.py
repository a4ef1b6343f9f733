"""Q-Sched's factors on a plan and their search; DiSA's step annealing."""

import math

import pytest
import torch
from tests.core.solver_problems import Asked, smooth_mixture, start_noise

from fewstep.core import Denoiser, grids, paths, predictions, sample, solvers
from fewstep.core.plan import Plan
from fewstep.core.savers import StepAnnealing, calibrate, ramp, scaled

FLOW, VP = paths.RectifiedFlow(), paths.VP.linear()
MIXTURE = smooth_mixture()


def test_factor_one_changes_nothing():
    for path, prediction in ((VP, "eps"), (VP, "v"), (FLOW, "velocity"), (paths.EDM(), "x0")):
        for name in ("ddim", "dpmpp-2m", "dpmpp-3m", "heun"):
            plan = solvers.get(name).compile(path, grids.logsnr(path, 5))
            asked = Asked(MIXTURE.denoiser(path), path, predictions.get(prediction))
            wanted = sample(asked, solver=plan, x=start_noise())
            got = sample(asked, solver=scaled(plan, prediction), x=start_noise())
            assert (got - wanted).abs().max() < 1e-11, (name, prediction)


def test_the_published_flow_step():
    """x ← s_j·x + (sigma' − sigma)·m_j·v, ramps from the factor to 1; the network sees x itself."""
    plan = solvers.get("euler").compile(FLOW, grids.uniform(FLOW, 4))
    net = lambda x, t: torch.sin(x + t.reshape(-1, 1, 1, 1) / 1000)  # noqa: E731
    got = sample(Denoiser(net, FLOW, "velocity"), solver=scaled(plan, "velocity", 0.9, 1.1), x=start_noise())
    x, grid = start_noise(), grids.uniform(FLOW, 4)
    for t, s, m, c in zip(grid[:-1], grid[1:], ramp(0.9, 4), ramp(1.1, 4), strict=True):
        x = c * x + (s - t) * m * net(x, torch.full((4,), 1000.0 * t, dtype=torch.float64))
    assert (got - x).abs().max() < 1e-12


def test_the_published_noise_step():
    """DDIM with x ← s_j·x and eps ← m_j·eps before the update."""
    times = grids.logsnr(VP, 5)
    model, state = (0.8, 0.9, 1.1, 1.0, 0.7), (1.2, 1.0, 0.95, 1.05, 0.9)
    asked = Asked(MIXTURE.denoiser(VP), VP, predictions.get("eps"))
    plan = solvers.get("ddim").compile(VP, times)
    got = sample(asked, solver=scaled(plan, "eps", model, state), x=start_noise())
    x = start_noise()
    for k in range(5):
        (a, _, sigma), (a_s, _, sigma_s) = VP.coefficients(times[k]), VP.coefficients(times[k + 1])
        eps = model[k] * asked.predict(x, times[k])
        x0 = (state[k] * x - sigma * eps) / a
        x = a_s * x0 + sigma_s * eps
    assert (got - x).abs().max() < 1e-11


def test_a_scaled_plan_is_a_plan():
    plan = solvers.get("dpmpp-2m").compile(VP, grids.logsnr(VP, 4))
    other = scaled(plan, "eps", 0.9, 1.1)
    assert Plan.from_json(other.to_json()) == other
    assert (other.nfe, other.steps, other.solver) == (4, 4, "dpmpp-2m scaled")
    assert "E[3]" in str(other)


def test_calibration_finds_the_factors_of_a_network_that_answers_too_little():
    """The first output lost a tenth, as coarse weights may do: the search gives it back."""
    exact = Asked(MIXTURE.denoiser(VP), VP, predictions.get("eps"))
    plan = solvers.get("ddim").compile(VP, grids.logsnr(VP, 6))
    wanted = sample(exact, solver=plan, x=start_noise())
    weak = 1.0 / torch.tensor(ramp(1.1, 6), dtype=torch.float64)
    call = iter(())

    def predict(x, t):
        return next(call) * exact.predict(x, t)

    damaged = Asked(MIXTURE.denoiser(VP), VP, predictions.get("eps"))
    damaged.predict = predict  # type: ignore[method-assign]

    def score(tried):
        nonlocal call
        call = iter(weak)
        return -float((sample(damaged, solver=tried, x=start_noise()) - wanted).square().mean())

    found = calibrate(plan, "eps", score, low=0.8, high=1.2, points=5)
    assert (found.model, found.sample) == (pytest.approx(1.1), pytest.approx(1.0))
    assert found.score > -1e-20 > score(plan)
    assert len(found.scores) == 26
    assert found.plan == scaled(plan, "eps", found.model, found.sample)


def test_calibration_is_never_worse_than_the_plan_and_passes_over_failures():
    plan = solvers.get("ddim").compile(VP, grids.logsnr(VP, 3))
    nothing = scaled(plan, "eps")
    found = calibrate(plan, "eps", lambda tried: 1.0 if tried == nothing else math.nan, points=2)
    assert (found.model, found.sample, found.score) == (1.0, 1.0, 1.0)


def test_ramp():
    assert ramp(0.5, 1) == (0.5,)
    assert ramp(1.0, 4) == (1.0, 1.0, 1.0, 1.0)
    assert ramp(0.7, 4) == pytest.approx((0.7, 0.8, 0.9, 1.0))


PLAN = solvers.get("ddim").compile(VP, grids.logsnr(VP, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scaled(PLAN.folded(predictions.get("eps")), "eps"), "folded already"),
        (lambda: scaled(Plan.stack([PLAN, PLAN]), "eps"), "before it is stacked"),
        (lambda: scaled(PLAN, "eps", model=(1.0, 1.0)), "model must hold one factor for each of the 3 calls"),
        (lambda: scaled(PLAN, "eps", sample=math.inf), "sample must be finite"),
        (lambda: scaled(PLAN, "noise"), "prediction"),
        (lambda: ramp(1.0, 0), "count must be at least 1, not 0"),
        (lambda: calibrate(PLAN, "eps", lambda p: 0.0, low=1.2), "low and high must satisfy"),
        (lambda: calibrate(PLAN, "eps", lambda p: 0.0, points=1), "points must be at least 2, not 1"),
        (lambda: calibrate(PLAN, "eps", lambda p: math.nan, points=2), "no finite number"),
        (lambda: StepAnnealing(5, 50), "1 <= least <= most must hold; they are 50 and 5"),
        (lambda: StepAnnealing(shape="steep"), "shape must be one of 'linear', 'cosine', 'two-stage'"),
        (lambda: StepAnnealing(switch=1.5), "switch must lie between 0 and 1, not 1.5"),
        (lambda: StepAnnealing().steps(4, 4), r"token must lie in \[0, 4\), got 4"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 256])
@pytest.mark.parametrize("most", [5, 50])
def test_annealing_formulas(tokens, most):
    n, last = most - 5 + 1, max(tokens - 1, 1)
    for k in range(tokens):
        linear = 5 + math.floor((last - k) / last * (n - 1) + 1e-9)
        cosine = 5 + math.floor((math.cos(math.pi * k / last) + 1) / 2 * (n - 1) + 1e-9)
        assert StepAnnealing(most, 5, "linear").steps(k, tokens) == linear
        assert StepAnnealing(most, 5, "cosine").steps(k, tokens) == cosine
        assert StepAnnealing(most, 5, "two-stage", 0.25).steps(k, tokens) == (most if k < tokens / 4 else 5)


@pytest.mark.parametrize("shape", ["linear", "cosine", "two-stage"])
def test_annealing_falls_from_most_to_least(shape):
    annealing = StepAnnealing(50, 5, shape)
    steps = [annealing.steps(k, 64) for k in range(64)]
    assert (steps[0], steps[-1]) == (50, 5)
    assert steps == sorted(steps, reverse=True)
    assert annealing.total(64) == sum(steps)
    assert annealing.total(64) < 0.57 * 64 * 50
