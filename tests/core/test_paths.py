"""Every path: exact ends, inverse, derivatives, vectorised and scalar agreement, JSON, bad input."""

import json
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.path_cases import LINEAR_BETAS, PATHS, PINNED, inner_times, own_times

from fewstep.core import paths

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@every_path
def test_clean_end_is_exact(path):
    a, b, sigma = path.coefficients(path.t_clean)
    if path == PATHS["mr-sampler"]:  # keeps theta_0: published table with a little noise left
        assert 0.999 < a < 1
        assert 0 < sigma < 0.003
    else:
        assert (a, b, sigma) == (1.0, 0.0, 0.0)
        assert path.half_log_snr(path.t_clean) == math.inf
        assert path.time_at(math.inf) == path.t_clean


@every_path
def test_noise_grows_relative_to_signal(path):
    t = torch.linspace(path.t_clean, path.t_max, 500, dtype=torch.float64)
    lam = path.half_log_snr_at(t)
    assert not lam.isnan().any()
    assert (lam[1:] < lam[:-1]).all()


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("vp-cosine-to-pure-noise", (0.0, 0.0, 1.0)),
        ("vp-table-zero-snr", (0.0, 0.0, 1.0)),
        ("flow", (0.0, 0.0, 1.0)),
        ("flow-shift", (0.0, 0.0, 1.0)),
        ("flow-degraded-start", (0.0, math.sqrt(1 - 0.2**2), 0.2)),
        ("rddm", (0.0, 1.0, 1.0)),
        ("rddm-small-noise", (0.0, 1.0, math.sqrt(0.01))),
        ("resfusion-12", (0.0, 0.5, math.sqrt(0.75))),
        *[(name, (0.0, 1.0, 0.0)) for name in sorted(PINNED)],
    ],
)
def test_ends_without_signal_are_exact(name, start):
    path = PATHS[name]
    a, b, sigma = path.coefficients(path.t_max)
    assert a == 0
    assert b == pytest.approx(start[1], abs=0, rel=4e-16)
    assert sigma == pytest.approx(start[2], abs=0, rel=4e-16)
    assert path.half_log_snr(path.t_max) == -math.inf
    assert path.time_at(-math.inf) == path.t_max


@every_path
def test_time_at_inverts_half_log_snr(path):
    t = inner_times(path, 200)
    # RDDM at its last indices has a ~ 1e-6 from a difference of numbers near 1: seven digits fewer.
    tolerance = 1e-12 if isinstance(path, paths.RDDM) else 5e-15
    back = path.time_at(path.half_log_snr_at(t))
    assert (back - t).abs().max() <= tolerance * max(path.t_max, 1) * 20
    middle = t[100].item()
    assert path.time_at(path.half_log_snr(middle)) == pytest.approx(middle, rel=1e-11)


@every_path
def test_time_at_stays_on_the_path(path):
    lam = torch.tensor([-60.0, -30.0, 30.0, 60.0, math.inf, -math.inf], dtype=torch.float64)
    t = path.time_at(lam)
    assert not t.isnan().any()
    assert ((t >= path.t_clean) & (t <= path.t_max)).all()


@every_path
def test_derivatives_match_finite_differences(path):
    # Off the table's knots, where the interpolated quantity has a kink.
    t = inner_times(path, 9)
    if path.is_discrete:
        t = (t.floor() + 0.37).clamp(max=path.t_max - 0.2)
    h = 1e-5 * (path.t_max - path.t_clean) / (1000 if path.t_max > 50 else 1)
    above, below = path.evaluate(t + h), path.evaluate(t - h)
    for exact, upper, lower in zip(path.derivatives_at(t), above, below, strict=True):
        # central difference: h² truncation and eps/h rounding
        torch.testing.assert_close(exact, (upper - lower) / (2 * h), rtol=1e-6, atol=1e-7 / path.t_max**0.5)
    assert path.derivatives(t[3].item())[0] == path.derivatives_at(t)[0][3].item()


def test_derivatives_of_vp_linear_match_the_sde():
    path, t = paths.VP.linear(), torch.linspace(0.05, 1, 20, dtype=torch.float64)
    beta = 0.1 + t * 19.9
    a, _, sigma = path.evaluate(t)
    da, db, dsigma = path.derivatives_at(t)
    torch.testing.assert_close(da, -0.5 * beta * a, rtol=1e-12, atol=0)
    torch.testing.assert_close(dsigma, 0.5 * beta * a * a / sigma, rtol=1e-12, atol=0)
    assert (db == 0).all()


def test_derivatives_inside_inference_mode():
    path = paths.VP.from_betas(LINEAR_BETAS[:50])
    with torch.inference_mode():
        inside = path.derivatives(7.5)
    assert inside == paths.VP.from_betas(LINEAR_BETAS[:50]).derivatives(7.5)


@every_path
def test_scalars_and_vectors_agree_exactly(path):
    times = own_times(path)
    vector = torch.tensor(times, dtype=torch.float64)
    together = path.coefficients_at(times)
    for i, t in enumerate(times):
        assert path.coefficients(t) == together[i]
        torch.testing.assert_close(
            torch.tensor(together[i], dtype=torch.float64),
            torch.stack([c[i] for c in path.evaluate(vector)]),
            rtol=1e-15,
            atol=1e-15,
        )
    assert path.evaluate(vector.reshape(1, -1).float())[2].shape == (1, len(times))
    assert all(c.dtype == torch.float64 for c in path.evaluate(vector.float()))


@every_path
def test_json_round_trip_and_value_semantics(path):
    config = json.loads(json.dumps(path.to_config()))
    again = paths.from_config(config)
    assert again == path
    assert hash(again) == hash(path)
    assert {path: 1}[again] == 1
    assert pickle.loads(pickle.dumps(path)).coefficients(path.t_max) == path.coefficients(path.t_max)
    with pytest.raises(AttributeError):
        path.t_min = 0.5


def test_every_name_has_a_case():
    assert set(paths.names()) == {type(path).__name__ for path in PATHS.values()}


@every_path
def test_corrupt_is_the_definition(path):
    torch.manual_seed(0)
    x0, y, noise = torch.randn(3, 4, 2, 5, 5)
    t = torch.tensor([own_times(path)[i] for i in (0, 1, -2, -1)])
    out = path.corrupt(x0, t, noise, y)
    for i in range(4):
        a, b, sigma = path.coefficients(t[i].item())
        torch.testing.assert_close(out[i], a * x0[i] + b * y[i] + sigma * noise[i], rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32
    assert path.corrupt(x0.bfloat16(), t, noise.bfloat16(), y.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vp-linear", (0, 1)),
        ("vp-table", (0, 1)),
        ("edm", (0, 80)),
        ("ve", (0, 50)),
        ("flow", (0, 1)),
        ("ir-sde-cosine", (1, 50 / 255)),
        ("ouve", (1, 0.38898)),
        ("bridge-ve", (1, 0)),
        ("resshift-4", (1, 2 * 0.99)),
        ("rddm-small-noise", (1, 0.1)),
        ("resfusion-12", (0.5, 0.75**0.5)),
    ],
)
def test_start_is_the_published_one(name, weights):
    path = PATHS[name]
    noise, y = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = weights[0] * y + weights[1] * noise
    torch.testing.assert_close(path.start(noise, y), expected, rtol=1e-5, atol=1e-5)


def test_network_times():
    assert paths.EDM().network_time(2.0) == pytest.approx(math.log(2) / 4, rel=1e-15)
    assert paths.VP.linear().network_time(0.25) == 250
    assert paths.VP.from_betas(LINEAR_BETAS).network_time(17.0) == 17
    assert paths.LinearVP(time="1000t-1").network_time(1.0) == 999
    assert paths.OUVE(time="log-t").network_time(0.5) == pytest.approx(math.log(0.5))
    assert paths.VE().network_time(1.0) == pytest.approx(50)
    assert paths.RectifiedFlow(shift=3.0).network_time(0.5) == pytest.approx(750)
    assert PATHS["resshift-15-to-5"].network_time(1.0) == 4  # the index of the trained table
    t = torch.tensor([0.0, 2.0, 4.0])
    assert PATHS["resshift-15-to-5"].network_time_at(t).tolist() == [0, 7, 14]


def test_input_scales():
    assert paths.EDM().input_scale(1.5) == pytest.approx(1 / math.sqrt(1.5**2 + 0.25), rel=1e-15)
    latent, pixel = paths.ResShift(), paths.ResShift(latent=False)
    noise = 2 * 0.99
    assert latent.input_scale(3.0) == pytest.approx(1 / math.sqrt(noise**2 + 1), rel=1e-14)
    assert pixel.input_scale(3.0) == pytest.approx(1 / (3 * noise + 1), rel=1e-14)
    assert paths.VP.linear().input_scale(0.5) == 1


def test_ends_of_mean_reversion_forget_all_but_eps():
    path = paths.MeanReverting(eps=0.02)
    assert path.coefficients(path.t_max)[0] == pytest.approx(0.02, rel=1e-13)


@settings(deadline=None)
@given(st.floats(0.3, 5), st.floats(0.05, 1), st.floats(0.001, 0.999))
def test_flow_inverse_for_any_shift(shift, perturbation, t):
    path = paths.RectifiedFlow(shift=shift, perturbation=perturbation)
    assert path.time_at(path.half_log_snr(t)) == pytest.approx(t, rel=1e-12)


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.2, 4), st.floats(0.005, 0.3), st.floats(0.1, 1))
def test_resshift_inverse_for_any_schedule(steps, kappa, level, power):
    path = paths.ResShift(steps=steps, kappa=kappa, min_noise_level=level, power=power)
    for t in (0.0, 0.4, steps - 1.3):
        assert path.time_at(path.half_log_snr(t)) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: paths.VP.linear(beta_min=-1), "beta_min"),
        (lambda: paths.VP.from_betas([]), "betas"),
        (lambda: paths.VP.from_betas([0.1, 1.5]), "1.5"),
        (lambda: paths.VP.from_betas([1.0, 0.5]), r"betas.*1\.0"),
        (lambda: paths.EDM(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: paths.EDM(sigma_max=math.nan), "sigma_max=nan"),
        (lambda: paths.RectifiedFlow(shift=0), "shift"),
        (lambda: paths.RectifiedFlow(perturbation=1.2), "perturbation"),
        (lambda: paths.MeanReverting(schedule="cubic"), "'cosine', 'linear', 'constant'"),
        (lambda: paths.MeanReverting(eps=1.0), "eps"),
        (lambda: paths.OUVE(time="frames"), "log-t"),
        (lambda: paths.ResShift(steps=1), "steps must be at least 2"),
        (lambda: paths.ResShift(respaced=5), "respaced must be at most steps=4"),
        (lambda: paths.ResShift(respacing="odd"), "end-anchored"),
        (lambda: paths.ResShift(etas_end=0.05), "min_noise_level < etas_end"),
        (lambda: paths.RDDM(sum_scale=2.0), "sum_scale"),
        (lambda: paths.Resfusion(schedule="sigmoid"), "'linear', 'cosine'"),
        (lambda: paths.SchrodingerBridge.ve(k=1.0), "one < k|k must"),
        (lambda: paths.from_config({"path": "Nowhere"}), "LinearVP"),
        (lambda: paths.from_config({"path": "EDM", "rho": 7}), "'rho'.*sigma_min"),
        (lambda: paths.VP.linear().coefficients(1.5), r"\[0, 1\] on LinearVP, got 1.5"),
        (lambda: paths.VP.linear().coefficients(math.nan), "nan"),
        (lambda: paths.ResShift().start(torch.zeros(1, 3, 2, 2)), "y is needed"),
        (lambda: paths.OUVE().corrupt(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)), "y is needed"),
    ],
)
def test_bad_input_names_the_argument(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()
