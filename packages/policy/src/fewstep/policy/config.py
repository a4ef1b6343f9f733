"""What a policy is built from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths, predictions
from fewstep.core.configs import config_from_dict
from fewstep.core.sampling import Sampling

from .names import is_image
from .observations import check_observation

KINDS = ("ode", "consistency", "flow-map", "regression")
NETWORKS = ("unet1d", "transformer", "chunk-mlp")
# diffusers' "squaredcos_cap_v2" with 100 levels, which Diffusion Policy trains on.
LEVELS = 100


def cosine_betas(levels: int = LEVELS) -> tuple[float, ...]:
    """The betas of Diffusion Policy.

    β_i = min(1 − ᾱ((i + 1)/n)/ᾱ(i/n), 0.999),   ᾱ(u) = cos²((u + 0.008)/1.008·π/2)

    Args:
        levels: n.

    Returns:
        One beta per level, the least noise first.

    Example:
        >>> betas = cosine_betas(100)
        >>> len(betas), betas[-1]
        (100, 0.999)

    Reference: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17.
    """

    def kept(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return tuple(min(1 - kept((i + 1) / levels) / kept(i / levels), 0.999) for i in range(levels))


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is built from; the defaults are those of Diffusion Policy for low-dimensional tasks.

    Args:
        observations: shape of one step by name, such as {"state": (5,)}; see `observations`.
        action_dim: numbers of an action.
        horizon: actions that are predicted.
        n_obs_steps: observations that are seen.
        n_action_steps: actions that are executed before the next prediction.
        network: one of `NETWORKS`.
        network_options: fields of its configuration, apart from the sizes that follow from here.
        encoder_options: fields of the encoders of images and points.
        normalization: mode of `Normalizer` by name.
        path: what `Path.to_config` gave.
        prediction: what the network predicts.
        kind: how chunks are drawn: "ode", a solver of the path; "consistency", the clean chunk from one call,
            noise added anew for the next; "flow-map", jumps of a network that knows where they go;
            "regression", one call of a network that never sees noise.
        solver: of kind "ode". "ddim" keeps the network's noise beside a clipped chunk, see `clipped_ddim`.
        grid: of kind "ode", a name of `grids.names()`.
        sampling: of the other kinds, fields of the core's `Sampling` such as where the first call starts.
        steps: network calls of a chunk.
        most_steps: more calls than these were never learned, and are refused (0: any number).
        clip: a predicted chunk is kept within ± this in normalised units (0: it is not).
        environment: name of the environment that the policy was trained for.
        action_low, action_high: limits of every number of an action, if there are any.
        fps: control steps per second, if it is known.

    Raises:
        ValueError: a value that is unknown or does not fit.

    Reference: Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", app. A.
    """

    observations: Mapping[str, Sequence[int]]
    action_dim: int
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    network: str = "unet1d"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    normalization: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, Any] = field(default_factory=lambda: paths.VP.from_betas(cosine_betas()).to_config())
    prediction: str = "eps"
    kind: str = "ode"
    solver: str = "ancestral"
    grid: str = "leading"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    steps: int = LEVELS
    most_steps: int = 0
    clip: float = 1.0
    environment: str = ""
    action_low: Sequence[float] = ()
    action_high: Sequence[float] = ()
    fps: float = 0.0

    def __post_init__(self) -> None:
        shapes = {name: tuple(shape) for name, shape in self.observations.items()}
        object.__setattr__(self, "observations", shapes)
        if not shapes:
            raise ValueError("observations must name at least one observation with its shape")
        for name, shape in shapes.items():
            check_observation(name, shape)
        for name in ("action_dim", "horizon", "n_obs_steps", "n_action_steps", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_action_steps > self.horizon - self.n_obs_steps + 1:
            raise ValueError(
                "n_action_steps must be at most horizon − n_obs_steps + 1 = "
                f"{self.horizon - self.n_obs_steps + 1}, got {self.n_action_steps}"
            )
        for name, allowed in (("kind", KINDS), ("network", NETWORKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("action_low", "action_high"):
            if len(getattr(self, name)) not in (0, self.action_dim):
                raise ValueError(
                    f"{name} must hold {self.action_dim} numbers or none, got {getattr(self, name)}"
                )
        if self.most_steps < 0 or 0 < self.most_steps < self.steps:
            raise ValueError(f"most_steps must be 0, or at least steps = {self.steps}, got {self.most_steps}")
        if not self.clip >= 0:
            raise ValueError(f"clip must not be negative, got {self.clip}")
        predictions.get(self.prediction)
        self.times()
        paths.from_config(dict(self.path))

    @property
    def modes(self) -> dict[str, str]:
        """Mode of the normaliser by name: limits for vectors, unit for images, identity for points."""
        usual = {name: usual_mode(name) for name in (*self.observations, "action")}
        return {**usual, **self.normalization}

    def times(self, steps: int | None = None) -> list[float]:
        """The times of the calls of kinds "consistency" and "flow-map", with the last one, where they end."""
        if self.kind in ("ode", "regression"):
            return []
        fields = {"spacing": "clock", **self.sampling, "kind": self.kind, "steps": self.steps}
        how = config_from_dict(Sampling, fields, "sampling")
        return how.grid(paths.from_config(dict(self.path)), steps)

    @property
    def executed(self) -> slice:
        """Which actions of a chunk are executed: the first one belongs to the newest observation."""
        return slice(self.n_obs_steps - 1, self.n_obs_steps - 1 + self.n_action_steps)


def usual_mode(name: str) -> str:
    """How an observation or the action is normalised unless told otherwise."""
    if is_image(name):
        return "unit"
    return "identity" if name == "points" else "limits"
