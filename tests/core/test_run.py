"""The runner: equal to naive evaluation, careful with everybody's tensors, in any precision."""

import random
from typing import Any

import pytest
import torch
from tests.core.solver_problems import PLANNED, kappa_grid, smooth_mixture, start_noise
from torch import Tensor

from fewstep.core import paths, predictions, solvers
from fewstep.core.noise import GivenNoise
from fewstep.core.plan import Plan, Row, Term
from fewstep.core.run import run, run_states
from fewstep.core.schedule import schedule

MIXTURE = smooth_mixture()
EDM = paths.EDM()
VP = paths.VP.linear()
X0 = predictions.get("x0")


def execute(plan, denoise, x, noise=(), prediction=X0, **options):
    draws = iter(noise)
    return run(plan.folded(prediction), denoise, x, noise=GivenNoise(lambda like: next(draws)), **options)


def naive(plan: Plan, predict, x: Tensor, y: Tensor, noise: list[Tensor]) -> list[Tensor]:
    """The results of a folded plan, row by row, everything kept."""
    states, outs = [x], []
    heads = plan.prediction.heads if plan.prediction else 1
    if plan.rows[0].ask:
        outs.append(predict(x, plan.rows[0].t))
    for row in plan.rows[1:]:
        total = torch.zeros_like(x)
        for kind, index, c, head in row.terms:
            value = {"x": lambda i: states[i], "n": lambda i: noise[i], "y": lambda i: y}.get(kind)
            vector = value(index) if value else outs[index].chunk(heads, 1)[head]
            total = total + torch.as_tensor(c, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * vector
        states.append(total)
        if row.ask:
            outs.append(predict(total, row.t))
    return [states[k] for k in plan.results]


def random_plan(seed: int, heads: int, batch: int | None) -> Plan:
    """A plan with arbitrary reuse of old states, values, draws and y, and auxiliary rows."""
    rng = random.Random(seed)

    def number() -> float | tuple[float, ...]:
        one = lambda: rng.choice((1.0, rng.uniform(-1.2, 1.2)))  # noqa: E731
        return one() if batch is None else tuple(one() for _ in range(batch))

    rows, asked, drawn = [Row((), 1.0 if batch is None else (1.0,) * batch, True)], 1, 0
    for k in range(1, rng.randint(3, 14)):
        pool: list[Any] = [("x", i, 0) for i in range(k)] + [
            ("out", i, h) for i in range(asked) for h in range(heads)
        ]
        pool += [("y", 0, 0), ("n", drawn, 0)] + [("n", i, 0) for i in range(drawn)]
        chosen = rng.sample(pool, rng.randint(1, min(5, len(pool))))
        # draws are numbered in the order in which they appear
        drawn += ("n", drawn, 0) in chosen
        terms = tuple(Term(kind, index, number(), head) for kind, index, head in chosen)
        auxiliary = rng.random() < 0.2
        t = None if auxiliary else 1.0 - k / 20 if batch is None else (1.0 - k / 20,) * batch
        ask = not auxiliary and rng.random() < 0.6
        asked += ask
        rows.append(Row(terms, t, ask, not auxiliary))
    prediction = predictions.get("residual+noise" if heads == 2 else "eps")
    results = tuple(rng.sample(range(1, len(rows)), rng.randint(1, min(3, len(rows) - 1))))
    return Plan(tuple(rows), paths.RectifiedFlow(), results=results, prediction=prediction)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_any_plan_equals_its_naive_evaluation(heads, batch):
    x, y = start_noise(3), start_noise(3, seed=1)
    noise = [start_noise(3, seed=100 + i) for i in range(20)]

    def predict(state, t):
        out = torch.tanh(state * (1.0 if isinstance(t, float) else t.reshape(-1, 1, 1, 1)))
        return torch.cat([out, out.flip(1)], 1) if heads == 2 else out

    for seed in range(60):
        plan = random_plan(seed, heads, batch)
        wanted = naive(
            plan, lambda s, t: predict(s, torch.tensor(t, dtype=x.dtype) if batch else t), x, y, noise
        )
        for watched in (None, lambda info: None):
            for grad in (False, True):
                draws = iter(noise)
                source = GivenNoise(lambda like, d=draws: next(d))
                found = run_states(plan, predict, (x,), y, source, watched, grad)
                for got, want in zip(found, wanted, strict=True):
                    assert (got - want).abs().max() < 1e-12 * (1 + want.abs().max()), (seed, watched, grad)


def test_given_tensors_are_never_written_to():
    x, y = start_noise(), start_noise(seed=1)
    before = x.clone(), y.clone()
    for name in PLANNED:
        plan = solvers.get(name).compile(paths.OUVE(), (1.0, 0.6, 0.3, 0.1))
        kept = []

        def denoise(state, t, kept=kept):
            kept.append((torch.sin(state), torch.sin(state)))
            return kept[-1][0]

        run(plan.folded(X0), denoise, x, y, GivenNoise(lambda like: start_noise(seed=3)))
        assert all(torch.equal(out, copy) for out, copy in kept), name
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("name", "prediction", "buffers"),
    [
        ("ddim", "eps", 1),
        ("ancestral", "eps", 2),
        ("dpmpp-2m", "x0", 1),
        ("dpmpp-2m", "eps", 2),
        ("dpmpp-3m", "x0", 1),
        ("dpmpp-3m", "eps", 4),
        ("heun", "x0", 2),
    ],
)
def test_buffers_are_reused(name, prediction, buffers):
    """However many steps: one for the state, one for a draw, one for each old state that is still needed."""
    grid = kappa_grid(EDM, 80.0, 0.01, 20)
    for steps in (20, 12):
        plan = solvers.get(name).compile(EDM, grid[: steps + 1]).folded(predictions.get(prediction))
        assert len(schedule(plan, observed=False).pool) <= buffers


def test_a_network_may_return_its_input():
    x = start_noise()
    for name in ("ddim", "dpmpp-2m", "dpmpp-3m", "heun"):
        plan = solvers.get(name).compile(EDM, (4.0, 2.0, 1.0, 0.5, 0.25, 0.1))
        for alias in (lambda s, t: s, lambda s, t: s.view(-1, 12).view_as(s), lambda s, t: s.flip(1).flip(1)):
            assert torch.equal(execute(plan, alias, x), execute(plan, lambda s, t: s.clone(), x)), name


def test_a_network_that_overwrites_its_last_answer_is_refused_where_it_matters():
    out = torch.empty(4, 3, 2, 2, dtype=torch.float64)

    def denoise(state, t):
        return out.copy_(0.5 * state)

    grid = (4.0, 2.0, 1.0, 0.5)
    ddim = solvers.get("ddim").compile(EDM, grid)
    assert torch.equal(
        execute(ddim, denoise, start_noise()), execute(ddim, lambda s, t: 0.5 * s, start_noise())
    )
    with pytest.raises(ValueError, match="the network overwrote the tensor it had returned before"):
        execute(solvers.get("dpmpp-2m").compile(EDM, grid), denoise, start_noise())


def test_bfloat16_answers_keep_a_float32_state():
    """The result differs by the rounding of the answers only, 2^-9 each, times the sum of their weights."""
    x = 2.0 * start_noise().float()
    for name in ("ddim", "dpmpp-2m", "dpmpp-3m", "heun"):
        plan = solvers.get(name).compile(EDM, kappa_grid(EDM, 10.0, 0.05, 12))
        seen = []

        def rounded(state, t, seen=seen):
            assert state.dtype == torch.float32
            seen.append(MIXTURE.denoiser(EDM)(state, t).bfloat16())
            return seen[-1]

        answers = iter(seen)
        got = execute(plan, rounded, x)
        replayed = execute(plan, lambda s, t, a=answers: next(a).float(), x)
        assert got.dtype == torch.float32
        assert torch.equal(got, replayed), name
        exact = execute(plan, MIXTURE.denoiser(EDM), x)
        assert (got - exact).abs().max() < 4 * 2**-9 * 2, name


def test_gradients_flow_when_asked_for():
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = start_noise().requires_grad_()
    for name in ("ddim", "dpmpp-3m", "heun", "ancestral"):
        plan = solvers.get(name).compile(VP, (1.0, 0.7, 0.4, 0.2, 0.05))
        noise = [start_noise(seed=9)] * 5
        out = execute(plan, lambda s, t: torch.tanh(gain * s), x, noise, grad=True)
        slope, at_start = torch.autograd.grad(out.square().sum(), (gain, x))
        value = lambda g, plan=plan, noise=noise: (  # noqa: E731
            execute(plan, lambda s, t: torch.tanh(g * s), x.detach(), noise).square().sum().item()
        )
        assert slope.item() == pytest.approx((value(0.5 + 1e-6) - value(0.5 - 1e-6)) / 2e-6, rel=1e-6)
        assert at_start.abs().sum() > 0
        assert not execute(plan, lambda s, t: torch.tanh(gain * s), x, noise).requires_grad


TWO_RESULTS = solvers.get("ddim").compile(EDM, (2.0, 1.0)).keeping(2).folded(X0)


def test_wrong_number_of_starts_is_named():
    with pytest.raises(ValueError, match="this plan needs 1 given states, not 2"):
        run_states(TWO_RESULTS, lambda s, t: s, (start_noise(), start_noise()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": solvers.get("ddim").compile(EDM, (2.0, 1.0))}, "plan must be folded"),
        ({"plan": TWO_RESULTS}, "plan has 2 results; use run_states"),
        ({"noise": None}, "noise is missing: ancestral draws noise"),
        (
            {"predict": lambda s, t: s[:, :2]},
            r"returned shape \(4, 2, 2, 2\); prediction 'x0' .* needs \(4, 3, 2, 2\)",
        ),
        (
            {"noise": GivenNoise(lambda like: like[:1])},
            r"must return shape \(4, 3, 2, 2\), it returned \(1, 3, 2, 2\)",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    plan = solvers.get("ancestral").compile(EDM, (2.0, 1.0, 0.5)).folded(X0)
    options: dict[str, Any] = {
        "plan": plan,
        "predict": lambda s, t: 0.5 * s,
        "x": start_noise(),
        "noise": GivenNoise(torch.randn_like),
    }
    with pytest.raises(ValueError, match=message):
        run(**(options | change))


def test_missing_y_and_integer_state_are_named():
    plan = solvers.get("ddim").compile(paths.OUVE(), (1.0, 0.5)).folded(X0)
    with pytest.raises(ValueError, match="y is missing"):
        run(plan, lambda s, t: s, start_noise())
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, its dtype is torch.int64"):
        run(plan, lambda s, t: s, torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2))
