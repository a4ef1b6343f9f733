"""From image to noise and back: DDIM and BDIA inversion, their errors and what is refused."""

import math

import pytest
import torch
from tests.core.solver_problems import Asked, kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.encoding import decode, encode
from fewstep.core.inversion import ddim_ascent, inverse_growth, resumed
from fewstep.core.run import run_states
from fewstep.core.sample import sample
from fewstep.core.solvers import FirstOrder
from fewstep.core.solvers.bdia import BDIA

MIXTURE = smooth_mixture()
VP = paths.VP.linear()
PATHS = {
    "vp": VP,
    "edm": paths.EDM(),
    "flow": paths.RectifiedFlow(),
    "table": paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
X0 = predictions.get("x0")


def images(dtype=torch.float64):
    return MIXTURE.draw(4, (3, 2, 2), torch.Generator().manual_seed(1)).to(dtype)


def largest(difference):
    return difference.abs().max().item()


def noise_to_image_and_back(gamma, steps, dtype):
    """Round trip through `Plan.inverse` with the last two states kept."""
    plan = BDIA(gamma).compile(VP, kappa_grid(VP, 20.0, 0.05, steps)).keeping(2)
    denoise, x = MIXTURE.denoiser(VP), start_noise().to(dtype)
    before, last = run_states(plan.folded(X0), denoise, (x,))
    return run_states(plan.inverse().folded(X0), denoise, (last, before))[0] - x


@pytest.mark.parametrize(
    ("gamma", "dtype", "low", "high"),
    [
        (1.0, torch.float32, 0.0, 1e-5),
        (0.9, torch.float32, 1e-6, 1e-3),
        (1.0, torch.float64, 0.0, 1e-13),
        (0.9, torch.float64, 1e-15, 1e-11),
    ],
)
def test_rounding_errors_of_the_inverse_grow_by_gamma(gamma, dtype, low, high):
    assert low <= largest(noise_to_image_and_back(gamma, 50, dtype)) <= high


def test_an_inverse_that_would_be_noise_is_refused():
    message = r"inverse of bdia in 50 steps would enlarge rounding errors 5.6e\+14 times"
    with pytest.raises(ValueError, match=message):
        noise_to_image_and_back(0.5, 50, torch.float32)
    with pytest.raises(ValueError, match=message):
        encode(MIXTURE.denoiser(VP), images(), VP, BDIA(0.5), steps=50)
    assert largest(noise_to_image_and_back(0.5, 25, torch.float64)) < 1e-6


@each_path
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_image_to_noise_and_back_with_bdia(path, gamma, dtype, limit):
    found = encode(MIXTURE.denoiser(path), images(dtype), path, BDIA(gamma), steps=50)
    assert len(found.states) == 2
    back = decode(MIXTURE.denoiser(path), found)
    assert back.dtype is dtype
    assert largest(back - images(dtype)) < limit
    first = path.coefficients(path.t_max)[2]
    assert 0.8 < found.noise.std() / first < 1.3  # noise, not the alternating solution


def test_float64_is_taken_where_float32_would_not_do():
    image = images(torch.float32)
    states = {}
    for name, path, gamma, steps in (
        ("plain", VP, 1.0, 50),
        ("gamma", VP, 0.5, 20),
        ("sigma", paths.EDM(), 1.0, 20),
    ):
        asked = []

        def denoise(x, t, path=path, asked=asked):
            asked.append(x.dtype)
            return MIXTURE.denoiser(path)(x, t)

        found = encode(denoise, image, path, BDIA(gamma), steps=steps)
        assert largest(decode(denoise, found) - image) < 1e-5
        assert set(asked) == {torch.float32}
        states[name] = found.noise.dtype
    assert states == {"plain": torch.float32, "gamma": torch.float64, "sigma": torch.float64}
    assert inverse_growth(BDIA(0.5).compile(VP, kappa_grid(VP, 20.0, 0.05, 21))) == 2.0**20


def ddim_round_trip(path, steps, iterations):
    grid = kappa_grid(path, 5.0, 0.1, steps)
    found = encode(MIXTURE.denoiser(path), images(), path, "ddim", grid=grid, iterations=iterations)
    return largest(decode(MIXTURE.denoiser(path), found) - images())


@each_path
def test_ddim_round_trip_has_an_error_of_first_order(path):
    errors = ddim_round_trip(path, 40, 1), ddim_round_trip(path, 80, 1)
    assert 0.003 < errors[1] < 1.0
    assert abs(math.log2(errors[0] / errors[1]) - 1.0) < 0.25


def test_ddim_round_trip_error_falls_with_iterations():
    errors = [ddim_round_trip(VP, 15, iterations) for iterations in (1, 2, 3, 30)]
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]
    assert errors[3] < 1e-11


@each_path
def test_plain_ddim_ascent_has_a_first_order_round_trip(path):
    def error(steps):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        up = ddim_ascent(path, grid)
        assert (up.nfe, up.steps, up.start_time) == (steps, steps, grid[-1])
        noise = sample(MIXTURE.denoiser(path), path, up, x=images())
        return largest(sample(MIXTURE.denoiser(path), path, "ddim", grid=grid, x=noise) - images())

    assert abs(math.log2(error(40) / error(80)) - 1.0) < 0.25


@each_path
def test_clean_and_pure_noise_ends_are_no_obstacle(path):
    grid = grids.uniform(path, 8)
    up = ddim_ascent(path, grid)
    assert up.nfe == 8
    assert sample(MIXTURE.denoiser(path), path, up, x=images()).isfinite().all()
    found = encode(MIXTURE.denoiser(path), images(), path, "ddim", grid=grid)
    assert found.noise.isfinite().all()
    assert found.plan == solvers.get("ddim").compile(path, grid)


def test_ddim_from_pure_noise_can_be_inverted():
    """At a = 0 the denoised estimate is the data mean whatever the state is, so the step is an exact map."""
    path, grid = paths.RectifiedFlow(), (1.0, 0.8, 0.65, 0.5, 0.4)
    x = sample(MIXTURE.denoiser(path), path, "ddim", grid=grid, x=start_noise())
    found = encode(MIXTURE.denoiser(path), x, path, "ddim", grid=grid, iterations=60)
    assert largest(found.noise - start_noise()) < 1e-9


def test_with_a_degraded_input_and_any_prediction():
    path, y = paths.OUVE(), start_noise(seed=3)
    for prediction in ("x0", "eps"):
        asked = Asked(MIXTURE.denoiser(path, y), path, predictions.get(prediction), y)
        found = encode(asked, images(), solver="bdia", steps=12, grid="uniform", y=y)
        assert largest(decode(asked, found, y=y) - images()) < 1e-10


def test_another_denoiser_edits():
    denoise, steps = MIXTURE.denoiser(VP), []
    found = encode(denoise, images(), VP, "bdia", steps=10, on_step=lambda info: steps.append(info.t))
    assert len(steps) == 9
    assert steps == sorted(steps)
    edited = decode(lambda x, t: denoise(x, t) + 0.1, found)
    assert 0.01 < largest(edited - images()) < 1.0


def test_resumed_plan_continues_from_two_states():
    grid = kappa_grid(VP, 20.0, 0.05, 6)
    plan = solvers.get("bdia").compile(VP, grid)
    denoise, x = MIXTURE.denoiser(VP), start_noise()
    rest = resumed(plan)
    assert (rest.starts, rest.nfe) == (2, plan.nfe - 1)
    second = sample(denoise, VP, "ddim", grid=grid[:2], x=x)
    (got,) = run_states(rest.folded(X0), denoise, (x, second))
    assert largest(got - sample(denoise, VP, plan, x=x)) < 1e-13


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, d: encode(d, x, VP, "ts-ddim"), ValueError, "ts-ddim has no inverse"),
        (lambda x, d: encode(d, x, VP, "heun", 4), ValueError, "heun has no inverse"),
        (lambda x, d: encode(d, x, VP, "ddpm", 4), ValueError, "ancestral draws noise and has no inverse"),
        (lambda x, d: encode(d, x.long(), VP), TypeError, "x must be a floating|parameter 'x'"),
        (lambda x, d: encode(d, x, VP, "ddim", iterations=0), ValueError, "iterations must be at least 1"),
        (lambda x, d: encode(d, x), ValueError, "path is missing"),
        (lambda x, d: encode(d, x, paths.OUVE(), steps=4), ValueError, "y is missing"),
        (lambda x, d: BDIA(1.5), ValueError, r"gamma must lie in \[0, 1\], not 1.5"),
        (
            lambda x, d: resumed(FirstOrder().compile(VP, (0.9, 0.5))),
            ValueError,
            "not a two-state map",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(images(), MIXTURE.denoiser(VP))
