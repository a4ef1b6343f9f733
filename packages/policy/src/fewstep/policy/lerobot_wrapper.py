"""A policy that is asked as LeRobot asks its own: batches of tensors under LeRobot's names."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.weights import CheckpointError

from .convert import from_official
from .loading import load_model
from .model import PolicyModel
from .names import from_lerobot_name
from .objective import Imitation
from .observations import not_finite, read_observation

_OFFICIAL = ("type", "input_features", "input_shapes")


class LeRobotPolicy(nn.Module):
    """Our policy behind the methods of LeRobot's policies, without that package.

    Batches hold "observation.state", "observation.environment_state", "observation.image",
    "observation.images.<camera>" (images in [0, 1], channels first) in the units of the data:
    normalisation is inside, so LeRobot's pre- and post-processors must not scale. Other entries are ignored.

    Args:
        model: what predicts.
        steps: network calls of a chunk (None: the model's own number).
        seed: of the noise.

    Example:
        >>> from fewstep.policy.config import PolicyConfig
        >>> small = {"embedding": 16, "down_dims": (8, 16)}
        >>> model = PolicyModel(PolicyConfig({"state": (5,)}, action_dim=2, steps=2, network_options=small))
        >>> LeRobotPolicy(model).select_action({"observation.state": torch.zeros(3, 5)}).shape
        torch.Size([3, 2])

    Reference: Cadene et al. 2024, "LeRobot", the interface of its policies, version 0.4.
    """

    name = "fewstep"

    def __init__(self, model: PolicyModel, steps: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.model, self.steps, self.seed = model, steps, seed
        self.reset()

    @classmethod
    def from_pretrained(cls, folder: str | Path, steps: int | None = None, seed: int = 0) -> LeRobotPolicy:
        """Load a policy of ours (shipped name, folder, Hub id) or a folder of LeRobot's diffusion policy.

        Args:
            folder: the policy.
            steps: network calls of a chunk.
            seed: of the noise.

        Raises:
            CheckpointError: it is neither.
        """
        model = from_official(folder) if _is_lerobot(Path(folder)) else load_model(folder)
        if not isinstance(model, PolicyModel):
            raise CheckpointError(f"{folder} holds an actor of offline learning, which has no such interface")
        return cls(model, steps, seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy in our own format."""
        self.model.save_pretrained(folder)

    @property
    def config(self):
        """Of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def get_optim_params(self) -> Iterator[nn.Parameter]:
        """What an optimiser trains."""
        return self.model.parameters()

    def reset(self) -> None:
        """Begin new episodes: forget observations and planned actions."""
        self._seen: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._actions: deque[Tensor] = deque()
        self._chunks = 0

    @torch.no_grad()
    def select_action(
        self, batch: Mapping[str, Tensor], noise: Tensor | None = None
    ) -> Float[Tensor, "batch numbers"]:
        """The next action of every robot of a batch; a chunk is predicted when none is left.

        Args:
            batch: one step, each (batch, …).
            noise: (batch, horizon, Da) that a chunk starts from, if one is predicted now.

        Raises:
            ValueError: an observation is absent, of another shape or not finite, or the size of the batch
                changed without `reset`.
        """
        now = self._read(batch)
        if self._seen and len(_first(now)) != len(_first(self._seen[-1])):
            raise ValueError(
                f"batch has {len(_first(now))} robots, the steps before had {len(_first(self._seen[-1]))}; "
                "call reset() between them"
            )
        self._seen.append(now)
        if not self._actions:
            chunk = self._predicted(self._window(()), noise)[:, self.config.executed]
            self._actions.extend(chunk.unbind(1))
        return self._actions.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: Mapping[str, Tensor], noise: Tensor | None = None
    ) -> Float[Tensor, "batch actions numbers"]:
        """The actions that would be executed from here; the queue of `select_action` stays as it is.

        Args:
            batch: each (batch, n_obs_steps, …); or one step, (batch, …), which follows those that
                `select_action` has seen.
            noise: (batch, horizon, Da) that the chunk starts from.
        """
        window = self._read_windows(batch) if self._has_steps(batch) else self._window((self._read(batch),))
        return self._predicted(window, noise)[:, self.config.executed]

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float] | None]:
        """The training loss of a batch of windows.

        Repeated actions at the end of an episode count like others, as in both published codes, so
        "action_is_pad" may be there and is not used.

        Args:
            batch: observations (batch, n_obs_steps, …), "action" (batch, horizon, Da).
            generator: of times and noise (None: a new one with torch's seed).

        Returns:
            The loss, and what there is for the log.

        Raises:
            ValueError: an observation or the action is absent or of another shape.
        """
        action = batch.get("action")
        wanted = (self.config.horizon, self.config.action_dim)
        if action is None or tuple(action.shape[1:]) != wanted:
            got = "nothing" if action is None else tuple(action.shape)
            raise ValueError(f"batch['action'] must be (batch, {wanted[0]}, {wanted[1]}), got {got}")
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**31, ())))
        windows = {"obs": self._read_windows(batch), "action": action.to(self.device, torch.float32)}
        loss = Imitation()(self.model, windows, generator)
        if isinstance(loss, Tensor):
            return loss, None
        return loss["loss"], {name: float(value) for name, value in loss.items() if name != "loss"}

    def _predicted(self, window: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        # The noise of a chunk that was given stands for the first draw; further ones come from the seed.
        generator = torch.Generator(self.device).manual_seed(self.seed + self._chunks)
        given = [] if noise is None else [noise.to(self.device, torch.float32)]

        def draw(like: Tensor) -> Tensor:
            if given:
                return given.pop()
            return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

        self._chunks += 1
        return self.model.predict(window, steps=self.steps, noise=draw)

    def _window(self, newest: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
        """The last observations; the first one stands for those before it."""
        count = self.config.n_obs_steps
        steps = [*self._seen, *newest][-count:]
        steps = [steps[0]] * (count - len(steps)) + steps
        return {name: torch.stack([step[name] for step in steps], 1) for name in self.config.observations}

    def _has_steps(self, batch: Mapping[str, Tensor]) -> bool:
        shapes = self.config.observations
        ranks = {
            value.ndim - len(shapes[own])
            for name, value in batch.items()
            if (own := from_lerobot_name(name)) in shapes
        }
        return ranks == {2}

    def _read(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._checked(batch, {name: tuple(shape) for name, shape in self.config.observations.items()})

    def _read_windows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        steps = self.config.n_obs_steps
        shapes = {name: (steps, *shape) for name, shape in self.config.observations.items()}
        return self._checked(batch, shapes)

    def _checked(
        self, batch: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Tensor]:
        known = {name: value for name, value in batch.items() if from_lerobot_name(name) in shapes}
        if not known:
            raise ValueError(f"batch has none of {', '.join(shapes)}; it has {', '.join(batch) or 'nothing'}")
        seen = read_observation(known, shapes, len(_first(known)), self.device)
        bad = not_finite(seen)
        if bad:
            raise ValueError(f"batch holds NaN or infinity in {', '.join(bad)}")
        return seen


def _first(values: Mapping[str, Tensor]) -> Tensor:
    return next(iter(values.values()))


def _is_lerobot(folder: Path) -> bool:
    """Whether a folder's configuration is LeRobot's and not ours."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict) and "_class" not in content and any(name in content for name in _OFFICIAL)
    )
