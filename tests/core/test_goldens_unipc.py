"""UniPC against trajectories of the published code and of diffusers, on a closed-form denoiser."""

import torch
from tests.core.goldens import Golden, assert_relative, official_path, official_times, stable_diffusion_path

from fewstep.core import paths
from fewstep.core.sample import sample
from fewstep.core.solvers.unipc import UniPC

OFFICIAL = Golden("unipc_official")
DIFFUSERS = Golden("diffusers_schedulers")
VARIANT = {"bh1": "bh1", "bh2": "bh2", "vary_coeff": "vary"}


def _official_grid(case, path):
    ends = official_times(
        case["schedule"], torch.tensor([case["t_start"], case["t_end"]], dtype=torch.float64)
    )
    if case["skip_type"] == "logSNR":
        high, low = map(path.half_log_snr, ends)
        lams = torch.linspace(high, low, case["steps"] + 1, dtype=torch.float64)
        return [float(path.time_at(lam)) for lam in lams.tolist()]
    first, last = ends
    return torch.linspace(first, last, case["steps"] + 1, dtype=torch.float64).tolist()


@OFFICIAL.each()
def test_unipc_official(case):
    path = official_path(case["schedule"])
    form = case["algorithm_type"].removesuffix("_prediction")
    solver = UniPC(case["order"], VARIANT[case["variant"]], form, corrector="official")
    grid = _official_grid(case, path)
    states = [OFFICIAL.z]
    got = sample(
        OFFICIAL.mixture().denoiser(path),
        path,
        solver,
        grid=grid,
        x=OFFICIAL.z,
        on_step=lambda info: states.append(info.x),
    )
    assert_relative(got, OFFICIAL.of(case, "out.x"), 1e-9)
    assert solver.compile(path, grid).nfe == case["nfe"]
    assert len(states) == case["steps"] + 1


@DIFFUSERS.each(lambda case: case["scheduler"] == "UniPCMultistepScheduler")
def test_unipc_of_diffusers(case):
    config = case["config"]
    flow = config.get("use_flow_sigmas", False)
    path = paths.RectifiedFlow() if flow else stable_diffusion_path()
    end = 0.0 if config.get("final_sigmas_type") == "sigma_min" else path.t_clean
    grid = (
        DIFFUSERS.of(case, "out.sigmas").tolist()
        if flow
        else [*DIFFUSERS.of(case, "out.timesteps").tolist(), end]
    )
    form = "data" if config.get("predict_x0", True) else "noise"
    solver = UniPC(config["solver_order"], config.get("solver_type", "bh2"), form)
    got = sample(DIFFUSERS.mixture().denoiser(path), path, solver, grid=grid, x=DIFFUSERS.z)
    assert_relative(got, DIFFUSERS.of(case, "out.x").double(), 2e-5)


def test_every_case_of_the_published_code_is_used():
    assert OFFICIAL.unused() == []
    assert len([case for case in DIFFUSERS.cases if case["scheduler"] == "UniPCMultistepScheduler"]) == 69
