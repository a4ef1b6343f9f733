"""`fewstep policy record`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.options import AsJson

from .evaluate import Device, EnvName, Model
from .failures import told_plainly
from .options import DEFAULT_MODEL, Calls, Obs, spec_of

if TYPE_CHECKING:
    from ..results import Episode


def record(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="LeRobot v3 folder, or a file that ends in .npz.")
    ],
    model: Model = DEFAULT_MODEL,
    env: EnvName = None,
    obs: Obs = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many are run.")] = 50,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the first episode; below those of tests.")
    ] = 0,
    only_success: Annotated[
        bool, typer.Option("--only-success", help="Keep only episodes that solve the task.")
    ] = False,
    steps: Calls = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Record a policy's episodes as demonstrations; Ctrl-C keeps those that are complete."""
    from fewstep.core.cli.progress import Bar

    with told_plainly("fewstep policy record"):
        from ..policy import Policy
        from ..recorder import Recorder
        from ..recording import record_episodes

        if output.exists() and (output.is_file() or any(output.iterdir())):
            raise ValueError(f"-o: {output} is there already; give a new file or folder")
        policy = Policy.from_pretrained(model, device, steps)
        spec = spec_of(policy.model, env, obs)
        with tempfile.TemporaryDirectory(prefix="fewstep-record-") as folder:
            with Recorder(Path(folder) / "episodes", spec.fps) as recorder, Bar(episodes, "episodes") as bar:

                def told(episode: Episode, kept: bool) -> None:
                    fate = "kept" if kept else (episode.problem or "left out")
                    bar.finish(f"seed {episode.seed}: score {episode.score:.3f}, {fate}")

                try:
                    record_episodes(policy, spec, range(seed, seed + episodes), recorder, only_success, told)
                except KeyboardInterrupt:
                    recorder.discard_episode()
            kept = len(recorder)
            if kept == 0:
                raise RuntimeError("no episode is worth keeping, so nothing was written")
            recorded = recorder.episodes().steps
            output.parent.mkdir(parents=True, exist_ok=True)
            save = recorder.save_npz if output.suffix.lower() == ".npz" else recorder.save_lerobot
            save(output)
    facts = {"output": str(output), "run": episodes, "kept": kept, "steps": recorded}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{output}: {kept} episodes, {recorded} steps")
    typer.echo(f"Learn from them: fewstep policy train --data {output} --env {spec.name} -o runs/{spec.name}")
