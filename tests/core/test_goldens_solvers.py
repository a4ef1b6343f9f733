"""Solvers against trajectories of the published codes, on a closed-form denoiser."""

import json
from pathlib import Path as File

import pytest
import torch
from safetensors.torch import load_file
from tests.core.solver_problems import Mixture

from fewstep.core import paths
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP, FirstOrder, Heun

FOLDER = File(__file__).parents[1] / "golden" / "core"
GOLDEN = load_file(FOLDER / "solvers.safetensors")
CASES = json.loads((FOLDER / "solvers.json").read_text())["cases"]
MIXTURE = Mixture(GOLDEN["mix.mean"], GOLDEN["mix.std"], GOLDEN["mix.weight"])
Z = GOLDEN["in.z"]


def cases(file, *prefixes):
    found = [case for case in CASES if case["file"] == file and case["name"].startswith(prefixes)]
    assert found, (file, prefixes)
    return pytest.mark.parametrize("case", found, ids=[case["name"] for case in found])


def of(case, part):
    return GOLDEN[f"{case['file']}/{case['name']}.{part}"]


def recorded(case):
    """A noise function that returns the recorded draws in order."""
    draws = iter(GOLDEN.get(f"{case['file']}/{case['name']}.in.noise", ()))
    return lambda like: next(draws)


def result(case, path, solver, times, x):
    return sample(MIXTURE.denoiser(path), path, solver, grid=tuple(times), x=x, noise=recorded(case))


def assert_relative(got, wanted, tolerance):
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1.0)


@cases("dpm_solver_official", "")
def test_dpm_solver_official(case):
    steps = of(case, "out.ts")
    if case["schedule"] == "vp_linear":
        path, times = paths.VP.linear(), steps.tolist()
    else:
        # their time is (index + 1)/1000 with log a linear in between; rounding may leave the table
        scaled = (1e-4, 0.02) if case["schedule"] == "discrete_ddpm" else (0.00085**0.5, 0.012**0.5)
        betas = torch.linspace(*scaled, 1000, dtype=torch.float64)
        path = paths.VP.from_betas(betas if case["schedule"] == "discrete_ddpm" else betas**2)
        times = [min(max(1000 * t - 1, 0.0), 999.0) for t in steps.tolist()]
    solver = DPMSolverPP(
        solver_order=case["order"],
        correction="midpoint" if case["solver_type"] == "dpmsolver" else "taylor",
        variant="official",
        lower_order_below=10 if case["lower_order_final"] else 0,
    )
    assert_relative(result(case, path, solver, times, Z), of(case, "out.x"), 1e-9)


@cases("k_diffusion", "sample_")
def test_k_diffusion(case):
    sigmas = of(case, "in.sigmas").tolist()
    eta = case.get("eta", 1.0)
    solver = {
        "sample_euler": FirstOrder(),
        "sample_heun": Heun(),
        "sample_euler_ancestral": FirstOrder(eta=eta),
        "sample_dpmpp_2m": DPMSolverPP(2, lower_order_below=0),
        "sample_dpmpp_2m_sde": DPMSolverPP(
            2, "taylor" if case.get("solver_type") == "heun" else "midpoint", eta=eta, lower_order_below=0
        ),
        "sample_dpmpp_3m_sde": DPMSolverPP(3, "taylor", "official", eta=eta, lower_order_below=0),
    }[case["sampler"]]
    path = paths.EDM(sigma_min=1e-3)
    assert_relative(result(case, path, solver, sigmas, case["sigma_max"] * Z), of(case, "out.x"), 1e-9)


@cases("edm_official", "edm.", "abl.")
def test_edm_official(case):
    path = paths.EDM()
    steps = torch.arange(case["num_steps"], dtype=torch.float64) / (case["num_steps"] - 1)
    sigmas = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    churn = case.get("S_churn", 0.0)
    solver = Heun(churn, case.get("S_min", 0.0), case.get("S_max", 1e9), case.get("S_noise", 1.0))
    draws = iter(GOLDEN.get(f"edm_official/{case['name']}.in.noise", ()))
    if churn:  # the official code draws in every step, even where it adds nothing
        draws = (draw for draw, sigma in zip(draws, sigmas, strict=True) if 0.05 <= sigma <= 50)
    if ".euler." in case["name"]:
        solver = FirstOrder()
    got = sample(
        MIXTURE.denoiser(path),
        path,
        solver,
        grid=(*sigmas.tolist(), 0.0),
        x=sigmas[0] * Z,
        noise=lambda like: next(draws),
    )
    assert_relative(got, of(case, "out.x"), 1e-9)


def stable_diffusion_path():
    # diffusers makes its tables in float32
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return paths.VP.from_betas(betas)


@cases("diffusers_schedulers", "ddim", "ddpm")
def test_diffusers_first_order(case):
    path = stable_diffusion_path()
    times = [*of(case, "out.timesteps").tolist(), -1.0]
    eta = 1.0 if case["scheduler"] == "DDPMScheduler" else case["step_kwargs"].get("eta", 0.0)
    assert_relative(result(case, path, FirstOrder(eta), times, Z), of(case, "out.x"), 2e-5)


# their third-order SDE step keeps a term of order 0 in h, and is left out
@cases("diffusers_schedulers", "dpmm.dpmsolver++", "dpmm.sde-dpmsolver++.o1", "dpmm.sde-dpmsolver++.o2")
def test_diffusers_dpm_multistep(case):
    config = case["config"]
    sde = config["algorithm_type"].startswith("sde")
    path = stable_diffusion_path()
    end = 0.0 if config.get("final_sigmas_type") == "sigma_min" else -1.0
    solver = DPMSolverPP(
        config["solver_order"],
        "taylor" if config["solver_type"] == "heun" else "midpoint",
        "official",
        eta=1.0 if sde else 0.0,
        lower_order_below=15 if config.get("lower_order_final", True) else 0,
    )
    times = [*of(case, "out.timesteps").tolist(), end]
    assert_relative(result(case, path, solver, times, Z), of(case, "out.x"), 2e-5)


@cases("diffusers_schedulers", "euler", "heun")
def test_diffusers_in_the_sigma_frame(case):
    """The peer steps x/a and starts it at sigma_max·z; on our path that is a·sigma_max·z = sigma·z."""
    path = stable_diffusion_path()
    times = [*dict.fromkeys(of(case, "out.timesteps").tolist()), -1.0]
    solver = {"euler": FirstOrder(), "eulera": FirstOrder(1.0), "heun": Heun()}[case["name"].split(".")[0]]
    sigma = path.coefficients(times[0])[2]
    assert_relative(result(case, path, solver, times, sigma * Z), of(case, "out.x"), 2e-5)


@cases("diffusers_schedulers", "edm_", "flow_euler", "flow_dpmm")
def test_diffusers_edm_and_flow(case):
    config = case["config"]
    flow = case["name"].startswith("flow")
    path = paths.RectifiedFlow() if flow else paths.EDM(sigma_min=1e-3)
    solver = FirstOrder()
    if "dpmm" in case["name"]:
        eta = 1.0 if config.get("algorithm_type", "").startswith("sde") else 0.0
        solver = DPMSolverPP(config["solver_order"], "midpoint", "official", eta=eta, lower_order_below=15)
    times = of(case, "out.sigmas").tolist()
    x = Z if flow else (times[0] ** 2 + 1) ** 0.5 * Z  # the peer's own start for EDM
    assert_relative(result(case, path, solver, times, x), of(case, "out.x"), 2e-5)
