"""Episodes of a chain policy in an environment, with everything that learning from them needs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..envs.spec import EnvSpec
from ..episodes import Episodes, from_episodes
from ..observations import read_observation
from ..rl.transitions import tuned
from ..seeding import noise_seed
from .policy_chain import ChainPolicy


@dataclass(frozen=True)
class Collected:
    """Decisions of several episodes, one column each; columns are as long as the longest episode.

    Args:
        told: encoded observations, of every decision and one more, what was seen last.
        states: of the chain, from the noise to the action.
        log_probs: of its steps.
        reward: Σ_j γ^j r_j over the actions of a decision, tuned.
        discount: γ^n, n the actions that were carried out.
        terminal: the task ended.
        ended: the episode ended.
        active: the decision exists.
        episodes: what was seen, done and gained, step by step, in the environment's units.
    """

    told: Float[Tensor, "longer envs told"]
    states: Float[Tensor, "time envs states horizon numbers"]
    log_probs: Float[Tensor, "time envs steps horizon numbers"]
    reward: Float[Tensor, "time envs"]
    discount: Float[Tensor, "time envs"]
    terminal: Bool[Tensor, "time envs"]
    ended: Bool[Tensor, "time envs"]
    active: Bool[Tensor, "time envs"]
    episodes: Episodes

    def summary(self) -> dict[str, float]:
        """Means over the episodes: return, length, success."""
        rewards = self.episodes.arrays["reward"]
        ends = self.episodes.ends - 1
        returns = np.add.reduceat(rewards, self.episodes.starts)
        return {
            "return": float(returns.mean()),
            "length": float(self.episodes.lengths.mean()),
            "success": float(self.episodes.arrays["success"][ends].mean()),
        }


def collect(
    policy: ChainPolicy, spec: EnvSpec, seeds: Sequence[int], reward: str = "none", discount: float = 0.99
) -> Collected:
    """Run one whole episode per seed, all side by side.

    Args:
        policy: explores by the noise of its chain; an episode's noise depends on its seed alone.
        spec: of the environment.
        seeds: of the episodes.
        reward: how rewards are tuned, see `rl.transitions.tuned`.
        discount: γ of a step.

    Raises:
        ValueError: no seeds, or a tuning that needs all rewards at once.
    """
    if not len(seeds):
        raise ValueError("seeds is empty; there must be at least one episode")
    if reward == "normalize":
        raise ValueError(
            "reward 'normalize' needs all rewards at once; online they must be 'none', 'minus-one' …"
        )
    runs = [_Run(policy, spec, seed, reward, discount) for seed in seeds]
    try:
        for run in runs:
            run.begin()
        while going := [run for run in runs if not run.over]:
            told = _told(policy, going)
            walked = policy.explore(told, [noise_seed(run.seed, run.steps) for run in going])
            chunks = _in_units(policy, walked.action)
            for row, run in enumerate(going):
                run.told.append(told[row].cpu())
                run.states.append(walked.states[:, row].cpu())
                run.log_probs.append(walked.log_probs[:, row].cpu())
                run.carry_out(chunks[row])
        last = _told(policy, runs).cpu()
    finally:
        for run in runs:
            run.env.close()
    for row, run in enumerate(runs):
        run.told.append(last[row])
    return _joined(runs)


@dataclass
class _Run:
    """One environment, its episode so far, and the decisions that were taken."""

    policy: ChainPolicy
    spec: EnvSpec
    seed: int
    tuning: str
    gamma: float
    steps: int = 0
    over: bool = False
    told: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    gained: list[tuple[float, float, bool, bool]] = field(default_factory=list)
    record: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = self.spec.make()
        self.seen: deque[dict[str, Tensor]] = deque(maxlen=self.policy.config.n_obs_steps)

    def begin(self) -> None:
        self.observation, info = self.env.reset(seed=self.seed)
        now = self._read()
        self.seen.extend([now] * self.policy.config.n_obs_steps)
        if info.get("problem"):
            raise ValueError(f"{self.spec.name} with seed {self.seed} cannot begin: {info['problem']}")

    def carry_out(self, chunk: Float[np.ndarray, "actions numbers"]) -> None:
        total, weight, terminal = 0.0, 1.0, False
        for action in chunk:
            before = {name: np.asarray(value) for name, value in self.observation.items()}
            self.observation, gain, terminal, cut, info = self.env.step(action)
            self.steps += 1
            sound = math.isfinite(float(gain)) and not info.get("problem")
            # A simulation that broke ends the episode as a failure, and what it showed last is not learned.
            gain = float(gain) if sound else 0.0
            self.over = bool(terminal or cut or not sound or self.steps >= self.spec.max_steps)
            self.record.append(
                {
                    **before,
                    "action": np.asarray(action, np.float32),
                    "reward": np.array(gain, np.float32),
                    "terminated": np.array(bool(terminal) or not sound),
                    "success": np.array(bool(info.get("success", False))),
                }
            )
            if not sound:
                self.observation, terminal = before, True
            total += weight * float(tuned(np.array([gain]), self.tuning)[0])
            weight *= self.gamma
            self.seen.append(self._read())
            if self.over:
                break
        self.gained.append((total, weight, bool(terminal), self.over))

    def episode(self) -> dict[str, np.ndarray]:
        found = {name: np.stack([step[name] for step in self.record]) for name in self.record[0]}
        found["success"] = np.logical_or.accumulate(found["success"])
        return found

    def _read(self) -> dict[str, Tensor]:
        model = self.policy.model
        device = next(model.parameters()).device
        seen = read_observation(self.observation, model.config.observations, None, device)
        return {name: value[0] for name, value in seen.items()}


def _told(policy: ChainPolicy, runs: Sequence[_Run]) -> Tensor:
    window = {
        name: torch.stack([torch.stack([step[name] for step in run.seen]) for run in runs])
        for name in policy.config.observations
    }
    with torch.no_grad():
        return policy.model.encode(window)


def _in_units(policy: ChainPolicy, chunk: Tensor) -> np.ndarray:
    config = policy.config
    chunk = policy.model.normalizer.unnormalize("action", policy.held(chunk))
    made = chunk[:, config.executed].cpu().double().numpy()
    if not np.isfinite(made).all():
        raise ValueError("the policy's actions are not finite; its weights are broken")
    low, high = config.action_low, config.action_high
    return np.clip(made, low, high) if low and high else made


def _joined(runs: Sequence[_Run]) -> Collected:
    longest = max(len(run.gained) for run in runs)

    def padded(rows: Sequence[Any], length: int) -> Tensor:
        stacked = torch.stack([torch.as_tensor(row) for row in rows])
        # What is never looked at repeats the last row, so that it is finite.
        return torch.cat([stacked, stacked[-1:].expand(length - len(rows), *stacked.shape[1:])])

    def column(index: int, dtype: torch.dtype) -> Tensor:
        rows = [[decision[index] for decision in run.gained] for run in runs]
        return torch.stack([padded(row, longest) for row in rows], 1).to(dtype)

    active = torch.tensor([[t < len(run.gained) for run in runs] for t in range(longest)])
    return Collected(
        torch.stack([padded(run.told, longest + 1) for run in runs], 1),
        torch.stack([padded(run.states, longest) for run in runs], 1),
        torch.stack([padded(run.log_probs, longest) for run in runs], 1),
        column(0, torch.float32),
        column(1, torch.float32),
        column(2, torch.bool),
        column(3, torch.bool),
        active,
        from_episodes([run.episode() for run in runs], runs[0].spec.fps),
    )
