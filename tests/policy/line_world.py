"""A world whose best action is known: a point on a line that should go to 0."""

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.policy.config import PolicyConfig
from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.model import PolicyModel
from fewstep.policy.nets.mlp import StateValue, TwinCritic
from fewstep.policy.rl.transitions import Transitions
from fewstep.policy.rl100.chain import FlowChain
from fewstep.policy.rl100.ope import WorldModel
from fewstep.policy.rl100.policy_chain import ChainPolicy

STEPS = 4


class Line(gymnasium.Env[Any, Any]):
    """x' = x + a/2, reward −|x'|, STEPS steps."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-9, 9, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.x, self.count = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return {"state": self.x.copy()}, {}

    def step(self, action: np.ndarray):
        self.x = (self.x + 0.5 * np.asarray(action)).astype(np.float32)
        self.count += 1
        near = bool(abs(self.x[0]) < 0.2)
        return {"state": self.x.copy()}, -float(abs(self.x[0])), False, self.count >= STEPS, {"success": near}


def line_spec() -> EnvSpec:
    return EnvSpec(
        name="line",
        observation_shapes={"state": (1,)},
        action_low=(-1.0,),
        action_high=(1.0,),
        fps=10,
        max_steps=STEPS,
        score="return",
        has_success=True,
        first_test_seed=100_000,
        create=lambda side: Line(),
    )


def line_model(seed: int = 0) -> PolicyModel:
    """A one-call policy that as yet acts at random."""
    torch.manual_seed(seed)
    return PolicyModel(
        PolicyConfig(
            {"state": (1,)},
            action_dim=1,
            horizon=1,
            n_obs_steps=1,
            n_action_steps=1,
            network="chunk-mlp",
            network_options={"width": 16, "depth": 1, "embedding": 8, "time_scale": 100.0},
            normalization={"state": "identity", "action": "identity"},
            path=paths.RectifiedFlow(time="t").to_config(),
            prediction="velocity",
            kind="flow-map",
            steps=1,
            environment="line",
            action_low=(-1.0,),
            action_high=(1.0,),
        )
    )


def line_policy(seed: int = 0, std: float = 0.3) -> ChainPolicy:
    return ChainPolicy(line_model(seed), FlowChain(1, "cps", std_min=std))


class ExactWorld(WorldModel):
    """x' = x + a/2."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        return state + 0.5 * action


class ExactCritic(TwinCritic):
    """Q = −|x + a/2|."""

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        value = -(state + 0.5 * action.flatten(1)).abs()
        return value, value


class ExactValue(StateValue):
    """V of standing still, −|x|."""

    def forward(self, state: Tensor) -> Tensor:
        return -state.abs()


def line_data(episodes: int = 64, seed: int = 0) -> Transitions:
    """Transitions of random actions."""
    rng = np.random.default_rng(seed)
    states, actions, rewards = [], [], []
    for _ in range(episodes):
        x = rng.uniform(-1, 1, 1)
        for _ in range(STEPS):
            a = rng.uniform(-1, 1, 1)
            states.append(x)
            actions.append(a)
            x = x + 0.5 * a
            rewards.append(-abs(float(x[0])))
    ends = np.arange(1, episodes + 1) * STEPS
    return Transitions(np.array(states), np.array(actions), np.array(rewards), ends, np.zeros(episodes, bool))
