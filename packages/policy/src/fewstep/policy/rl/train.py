"""Offline training: resumable, time-boxed, ending in a checkpoint that acts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.core.training import Trainer, TrainerConfig, TrainResult
from fewstep.core.training.schedule import ConstantSchedule, CosineSchedule

from ..demonstrations import fitting, observed, read_demonstrations
from ..envs.registry import env_spec
from ..envs.spec import EnvSpec
from ..episodes import Episodes
from ..evaluation import evaluate
from ..normalizer import Normalizer
from ..policy import Policy
from ..statistics import statistics_of
from ..train import VALIDATION_SEED, remember
from ..windows import observation_names
from .actor_critic import ActorCritic
from .hindsight import with_hindsight
from .policy_model import RLPolicy
from .recipe import OfflineRecipe
from .transitions import Transitions, rewards_of, terminal_episodes, tuned, vectors_of

Validate = Callable[[RLPolicy], dict[str, float]]


def train_offline(
    recipe: OfflineRecipe,
    data: str | Path | Episodes,
    output: str | Path,
    *,
    max_minutes: float | None = None,
    validate: Validate | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train an offline policy, or go on with a run that was stopped, and save it in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        data: episodes with "action", "reward" and "terminated" (or "success", "done"), or their file.
        output: folder of the run, with log.jsonl and checkpoints/.
        max_minutes: minutes of training over all parts of the run, by which the learning rates anneal.
        validate: metrics of the policy (None: rollouts in the environment, as many as the recipe says).
        device: "auto" or "cpu".

    Returns:
        How the run ended; its steps count updates of critic and actor.

    Raises:
        ValueError: data that do not fit the recipe, or the folder holds a run of another recipe.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", algorithm 1.
    """
    folder = Path(output)
    episodes = data if isinstance(data, Episodes) else read_demonstrations(data)
    episodes = observed(episodes, recipe.environment)
    spec = env_spec(recipe.environment) if recipe.environment else None
    if recipe.hindsight:
        if spec is None or spec.goals is None:
            raise ValueError(f"hindsight needs an environment with goals, got {recipe.environment!r}")
        episodes = with_hindsight(episodes, spec.goals, recipe.hindsight, recipe.seed)
    torch.manual_seed(recipe.seed)
    policy = new_policy(recipe, episodes, spec)
    transitions = transitions_of(recipe, episodes, policy)
    objective = ActorCritic(policy.actor, policy.critic, recipe.learning)
    remember(recipe, folder)
    trainer = Trainer(
        policy.actor,
        objective,
        lambda generator: transitions.batch(generator, recipe.batch_size).fields(),
        folder=folder,
        config=_trainer_config(recipe, len(objective.phases()), max_minutes, device),
        schedule=CosineSchedule(warmup=0.0, floor=0.0) if recipe.decay else ConstantSchedule(),
        validate=_validation(recipe, policy, objective, spec, validate),
    )
    result = trainer.fit()
    if result.stopped != "interrupted":
        deployed(recipe, policy, objective).to("cpu").eval().save_pretrained(folder / "model")
    return result


def new_policy(recipe: OfflineRecipe, episodes: Episodes, spec: EnvSpec | None) -> RLPolicy:
    """A policy with fresh weights, its normaliser fitted to demonstrations.

    Actions are scaled by the environment's limits, or by those of the data.

    Args:
        recipe: settings.
        episodes: demonstrations.
        spec: of the environment.

    Raises:
        ValueError: the demonstrations lack an observation of the environment.
    """
    names = observation_names(episodes) if spec is None else tuple(spec.observation_shapes)
    if spec is not None:
        fitting(episodes, {**spec.observation_shapes, "action": (spec.action_dim,)}, spec.name)
    vectors_of(episodes, names)
    shapes = {name: tuple(episodes.arrays[name].shape[1:]) for name in names}
    found = statistics_of("action", episodes.arrays["action"])
    low, high = found["min"], found["max"]
    if spec is not None:
        low, high = (
            torch.tensor(limit, dtype=torch.float64) for limit in (spec.action_low, spec.action_high)
        )
    limits = (tuple(low.tolist()), tuple(high.tolist()))
    policy = RLPolicy(recipe.config(shapes, len(low), limits, 0.0 if spec is None else spec.fps))
    modes: Any = {**dict.fromkeys(names, recipe.state_mode), "action": "limits"}
    measured = {name: statistics_of(name, episodes.arrays[name]) for name in names}
    if recipe.state_mode == "identity":
        measured = {name: {} for name in names}
    fitted = Normalizer.from_statistics({**measured, "action": {"min": low, "max": high}}, modes)
    policy.normalizer.load_state_dict(fitted.state_dict())
    return policy


def transitions_of(recipe: OfflineRecipe, episodes: Episodes, policy: RLPolicy) -> Transitions:
    """The transitions of demonstrations, normalised as the policy sees them.

    Args:
        recipe: settings.
        episodes: demonstrations; with "next_state" and the like the last step of an episode that was cut off
            is used too.
        policy: whose normaliser counts.

    Raises:
        ValueError: there is no reward, or nothing that says how episodes end.
    """
    names = tuple(policy.config.observations)

    def states(prefix: str, steps: np.ndarray | slice) -> np.ndarray:
        seen = {
            name: torch.as_tensor(episodes.arrays[prefix + name][steps], dtype=torch.float32)[:, None]
            for name in names
        }
        return policy.state(seen).numpy()

    followed = all(f"next_{name}" in episodes.arrays for name in names)
    actions = torch.as_tensor(episodes.arrays["action"], dtype=torch.float32)
    return Transitions(
        states("", slice(None)),
        policy.normalizer.normalize("action", actions).clamp(-1, 1).numpy(),
        tuned(rewards_of(episodes), recipe.reward),
        episodes.ends,
        terminal_episodes(episodes),
        states("next_", episodes.ends - 1) if followed else None,
        chunk=recipe.horizon,
        discount=recipe.discount,
    )


def deployed(recipe: OfflineRecipe, policy: RLPolicy, objective: ActorCritic) -> RLPolicy:
    """A policy of its own with the weights that act: the actor or its average, and the target critic.

    Args:
        recipe: says which of them.
        policy: that is trained.
        objective: that holds the others.
    """
    acting = RLPolicy(policy.config)
    acting.normalizer.load_state_dict(policy.normalizer.state_dict())
    chosen = policy.actor if recipe.deploy == "actor" else objective.average
    acting.actor.load_state_dict(chosen.state_dict())
    if acting.critic is not None and objective.target is not None:
        acting.critic.load_state_dict(objective.target.state_dict())
    return acting.to(next(policy.actor.parameters()).device)


def _trainer_config(
    recipe: OfflineRecipe, phases: int, max_minutes: float | None, device: str
) -> TrainerConfig:
    return TrainerConfig(
        max_steps=recipe.updates * phases,
        max_minutes=max_minutes,
        batch_size=recipe.batch_size,
        clip=recipe.clip or None,
        ema_decays=(),
        save_every_minutes=3.0,
        log_every=200 * phases,
        validate_every=recipe.validate_every * phases,
        seed=recipe.seed,
        device="cpu" if device == "cpu" else "auto",
        tensorboard=False,
    )


def _validation(
    recipe: OfflineRecipe,
    policy: RLPolicy,
    objective: ActorCritic,
    spec: EnvSpec | None,
    validate: Validate | None,
) -> Callable[[torch.nn.Module], dict[str, float]] | None:
    if validate is None and spec is not None and recipe.rollouts:
        validate = _Rollouts(spec, recipe.rollouts)
    if validate is None:
        return None
    chosen = validate
    return lambda model: chosen(deployed(recipe, policy, objective).eval())


class _Rollouts:
    """Score, success and length in the environment, on seeds that no test uses."""

    def __init__(self, spec: EnvSpec, episodes: int) -> None:
        self.spec, self.episodes = spec, episodes

    def __call__(self, policy: RLPolicy) -> dict[str, float]:
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + self.episodes)
        device = str(next(policy.parameters()).device)
        acting: Any = Policy(policy, device=device, rows_per_call=self.episodes)  # type: ignore[arg-type]
        results = evaluate(acting, self.spec, seeds, n_envs=self.episodes)
        found = {"score": float(np.mean(results.scores)), "length": float(np.mean(results.lengths))}
        if results.successes is not None:
            found["success"] = float(np.mean(results.successes))
        return found
