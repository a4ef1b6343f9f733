"""The samplers of k-diffusion against its own trajectories, on a closed-form denoiser."""

import torch
from tests.core.goldens import Golden, assert_relative

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.dpm_adaptive import DPMAdaptive
from fewstep.core.solvers.dpm_control import PID

GOLDEN = Golden("k_diffusion")
# its sigma is our time
PATH = paths.EDM(sigma_min=1e-3)
NAMES = {
    "sample_euler": ("euler", {}),
    "sample_heun": ("heun", {}),
    "sample_dpm_2": ("dpm-2", {}),
    "sample_lms": ("lms", {}),
    "sample_dpmpp_2m": ("dpmpp-2m", {"lower_order_below": 0}),
    "sample_euler_ancestral": ("ancestral", {}),
    "sample_dpm_2_ancestral": ("dpm-2-ancestral", {}),
    "sample_dpmpp_2s_ancestral": ("dpmpp-2s-ancestral", {}),
    "sample_dpmpp_sde": ("dpmpp-sde", {}),
    "sample_dpmpp_2m_sde": ("dpmpp-2m-sde", {"lower_order_below": 0}),
    "sample_dpmpp_3m_sde": ("dpmpp-3m-sde", {"lower_order_below": 0}),
}


def solver_of(case):
    name, options = NAMES[case["sampler"]]
    if "eta" in case:
        options = options | {"eta": case["eta"]}
    if "solver_type" in case:
        options = options | {"correction": {"heun": "taylor", "midpoint": "midpoint"}[case["solver_type"]]}
    return solvers.get(name, **options)


@GOLDEN.each(lambda case: case["sampler"] in NAMES)
def test_sampler_with_sigmas(case):
    sigmas = GOLDEN.of(case, "in.sigmas").tolist()
    solver = solver_of(case)
    states = []
    got = sample(
        GOLDEN.mixture().denoiser(PATH),
        PATH,
        solver,
        grid=sigmas,
        x=case["sigma_max"] * GOLDEN.z,
        noise=GOLDEN.recorded(case),
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)
    assert solver.compile(PATH, sigmas).nfe == case["nfe"]
    wanted = GOLDEN.tensors.get(f"{case['name']}.out.traj")  # the states before each step, where recorded
    if wanted is not None:
        assert_relative(torch.stack(states[:-1]), wanted[1:], 1e-9)


@GOLDEN.each(lambda case: case["sampler"] == "sample_dpm_fast")
def test_dpm_fast(case):
    """It takes the ends and the number of calls; any grid of so many intervals will do."""
    grid = torch.linspace(case["sigma_max"], case["sigma_min"], case["n"] + 1, dtype=torch.float64).tolist()
    solver = solvers.get("dpm-fast")
    x = case["sigma_max"] * GOLDEN.z
    got = sample(GOLDEN.mixture().denoiser(PATH), PATH, solver, grid=grid, x=x)
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)
    assert solver.compile(PATH, grid).nfe == case["nfe"]


@GOLDEN.each(lambda case: case["sampler"] == "sample_dpm_adaptive")
def test_dpm_adaptive(case):
    """Same steps; a rejected one keeps its first call here, so that each costs two calls instead of three."""
    solver = DPMAdaptive(3, "noise", error_norm="batch-rms", scale="state", controller=PID())
    calls = []
    got = sample(
        GOLDEN.mixture().denoiser(PATH),
        PATH,
        solver,
        grid=(case["sigma_max"], case["sigma_min"]),
        x=case["sigma_max"] * GOLDEN.z,
        on_step=lambda info: calls.append(info.nfe),
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)
    assert len(calls) == case["n_accept"]
    assert calls[-1] == case["nfe"] - case["n_reject"]


def test_two_names_of_one_method():
    grid = (10.0, 1.0, 0.1)
    assert solvers.get("dpm-2").compile(PATH, grid) == solvers.get("dpm-2s").compile(PATH, grid)


def test_every_other_case_is_used():
    # the likelihood has its test beside those of Score-SDE
    assert GOLDEN.unused() == ["log_likelihood"]
