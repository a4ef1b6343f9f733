"""`fewstep policy eval`, `rollout` and `info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.options import AsJson

from .failures import told_plainly
from .options import DEFAULT_MODEL, Calls, Obs, spec_of

if TYPE_CHECKING:
    from ..results import Episode

Model = Annotated[str, typer.Option("--model", help="Shipped name, folder or Hub id of a policy.")]
EnvName = Annotated[
    str | None, typer.Option("--env", help="Environment.", show_default="that of the policy's training")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda …")]


def evaluate(
    model: Model = DEFAULT_MODEL,
    env: EnvName = None,
    obs: Obs = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many.")] = 50,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of the first episode.", show_default="the first test seed"),
    ] = None,
    n_envs: Annotated[int, typer.Option("--n-envs", min=1, help="Episodes side by side.")] = 10,
    steps: Calls = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for all results (.json).")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a policy in its environment: score and success with 95 % intervals."""
    from fewstep.core.cli.progress import Bar

    with told_plainly("fewstep policy eval"):
        from ..evaluation import evaluate as run
        from ..policy import Policy

        policy = Policy.from_pretrained(model, device, steps)
        spec = spec_of(policy.model, env, obs)
        first = spec.first_test_seed if seed is None else seed
        with Bar(episodes, "episodes") as bar:

            def told(episode: Episode) -> None:
                bar.finish(f"seed {episode.seed}: score {episode.score:.3f} in {episode.length} steps")

            results = run(policy, spec, range(first, first + episodes), n_envs, told)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            results.save(output)
    typer.echo(json.dumps(results.summary()) if as_json else str(results))


def rollout(
    output: Annotated[Path, typer.Option("-o", "--output", help="Film: .mp4, .webp, .gif or .png.")],
    model: Model = DEFAULT_MODEL,
    env: EnvName = None,
    obs: Obs = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the episode.", show_default="the first test seed")
    ] = None,
    steps: Calls = None,
    side: Annotated[int, typer.Option("--side", min=32, max=1920, help="Of the picture, in pixels.")] = 384,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Film an episode, with the predicted chunk of actions drawn where they are positions."""
    with told_plainly("fewstep policy rollout"):
        from ..policy import Policy
        from ..rollouts import roll_out
        from ..video import film_writer, write_film

        film_writer(output)
        policy = Policy.from_pretrained(model, device, steps)
        spec = spec_of(policy.model, env, obs)
        shown = roll_out(policy, spec, spec.first_test_seed if seed is None else seed, side)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_film(output, shown.frames, shown.fps)
    facts = {
        "film": str(output),
        "seed": shown.episode.seed,
        "score": shown.episode.score,
        "success": shown.episode.success,
        "steps": shown.episode.length,
    }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        outcome = "" if facts["success"] is None else (", solved" if facts["success"] else ", not solved")
        typer.echo(f"{output}: {facts['steps']} steps, score {facts['score']:.3f}{outcome}")


def info(
    model: Annotated[str, typer.Argument(help="Shipped name, folder or Hub id.", show_default="all")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a policy sees, gives and costs; without a name, which policies ship."""
    with told_plainly("fewstep policy info"):
        from fewstep.core.checkpoints import shipped

        from ..loading import PACKAGE, load_model

        names = [model] if model else shipped(PACKAGE)
        found = [_facts(name, load_model(name)) for name in names]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo("No policy ships with this version; fewstep policy train makes one.")
    for facts in found:
        typer.echo("\n".join(f"{name:13} {value}" for name, value in facts.items()) + "\n")


def calls_of(config: object) -> int:
    """Network calls that a chunk takes: the policy's own number."""
    if hasattr(config, "steps"):
        return config.steps  # type: ignore[attr-defined]
    return config.levels if config.method == "dql" else 1  # type: ignore[attr-defined]


def _facts(name: str, model: object) -> dict[str, object]:
    config = model.config  # type: ignore[attr-defined]
    seen = ", ".join(f"{key} {'×'.join(map(str, shape))}" for key, shape in config.observations.items())
    return {
        "name": name,
        "environment": config.environment,
        "sees": f"{seen}, {config.n_obs_steps} steps",
        "gives": f"{config.n_action_steps} actions of {config.action_dim} numbers",
        "calls": calls_of(config),
        "parameters": sum(p.numel() for p in model.parameters()),  # type: ignore[attr-defined]
    }
