"""Training a policy from demonstrations: resumable, time-boxed, with a curve of success."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.core.files import atomic_path
from fewstep.core.training import CosineSchedule, Trainer, TrainerConfig, TrainResult

from .demonstrations import fitting, observed, read_demonstrations
from .envs.registry import env_spec
from .envs.spec import EnvSpec
from .episodes import Episodes
from .evaluation import evaluate
from .model import PolicyModel
from .names import is_image
from .normalizer import Normalizer
from .objective import Imitation
from .policy import Policy
from .recipe import ImitationRecipe, PolicyRecipe
from .splits import validation_mask
from .windows import Windows, observation_names

# Rollouts of validation begin here; tests begin at EnvSpec.first_test_seed.
VALIDATION_SEED = 50_000
RECIPE = "recipe.json"


class Held:
    """Loss on held-out episodes, and score and success in the environment.

    Args:
        windows: of the held-out episodes (None: there are none).
        loss: of the recipe.
        spec: of the environment (None: the policy is not tried).
        rollouts: episodes.
        batches: of the loss, of 256 windows, always the same ones.
    """

    def __init__(
        self, windows: Windows | None, loss: Imitation, spec: EnvSpec | None, rollouts: int, batches: int = 4
    ) -> None:
        self.loss, self.spec, self.rollouts = loss, spec, rollouts
        draws = np.random.default_rng(0)
        self.batches = [] if windows is None else [windows.batch(draws, 256) for _ in range(batches)]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a PolicyModel: "validation_loss", "score", "success"."""
        assert isinstance(model, PolicyModel)
        found = {}
        if self.batches:
            losses = [
                self._scalar(self.loss(model, batch, torch.Generator().manual_seed(index)))
                for index, batch in enumerate(self.batches)
            ]
            found["validation_loss"] = float(np.mean(losses))
        if self.spec is not None and self.rollouts:
            seeds = range(VALIDATION_SEED, VALIDATION_SEED + self.rollouts)
            policy = Policy(model, device=str(next(model.parameters()).device), rows_per_call=self.rollouts)
            results = evaluate(policy, self.spec, seeds, n_envs=self.rollouts)
            found["score"] = float(np.mean(results.scores))
            if results.successes is not None:
                found["success"] = float(np.mean(results.successes))
        return found

    @staticmethod
    def _scalar(loss: Any) -> float:
        return float(loss.get("squared_error", loss["loss"]) if isinstance(loss, Mapping) else loss)


def split(episodes: Episodes, share: float, seed: int = 42) -> tuple[Episodes, Episodes | None]:
    """Episodes for training and for validation; the data's own choice ("is_val_episode") where it has one.

    Args:
        episodes: all of them.
        share: for validation, where the data do not say.
        seed: of that choice.
    """
    own = episodes.labels.get("is_val_episode")
    mask = validation_mask(len(episodes), share, seed) if own is None else np.asarray(own, bool)
    if not mask.any() or mask.all():
        return episodes, None
    return episodes.select(np.flatnonzero(~mask)), episodes.select(np.flatnonzero(mask))


def train_policy(
    recipe: PolicyRecipe,
    data: str | Path | Episodes,
    output: str | Path,
    *,
    start: PolicyModel | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a policy, or go on with a run that was stopped, and save it in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        data: demonstrations, or the file or folder that holds them.
        output: folder of the run.
        start: model whose weights and normaliser the policy begins with (fine-tuning).
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: data that do not fit the recipe, or the folder holds a run of another recipe.
    """
    episodes = data if isinstance(data, Episodes) else read_demonstrations(data)
    episodes = observed(episodes, recipe.environment, recipe.obs)
    spec = None
    if recipe.environment:
        obs = recipe.obs if recipe.environment == "pusht" else None
        spec = env_spec(recipe.environment, obs)
    torch.manual_seed(recipe.seed)
    model = new_model(recipe, episodes, spec, start)
    told = {} if start is None else {"start": digest(start)}
    return imitate(
        model, recipe, episodes, spec, Path(output), max_minutes=max_minutes, device=device, **told
    )


def imitate(
    model: PolicyModel,
    recipe: ImitationRecipe,
    episodes: Episodes,
    spec: EnvSpec | None,
    folder: Path,
    *,
    max_minutes: float | None = None,
    device: str = "auto",
    **told: str,
) -> TrainResult:
    """Let a model learn from demonstrations, or go on with that; the average is saved in `folder/model`.

    Args:
        model: with a fitted normaliser; its weights are trained.
        recipe: settings.
        episodes: under the names of the model's observations.
        spec: of the environment in which it is validated (None: by its loss alone).
        folder: of the run.
        max_minutes: of training over all parts of the run.
        device: "auto" or "cpu".
        told: what else a run that goes on must have the same, see `remember`.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    config = model.config
    seen, held_out = split(episodes, recipe.validation_share)
    lengths = (config.horizon, config.n_obs_steps, config.n_action_steps)
    names = tuple(config.observations)
    windows = Windows(seen, *lengths, names)
    loss = Imitation(recipe.ratio, recipe.power)
    checked = None if held_out is None else Windows(held_out, *lengths, names)
    remember(recipe, folder, **told)
    trainer = Trainer(
        model,
        loss,
        lambda generator: windows.batch(generator, recipe.batch_size),
        folder=folder,
        config=TrainerConfig(
            max_steps=recipe.max_steps,
            max_minutes=max_minutes,
            batch_size=recipe.batch_size,
            precision="bf16" if recipe.precision == "bf16" else "no",
            clip=recipe.clip,
            ema_decays=(recipe.ema,),
            save_every_minutes=3.0,
            log_every=200,
            validate_every=recipe.validate_every,
            seed=recipe.seed,
            device="cpu" if device == "cpu" else "auto",
        ),
        optimizer=torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=(0.95, 0.999),
            weight_decay=recipe.weight_decay,
        ),
        schedule=CosineSchedule(warmup=recipe.warmup, floor=0.001),
        validate=Held(checked, loss, spec, recipe.rollouts),
    )
    result = trainer.fit()
    if result.stopped != "interrupted":
        averaged = trainer.ema.models[recipe.ema]
        assert isinstance(averaged, PolicyModel)
        averaged.save_pretrained(folder / "model")
    return result


def new_model(
    recipe: PolicyRecipe, episodes: Episodes, spec: EnvSpec | None, start: PolicyModel | None = None
) -> PolicyModel:
    """A fresh policy for some demonstrations, its normaliser fitted to them.

    Raises:
        ValueError: the demonstrations lack what the environment observes, or `start` is another policy.
    """
    if spec is None:
        names = observation_names(episodes)
        shapes = {name: tuple(episodes.arrays[name].shape[1:]) for name in names}
    else:
        fitting(episodes, {**spec.observation_shapes, "action": (spec.action_dim,)}, spec.name)
        shapes = {name: tuple(shape) for name, shape in spec.observation_shapes.items()}
    shapes = {
        name: (shape[2], *shape[:2]) if is_image(name) and shape[-1] in (1, 3) else shape
        for name, shape in shapes.items()
    }
    limits = ((), ()) if spec is None else (spec.action_low, spec.action_high)
    fps = (episodes.fps or 0.0) if spec is None else spec.fps
    config = recipe.config(shapes, episodes.arrays["action"].shape[1], fps, limits)
    model = PolicyModel(config)
    if start is None:
        fitted = Normalizer.fit(episodes, config.modes)  # type: ignore[arg-type]
        model.normalizer.load_state_dict(fitted.state_dict())
        return model
    try:
        model.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise ValueError(f"start: its network is not that of the recipe: {error}") from None
    return model


def digest(model: nn.Module) -> str:
    """A short name of a model's weights, the same for the same ones.

    Example:
        >>> digest(nn.Identity())
        'e3b0c44298fc1c14'
    """
    told = hashlib.sha256()
    for name, value in model.state_dict().items():
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:16]


def remember(recipe: Any, folder: Path, **told: str) -> None:
    """Write the settings of a run into its folder, or refuse to go on with others.

    Args:
        recipe: settings.
        folder: of the run.
        told: what else must be the same, such as the digest of a teacher.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    settings = {**json.loads(json.dumps(asdict(recipe))), **told}
    file = folder / RECIPE
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            raise ValueError(
                f"folder {folder} holds a run with other settings: {', '.join(changed)}; give the same "
                "ones, or another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
