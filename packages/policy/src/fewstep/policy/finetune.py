"""Fine-tuning: a trained policy goes on learning from new demonstrations."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from fewstep.core.training import TrainResult

from .demonstrations import fitting, observed, read_demonstrations
from .envs.registry import env_spec
from .episodes import Episodes
from .model import PolicyModel
from .recipe import FinetuneRecipe
from .train import digest, imitate


def finetune_policy(
    start: PolicyModel,
    recipe: FinetuneRecipe,
    data: str | Path | Episodes,
    output: str | Path,
    *,
    obs: str | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a policy further, or go on with a run that was stopped, and save it in `output/model`.

    Network, horizons and normaliser stay the policy's own: its weights know no other.

    Args:
        start: policy that is improved; it is left as it is.
        recipe: settings; a run that goes on must be given the same ones, and the same start.
        data: new demonstrations, or the file or folder that holds them.
        output: folder of the run.
        obs: what Push-T shows.
        max_minutes: minutes of training over all parts of the run.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: a consistency model, data that do not fit the policy, or the folder holds a run with other
            settings.
    """
    config, folder = start.config, Path(output)
    if config.kind == "consistency":
        raise ValueError(
            "a consistency model learns from a teacher, not from demonstrations; fine-tune its teacher and "
            "distil that again"
        )
    episodes = data if isinstance(data, Episodes) else read_demonstrations(data)
    wanted = {**config.observations, "action": (config.action_dim,)}
    episodes = fitting(observed(episodes, config.environment, obs), wanted, "the policy")
    spec = env_spec(config.environment, obs) if config.environment and recipe.rollouts else None
    torch.manual_seed(recipe.seed)
    model = copy.deepcopy(start).train().requires_grad_(True)
    told = {"start": digest(start)}
    return imitate(model, recipe, episodes, spec, folder, max_minutes=max_minutes, device=device, **told)


def share_out_of_reach(model: PolicyModel, episodes: Episodes) -> float:
    """Share of the steps whose action a policy cannot give, since its normaliser and clip do not reach there.

    Args:
        model: whose normaliser was fitted to other demonstrations.
        episodes: with "action".
    """
    if not model.config.clip:
        return 0.0
    actions = torch.as_tensor(episodes.arrays["action"], dtype=torch.float32)
    normal = model.normalizer.cpu().normalize("action", actions).abs()
    # Two percent beyond the limits is no more than the noise of a sensor.
    return float((normal > 1.02 * model.config.clip).any(1).float().mean())
