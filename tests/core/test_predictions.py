"""Every prediction on every path: targets, exact conversions to x0 and eps and back, ends, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.path_cases import PATHS, own_times

from fewstep.core import paths, predictions
from fewstep.core.paths import Path, Resfusion

NAMES = predictions.names()


def fitting(name: str):
    """The paths on which the prediction is defined."""
    return {key: path for key, path in PATHS.items() if name != "resnoise" or isinstance(path, Resfusion)}


CASES = [
    pytest.param(name, path, id=f"{name}-{key}") for name in NAMES for key, path in fitting(name).items()
]


def truth(path, t: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps, y = torch.randn(3, 2, 3, 4, dtype=torch.float64, generator=generator)
    a, b, sigma = path.coefficients(t)
    return a * x0 + b * y + sigma * eps, x0, eps, y


def output(prediction, path, t: float, x0, eps, y):
    return prediction.target(path, torch.full((2,), t, dtype=torch.float64), x0, eps, y)


def condition(path, t: float) -> float:
    """Growth of rounding errors: the smaller of a and sigma divides."""
    a, b, sigma = path.coefficients(t)
    return (a + b + sigma) / min(a, sigma, 1.0)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_round_trip(name, path):
    prediction = predictions.get(name)
    for t in own_times(path):
        a, _, sigma = path.coefficients(t)
        if not (a > 0 and sigma > 0):
            continue
        if name == "edm-boundary" and t <= path.t_min:
            continue  # there it gives the state itself, whatever the network says
        x, x0, eps, y = truth(path, t)
        out = output(prediction, path, t, x0, eps, y)
        tolerance = {"rtol": 0, "atol": max(1e-12, 2e-15 * condition(path, t) ** 2)}
        torch.testing.assert_close(prediction.to_x0(path, t, x, out, y), x0, **tolerance)
        torch.testing.assert_close(prediction.to_eps(path, t, x, out, y), eps, **tolerance)
        scale = 1 + out.abs().max().item()
        tolerance["atol"] *= scale
        torch.testing.assert_close(prediction.from_x0(path, t, x, x0, y), out, **tolerance)


@pytest.mark.parametrize("path", [paths.EDM(), paths.VP.linear(), paths.ResShift()], ids=str)
def test_a_consistency_function_gives_the_state_at_the_end(path):
    prediction, t = predictions.get("edm-boundary"), path.t_min
    a, b, _ = path.coefficients(t)
    x, _, _, y = truth(path, t)
    y = y if path.uses_y else torch.zeros_like(y)
    given = prediction.to_x0(path, t, x, torch.full_like(x, 7.0), y)
    torch.testing.assert_close(given, (x - b * y) / a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_one_time_per_sample_agrees_with_one_time(name, path):
    prediction = predictions.get(name)
    times = own_times(path)[1:3]
    parts = [truth(path, t) for t in times]
    x, x0, eps, y = (torch.cat([part[i][:1] for part in parts]) for i in range(4))
    t = torch.tensor(times, dtype=torch.float64)
    out = prediction.target(path, t, x0, eps, y)
    together = prediction.to_x0(path, t, x, out, y)
    for i, one in enumerate(times):
        alone = prediction.to_x0(path, one, x[i : i + 1], out[i : i + 1], y[i : i + 1])
        tolerance = 1e-15 * condition(path, one) ** 2 + 1e-13
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_target_weights_are_the_target(name, path):
    prediction, t = predictions.get(name), own_times(path)[2]
    _, x0, eps, y = truth(path, t)
    heads = [w.x0 * x0 + w.eps * eps + w.y * y for w in prediction.target_weights(path, t)]
    assert len(heads) == prediction.heads
    out = output(prediction, path, t, x0, eps, y)
    torch.testing.assert_close(out, torch.cat(heads, dim=1), rtol=1e-13, atol=1e-13)


def test_targets_by_definition():
    path, t = paths.VP.linear(), 0.4
    x, x0, eps, y = truth(path, t)
    a, _, sigma = path.coefficients(t)

    def target(name, on: Path = path, at=t):
        return output(predictions.get(name), on, at, x0, eps, y)

    torch.testing.assert_close(target("v"), a * eps - sigma * x0, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(target("score"), -eps / sigma, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(target("residual"), y - x0)
    torch.testing.assert_close(target("residual+noise"), torch.cat([y - x0, eps], dim=1))
    torch.testing.assert_close(target("average-velocity"), (x - x0) / t, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(target("scaled-eps", paths.ResShift(), 2.0), 2 * 0.761381990619 * eps)
    flow = paths.RectifiedFlow(shift=3.0)
    torch.testing.assert_close(target("velocity", flow, 0.3), eps - x0)
    mean_velocity = target("average-velocity", flow, 0.3)
    torch.testing.assert_close(mean_velocity, eps - x0)  # a straight line: mean and instantaneous agree
    resfusion = paths.Resfusion()
    c = resfusion.resnoise_weight(2.0)
    torch.testing.assert_close(target("resnoise", resfusion, 2.0), eps + c * (y - x0))


def test_velocity_is_the_derivative_of_the_state():
    path, t, h = paths.OUVE(), 0.4, 1e-5
    _, x0, eps, y = truth(path, t)

    def state(time):
        a, b, sigma = path.coefficients(time)
        return a * x0 + b * y + sigma * eps

    slope = (state(t + h) - state(t - h)) / (2 * h)
    out = output(predictions.get("velocity"), path, t, x0, eps, y)
    torch.testing.assert_close(out, slope, rtol=1e-8, atol=1e-8)


def test_edm_preconditioning_is_the_published_one():
    path, sd = paths.EDM(sigma_data=0.7), 0.7
    edm = predictions.get("edm")
    for sigma in (0.002, 0.5, 80.0):
        weights = edm.x0_weights(path, sigma)
        assert weights.x == pytest.approx(sd**2 / (sigma**2 + sd**2), rel=1e-14)
        assert weights.out[0] == pytest.approx(sigma * sd / math.hypot(sigma, sd), rel=1e-14)
    # the target has the scale of the data-free optimum: unit variance for data of deviation sd
    (target,) = edm.target_weights(path, 3.0)
    assert (target.x0 * sd) ** 2 + target.eps**2 == pytest.approx(1, rel=1e-13)


def test_edm_preconditioning_acts_on_the_state_without_its_mean():
    path = paths.OUVE()
    a, b, sigma = path.coefficients(0.6)
    weights = predictions.get("edm").x0_weights(path, 0.6)
    assert weights.x == pytest.approx(0.25 * a / (sigma**2 + 0.25 * a**2), rel=1e-14)
    assert weights.y == pytest.approx(-b * weights.x, rel=1e-14)


def test_velocity_parameterisation_of_mean_reverting_samplers():
    """x0 = a·x - (sigma/max_sigma)·v + (1 - a)·y."""
    path = paths.MeanReverting()
    a, _, sigma = path.coefficients(40.0)
    weights = predictions.get("v").x0_weights(path, 40.0)
    expected = (a, -sigma / path.noise_scale, 1 - a)
    assert (weights.x, weights.out[0], weights.y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["x0", "v", "velocity", "residual", "edm", "average-velocity"])
@pytest.mark.parametrize("key", ["flow", "vp-cosine-to-pure-noise", "vp-table-zero-snr", "rddm"])
def test_x0_without_signal_is_exact(name, key):
    path, prediction = PATHS[key], predictions.get(name)
    if (name, key) == ("velocity", "vp-table-zero-snr"):
        pytest.skip("the velocity of a table jumps at its last index")
    x, x0, eps, y = truth(path, path.t_max)
    out = output(prediction, path, path.t_max, x0, eps, y)
    torch.testing.assert_close(prediction.to_x0(path, path.t_max, x, out, y), x0, rtol=0, atol=1e-12)


def test_resnoise_and_residual_recover_x0_at_the_acceleration_point():
    path = paths.Resfusion()
    x, x0, eps, y = truth(path, path.t_max)
    for name in ("resnoise", "residual", "x0"):
        prediction = predictions.get(name)
        out = output(prediction, path, path.t_max, x0, eps, y)
        torch.testing.assert_close(prediction.to_x0(path, path.t_max, x, out, y), x0, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("resnoise", "velocity")])
@pytest.mark.parametrize("key", ["vp-linear", "edm", "flow", "ouve", "resshift-4", "bridge-ve"])
def test_x0_without_noise_is_exact(name, key):
    """At sigma = 0 and a = 1 the state itself is x0, whatever the network says and wherever it is defined."""
    path, prediction = PATHS[key], predictions.get(name)
    x, x0, eps, y = truth(path, path.t_clean)
    torch.testing.assert_close(x, x0, rtol=0, atol=0)
    if name in ("score", "average-velocity"):
        with pytest.raises(ValueError, match="does not determine a target"):
            prediction.target_weights(path, path.t_clean)
        out = torch.zeros_like(x0)
    else:
        out = output(prediction, path, path.t_clean, x0, eps, y)
    torch.testing.assert_close(prediction.to_x0(path, path.t_clean, x, out, y), x0, rtol=0, atol=1e-15)


def test_pinned_start_of_a_bridge():
    path = paths.SchrodingerBridge.ve()
    x, x0, eps, y = truth(path, 1.0)
    assert torch.equal(x, y)
    for name in ("x0", "residual"):
        prediction = predictions.get(name)
        out = output(prediction, path, 1.0, x0, eps, y)
        torch.testing.assert_close(prediction.to_x0(path, 1.0, x, out, y), x0)
    with pytest.raises(ValueError, match=r"'eps' does not determine x0 at t=1\.0 of VEBridge"):
        predictions.get("eps").x0_weights(path, 1.0)
    with pytest.raises(ValueError, match="'x0' does not determine eps"):
        predictions.get("x0").eps_weights(path, 1.0)


def test_eps_is_direct_where_it_is_predicted():
    assert predictions.get("eps").eps_weights(paths.RectifiedFlow(), 1.0) == (0.0, (1.0,), 0.0)
    assert predictions.get("residual+noise").eps_weights(paths.RDDM(), 999.0) == (0.0, (0.0, 1.0), 0.0)


def test_two_heads_need_no_degraded_image():
    path, prediction = paths.RDDM(), predictions.get("residual+noise")
    x, x0, eps, y = truth(path, 700.0)
    out = output(prediction, path, 700.0, x0, eps, y)
    torch.testing.assert_close(prediction.to_x0(path, 700.0, x, out), x0, rtol=0, atol=1e-13)
    assert not prediction.requires_y(path)


def test_what_requires_y():
    assert not predictions.get("eps").requires_y(paths.VP.linear())
    assert predictions.get("eps").requires_y(paths.ResShift())
    assert not predictions.get("x0").requires_y(paths.ResShift())
    assert predictions.get("residual").requires_y(paths.VP.linear())


def test_precision_and_dtype_of_the_state():
    path, t = paths.VP.linear(), 0.5
    x, x0, eps, y = (v.float() for v in truth(path, t))
    for name in ("eps", "v", "x0"):
        prediction = predictions.get(name)
        out = output(prediction, path, t, x0, eps, y)
        assert out.dtype == torch.float32
        back = prediction.to_x0(path, t, x, out)
        assert back.dtype == torch.float32
        torch.testing.assert_close(back, x0, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([n for n in NAMES if n != "resnoise"]), st.floats(0.02, 0.98), st.integers(0, 10_000))
def test_round_trip_at_any_time_of_the_flow(name, t, seed):
    path, prediction = paths.RectifiedFlow(perturbation=0.5, shift=2.0), predictions.get(name)
    x, x0, eps, y = truth(path, t, seed)
    out = output(prediction, path, t, x0, eps, y)
    torch.testing.assert_close(prediction.to_x0(path, t, x, out, y), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.to_eps(path, t, x, out, y), eps, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: predictions.get("noise"), "prediction must be one of 'x0', 'eps'.*got 'noise'"),
        (lambda: predictions.get("eps").x0_weights(paths.RectifiedFlow(), 1.0), "a=0.*choose another"),
        (lambda: predictions.get("resnoise").x0_weights(paths.RDDM(), 5.0), "Resfusion path, got RDDM"),
        (lambda: predictions.get("eps").x0_weights(paths.VP.linear(), 2.0), r"t must lie in \[0, 1\]"),
        (
            lambda: predictions.get("eps").to_x0(paths.ResShift(), 1.0, torch.zeros(1, 2), torch.zeros(1, 2)),
            "y is needed by prediction 'eps' on ResShift",
        ),
        (
            lambda: predictions.get("residual").target(
                paths.EDM(), torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2)
            ),
            "y is needed for the target",
        ),
    ],
)
def test_bad_input_names_the_argument(make, words):
    with pytest.raises(ValueError, match=words):
        make()
