"""Policy: a model that is asked for one action after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.devices import pick_device

from .loading import load_model
from .names import from_lerobot_name, is_image
from .observations import Observation, not_finite, read_observation

if TYPE_CHECKING:
    from .config import PolicyConfig
    from .model import PolicyModel

# Odd constants that spread (episode, chunk) over the seeds of generators.
_EPISODE, _CHUNK, _SEEDS = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 2**63


@dataclass
class _Slot:
    """What is remembered of one robot or environment."""

    seed: int
    seen: deque[dict[str, Tensor]]
    given: np.ndarray | None = None
    actions: deque[np.ndarray] = field(default_factory=deque)
    chunks: int = 0


class Policy:
    """Observation in, action out, for one robot or several at once.

    It remembers the last observations, predicts a chunk of actions when none is left, and hands them out one
    by one (receding horizon). The first observation of an episode stands for those before it. The noise of a
    chunk depends on the seed of its episode and on its number in it, and on nothing else.

    Args:
        model: what predicts.
        device: "auto" (a GPU when there is one), "cpu", "cuda" …
        steps: network calls of a chunk (None: the model's own number).
        seed: of the first slot's noise; slot i has seed + i.
        rows_per_call: how many robots share a network call. With 1, the actions of a robot do not depend on
            how many others there are, to the last bit; more is faster on a GPU.

    Raises:
        ValueError: an unknown device, steps or rows that are not positive.

    Reference: Chi et al. 2023, "Diffusion Policy", section 2.3 (receding horizon).
    """

    def __init__(
        self,
        model: PolicyModel,
        device: str = "auto",
        steps: int | None = None,
        seed: int = 0,
        rows_per_call: int = 1,
    ) -> None:
        for name, value in (("steps", steps), ("rows_per_call", rows_per_call)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.steps, self.seed, self.rows_per_call = steps, seed, rows_per_call
        self._slots: dict[int, _Slot] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        steps: int | None = None,
        seed: int = 0,
        rows_per_call: int = 1,
    ) -> Policy:
        """Load a model: a name that ships with the package, else a folder, else a Hugging Face Hub id."""
        return cls(load_model(name), device, steps, seed, rows_per_call)

    @property
    def config(self) -> PolicyConfig:
        """Of the model."""
        return self.model.config

    def reset(self, indices: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Begin new episodes.

        Args:
            indices: slots that begin anew (None: all).
            seeds: of their noise, one each (None: `seed` + slot).

        Raises:
            ValueError: another number of seeds than of slots.
        """
        if indices is None:
            self._slots = {}
            indices = () if seeds is None else range(len(seeds))
        if seeds is not None and len(seeds) != len(indices):
            raise ValueError(f"seeds must be {len(indices)}, one for each slot, got {len(seeds)}")
        for place, index in enumerate(indices):
            self._slots[int(index)] = self._fresh(
                self.seed + int(index) if seeds is None else int(seeds[place])
            )

    def select_action(self, observation: Observation) -> np.ndarray:
        """The next action of one robot, or of several whose observations are stacked.

        Args:
            observation: by name, one step: each (…) for one robot or (robots, …).

        Returns:
            (Da,) or (robots, Da) float32, in the units of the demonstrations.

        Raises:
            ValueError: an observation that is absent, of another shape, or not finite.
        """
        count = self._count(observation)
        actions = self.act(observation, range(count or 1))
        return actions[0] if count is None else actions

    def act(self, observation: Observation, indices: Sequence[int]) -> Float[np.ndarray, "robots numbers"]:
        """The next actions of some slots.

        Args:
            observation: by name, each (len(indices), …); without the first axis for a single slot.
            indices: which slots they belong to.

        Raises:
            ValueError: as of `select_action`.
        """
        count = self._count(observation)
        if (count or 1) != len(indices):
            raise ValueError(f"observation must be of {len(indices)} robots, got {count or 1}")
        seen = self._read(observation, count)
        waiting = []
        for row, index in enumerate(indices):
            slot = self._slots.setdefault(int(index), self._fresh(self.seed + int(index)))
            now = {name: value[row] for name, value in seen.items()}
            slot.seen.extend([now] * (1 if slot.seen else self.config.n_obs_steps))
            if not slot.actions:
                waiting.append(slot)
        for first in range(0, len(waiting), self.rows_per_call):
            self._refill(waiting[first : first + self.rows_per_call])
        actions = []
        for index in indices:
            slot = self._slots[int(index)]
            slot.given = slot.actions.popleft()
            actions.append(slot.given)
        return np.stack(actions)

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        """The chunk that would be executed from here; nothing is remembered.

        Args:
            observation: one step, as of `select_action`, which stands for those before it; or, with an axis
                of n_obs_steps before the shape of a step, all of them.

        Returns:
            (n_action_steps, Da) or (robots, n_action_steps, Da).
        """
        steps = self.config.n_obs_steps
        shapes = {name: (steps, *shape) for name, shape in self.config.observations.items()}
        try:
            count = self._count(observation)
            now = self._read(observation, count)
            window = {name: torch.stack([value] * steps, 1) for name, value in now.items()}
        except ValueError:
            count = self._count(observation, shapes)
            window = read_observation(observation, shapes, count, self.device)
        chunk = self.model.predict(window, steps=self.steps, seed=self.seed)[:, self.config.executed]
        made = chunk.float().cpu().numpy()
        return made[0] if count is None else made

    def plan(self, index: int = 0) -> Float[np.ndarray, "steps numbers"] | None:
        """The action that a slot was given last and those planned after it; None before the first."""
        slot = self._slots.get(index)
        if slot is None or slot.given is None:
            return None
        return np.stack([slot.given, *slot.actions])

    def _fresh(self, seed: int) -> _Slot:
        return _Slot(seed, deque(maxlen=self.config.n_obs_steps))

    def _refill(self, slots: Sequence[_Slot]) -> None:
        window = {
            name: torch.stack([torch.stack([step[name] for step in slot.seen]) for slot in slots])
            for name in self.config.observations
        }
        seeds = [(slot.seed * _EPISODE + slot.chunks * _CHUNK) % _SEEDS for slot in slots]
        chunks = self.model.predict(window, steps=self.steps, seed=seeds)
        made = chunks[:, self.config.executed].float().cpu().numpy()
        if not np.isfinite(made).all():
            raise ValueError("the policy predicted actions that are not finite; its weights are broken")
        for slot, actions in zip(slots, made, strict=True):
            slot.actions.extend(actions)
            slot.chunks += 1

    def _read(self, observation: Observation, count: int | None) -> dict[str, Tensor]:
        seen = read_observation(observation, self.config.observations, count, self.device)
        bad = not_finite(seen)
        if bad:
            raise ValueError(f"observation {', '.join(map(repr, bad))} holds NaN or infinity")
        return seen

    def _count(
        self, observation: Observation, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> int | None:
        """How many robots an observation is of; None: of one, without a leading axis."""
        shapes = self.config.observations if shapes is None else shapes
        given = observation if isinstance(observation, Mapping) else {"state": observation}
        for name, value in given.items():
            own = from_lerobot_name(name)
            if own in shapes:
                rank = value.ndim if isinstance(value, Tensor) else np.ndim(value)
                if rank == len(shapes[own]) + 1:
                    return int(value.shape[0])
                if rank == len(shapes[own]):
                    return None
                kind = "an image" if is_image(own) else "an array"
                raise ValueError(
                    f"observation {name!r} must be {kind} of shape {shapes[own]}, got {value.shape}"
                )
        raise ValueError(f"observation must hold {', '.join(shapes)}, got {', '.join(given) or 'nothing'}")
