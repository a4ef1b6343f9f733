"""The demo's robots: Push-T and a point maze by a policy that needs one network call per chunk of actions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from fewstep.core.checkpoints import shipped
from fewstep.policy.commands.evaluate import calls_of
from fewstep.policy.commands.options import spec_of
from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.evaluation import evaluate
from fewstep.policy.loading import PACKAGE
from fewstep.policy.policy import Policy
from fewstep.policy.results import Results, mean_and_interval, wilson
from fewstep.policy.rollouts import roll_out
from fewstep.policy.video import write_film

from .page import Column, Picture, Row, card, film, paragraph, strip, table

TITLE = "Robot policies: one network call per action chunk"
# The teacher of the shipped student, asked as often as the student's lessons were, and the maze's policy.
TEACHER, TEACHER_CALLS, MAZE = "pusht-meanflow", 10, "pointmaze-umaze-ofql"
EPISODES, SIDE, SHOWN, TIMED = 20, 384, 5, 30
# Films are shown faster than the robots are controlled at 10 Hz, slower than those at 100 Hz.
FPS = 20
SUCCESS = Column("success (%)", 0, larger_is_better=True)
SCORE = Column("mean score", 3, larger_is_better=True)
COST = (
    Column("steps", 0, larger_is_better=False),
    Column("network calls per chunk", 0, larger_is_better=False),
    Column("ms per chunk", 2, larger_is_better=False),
)
WORDS = {
    "pusht": (
        "Push-T",
        "The disc pushes the grey T onto the green one. The policy sees the T's corners and the disc, and "
        "plans where the disc shall go; the plan is drawn from dark red, now, to yellow, last. The score is "
        "the largest part of the green T that was covered, as a share of the 95 % that solve the task.",
    ),
    "pointmaze-umaze": (
        "Point maze",
        "The green ball is pushed to the red goal, around the walls. The policy was learned offline from "
        "noisy episodes and their rewards; it sees position, velocity and goal, not the walls.",
    ),
}


@dataclass(frozen=True)
class Run:
    """A policy and what its episodes were like."""

    name: str
    policy: Policy
    spec: EnvSpec
    calls: int
    results: Results


def section(folder: Path, say: Callable[[str], None], model: str) -> str:
    """Run the policies in their environments, write films and pictures, and tell the story in HTML.

    Args:
        folder: the page's folder; files go to its subfolder "policy".
        say: prints a line of progress.
        model: checkpoint name, folder or Hub id.
    """
    (folder / "policy").mkdir(parents=True, exist_ok=True)
    names = shipped(PACKAGE)
    cards = [_told(folder, say, model, TEACHER if model in names and TEACHER in names else None)]
    if model != MAZE:
        cards.append(
            _told(folder, say, MAZE, None)
            if MAZE in names
            else paragraph("No policy for the point maze ships with this version.")
        )
    return paragraph(
        "A policy looks, decides on several actions at once, carries them out, and looks again. A "
        "diffusion policy makes such a chunk in ten to a hundred network calls; these need one. Every "
        f"policy was run in {EPISODES} episodes whose seeds no training has used; in small letters are "
        "95 % intervals. The film is of the median episode."
    ) + "".join(cards)


def _told(folder: Path, say: Callable[[str], None], model: str, beside: str | None) -> str:
    """The card of a policy, or a sentence where its environment is not installed."""
    policy = Policy.from_pretrained(model, device="auto")
    spec = spec_of(policy.model, None, None)
    try:
        runs = [_run(policy, spec, "one call" if calls_of(policy.config) == 1 else model, say)]
        if beside:
            # Together in a network call, as ten calls for every episode would take their time.
            teacher = Policy.from_pretrained(beside, "auto", TEACHER_CALLS, rows_per_call=EPISODES)
            runs.append(_run(teacher, spec, f"its teacher, {TEACHER_CALLS} calls", say))
        shown = _filmed(folder, runs[0], say)
    except ImportError as error:
        return paragraph(f"{spec.name} cannot be run here: {error}.")
    title, text = WORDS.get(spec.name, (spec.name, "An environment of this policy's training."))
    return card(title, text, shown, _table(spec, runs))


def _run(policy: Policy, spec: EnvSpec, name: str, say: Callable[[str], None]) -> Run:
    results = evaluate(policy, spec, spec.test_seeds(EPISODES), EPISODES)
    say(f"{name}: {results}")
    calls = policy.steps or calls_of(policy.config)
    return Run(name, policy, spec, calls, results)


def _table(spec: EnvSpec, runs: Sequence[Run]) -> str:
    """Success and score, as far as the environment has them, and what they cost; ours is the first run."""
    columns = [SUCCESS] * spec.has_success + [SCORE] * (spec.score != "success")
    rows = []
    for run in runs:
        cells, asides = [], []
        if spec.has_success:
            hits = sum(run.results.successes or ())
            low, high = wilson(hits, EPISODES)
            cells.append(100 * hits / EPISODES)
            asides.append(f"{100 * low:.0f} to {100 * high:.0f}")
        if SCORE in columns:
            score = mean_and_interval(run.results.scores)
            low, high = score["interval"]
            cells.append(score["mean"])
            asides.append(f"{low:.3f} to {high:.3f}")
        cells += [float(np.mean(run.results.lengths)), run.calls, _milliseconds(run)]
        rows.append(Row(run.name, cells, run is runs[0], asides))
    return table([*columns, *COST], rows)


def _milliseconds(run: Run) -> float:
    """Median time of one chunk, from an observation of the environment to its actions."""
    env = run.spec.make()
    try:
        seen: Any = env.reset(seed=run.spec.first_test_seed)[0]
    finally:
        env.close()
    times = []
    for _ in range(TIMED + 3):  # the first calls of a process warm caches
        began = time.perf_counter()
        run.policy.predict_action_chunk(seen)
        times.append(time.perf_counter() - began)
    return 1000 * median(times[3:])


def _filmed(folder: Path, run: Run, say: Callable[[str], None]) -> str:
    """The episode of median score as a film and as a strip of pictures."""
    ranked = sorted(run.results.episodes, key=lambda episode: (episode.score, -episode.length))
    seed = ranked[len(ranked) // 2].seed
    try:
        shown = roll_out(run.policy, run.spec, seed, SIDE)
    except (RuntimeError, AttributeError, OSError) as error:  # what MuJoCo raises where it cannot draw
        return paragraph(f"Pictures of {run.spec.name} cannot be drawn here: {error}")
    episode, name = shown.episode, run.spec.name
    write_film(folder / "policy" / f"{name}.mp4", shown.frames, FPS)
    pictures = []
    for step in np.linspace(0, len(shown.frames) - 1, min(SHOWN, len(shown.frames))).round().astype(int):
        file = f"policy/{name}-{step}.png"
        Image.fromarray(shown.frames[step]).save(folder / file)
        pictures.append(Picture(file, f"{step / run.spec.fps:.1f} s"))
    say(f"{name}: film of seed {seed}, {episode.length} steps")
    outcome = {True: "solved", False: "not solved", None: ""}[episode.success]
    score = "" if run.spec.score == "success" else f"score {episode.score:.2f}"
    facts = (score, outcome, f"{episode.length / run.spec.fps:.1f} s")
    speed = f"shown at {FPS / run.spec.fps:g} times the speed"
    caption = ", ".join(fact for fact in (f"Seed {seed}", *facts, speed) if fact)
    return film(f"policy/{name}.mp4", caption) + strip(pictures)
