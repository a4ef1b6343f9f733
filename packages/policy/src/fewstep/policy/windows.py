"""Windows of episodes to train on: past observations and the actions that follow."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.policy.episodes import Episodes
from fewstep.policy.names import is_image

OBSERVATIONS = ("state", "environment_state", "points")


def observation_names(episodes: Episodes) -> tuple[str, ...]:
    """Names of those arrays that a policy may see: state, environment_state, points and images."""
    return tuple(name for name in episodes.arrays if name in OBSERVATIONS or is_image(name))


def window_starts(length: int, horizon: int, pad_before: int, pad_after: int) -> range:
    """First steps of the windows of one episode; steps outside the episode stand for its edges.

    start = −pad_before, …, length − horizon + pad_after

    Args:
        length: steps of the episode.
        horizon: steps of a window.
        pad_before: how many steps a window may begin before the episode.
        pad_after: how many steps a window may end after the episode.

    Returns:
        The starts; none for an episode that is too short even with both paddings.

    Example:
        >>> list(window_starts(length=5, horizon=4, pad_before=1, pad_after=1))
        [-1, 0, 1, 2]

    Reference: Chi et al. (2023), Diffusion Policy, its sequence sampler.
    """
    return range(-pad_before, length - horizon + pad_after + 1)


class Windows:
    """All windows of demonstrations, drawn in batches by one gather per array.

    Window index i is the time (now − n_obs_steps + 1 + i): the first n_obs_steps entries are the observation
    window, and the action at n_obs_steps − 1 is the first that is executed. Windows may begin
    n_obs_steps − 1 steps before an episode and end n_action_steps − 1 steps after it; there the episode's
    first or last step is repeated. An episode that is too short even so gives one window, in which its
    first step is the newest observation (the published code leaves it out).

    Args:
        episodes: the demonstrations.
        horizon: H, steps of the actions that are predicted.
        n_obs_steps: To, steps of the observations that are seen.
        n_action_steps: Ta ≤ H − To + 1, steps that are executed before the next prediction.
        keys: names of the observations (None: all of `observation_names`).
        extra: names of further arrays that are wanted over the whole window, such as "reward".
        dtype: of the batches; images of uint8 are divided by 255.
        device: where the arrays are kept and the batches made.

    Raises:
        ValueError: a length does not fit, or there is no such array.
        TypeError: a length is no integer.

    Example:
        >>> states, actions = np.zeros((5, 3), np.float32), np.zeros((5, 2), np.float32)
        >>> windows = Windows(Episodes({"state": states, "action": actions}, np.array([5])), 4, 2, 2)
        >>> batch = windows.batch(np.random.default_rng(0), 8)
        >>> len(windows), batch["obs"]["state"].shape, batch["action"].shape
        (4, torch.Size([8, 2, 3]), torch.Size([8, 4, 2]))

    Reference: Chi et al. (2023), Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, III-B.
    """

    def __init__(
        self,
        episodes: Episodes,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        keys: Sequence[str] | None = None,
        *,
        extra: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_horizons(horizon, n_obs_steps, n_action_steps)
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.keys = tuple(observation_names(episodes) if keys is None else keys)
        self.extra = tuple(extra)
        wanted = (*self.keys, "action", *self.extra)
        absent = [name for name in wanted if name not in episodes.arrays]
        if absent or not self.keys:
            known = ", ".join(episodes.arrays)
            raise ValueError(f"keys must name observations of the episodes ({known}), got {absent or 'none'}")
        self._dtype, self._device = dtype, torch.device(device)
        self._arrays = {name: self._stored(name, episodes.arrays[name]) for name in wanted}
        self._rows = torch.from_numpy(_window_rows(episodes, horizon, n_obs_steps, n_action_steps)).to(device)
        self._offsets = torch.arange(horizon, device=device)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, generator: np.random.Generator, n: int) -> dict[str, Any]:
        """Draw windows uniformly, with replacement.

        Args:
            generator: of the choice.
            n: how many.

        Returns:
            "obs": by name (n, n_obs_steps, …), images channels first in [0, 1]; "action": (n, horizon, Da);
            "action_is_pad": (n, horizon), true outside the episode; each name of `extra`: (n, horizon, …).
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n!r}")
        return self.at(generator.integers(len(self), size=n))

    def epoch(self, generator: np.random.Generator, n: int) -> Iterator[dict[str, Any]]:
        """All windows once, shuffled, in batches of n; the last one may be smaller."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n!r}")
        order = generator.permutation(len(self))
        for first in range(0, len(order), n):
            yield self.at(order[first : first + n])

    def at(self, indices: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Return the windows of those indices, in the form of `batch`."""
        start, first, last = self._rows[torch.from_numpy(indices).to(self._device)].unbind(1)
        times = start[:, None] + self._offsets
        steps = times.clamp(first[:, None], last[:, None])
        seen = steps[:, : self.n_obs_steps]
        gathered = {name: self._gather(name, steps) for name in ("action", *self.extra)}
        return {
            "obs": {name: self._gather(name, seen) for name in self.keys},
            "action_is_pad": times != steps,
            **gathered,
        }

    def _stored(self, name: str, array: np.ndarray) -> Tensor:
        """Images stay bytes, as floats they would take four times the memory."""
        if array.ndim == 1:
            array = array[:, None] if name in self.keys or name == "action" else array
        if is_image(name):
            if array.ndim != 4:
                raise ValueError(
                    f"array {name!r} must be (steps, height, width, channels), got {array.shape}"
                )
            if array.dtype == np.uint8:
                return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        # A copy, as arrays of a memory map may be read-only, which torch warns about.
        return torch.from_numpy(np.array(array)).to(self._device, self._dtype)

    def _gather(self, name: str, steps: Int[Tensor, "n time"]) -> Tensor:
        array = self._arrays[name]
        values = array.index_select(0, steps.reshape(-1)).unflatten(0, steps.shape)
        if not is_image(name):
            return values
        values = values.movedim(-1, -3)
        return values.to(self._dtype).div_(255) if values.dtype == torch.uint8 else values


def check_horizons(horizon: int, n_obs_steps: int, n_action_steps: int) -> None:
    """Check 1 ≤ To, 1 ≤ Ta and Ta ≤ H − To + 1.

    Raises:
        ValueError: they do not fit.
        TypeError: one is no integer.
    """
    named = {"horizon": horizon, "n_obs_steps": n_obs_steps, "n_action_steps": n_action_steps}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if n_action_steps > horizon - n_obs_steps + 1:
        raise ValueError(
            f"n_action_steps must be at most horizon − n_obs_steps + 1 = {horizon - n_obs_steps + 1}, "
            f"got {n_action_steps}"
        )


def _window_rows(
    episodes: Episodes, horizon: int, n_obs_steps: int, n_action_steps: int
) -> Int[np.ndarray, "windows 3"]:
    """Start of every window and its episode's first and last step, all counted over the whole data set."""
    rows = []
    for first, length in zip(episodes.starts.tolist(), episodes.lengths.tolist(), strict=True):
        starts = window_starts(length, horizon, n_obs_steps - 1, n_action_steps - 1) or [1 - n_obs_steps]
        own = np.array(starts, dtype=np.int64) + first
        rows.append(np.stack([own, np.full_like(own, first), np.full_like(own, first + length - 1)], axis=1))
    return np.concatenate(rows)
