"""One first-order update serves all paths: the published posteriors are special cases of it.

x_s = a_s·x0 + b_s·y + sqrt(sigma_s² - d²)·eps + d·w, d² = (sigma_s²/sigma_t²)·(sigma_t² - r²·sigma_s²), with
r the path's transition coefficient. Written as c·x_t + (a_s - c·a_t)·x0 + (b_s - c·b_t)·y + d·w it is
compared with the coefficients that each paper (or code) states.
"""

import math

import pytest
import torch
from safetensors.torch import load_file
from tests.core.path_cases import LINEAR_BETAS
from tests.core.test_path_schedules import GOLDEN

from fewstep.core import paths, predictions

TOLERANCE = 1e-12


def shared_update(path, s: float, t: float) -> tuple[float, float, float, float]:
    """Weights of x_t, x0 and y and the deviation of the fresh noise in the shared ancestral step t → s."""
    a_s, b_s, sigma_s = path.coefficients(s)
    a_t, b_t, sigma_t = path.coefficients(t)
    r = path.transition(s, t)
    fresh = (sigma_s / sigma_t) ** 2 * (sigma_t**2 - r**2 * sigma_s**2)
    c = math.sqrt(max(sigma_s**2 - fresh, 0.0)) / sigma_t
    return c, a_s - c * a_t, b_s - c * b_t, math.sqrt(max(fresh, 0.0))


def test_ddpm_posterior():
    path = paths.VP.from_betas(LINEAR_BETAS)
    abar = torch.cumprod(1 - LINEAR_BETAS, 0).tolist()
    for t in (1, 2, 10, 500, 999):
        beta, now, before = LINEAR_BETAS[t].item(), abar[t], abar[t - 1]
        expected = (
            math.sqrt(1 - beta) * (1 - before) / (1 - now),
            math.sqrt(before) * beta / (1 - now),
            0.0,
            math.sqrt((1 - before) / (1 - now) * beta),
        )
        assert shared_update(path, t - 1.0, float(t)) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("skip", [(999.0, 799.0), (500.0, 20.0)])
def test_ddim_with_unit_eta_skipping_steps(skip):
    t, s = skip
    path = paths.VP.from_betas(LINEAR_BETAS)
    abar = torch.cumprod(1 - LINEAR_BETAS, 0)
    now, before = abar[int(t)].item(), abar[int(s)].item()
    std = math.sqrt((1 - before) / (1 - now) * (1 - now / before))
    eps_weight = math.sqrt(1 - before - std**2)
    c = eps_weight / math.sqrt(1 - now)
    expected = (c, math.sqrt(before) - c * math.sqrt(now), 0.0, std)
    assert shared_update(path, s, t) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("run", [0, 1, 3])
def test_resshift_posterior(run):
    golden = load_file(GOLDEN / "restoration" / "resshift_sampler.safetensors")
    options = {} if run == 0 else {"steps": 15, "min_noise_level": 0.04}
    path = paths.ResShift(**options, respaced=5 if run == 3 else None)
    for t in range(1, int(path.t_max) + 1):
        expected = (
            golden[f"s{run}.posterior_mean_coef1"][t].item(),
            golden[f"s{run}.posterior_mean_coef2"][t].item(),
            0.0,
            math.sqrt(golden[f"s{run}.posterior_variance"][t].item()),
        )
        assert shared_update(path, t - 1.0, float(t)) == pytest.approx(expected, abs=TOLERANCE)
    assert shared_update(path, -1.0, 0.0) == (0.0, 1.0, 0.0, 0.0)  # the last step is x0 itself


def test_rddm_posterior():
    """mean = c1·x + c2·R + c3·x0 with R = y - x0: weights (c1, c3 - c2, c2) of (x, x0, y)."""
    steps = 50
    path = paths.RDDM(steps=steps, sum_scale=0.3)
    total = steps * (steps + 1) / 2
    for t in range(1, steps):
        k = t + 1
        alpha, beta2 = (steps + 1 - k) / total, 0.3 * k / total
        a_before = sum(steps + 1 - j for j in range(1, k)) / total
        b2, b2_before = (0.3 * sum(range(1, n + 1)) / total for n in (k, k - 1))
        c1, c2, c3 = b2_before / b2, (beta2 * a_before - b2_before * alpha) / b2, beta2 / b2
        expected = (c1, c3 - c2, c2, math.sqrt(beta2 * b2_before / b2))
        assert shared_update(path, t - 1.0, float(t)) == pytest.approx(expected, abs=TOLERANCE)


def test_rddm_posterior_table():
    golden = load_file(GOLDEN / "restoration" / "schedules.safetensors")
    path = paths.RDDM(steps=10)
    c1, c2, c3 = (golden[f"rddm.sched10.posterior_mean_coef{i}"] for i in (1, 2, 3))
    variance = golden["rddm.sched10.posterior_variance"]
    for t in range(1, 10):
        expected = (c1[t].item(), (c3[t] - c2[t]).item(), c2[t].item(), variance[t].sqrt().item())
        assert shared_update(path, t - 1.0, float(t)) == pytest.approx(expected, abs=1e-6)  # float32 table


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 12), ("linear", 100), ("cosine", 20)])
def test_resfusion_posterior(schedule, steps):
    """x' = (x - beta/sqrt(1-abar)·n)/sqrt(alpha) + sqrt(beta_hat)·z with n = eps + c·(y - x0)."""
    path = paths.Resfusion(steps=steps, schedule=schedule)
    resnoise = predictions.get("resnoise")
    root = [1 - path.coefficients(float(t))[1] for t in range(int(path.t_max) + 1)]
    for t in range(1, len(root)):
        now, before = root[t] ** 2, root[t - 1] ** 2
        alpha = now / before
        beta = 1 - alpha
        c_paper = (1 - math.sqrt(alpha)) * math.sqrt(1 - now) / beta
        assert path.resnoise_weight(float(t)) == pytest.approx(c_paper, abs=TOLERANCE)
        # x0, then the shared update, as weights of (x, n, y)
        c, weight_x0, weight_y, std = shared_update(path, t - 1.0, float(t))
        clean = resnoise.x0_weights(path, float(t))
        ours = (c + weight_x0 * clean.x, weight_x0 * clean.out[0], weight_y + weight_x0 * clean.y, std)
        expected = (
            1 / math.sqrt(alpha),
            -beta / math.sqrt((1 - now) * alpha),
            0.0,
            math.sqrt((1 - before) / (1 - now) * beta),
        )
        assert ours == pytest.approx(expected, abs=TOLERANCE)


def test_ir_sde_posterior():
    """A(1-C²)/(1-B²)·(x-y) + C(1-A²)/(1-B²)·(x0-y) + y; A one step's decay, B and C those to t and t-1."""
    path = paths.MeanReverting()
    decay = path.evaluate(torch.arange(101))[0].tolist()
    for t in range(2, 101):
        now, before = decay[t], decay[t - 1]
        one = now / before
        weight_x = one * (1 - before**2) / (1 - now**2)
        weight_x0 = before * (1 - one**2) / (1 - now**2)
        std = path.noise_scale * math.sqrt((1 - one**2) * (1 - before**2) / (1 - now**2))
        expected = (weight_x, weight_x0, 1 - weight_x - weight_x0, std)
        assert shared_update(path, t - 1.0, float(t)) == pytest.approx(expected, abs=TOLERANCE)


def test_bridge_sde_step():
    """x ← r·x + (1-r)·x0 + s_s·sqrt(1-r)·z, r = s_s²/s_t², s² the accumulated variance."""
    path = paths.SchrodingerBridge.ve()
    for t, s in ((0.98, 0.9), (0.6, 0.3), (0.3, 0.01)):
        variance_t, variance_s = path.variance(torch.tensor([t, s], dtype=torch.float64)).tolist()
        r = variance_s / variance_t
        expected = (r, 1 - r, 0.0, math.sqrt(variance_s * (1 - r)))
        assert shared_update(path, s, t) == pytest.approx(expected, abs=TOLERANCE)


def test_bridge_ode_step_is_ddim():
    """The published weights (w_x, w_x0, w_y) equal c = sigma_s/sigma_t without fresh noise."""
    path = paths.SchrodingerBridge.ve()
    t, s = 0.7, 0.4
    done_t, done_s, total = path.variance(torch.tensor([t, s, 1.0], dtype=torch.float64)).tolist()
    left_t, left_s = total - done_t, total - done_s
    expected = (
        math.sqrt(done_s * left_s / (done_t * left_t)),
        (left_s - math.sqrt(left_t * done_s * left_s / done_t)) / total,
        (done_s - math.sqrt(done_t * done_s * left_s / left_t)) / total,
    )
    (a_t, b_t, sigma_t), (a_s, b_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    c = sigma_s / sigma_t
    assert (c, a_s - c * a_t, b_s - c * b_t) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    "path", [paths.MeanReverting(), paths.ResShift(), paths.RDDM(steps=20), paths.Resfusion(), paths.OUVE()]
)
def test_without_the_mean_every_path_is_a_plain_one(path):
    """z = x - b·y of the corrupted state does not depend on y."""
    x0, noise, *ys = torch.randn(4, 3, 8, dtype=torch.float64)
    t = torch.tensor([path.t_min, 0.5 * path.t_max, path.t_max], dtype=torch.float64)
    _, b, _ = path.evaluate(t)
    first, second = (path.corrupt(x0, t, noise, y) - b[:, None] * y for y in ys)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)
