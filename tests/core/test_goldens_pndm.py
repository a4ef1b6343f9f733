"""PNDM against trajectories of the published code; its diffusers form is in test_goldens_diffusers_index."""

import torch
from tests.core.goldens import Golden, assert_relative, official_path

from fewstep.core.sample import sample
from fewstep.core.solvers import FirstOrder
from fewstep.core.solvers.pndm import FON, PNDM

GOLDEN = Golden("pndm_official")
PATH = official_path("discrete_ddpm")
SOLVERS = {
    "DDIM": FirstOrder(),
    "S-PNDM": PNDM(2, "improved-euler"),
    "F-PNDM": PNDM(4, "runge-kutta"),
    "FON": FON("official"),
}


@GOLDEN.each()
def test_trajectory(case):
    """Their index t + 1 into a table without a leading 1 is our time; the last target is the first entry."""
    times = [float(t + 1) for t in reversed(range(0, 1000, case["skip"]))] + [0.0]
    solver = SOLVERS[case["method"]]
    assert solver.compile(PATH, times).nfe == case["nfe"]
    states = []
    got = sample(
        GOLDEN.mixture().denoiser(PATH),
        PATH,
        solver,
        grid=times,
        x=GOLDEN.z,
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(torch.stack(states), GOLDEN.of(case, "out.traj"), 1e-9)
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)


def test_every_case_is_used():
    assert not GOLDEN.unused()
