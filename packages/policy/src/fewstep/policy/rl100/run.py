"""The three stages of RL-100 as one run that can be stopped at any time: imitation, offline, online."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.core.devices import pick_device
from fewstep.core.files import atomic_path

from ..demonstrations import observed, read_demonstrations
from ..envs.registry import env_spec
from ..envs.spec import EnvSpec
from ..episodes import Episodes, from_episodes
from ..evaluation import evaluate
from ..files.npz import read_npz, write_npz
from ..model import PolicyModel
from ..nets.mlp import StateValue
from ..policy import Policy
from ..results import Results
from ..rl.transitions import Transitions, rewards_of, terminal_episodes
from ..train import VALIDATION_SEED, remember, train_policy
from .collect import collect
from .features import decisions_of, features_of
from .fitting import fit_critics, fit_world
from .offline import Judges, improve_offline
from .online import improve_online, training_seeds
from .policy_chain import ChainPolicy, chain_of
from .recipe import RL100Recipe
from .student import distill_chain

# Numbers of the iterations whose seeds the rounds and the student use; the online stage counts from 0.
_ROUNDS, _STUDENT = 1_000_000, 2_000_000


@dataclass(frozen=True)
class Minutes:
    """Time of the stages, over all parts of a run (None: as many updates as the recipe says).

    Args:
        imitation: of the first stage.
        offline: of the improvement in each round.
        online: of the third stage.
    """

    imitation: float | None = None
    offline: float | None = None
    online: float | None = None


def run_rl100(
    recipe: RL100Recipe,
    data: str | Path | Episodes,
    output: str | Path,
    *,
    start: PolicyModel | None = None,
    minutes: Minutes | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the stages, or go on where they stopped; every stage leaves `output/<stage>/model`.

    imitation   a policy of demonstrations, or `start`
    round-<i>   critics, model of the world, improvement behind the gate; then, if the recipe says so, new
                episodes, and imitation of all of them
    online      proximal policy optimisation in the environment
    student     the chain in one call, where it has several steps

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        data: episodes, or their file; Push-T's "coverage" serves as reward.
        output: folder of the run.
        start: policy of the first stage, which is then not trained.
        minutes: of the stages.
        device: "auto" or "cpu".

    Returns:
        Summary of every stage, as in `output/stages.json`.

    Raises:
        ValueError: data or policy that do not fit the recipe, or the folder holds a run of another recipe.

    Reference: Lei et al. 2025, "RL-100: Performant Robotic Manipulation with Real-World Reinforcement
        Learning", algorithm 1.
    """
    folder, minutes = Path(output), minutes or Minutes()
    given = data if isinstance(data, Episodes) else read_demonstrations(data)
    obs = recipe.obs if recipe.environment == "pusht" else None
    spec = env_spec(recipe.environment, obs)
    episodes = standard(observed(given, recipe.environment, obs), tuple(spec.observation_shapes))
    remember(recipe, folder)
    run = _Run(recipe, folder, spec, minutes, device)
    model = run.imitate(given, start)
    for number in range(recipe.rounds):
        model, episodes = run.round(number, model, episodes)
    model = run.online(model, episodes)
    if recipe.student_updates and recipe.chain_steps > 1:
        run.distill(model, episodes)
    return run.told


def standard(episodes: Episodes, names: Sequence[str]) -> Episodes:
    """Episodes with observations, "action", "reward", "terminated" and "success" only, so that sets can join.

    Args:
        episodes: with rewards, or with Push-T's "coverage": reward min(coverage/0.95, 1) of what follows.
        names: of the observations.

    Raises:
        ValueError: an array is absent.
    """
    arrays = dict(episodes.arrays)
    absent = [name for name in (*names, "action") if name not in arrays]
    if absent:
        raise ValueError(f"episodes have no {', '.join(absent)}; they have {', '.join(arrays)}")
    last = episodes.ends - 1
    if "reward" not in arrays and "coverage" in arrays:
        after = np.minimum(np.arange(episodes.steps) + 1, np.repeat(last, episodes.lengths))
        arrays["reward"] = np.minimum(arrays["coverage"][after] / 0.95, 1.0)
        arrays["terminated"] = arrays["coverage"][after] > 0.95
    source = Episodes(arrays, episodes.ends)
    done = np.zeros(episodes.steps, bool)
    done[last] = terminal_episodes(source)
    kept = {name: arrays[name] for name in (*names, "action")}
    kept["reward"] = rewards_of(source).astype(np.float32)
    kept["terminated"] = done
    kept["success"] = np.asarray(arrays.get("success", done), bool).reshape(episodes.steps)
    return Episodes(kept, episodes.ends, episodes.fps)


def joined(first: Episodes, second: Episodes) -> Episodes:
    """Both sets, the second after the first."""
    return from_episodes([*(first.episode(i) for i in range(len(first))), *_each(second)], first.fps)


class _Run:
    """What the stages share."""

    def __init__(
        self, recipe: RL100Recipe, folder: Path, spec: EnvSpec, minutes: Minutes, device: str
    ) -> None:
        self.recipe, self.folder, self.spec, self.minutes = recipe, folder, spec, minutes
        self.asked, self.device = device, pick_device(device)
        self.told: dict[str, Any] = {}

    def imitate(self, given: Episodes, start: PolicyModel | None) -> PolicyModel:
        place = self.folder / "imitation"
        if not _is_done(place):
            if start is None:
                imitation = replace(
                    self.recipe.imitation, environment=self.recipe.environment, obs=self.recipe.obs
                )
                train_policy(imitation, given, place, max_minutes=self.minutes.imitation, device=self.asked)
            else:
                start.save_pretrained(place / "model")
        return self._finished("imitation", place)

    def round(self, number: int, model: PolicyModel, episodes: Episodes) -> tuple[PolicyModel, Episodes]:
        place, recipe = self.folder / f"round-{number}", self.recipe
        if not _is_done(place):
            policy, decisions = self.chain(model), self.decisions(model, episodes)
            judges = self.judges(place, decisions)
            improve_offline(
                policy,
                decisions,
                judges,
                recipe.offline,
                place / "policy",
                seed=recipe.seed + number,
                max_minutes=self.minutes.offline,
            )
            policy.model.save_pretrained(place / "model")
        model = self._finished(f"round-{number}", place)
        if recipe.new_episodes:
            file = place / "episodes.npz"
            new = self.new_episodes(model, file, recipe.new_episodes, _ROUNDS + number)
            episodes = joined(episodes, new)
        if recipe.new_episodes and recipe.imitation_updates:
            model = self.again(number, model, episodes)
        return model, episodes

    def new_episodes(self, model: PolicyModel, file: Path, count: int, number: int) -> Episodes:
        """Episodes of a chain, kept in a file; `number` says which seeds they begin with."""
        recipe = self.recipe
        if not file.is_file():
            seeds = training_seeds(self.spec, count, number, recipe.seed)
            found = collect(self.chain(model), self.spec, seeds, recipe.reward, recipe.discount)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_npz(file, found.episodes)
        return standard(read_npz(file), tuple(self.spec.observation_shapes))

    def again(self, number: int, model: PolicyModel, episodes: Episodes) -> PolicyModel:
        """Imitation of successful episodes, old and new, from where the policy stands."""
        recipe, place = self.recipe, self.folder / f"imitation-{number}"
        if not _is_done(place):
            good = episodes.arrays["success"][episodes.ends - 1]
            chosen = episodes.select(good) if good.any() else episodes
            imitation = replace(
                recipe.imitation,
                environment=recipe.environment,
                obs=recipe.obs,
                max_steps=recipe.imitation_updates,
            )
            train_policy(imitation, chosen, place, start=model, device=self.asked)
        return self._finished(f"imitation-{number}", place)

    def online(self, model: PolicyModel, episodes: Episodes) -> PolicyModel:
        place, recipe = self.folder / "online", self.recipe
        if recipe.online.iterations and not _is_done(place):
            policy = self.chain(model)
            value = self.value(model, episodes)
            improve_online(
                policy,
                value,
                self.spec,
                recipe.online,
                place / "policy",
                reward=recipe.reward,
                discount=recipe.discount,
                seed=recipe.seed,
                max_minutes=self.minutes.online,
            )
            policy.model.save_pretrained(place / "model")
        return self._finished("online", place) if recipe.online.iterations else model

    def distill(self, model: PolicyModel, episodes: Episodes) -> None:
        place, recipe = self.folder / "student", self.recipe
        if not _is_done(place):
            if recipe.student_episodes:
                # The chain goes where no demonstration went.
                file = place / "episodes.npz"
                own = self.new_episodes(model, file, recipe.student_episodes, _STUDENT)
                episodes = joined(episodes, own)
            told = features_of(model, episodes)
            updates, seed = recipe.student_updates, recipe.seed
            student = distill_chain(
                self.chain(model), told, place, updates=updates, seed=seed, device=self.asked
            )
            student.save_pretrained(place / "model")
        self._evaluated("student", place, PolicyModel.from_pretrained(str(place / "model")))

    def chain(self, model: PolicyModel) -> ChainPolicy:
        recipe = self.recipe
        chain = chain_of(model, recipe.chain_steps, recipe.std_min, recipe.std_max)
        return ChainPolicy(model.to(self.device), chain).to(self.device).eval()

    def decisions(self, model: PolicyModel, episodes: Episodes) -> Transitions:
        return decisions_of(model.to(self.device), episodes, self.recipe.reward, self.recipe.discount)

    def judges(self, place: Path, decisions: Transitions) -> Judges:
        recipe, seed = self.recipe, self.recipe.seed
        critic, value = fit_critics(decisions, recipe.critics, place / "critics", seed, self.asked)
        world = fit_world(decisions, recipe.world, place / "world", seed, self.asked)
        return Judges(critic.to(self.device), value.to(self.device), world.to(self.device))

    def value(self, model: PolicyModel, episodes: Episodes) -> StateValue:
        """A value of what the policy sees, fitted to all episodes: what the online stage begins with."""
        recipe, place = self.recipe, self.folder / "online" / "critics"
        decisions = self.decisions(model, episodes)
        value = fit_critics(decisions, recipe.critics, place, recipe.seed, self.asked)[1]
        return value.to(self.device).train().requires_grad_(True)

    def _finished(self, stage: str, place: Path) -> PolicyModel:
        if not _is_done(place):
            raise KeyboardInterrupt(f"stage {stage} was interrupted; run again to go on")
        model = PolicyModel.from_pretrained(str(place / "model"))
        acting: Any = model if model.config.kind == "regression" else self.chain(model)
        self._evaluated(stage, place, acting)
        return model

    def _evaluated(self, stage: str, place: Path, acting: Any) -> None:
        file = place / "results.json"
        if self.recipe.evaluation and not file.is_file():
            seeds = range(VALIDATION_SEED, VALIDATION_SEED + self.recipe.evaluation)
            slots = min(self.recipe.evaluation, 25)
            policy: Any = Policy(acting, str(self.device), rows_per_call=slots)
            evaluate(policy, self.spec, seeds, n_envs=slots).save(file)
        self.told[stage] = Results.load(file).summary() if file.is_file() else {}
        with atomic_path(self.folder / "stages.json") as unfinished:
            unfinished.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")


def _is_done(place: Path) -> bool:
    return (place / "model" / "model.safetensors").is_file()


def _each(episodes: Episodes) -> list[dict[str, np.ndarray]]:
    return [episodes.episode(i) for i in range(len(episodes))]
