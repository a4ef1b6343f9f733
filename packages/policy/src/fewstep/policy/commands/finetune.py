"""`fewstep policy finetune`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fewstep.options import AsJson

from .failures import told_plainly
from .options import Config, Data, Obs, Run, load_denoiser, read_fields, shown_to


def finetune(
    data: Data,
    output: Run,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Policy that is improved: name or folder.", show_default="one is trained"
        ),
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", help="Environment.", show_default="that of the policy's training")
    ] = None,
    obs: Obs = None,
    config: Config = None,
    imitation_minutes: Annotated[
        float | None, typer.Option("--imitation-minutes", min=0.01, help="Of imitation, without --start.")
    ] = None,
    offline_minutes: Annotated[
        float | None, typer.Option("--offline-minutes", min=0.01, help="Of every offline round.")
    ] = None,
    online_minutes: Annotated[
        float | None, typer.Option("--online-minutes", min=0.01, help="In the environment.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Improve a policy beyond its demonstrations: RL-100's offline rounds, then its online stage."""
    from fewstep.core.configs import config_from_dict

    with told_plainly("fewstep policy finetune"):
        from ..rl100.recipe import RL100Recipe
        from ..rl100.run import Minutes, run_rl100

        begin = None if start is None else load_denoiser(start, "--start")
        named = env or (begin.config.environment if begin is not None else "")
        if begin is not None and obs is None:
            obs = shown_to(begin, named, None)
        given = {"environment": named or None, "obs": obs}
        fields = read_fields(config) | {name: value for name, value in given.items() if value is not None}
        recipe = config_from_dict(RL100Recipe, fields, "--config")
        minutes = Minutes(imitation_minutes, offline_minutes, online_minutes)
        try:
            told = run_rl100(recipe, data, output, start=begin, minutes=minutes, device=device)
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command goes on from here.", err=True)
            raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(told))
        return
    for stage, summary in told.items():
        typer.echo(f"{stage:12} {_sentence(summary)}")
    typer.echo(f"Try it: fewstep policy eval --model {output / list(told)[-1] / 'model'}")


def _sentence(summary: dict) -> str:
    if not summary:
        return "done; not evaluated"
    text = f"score {summary['score']['mean']:.3f}"
    if "success" in summary:
        text += f", success {summary['success']['rate']:.0%}"
    return f"{text} in {summary['episodes']} episodes"
