"""BDIA against trajectories of the published code."""

import torch
from tests.core.goldens import Golden, assert_relative, official_path

from fewstep.core.sample import sample
from fewstep.core.solvers.bdia import BDIA

GOLDEN = Golden("bdia_official")
PATH = official_path("discrete_sd")


@GOLDEN.each()
def test_trajectory(case):
    """The published steps end at the first table entry, our time 0."""
    times = sorted(GOLDEN.of(case, "out.timesteps").tolist(), reverse=True)
    states = [GOLDEN.z]
    got = sample(
        GOLDEN.mixture().denoiser(PATH),
        PATH,
        BDIA(case["gamma"]),
        grid=(*times, 0.0),
        x=GOLDEN.z,
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(torch.stack(states), GOLDEN.of(case, "out.traj"), 1e-9)
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)


def test_every_case_is_used():
    assert not GOLDEN.unused()
