"""Small random policies of Push-T, and small demonstrations for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.policy.config import PolicyConfig
from fewstep.policy.model import PolicyModel
from fewstep.policy.normalizer import Normalizer

NETWORK = {"width": 16, "depth": 1, "embedding": 8}


def tiny_policy(seed: int = 0, action_dim: int = 2, **changes: Any) -> PolicyModel:
    """A policy on Push-T's states that wants the disc anywhere on the table."""
    torch.manual_seed(seed)
    usual = {"horizon": 8, "n_action_steps": 4, "network": "chunk-mlp", "network_options": NETWORK}
    sampler = {"solver": "ddim", "grid": "trailing", "steps": 1, "environment": "pusht", "fps": 10.0}
    config = PolicyConfig({"state": (5,)}, action_dim, **{**usual, **sampler, **changes})
    model = PolicyModel(config)
    numbers = config.observations["state"][0]
    measured = {"state": (numbers, 512.0), "action": (config.action_dim, 512.0)}
    limits = {
        name: {"min": torch.zeros(width).double(), "max": torch.full((width,), high).double()}
        for name, (width, high) in measured.items()
    }
    fitted = Normalizer.from_statistics(limits, config.modes)  # type: ignore[arg-type]
    model.normalizer.load_state_dict(fitted.state_dict())
    return model.eval()


def saved_policy(folder: Path, **changes: Any) -> Path:
    tiny_policy(**changes).save_pretrained(folder)
    return folder


def demonstrations(path: Path, episodes: int = 4, steps: int = 12) -> Path:
    """States of Push-T and actions, with rewards for those who learn from them."""
    rng = np.random.default_rng(0)
    count = episodes * steps
    np.savez(
        path,
        state=rng.uniform(50, 450, (count, 5)).astype(np.float32),
        action=rng.uniform(50, 450, (count, 2)).astype(np.float32),
        reward=rng.random(count).astype(np.float32),
        terminated=np.zeros(count, bool),
        episode_ends=np.arange(1, episodes + 1) * steps,
    )
    return path
