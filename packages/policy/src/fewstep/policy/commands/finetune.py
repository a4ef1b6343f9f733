"""`fewstep policy finetune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.options import AsJson

from .failures import told_plainly
from .options import Config, Data, Minutes, Obs, Run, load_denoiser, read_fields, shown_to
from .reports import report

METHODS = ("imitation", "rl100")


def finetune(
    data: Data,
    output: Run,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Policy that is improved: name or folder.", show_default="rl100 trains one"
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="imitation: follow new demonstrations; rl100: go beyond them, by rewards."
        ),
    ] = "imitation",
    env: Annotated[
        str | None,
        typer.Option("--env", help="Environment of rl100.", show_default="that of the policy's training"),
    ] = None,
    obs: Obs = None,
    config: Config = None,
    max_minutes: Minutes = None,
    imitation_minutes: Annotated[
        float | None,
        typer.Option("--imitation-minutes", min=0.01, help="Of rl100's first stage, without --start."),
    ] = None,
    offline_minutes: Annotated[
        float | None, typer.Option("--offline-minutes", min=0.01, help="Of every offline round of rl100.")
    ] = None,
    online_minutes: Annotated[
        float | None, typer.Option("--online-minutes", min=0.01, help="Of rl100 in the environment.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Improve a policy: by new demonstrations, or beyond them by RL-100's offline rounds and online stage."""
    stages = {"imitation": imitation_minutes, "offline": offline_minutes, "online": online_minutes}
    with told_plainly("fewstep policy finetune"):
        if method == "imitation":
            named = [f"--{stage}-minutes" for stage, minutes in stages.items() if minutes is not None]
            named += ["--env"] if env is not None else []
            if named:
                raise ValueError(f"{', '.join(named)}: only --method rl100 has such a setting")
            if start is None:
                raise ValueError("--start: say which policy is to be improved")
            _imitate(start, data, output, obs, config, max_minutes, device, as_json)
        elif method == "rl100":
            if max_minutes is not None:
                raise ValueError(
                    "--max-minutes: rl100 has stages; give --imitation-minutes, --offline-minutes, "
                    "--online-minutes"
                )
            _reinforce(start, data, output, env, obs, config, stages, device, as_json)
        else:
            raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")


def _imitate(
    start: str,
    data: Path,
    output: Path,
    obs: str | None,
    config: Path | None,
    max_minutes: float | None,
    device: str,
    as_json: bool,
) -> None:
    """New demonstrations."""
    from fewstep.core.configs import config_from_dict

    from ..demonstrations import read_demonstrations
    from ..finetune import finetune_policy, share_out_of_reach
    from ..recipe import FinetuneRecipe

    recipe = config_from_dict(FinetuneRecipe, read_fields(config), "--config")
    model = load_denoiser(start, "--start")
    episodes = read_demonstrations(data)
    shown = shown_to(model, model.config.environment, obs)
    result = finetune_policy(
        model, recipe, episodes, output, obs=shown, max_minutes=max_minutes, device=device
    )
    beyond = share_out_of_reach(model, episodes)
    if beyond:
        typer.echo(
            f"{beyond:.1%} of the new actions lie beyond those that the policy was first trained on; it "
            "cannot give them. Train a new policy on all demonstrations together.",
            err=True,
        )
    report(result, output, as_json)


def _reinforce(
    start: str | None,
    data: Path,
    output: Path,
    env: str | None,
    obs: str | None,
    config: Path | None,
    stages: dict[str, float | None],
    device: str,
    as_json: bool,
) -> None:
    """RL-100."""
    from fewstep.core.configs import config_from_dict

    from ..rl100.recipe import RL100Recipe
    from ..rl100.run import Minutes, run_rl100

    begin = None if start is None else load_denoiser(start, "--start")
    named = env or (begin.config.environment if begin is not None else "")
    if begin is not None:
        obs = shown_to(begin, named, obs)
    given = {"environment": named or None, "obs": obs}
    fields = read_fields(config) | {name: value for name, value in given.items() if value is not None}
    recipe = config_from_dict(RL100Recipe, fields, "--config")
    try:
        told = run_rl100(recipe, data, output, start=begin, minutes=Minutes(**stages), device=device)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(told))
        return
    for stage, summary in told.items():
        typer.echo(f"{stage:12} {_sentence(summary)}")
    typer.echo(f"Try it: fewstep policy eval --model {output / list(told)[-1] / 'model'}")


def _sentence(summary: dict[str, Any]) -> str:
    if not summary:
        return "done; not evaluated"
    text = f"score {summary['score']['mean']:.3f}"
    if "success" in summary:
        text += f", success {summary['success']['rate']:.0%}"
    return f"{text} in {summary['episodes']} episodes"
