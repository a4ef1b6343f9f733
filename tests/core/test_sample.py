"""The public call: starts, seeds, hooks, precision, remembered plans, data-dependent solvers, bad input."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.core.solver_problems import Asked, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import NoiseField
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.solvers import FirstOrder, Solver

MIXTURE = smooth_mixture()
EDM = paths.EDM()
DENOISE = MIXTURE.denoiser(EDM)
SHAPE = (4, 3, 2, 2)


def draw(solver: str | Solver | Plan = "ancestral", steps=6, grid: Any = "karras", **options: Any):
    options = {"shape": SHAPE} | options
    return sample(DENOISE, EDM, solver, steps, grid, **options)


@pytest.mark.parametrize("solver", solvers.names())
def test_a_sample_depends_on_its_own_seed_only(solver):
    # the batched denoiser itself rounds differently for other batch sizes, hence not bit for bit
    batch = draw(solver, dtype=torch.float64, seed=5)
    assert torch.equal(batch, draw(solver, dtype=torch.float64, seed=5))
    for i in range(4):
        alone = draw(solver, dtype=torch.float64, seed=5 + i, shape=(1, *SHAPE[1:]))
        assert (batch[i : i + 1] - alone).abs().max() < 1e-11
    mixed = draw(solver, dtype=torch.float64, seed=[8, 6, 7, 5])
    assert (mixed - batch[[3, 1, 2, 0]]).abs().max() < 1e-11
    assert not torch.allclose(batch[0], batch[1])


def test_start_is_the_paths_own_or_noise_at_the_first_time():
    noise, y = start_noise(), start_noise(seed=1)

    def start(path, **options):
        asked = []
        zero = lambda x, t: asked.append(x.clone()) or torch.zeros_like(x)  # noqa: E731
        sample(
            zero,
            path,
            "ddim",
            noise=lambda like: noise,
            **({"dtype": torch.float64, "shape": SHAPE} | options),
        )
        return asked[0]

    assert torch.equal(start(EDM, grid=(80.0, 1.0)), 80.0 * noise)
    assert torch.equal(start(EDM, grid=(3.0, 1.0)), 3.0 * noise)
    assert torch.equal(start(paths.VP.linear()), noise)
    path = paths.ResShift()
    assert torch.equal(start(path, steps=4, grid="uniform", y=y), path.start(noise, y))
    _, b, sigma = path.coefficients(2.0)
    partway = start(path, grid=(2.0, 1.0, 0.0, -1.0), y=y)
    assert torch.allclose(partway, b * y + sigma * noise, atol=1e-15)


def test_on_step_sees_state_estimate_and_counts():
    seen, asked = [], []

    def denoise(x, t):
        asked.append((t, DENOISE(x, t)))
        return asked[-1][1]

    def watch(info):
        seen.append((info.step, info.total, info.t, info.nfe, info.x.clone(), info.x0.clone()))

    for prediction in ("x0", "eps", "v"):
        for solver in ("ddim", "dpmpp-3m", "heun", "ancestral"):
            seen.clear()
            asked.clear()
            network = Asked(denoise, EDM, predictions.get(prediction))
            options: dict[str, Any] = {
                "shape": SHAPE,
                "dtype": torch.float64,
                "solver": solver,
                "steps": 7,
                "grid": "karras",
            }
            got = sample(network, on_step=watch, **options)
            unseen = sample(network, **options)
            assert (got - unseen).abs().max() < 1e-12
            assert [s[:2] for s in seen] == [(i, 7) for i in range(1, 8)]
            assert [s[2] for s in seen] == list(grids.karras(EDM, 7)[1:])
            assert torch.equal(seen[-1][4], got)
            for _, _, _, nfe, _, x0 in seen:
                assert (x0 - asked[nfe - 1][1]).abs().max() < 1e-11  # the newest answer


def test_on_step_stops_early():
    seen = []
    got = draw("dpmpp-2m", on_step=lambda info: seen.append(info.x.clone()) or info.step < 3)
    assert len(seen) == 3
    assert torch.equal(got, seen[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_dtype_asked_for_and_the_state_is_at_least_float32(dtype):
    told = set()

    def denoise(x, t):
        told.add(x.dtype)
        return DENOISE(x.double(), t).to(x.dtype)

    exact = draw("dpmpp-2m", x=80.0 * start_noise())
    x = (80.0 * start_noise()).to(dtype)
    got = sample(denoise, EDM, "dpmpp-2m", 6, "karras", x=x)
    assert got.dtype == dtype == sample(denoise, EDM, steps=2, shape=SHAPE, dtype=dtype).dtype
    assert told == {dtype}  # a plain function is asked in the dtype of its caller
    # answers and start rounded once, not accumulated
    assert (got.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps
    network = Asked(DENOISE, EDM, predictions.get("x0"), cast=lambda out: told.add(out.dtype) or out)
    told.clear()
    sample(network, solver="ddim", steps=2, x=x)
    assert told == {torch.promote_types(dtype, torch.float32)}


def test_start_given_is_not_changed():
    x = 80.0 * start_noise()
    before = x.clone()
    for solver in solvers.names():
        draw(solver, x=x)
    assert torch.equal(x, before)


@dataclass(frozen=True)
class Counted(Solver):
    """DDIM that counts its compilations."""

    count: list = field(default_factory=list, compare=False, hash=False)
    name = "counted"
    order = 1

    def compile(self, path, grid):
        self.count.append(grid)
        return FirstOrder().compile(path, grid)


def test_compiled_plans_are_remembered():
    solver = Counted()
    for _ in range(3):
        draw(solver, steps=4)
    assert len(solver.count) == 1
    draw(solver, steps=5)
    draw(solver, steps=4, grid="logsnr")
    draw(solver, grid=[80, 1, 0])
    draw(solver, grid=(80.0, 1.0, 0.0))
    draw(solver, grid=grids.explicit([80, 2, 0]))
    assert [len(grid) for grid in solver.count] == [5, 6, 5, 3, 3]


def test_solver_may_be_name_object_or_plan_and_grid_name_function_or_times():
    wanted = draw("dpmpp-2m", 6, "karras")
    times = grids.karras(EDM, 6)
    plan = solvers.get("dpmpp-2m").compile(EDM, times)
    choices: tuple[dict[str, Any], ...] = (
        {"solver": solvers.get("dpmpp-2m")},
        {"solver": plan},
        {"solver": Plan.from_json(plan.to_json()), "path": None},
        {"grid": times},
        {"grid": grids.karras},
        {"grid": grids.explicit(times), "steps": 10},
    )
    for options in choices:
        arguments: dict[str, Any] = {
            "path": EDM,
            "solver": "dpmpp-2m",
            "steps": 6,
            "grid": "karras",
        } | options
        assert torch.equal(sample(DENOISE, shape=SHAPE, **arguments), wanted), options


def test_per_sample_grids_through_sample():
    compiled = [solvers.get("ancestral").compile(EDM, (80.0, t, 0.5, 0.0)) for t in (9.0, 5.0, 3.0)]
    got = draw(Plan.stack(compiled), shape=(3, *SHAPE[1:]), seed=2, dtype=torch.float64)
    for i, plan in enumerate(compiled):
        alone = draw(plan, shape=(1, *SHAPE[1:]), seed=2 + i, dtype=torch.float64)
        assert (got[i : i + 1] - alone).abs().max() < 1e-12


def test_denoiser_with_conditions_and_y_bound_or_passed():
    """A residual network on a path with y: y may be bound to the denoiser or passed to sample."""
    path = paths.ResShift()
    y = start_noise(seed=1).float()
    net = lambda x, t, y: 0.3 * x + 0.1 * t.reshape(-1, 1, 1, 1) - 0.2 * y  # noqa: E731
    network = Denoiser(net, path, "residual")
    wanted = sample(network.given(y=y), solver="ancestral", steps=4, grid="uniform")
    assert wanted.shape == y.shape
    assert torch.equal(sample(network, solver="ancestral", steps=4, grid="uniform", y=y), wanted)
    x0 = network.given(y=y)
    plain = sample(x0, path, "ancestral", 4, "uniform", y=y)
    assert (plain - wanted).abs().max() < 1e-5
    shared = sample(network.given(y=y[:1]), solver="ancestral", steps=4, grid="uniform", shape=(4, 3, 2, 2))
    assert (shared[:1] - wanted[:1]).abs().max() < 1e-6


def test_a_window_of_the_noise_field_gives_the_samples_of_the_whole():
    """A pointwise denoiser: sampling a window with its part of the field equals that part of the whole."""
    ball, noise_field = (lambda x, t: x / (1 + t * t)), NoiseField(4, 2)
    whole = sample(
        ball, EDM, "ancestral", 5, "karras", shape=(1, 2, 40, 50), noise=noise_field.window((0, 0))
    )
    part = sample(
        ball, EDM, "ancestral", 5, "karras", shape=(1, 2, 20, 30), noise=noise_field.window((15, 7))
    )
    assert torch.equal(part, whole[:, :, 15:35, 7:37])


def test_gradients_only_on_request():
    gain = torch.tensor(0.5, requires_grad=True)
    denoise = lambda x, t: gain * x / (1 + t * t)  # noqa: E731
    assert not sample(denoise, EDM, steps=4, shape=SHAPE).requires_grad
    (slope,) = torch.autograd.grad(sample(denoise, EDM, steps=4, shape=SHAPE, grad=True).sum(), gain)
    assert slope.isfinite()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "dpm"}, ValueError, "solver must be one of .*ddim.*; not 'dpm'"),
        ({"grid": "cosine"}, ValueError, "grid must be one of .*'uniform'.*got 'cosine'"),
        ({"grid": (1.0, 2.0)}, ValueError, "strictly decreasing"),
        ({"grid": (1.0,)}, ValueError, "at least"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"shape": None}, ValueError, r"shape is missing: give x, shape=\(batch, channels, ...\) or y"),
        ({"shape": (3,)}, ValueError, r"shape must be \(batch, channels, ...\)"),
        ({"shape": (0, 3)}, ValueError, "positive sizes"),
        ({"x": start_noise(2)}, ValueError, r"shape \(4, 3, 2, 2\) does not match x of shape \(2, 3, 2, 2\)"),
        ({"seed": [1, 2]}, ValueError, "seed holds 2 seeds for a batch of 4"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating-point dtype .* not torch.int32"),
        ({"path": None}, ValueError, "path is missing"),
        ({"path": paths.OUVE()}, ValueError, "y is missing: OUVE starts from the degraded input"),
        (
            {"y": start_noise(3)},
            ValueError,
            r"y has shape \(3, 3, 2, 2\), but the samples have shape \(4, 3, 2, 2\)",
        ),
        (
            {"denoise": Asked(DENOISE, paths.VE(), predictions.get("x0"))},
            ValueError,
            "path and denoise.path differ",
        ),
        (
            {"solver": solvers.get("ddim").compile(paths.VE(), (1.0, 0.0))},
            ValueError,
            "path and the plan's path differ",
        ),
        (
            {"solver": solvers.get("ddim").compile(EDM, (3.0, 2.0, 1.0)).keeping(2)},
            ValueError,
            "plan has 2 results; use run_states",
        ),
        ({"noise": lambda like: torch.zeros(2)}, ValueError, r"must return shape \(4, 3, 2, 2\)"),
    ],
)
def test_bad_input_is_named(options, error, message):
    arguments: dict[str, Any] = {"denoise": DENOISE, "path": EDM, "shape": SHAPE} | options
    with pytest.raises(error, match=message):
        sample(**arguments)
