"""Episodes as transitions between decisions, in the policy's own encoding."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from ..episodes import Episodes
from ..model import PolicyModel
from ..names import is_image
from ..rl.transitions import Transitions, rewards_of, terminal_episodes, tuned


@torch.no_grad()
def features_of(
    model: PolicyModel, episodes: Episodes, batch_size: int = 4096
) -> Float[np.ndarray, "steps told"]:
    """What the network is told at every step: the encoded window of observations that ends there.

    Args:
        model: whose encoder counts.
        episodes: with its observations.
        batch_size: windows per call.

    Raises:
        ValueError: an observation is absent.
    """
    config = model.config
    absent = [name for name in config.observations if name not in episodes.arrays]
    if absent:
        raise ValueError(f"episodes have no {', '.join(absent)}, which the policy observes")
    device = next(model.parameters()).device
    first = np.repeat(episodes.starts, episodes.lengths)
    back = np.arange(1 - config.n_obs_steps, 1)
    rows = np.maximum(np.arange(episodes.steps)[:, None] + back, first[:, None])
    told = []
    for start in range(0, len(rows), batch_size):
        window = {}
        for name in config.observations:
            seen = torch.as_tensor(episodes.arrays[name][rows[start : start + batch_size]], device=device)
            if is_image(name):
                seen = seen.movedim(-1, -3)
                seen = seen.float() / 255 if seen.dtype == torch.uint8 else seen
            window[name] = seen.float()
        told.append(model.encode(window).cpu().numpy())
    return np.concatenate(told)


def decisions_of(model: PolicyModel, episodes: Episodes, reward: str, discount: float) -> Transitions:
    """Transitions whose actions are the executed part of a chunk, normalised.

    Args:
        model: whose encoder, normaliser and horizons count.
        episodes: with "action", "reward" and how they ended.
        reward: how rewards are tuned.
        discount: γ of a step.

    Raises:
        ValueError: something is absent, or no episode is long enough.
    """
    device = next(model.parameters()).device
    actions = torch.as_tensor(episodes.arrays["action"], dtype=torch.float32, device=device)
    normal = model.normalizer.normalize("action", actions).cpu().numpy()
    return Transitions(
        features_of(model, episodes),
        normal,
        tuned(rewards_of(episodes), reward),
        episodes.ends,
        terminal_episodes(episodes),
        chunk=model.config.n_action_steps,
        discount=discount,
    )
