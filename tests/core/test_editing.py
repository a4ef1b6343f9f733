"""DDCM editing: the published trajectories, what must not change, calls, bad input."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative, official_path
from tests.core.solver_problems import smooth_mixture, start_noise

from fewstep.core import paths
from fewstep.core.editing import edit

GOLDEN = Golden("misc_official")


@GOLDEN.each(lambda case: case["kind"] == "ddcm")
def test_infedit(case):
    """The start z, then one draw a step. Their last state is noised again and thrown away."""
    path = official_path("discrete_sd")
    draws = iter([GOLDEN.z, *GOLDEN.of(case, "in.noise")])
    states, estimates = [], []

    def watch(info):
        states.append(info.x)
        estimates.append(info.x0)

    got = edit(
        GOLDEN.mixture().denoiser(path),
        GOLDEN.mixture("mixB").denoiser(path),
        GOLDEN.of(case, "in.x0"),
        path,
        grid=[*GOLDEN.of(case, "in.timesteps").tolist(), -1.0],
        eta=case["eta"],
        noise=lambda like: next(draws),
        on_step=watch,
    )
    wanted = GOLDEN.of(case, "out.pred_x0")
    assert_relative(torch.stack(estimates), wanted, 1e-9)
    assert_relative(torch.stack(states[:-1]), GOLDEN.of(case, "out.xt")[:-1], 1e-9)
    assert_relative(got, wanted[-1], 1e-9)


PATHS = {
    "edm": paths.EDM(),
    "flow": paths.RectifiedFlow(),
    "cosine to pure noise": paths.VP.cosine(t_max=1.0),
    "resshift": paths.ResShift(),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def wanted_y(path):
    return start_noise(seed=4) if path.uses_y else None


@each_path
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_same_description_changes_nothing(path, eta):
    y = wanted_y(path)
    denoise = smooth_mixture().denoiser(path, y)
    x0 = start_noise(seed=5)
    assert (edit(denoise, denoise, x0, path, steps=4, eta=eta, y=y) - x0).abs().max() < 1e-12


@pytest.mark.parametrize("path", [PATHS["flow"], PATHS["cosine to pure noise"]], ids=["flow", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_shift_of_the_data_shifts_any_sample(path, eta):
    """Target data = source data + d: from pure noise the branches stay a·d apart, so x0 + d comes out."""
    source = smooth_mixture().denoiser(path)

    def target(x, t):
        return source(x - 0.4 * path.coefficients(t)[0], t) + 0.4

    x0 = start_noise(seed=5)
    got = edit(source, target, x0, path, grid="uniform", steps=4, eta=eta)
    assert (got - x0 - 0.4).abs().max() < 1e-12


def test_calls_seeds_and_batch_mates():
    path = paths.VP.linear()
    mixture = smooth_mixture()
    calls = []

    def counted(x, t):
        calls.append(t)
        return mixture.denoiser(path)(x, t)

    target = lambda x, t: 0.5 * mixture.denoiser(path)(x, t)  # noqa: E731
    x0 = start_noise()
    both = edit(counted, counted, x0, path, steps=5)
    assert len(calls) == 10
    assert both.dtype == x0.dtype
    whole = edit(counted, target, x0, path, steps=5, seed=7)
    alone = edit(counted, target, x0[2:3], path, steps=5, seed=9)
    assert (whole[2:3] - alone).abs().max() < 1e-12
    assert (whole - edit(counted, target, x0, path, steps=5, seed=8)).abs().max() > 1e-3


def test_steps_are_reported_and_can_stop():
    path = paths.EDM()
    denoise = smooth_mixture().denoiser(path)
    seen = []

    def watch(info):
        seen.append((info.step, info.total, info.nfe, float(info.t)))
        return info.step < 2

    got = edit(
        denoise,
        lambda x, t: denoise(x, t) + 1.0,
        start_noise(),
        path,
        grid=(9.0, 3.0, 1.0, 0.0),
        on_step=watch,
    )
    assert seen == [(1, 3, 2, 3.0), (2, 3, 4, 1.0)]
    assert (got - start_noise() - 1.0).std() > 0.5  # the state at sigma = 1, not the estimate


def test_half_precision_comes_back():
    denoise = smooth_mixture().denoiser(paths.EDM())
    x0 = start_noise().to(torch.bfloat16)
    assert edit(denoise, denoise, x0, paths.EDM(), steps=3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "path is missing"),
        ({"eta": 1.2}, "eta must lie between 0 and 1, not 1.2"),
        ({"path": paths.ResShift()}, "y is missing: ResShift"),
        ({"grid": "best"}, "grid must be one of"),
        ({"grid": (1.0, 2.0)}, "decreasing"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(options, message):
    denoise = smooth_mixture().denoiser(paths.EDM())
    with pytest.raises(ValueError, match=message):
        edit(denoise, denoise, start_noise(), **{"path": paths.EDM()} | options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_noise_keeps_its_size(eta):
    """The state is a·x0 + sigma·e with e of variance 1 after every step, whatever share of e is fresh."""
    path, x0 = paths.VP.linear(), torch.zeros(200, 3, 2, 2, dtype=torch.float64)
    denoise, sizes = smooth_mixture().denoiser(path), []

    def watch(info):
        sigma = path.coefficients(float(info.t))[2]
        if sigma > 0.0:
            sizes.append((info.x / sigma).std().item())

    edit(denoise, denoise, x0, path, steps=5, eta=eta, on_step=watch)
    assert len(sizes) == 4
    assert max(abs(size - 1.0) for size in sizes) < 4 / (2 * 2400) ** 0.5  # 4 standard errors
