"""Running robots of MuJoCo; the score is the return, for no state is a success."""

from __future__ import annotations

from fewstep.policy.envs.spec import EnvSpec, choose_renderer, needed
from fewstep.policy.envs.states import NamedState, build, flat

# Official name, numbers observed, numbers of an action, control steps a second.
ROBOTS = {
    "halfcheetah": ("HalfCheetah-v5", 17, 6, 20),
    "hopper": ("Hopper-v5", 11, 3, 125),
    "walker2d": ("Walker2d-v5", 17, 6, 125),
    "ant": ("Ant-v5", 105, 8, 20),
}


def locomotion_spec(robot: str) -> EnvSpec:
    """Facts of a running robot.

    Args:
        robot: "halfcheetah", "hopper", "walker2d" or "ant".

    Reference: Brockman et al. 2016, "OpenAI Gym"; gymnasium's v5.
    """
    official, observed, acted, fps = ROBOTS[robot]

    def create(picture_side: int | None) -> NamedState:
        choose_renderer()
        needed("mujoco")
        return NamedState(build(official, picture_side, {}), flat, observed)

    return EnvSpec(
        name=robot,
        observation_shapes={"state": (observed,)},
        action_low=(-1.0,) * acted,
        action_high=(1.0,) * acted,
        fps=fps,
        max_steps=1000,
        score="return",
        has_success=False,
        first_test_seed=500_000,
        create=create,
    )
