"""Settings of the training of a policy from demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths

from .config import PolicyConfig

METHODS: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "ddim": {"solver": "ddim", "grid": "trailing", "steps": 10},
    "edm": {
        "path": paths.EDM(sigma_min=0.002, sigma_max=80.0).to_config(),
        "prediction": "edm",
        "solver": "heun",
        "grid": "karras",
        "steps": 10,
    },
    "flow": {
        "path": paths.RectifiedFlow(time="t").to_config(),
        "prediction": "velocity",
        "solver": "euler",
        "grid": "uniform",
        "steps": 10,
    },
    "meanflow": {
        "path": paths.RectifiedFlow(time="t").to_config(),
        "prediction": "velocity",
        "kind": "flow-map",
        "steps": 1,
    },
    "regression": {"kind": "regression", "prediction": "x0", "steps": 1},
}


@dataclass(frozen=True)
class ImitationRecipe:
    """What any learning from demonstrations depends on, whatever the policy is.

    Args:
        ratio: of "meanflow", share of samples with two different times.
        power: of "meanflow", of the adaptive weight.
        batch_size: windows of a batch.
        learning_rate: largest rate of AdamW, under a cosine schedule.
        weight_decay: of AdamW.
        warmup: share of the run in which the rate rises.
        ema: rule of the averaged weights that are validated and kept.
        clip: largest gradient norm.
        precision: "bf16" or "no"; the derivative of "meanflow" is float32 in any case.
        max_steps: end of the run by updates.
        validation_share: of the episodes, for the validation loss, where the data do not say which.
        validate_every: updates between validations.
        rollouts: episodes of the environment in a validation (0: only the loss).
        seed: of weights, windows, times and noise.

    Raises:
        ValueError: a value out of its range.

    Reference: Chi et al. 2023, "Diffusion Policy", table 7 (their rates and batch).
    """

    ratio: float = 0.25
    power: float = 0.5
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    warmup: float = 0.02
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "no"
    max_steps: int = 100_000
    validation_share: float = 0.02
    validate_every: int = 2_000
    rollouts: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratio", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("batch_size", "max_steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.rollouts < 0:
            raise ValueError(f"rollouts must not be negative, got {self.rollouts}")
        if self.precision not in ("bf16", "no"):
            raise ValueError(f"precision must be 'bf16' or 'no', got {self.precision!r}")


@dataclass(frozen=True)
class FinetuneRecipe(ImitationRecipe):
    """Settings of the fine-tuning of a trained policy on new demonstrations: fewer and smaller updates.

    Args:
        learning_rate: largest rate of AdamW; a tenth of that of `PolicyRecipe`.
        max_steps: end of the run by updates.
        validate_every: updates between validations.
    """

    learning_rate: float = 1e-4
    max_steps: int = 10_000
    validate_every: int = 1_000


@dataclass(frozen=True)
class PolicyRecipe(ImitationRecipe):
    """What the training of a policy from demonstrations depends on, beside what `ImitationRecipe` holds.

    Args:
        method: "ddpm" as published, "ddim", "edm", "flow" (rectified flow), "meanflow" (one call), or
            "regression" (no noise; the mean action).
        environment: whose observations are learned and in which the policy is tried; "": none.
        obs: what Push-T shows.
        horizon: actions of a chunk.
        n_obs_steps: observations that are seen.
        n_action_steps: actions that are executed.
        network: a name of `config.NETWORKS`.
        network_options: fields of its configuration.

    Raises:
        ValueError: a value out of its range.

    Reference: Chi et al. 2023, "Diffusion Policy", table 7 (their horizons).
    """

    method: str = "meanflow"
    environment: str = "pusht"
    obs: str = "keypoints"
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    network: str = "unet1d"
    network_options: Mapping[str, Any] = field(
        default_factory=lambda: {"embedding": 64, "down_dims": (32, 64, 128)}
    )

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        super().__post_init__()

    def config(
        self,
        observations: Mapping[str, tuple[int, ...]],
        action_dim: int,
        fps: float = 0.0,
        limits: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
    ) -> PolicyConfig:
        """What the policy of these settings is built from.

        Args:
            observations: shape of one step by name.
            action_dim: numbers of an action.
            fps: control steps per second.
            limits: lowest and highest action.
        """
        fields: dict[str, Any] = dict(METHODS[self.method])
        options = dict(self.network_options)
        continuous = self.method in ("flow", "meanflow")
        options.setdefault("time_scale", 10.0 if continuous else 1.0)
        return PolicyConfig(
            dict(observations),
            action_dim,
            self.horizon,
            self.n_obs_steps,
            self.n_action_steps,
            network=self.network,
            network_options=options,
            environment=self.environment,
            action_low=limits[0],
            action_high=limits[1],
            fps=fps,
            **fields,
        )
