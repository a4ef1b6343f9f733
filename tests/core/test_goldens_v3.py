"""DPM-Solver-v3 against trajectories of the published code, on a closed-form denoiser."""

import torch
from tests.core.goldens import Golden, assert_relative, official_path

from fewstep.core import grids
from fewstep.core.sample import sample
from fewstep.core.solvers import get
from fewstep.core.statistics import ModelStatistics

GOLDEN = Golden("dpm_solver_v3_official")


def statistics(case, path):
    real = {part: GOLDEN.tensors[f"stats.{part}"] for part in "lsb"}
    if case["statistics"] == "degenerate":
        real = {"l": torch.ones_like(real["l"])} | {part: torch.zeros_like(real[part]) for part in "sb"}
    return ModelStatistics(path.half_log_snr(path.t_max), path.half_log_snr(path.t_min), **real, path=path)


def solver(case, path):
    return get(
        "dpm-v3",
        solver_order=case["order"],
        statistics=statistics(case, path),
        p_pseudo=case["p_pseudo"],
        corrector="all" if case["use_corrector"] else "none",
        c_pseudo=case["c_pseudo"],
        lower_order_final=case["lower_order_final"],
        variant="official",
    )


def times(case, path):
    if case["skip_type"] == "time_uniform":
        return torch.linspace(case["t_start"], case["t_end"], case["steps"] + 1, dtype=torch.float64).tolist()
    grid = {"logSNR": grids.logsnr, "edm": grids.karras}[case["skip_type"]]
    return grid(path, case["steps"], final="t_min")


@GOLDEN.each()
def test_dpm_solver_v3_official(case):
    """Also the states at which the network is asked, corrected afterwards."""
    path = official_path(case["schedule"])
    start = GOLDEN.z * (80.0 if case["schedule"] == "edm" else 1.0)
    seen = [start]
    got = sample(
        GOLDEN.mixture().denoiser(path),
        path,
        solver(case, path),
        grid=times(case, path),
        x=start,
        on_step=lambda info: seen.append(info.x.clone()),
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-8)
    assert_relative(torch.stack(seen[:-1]), GOLDEN.of(case, "out.traj"), 1e-8)


def test_no_case_is_forgotten():
    assert GOLDEN.unused() == []
