"""Schedules against the tables of the published code (tests/golden, origins in the JSON files beside)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.core.path_cases import LINEAR_BETAS, SQRT_LINEAR_BETAS

from fewstep.core import paths

GOLDEN = Path(__file__).parents[1] / "golden"
CORE = load_file(GOLDEN / "core" / "schedules.safetensors")
RESTORATION = load_file(GOLDEN / "restoration" / "schedules.safetensors")
RESSHIFT = load_file(GOLDEN / "restoration" / "resshift_sampler.safetensors")


def close(ours: torch.Tensor, golden: torch.Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(ours, golden.double(), rtol=rtol, atol=atol)


def indices(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vp_linear", paths.VP.linear()),
        ("discrete_ddpm", paths.VP.from_betas(LINEAR_BETAS)),
        ("discrete_sd", paths.VP.from_betas(SQRT_LINEAR_BETAS)),
    ],
)
def test_vp_tables_of_dpm_solver(name, path):
    golden = {key: CORE[f"dpm_solver.{name}.{key}"] for key in ("t", "alpha", "sigma", "lam")}
    t = golden["t"] * 1000 - 1 if path.is_discrete else golden["t"]
    a, b, sigma = path.evaluate(t)
    # sigma there is sqrt(1 - a²) without expm1: 1e-16/1e-4 relative at the clean end
    close(a, golden["alpha"], rtol=2e-13)
    close(sigma, golden["sigma"], rtol=2e-12)
    close(path.half_log_snr_at(t), golden["lam"], rtol=2e-12)
    close(path.time_at(golden["lam"]), t, rtol=1e-10, atol=1e-11)
    assert (b == 0).all()


def test_zero_terminal_snr_table():
    # differences of nearly equal alphas: absolute accuracy
    close(
        torch.tensor(paths.zero_terminal_snr(SQRT_LINEAR_BETAS), dtype=torch.float64),
        CORE["zero_terminal_snr.betas"],
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_mean_reverting_tables_of_ir_sde(schedule, steps):
    # made with (max_sigma, eps) = (30/255, 0.01) for 20 steps and (10/255, 0.005) for 100; float32
    max_sigma, eps = (30, 0.01) if steps == 20 else (10, 0.005)
    path = paths.MeanReverting(max_sigma=max_sigma, steps=steps, schedule=schedule, eps=eps)
    golden = {key: CORE[f"irsde.{schedule}.{steps}.{key}"] for key in ("alpha", "sigma", "theta")}
    a, b, sigma = path.evaluate(indices(steps + 1))
    close(path.theta, golden["theta"], rtol=2e-5, atol=1e-7)
    close(a, golden["alpha"], rtol=2e-6, atol=1e-7)
    close(sigma, golden["sigma"], rtol=2e-5, atol=1e-8)
    assert torch.equal(b, 1 - a) or (b - (1 - a)).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (0, {"max_sigma": 10}),
        (1, {"max_sigma": 50}),
        (2, {"max_sigma": 50, "schedule": "linear", "eps": 0.01}),
        (3, {"max_sigma": 70, "steps": 20, "schedule": "constant"}),
    ],
)
def test_noise_levels_of_ir_sde(run, options):
    path = paths.MeanReverting(**options)
    close(
        path.evaluate(indices(path.steps + 1))[2],
        RESTORATION[f"irsde.s{run}.sigma_bars"],
        rtol=2e-5,
        atol=1e-8,
    )


def test_mr_sampler_keeps_the_first_rate():
    path = paths.MeanReverting(subtract_first=False)
    a, _, sigma = path.evaluate(indices(101))
    close(a, CORE["mr_sampler.alpha"], rtol=2e-6, atol=1e-7)
    close(sigma, CORE["mr_sampler.sigma"], rtol=0, atol=1e-6)  # 1 - a² in float32 with a = 0.99994
    other = paths.MeanReverting().evaluate(indices(101))[2]
    assert (other - sigma).abs().max() > 1e-3  # the other table would be noticed


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("paper16k", paths.OUVE()),
        ("ears48k", paths.OUVE(theta=2.0, sigma_min=0.1, sigma_max=1.0)),
        ("sbve", paths.SchrodingerBridge.ve()),
    ],
)
def test_speech_marginals_of_sgmse(name, path):
    t, mean, std = CORE["sgmse.t"], CORE[f"sgmse.out.{name}.mean"], CORE[f"sgmse.out.{name}.std"]
    x0, y = CORE[f"sgmse.in.{name}.x0"], CORE[f"sgmse.in.{name}.y"]
    ours = path.corrupt(x0, t, torch.zeros_like(x0), y)
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-6)  # float32
    # that bridge adds 1e-8 to the remaining variance: up to 1e-4 at its very end, 1e-8 elsewhere
    inner = slice(None, -1) if name == "sbve" else slice(None)
    close(path.evaluate(t)[2][inner], std[inner], rtol=1e-6)


@pytest.mark.parametrize(
    ("run", "path"),
    [
        (0, paths.ResShift()),
        (1, paths.ResShift(steps=15, min_noise_level=0.04)),
        (3, paths.ResShift(steps=15, min_noise_level=0.04, respaced=5)),
    ],
)
def test_resshift_tables(run, path):
    golden = RESSHIFT[f"s{run}.sqrt_etas"]
    t = indices(len(golden))
    a, b, sigma = path.evaluate(t)
    close(torch.tensor(path.sqrt_etas, dtype=torch.float64), golden, rtol=1e-13)
    close(b, golden.square(), rtol=1e-13)
    close(1 - a, golden.square(), rtol=1e-12)
    close(sigma, 2 * golden, rtol=1e-13)
    told = path.network_time_at(t.flip(0)).long().tolist()
    assert told == RESSHIFT[f"s{run}.out.t_model"].tolist()


def test_resshift_start_and_input_scale_are_the_published_ones():
    path, y, noise = paths.ResShift(), RESSHIFT["s0.out.zy"], RESSHIFT["s0.in.noise"][0]
    scaled = path.input_scale(path.t_max) * path.start(noise, y)
    torch.testing.assert_close(scaled, RESSHIFT["s0.out.model_in"][0], rtol=2e-6, atol=2e-6)


def test_resshift_corruption_is_the_published_one():
    x0, noise, t = (RESSHIFT[f"s0.q.{key}"] for key in ("x0", "noise", "t"))
    ours = paths.ResShift().corrupt(x0, t, noise, RESSHIFT["s0.out.zy"])
    torch.testing.assert_close(ours, RESSHIFT["s0.q.zt"], rtol=2e-6, atol=2e-6)


def test_respacing_anchored_at_the_end_keeps_the_noisiest_level():
    official = paths.ResShift(steps=15, min_noise_level=0.04, respaced=5)
    anchored = paths.ResShift(steps=15, min_noise_level=0.04, respaced=5, respacing="end-anchored")
    assert official.indices == (0, 3, 6, 9, 12)
    assert anchored.indices[0] == 0
    assert anchored.indices[-1] == 14
    assert anchored.coefficients(4.0)[2] == pytest.approx(2 * 0.99, rel=1e-14)


@pytest.mark.parametrize("steps", [10, 1000])
def test_rddm_default_tables(steps):
    golden_a = RESTORATION[f"rddm.sched{steps}.alphas_cumsum"]
    golden_b = RESTORATION[f"rddm.sched{steps}.betas_cumsum"]
    a, b, sigma = paths.RDDM(steps=steps).evaluate(indices(steps))
    # running sums of 1000 float32 numbers
    close(b, golden_a, rtol=0, atol=2e-6)
    close(sigma, golden_b, rtol=0, atol=2e-6)
    close(a + b, torch.ones(steps), rtol=1e-15)


def test_rddm_converted_tables():
    path = paths.RDDM(schedule="converted")
    _, b, sigma = path.evaluate(indices(1000))
    close(b, RESTORATION["rddm.exp0.alphas_cumsum"], rtol=0, atol=2e-6)
    close(sigma.square(), RESTORATION["rddm.exp0.betas2_cumsum"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("steps", [12, 20, 100, 273])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_resfusion_tables_and_acceleration_point(schedule, steps):
    golden = RESTORATION[f"resfusion.{schedule}{steps}.alphas_hat"]
    count = int(RESTORATION[f"resfusion.{schedule}{steps}.T_acc"])
    path = paths.Resfusion(steps=steps, schedule=schedule)
    assert path.t_max == count - 1
    a, b, sigma = path.evaluate(indices(count))
    close((1 - b).square(), golden[:count], rtol=5e-6)
    close(sigma.square(), 1 - golden[:count], rtol=0, atol=1e-6)
    close(a, 2 * golden[:count].sqrt() - 1, rtol=0, atol=1e-6)


def test_score_sde_marginals_in_closed_form():
    t = torch.linspace(0.01, 1, 17, dtype=torch.float64)
    log_a = -0.25 * t**2 * 19.9 - 0.05 * t
    a, _, sigma = paths.SubVP().evaluate(t)
    close(a, log_a.exp(), rtol=1e-15)
    close(sigma, 1 - (2 * log_a).exp(), rtol=1e-12)
    close(paths.VE().evaluate(t)[2], 0.01 * 5000**t, rtol=1e-14)
    level = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    first = torch.cos(torch.tensor(0.008 / 1.008, dtype=torch.float64) * torch.pi / 2).square()
    close(paths.VP.cosine(t_max=1.0).evaluate(t)[0].square(), level / first, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("name", ["ve", "vp", "gmax", "i2sb"])
def test_bridges_are_conditioned_diffusions(name):
    """Condition a Gaussian chain on both ends by numerical integration of its SDE coefficients."""
    path = getattr(paths.SchrodingerBridge, name)()
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    if name == "ve":
        squared_diffusion, drift = 0.4 * 2.6 ** (2 * t), torch.zeros_like(t)
    elif name == "i2sb":
        root = 0.1**0.5 + (0.3**0.5 - 0.1**0.5) * torch.minimum(t, 1 - t)
        squared_diffusion, drift = root**2, torch.zeros_like(t)
    else:
        top = 20.0 if name == "vp" else 50.0
        squared_diffusion = 0.01 + (top - 0.01) * t
        drift = -0.5 * squared_diffusion if name == "vp" else torch.zeros_like(t)
    step = t[1]

    def integral(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:1] * 0, (0.5 * step * (values[1:] + values[:-1])).cumsum(0)])

    alpha = integral(drift).exp()
    variance = integral(squared_diffusion / alpha**2)
    total = variance[-1]
    # x_t = alpha·(x0 + W(variance)) given that x_1 = y: regression on y and the Brownian-bridge variance
    weight_y = alpha * variance / total / alpha[-1]
    weight_x0 = alpha * (1 - variance / total)
    std = alpha * (variance * (total - variance) / total).clamp_min(0).sqrt()
    for ours, expected in zip(path.evaluate(t), (weight_x0, weight_y, std), strict=True):
        # trapezoid rule, h² f''/12
        torch.testing.assert_close(ours[::100], expected[::100], rtol=1e-5, atol=1e-7)
