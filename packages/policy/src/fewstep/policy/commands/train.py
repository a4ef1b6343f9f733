"""`fewstep policy train` and `fewstep policy distill`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.options import AsJson

from .failures import told_plainly
from .options import Config, Data, Minutes, Obs, Run, load_denoiser, read_fields, shown_to
from .reports import report

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.core.training import TrainResult


def train(
    data: Data,
    output: Run,
    env: Annotated[
        str, typer.Option("--env", help="Environment that the policy is tried in; '' for none.")
    ] = "pusht",
    obs: Obs = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Imitation: meanflow, flow, ddpm, ddim, edm, regression. "
            "From rewards: ofql, dql, fql, and bc for comparison.",
            show_default="meanflow",
        ),
    ] = "",
    start: Annotated[
        str | None, typer.Option("--start", help="Policy to go on from: name or folder.", show_default="none")
    ] = None,
    config: Config = None,
    max_minutes: Minutes = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a policy from demonstrations, or go on with a run that was stopped; Ctrl-C saves and stops."""
    from fewstep.core.configs import config_from_dict

    with told_plainly("fewstep policy train"):
        from ..recipe import PolicyRecipe
        from ..rl.policy_model import METHODS
        from ..train import train_policy

        given = {"environment": env, "obs": obs, "method": method or None}
        fields = read_fields(config) | {name: value for name, value in given.items() if value is not None}
        if fields.get("method") in METHODS:
            if start is not None or obs is not None:
                raise ValueError(f"--start and --obs have no meaning for --method {fields['method']}")
            result = _train_from_rewards(fields, data, output, max_minutes, device)
        else:
            recipe = config_from_dict(PolicyRecipe, fields, "--config")
            begin = None if start is None else load_denoiser(start, "--start")
            result = train_policy(recipe, data, output, start=begin, max_minutes=max_minutes, device=device)
    report(result, output, as_json)


def _train_from_rewards(
    fields: dict[str, object], data: Path, output: Path, max_minutes: float | None, device: str
) -> TrainResult:
    """Offline reinforcement learning; settings that are not given are those for the environment."""
    from fewstep.core.configs import config_from_dict

    from ..rl.recipe import OfflineRecipe, point_maze_recipe
    from ..rl.train import train_offline

    maze, _, size = str(fields.get("environment")).partition("-")
    known = asdict(point_maze_recipe(size, str(fields["method"]))) if maze == "pointmaze" else {}
    for name, value in fields.items():
        inner = known.get(name)
        known[name] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    recipe = config_from_dict(OfflineRecipe, known, "--config")
    return train_offline(recipe, data, output, max_minutes=max_minutes, device=device)


def distill(
    data: Data,
    output: Run,
    teacher: Annotated[str, typer.Option("--teacher", help="Trained policy: name or folder.")],
    method: Annotated[
        str, typer.Option("--method", help="A method of `fewstep distill --list`.", show_default="meanflow")
    ] = "",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Network calls of the student.")] = None,
    obs: Obs = None,
    config: Config = None,
    max_minutes: Minutes = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a student that needs one network call, or few, from a trained policy."""
    from fewstep.core.configs import config_from_dict

    with told_plainly("fewstep policy distill"):
        from ..distill import PolicyDistillRecipe, distill_policy

        given = {"method": method or None, "steps": steps}
        fields = read_fields(config) | {name: value for name, value in given.items() if value is not None}
        recipe = config_from_dict(PolicyDistillRecipe, fields, "--config")
        model = load_denoiser(teacher, "--teacher")
        result = distill_policy(
            model,
            recipe,
            data,
            output,
            obs=shown_to(model, model.config.environment, obs),
            max_minutes=max_minutes,
            device=device,
        )
    report(result, output, as_json)
