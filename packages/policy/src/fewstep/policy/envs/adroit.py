"""Adroit: a hand of 24 joints opens a door, turns a pen, hammers a nail, carries a ball."""

from __future__ import annotations

import gymnasium

from fewstep.policy.envs.spec import EnvSpec, choose_renderer, needed
from fewstep.policy.envs.states import NamedState, build, flat

# Numbers observed and numbers of an action.
WIDTHS = {"door": (39, 28), "pen": (45, 24), "hammer": (46, 26), "relocate": (39, 30)}


def adroit_spec(task: str) -> EnvSpec:
    """Facts of an Adroit task; its score is 1 when `success` was reached in any step.

    Args:
        task: "door", "pen", "hammer" or "relocate".

    Reference: Rajeswaran et al. 2018, "Learning Complex Dexterous Manipulation with Deep Reinforcement
        Learning and Demonstrations", section 3.
    """
    observed, acted = WIDTHS[task]

    def create(picture_side: int | None) -> NamedState:
        choose_renderer()
        gymnasium.register_envs(needed("gymnasium_robotics"))
        official = f"AdroitHand{task.capitalize()}-v1"
        return NamedState(build(official, picture_side, {}), flat, observed)

    return EnvSpec(
        name=f"adroit-{task}",
        observation_shapes={"state": (observed,)},
        action_low=(-1.0,) * acted,
        action_high=(1.0,) * acted,
        fps=100,
        max_steps=200,
        score="success",
        has_success=True,
        first_test_seed=500_000,
        create=create,
    )
