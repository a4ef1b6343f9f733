"""Options that several commands of `fewstep policy` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..model import PolicyModel

# What acts where no policy is named.
DEFAULT_MODEL = "pusht-onestep"

Data = Annotated[
    Path, typer.Option("--data", help="Demonstrations: LeRobot v3 folder, zarr folder or .npz file.")
]
Run = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an old run goes on.")]
Env = Annotated[str, typer.Option("--env", help="Environment, such as pusht or pointmaze-medium.")]
Obs = Annotated[
    str | None,
    typer.Option("--obs", help="What Push-T shows: state, keypoints or pixels.", show_default="keypoints"),
]
Calls = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Network calls per chunk.", show_default="the policy's own"),
]
Minutes = Annotated[
    float | None, typer.Option("--max-minutes", min=0.01, help="Minutes, over all parts of the run.")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="JSON file with fields of the recipe.", show_default="none")
]


def read_fields(config: Path | None) -> dict[str, object]:
    """The fields of a recipe in a JSON file.

    Raises:
        ValueError: it is no JSON object.
    """
    import json

    if config is None:
        return {}
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config: {config} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--config: {config} must hold one JSON object")
    return fields


def environment_of(model: object, env: str | None) -> str:
    """The environment that was named, or the one that the policy was trained for.

    Raises:
        ValueError: neither is known.
    """
    named = env or getattr(getattr(model, "config", None), "environment", "")
    if not named:
        raise ValueError("--env: this policy does not say for which environment it is; name one")
    return named


def load_denoiser(name: str, option: str) -> PolicyModel:
    """Load a policy that predicts chunks from noise.

    Raises:
        ValueError: it is an actor of offline reinforcement learning.
        CheckpointError: there is none.
    """
    from ..loading import load_model
    from ..model import PolicyModel

    model = load_model(name)
    if not isinstance(model, PolicyModel):
        raise ValueError(
            f"{option}: {name} was learned from rewards and is one actor; give an imitating policy"
        )
    return model


def shown_to(model: object, name: str, obs: str | None) -> str | None:
    """What Push-T has to show to a policy, unless it is said; None for other environments."""
    if name != "pusht" or obs is not None:
        return obs
    shown = {"image": "pixels", "environment_state": "keypoints"}
    wanted = model.config.observations  # type: ignore[attr-defined]
    return next((value for key, value in shown.items() if key in wanted), "state")


def spec_of(model: object, env: str | None, obs: str | None):
    """Facts of the environment in which a policy acts; what Push-T shows follows from what it needs.

    Raises:
        ValueError: the environment is unknown or does not show what the policy needs.
    """
    from ..envs.registry import env_spec

    name = environment_of(model, env)
    wanted = set(model.config.observations)  # type: ignore[attr-defined]
    spec = env_spec(name, shown_to(model, name, obs))
    absent = wanted - set(spec.observation_shapes)
    if absent:
        raise ValueError(f"--env: {name} does not show {', '.join(sorted(absent))}, which the policy needs")
    for key in sorted(wanted):
        shape, sees = tuple(model.config.observations[key]), tuple(spec.observation_shapes[key])  # type: ignore[attr-defined]
        if shape not in (sees, (*sees[-1:], *sees[:-1])):
            raise ValueError(f"--env: {key!r} of {name} is {sees}, the policy sees {shape}")
    if spec.action_dim != model.config.action_dim:  # type: ignore[attr-defined]
        raise ValueError(
            f"--env: {name} takes actions of {spec.action_dim} numbers, the policy gives "
            f"{model.config.action_dim}"  # type: ignore[attr-defined]
        )
    return spec
