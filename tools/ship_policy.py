"""Put the policy of a finished run into the package, with its card.

    python -m tools.ship_policy RUN --name NAME --metrics FILE.json "10 calls=FILE.json" \\
        --baseline "regression of equal size=FILE.json" --machine "2 CPU cores"

RUN is the folder that `fewstep policy train`, `distill` or `finetune` left; RL-100 has a policy for every
stage, so name one: --model RUN/online/model. The files of figures come from `fewstep policy eval`, what it
prints with --json or writes with -o; LABEL=FILE says what is special of one. Weights become float16; their
actions are held against those of the run's own before the checkpoint takes its place.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tools.shipped_policy_texts import TEXTS
from tools.shipped_texts import RUN_TIME
from tools.shipping import known, megabytes, put, run_length
from torch import Tensor

from fewstep.core.cards import CardFacts, Figure
from fewstep.core.checkpoints import shipped
from fewstep.policy.commands.evaluate import calls_of
from fewstep.policy.loading import PACKAGE, load_model
from fewstep.policy.model import PolicyModel
from fewstep.policy.policy import Policy
from fewstep.policy.train import RECIPE

FOLDER = Path(__file__).parents[1] / "packages/policy/src/fewstep/policy/checkpoints"
STORED = " Figures are of the run's float32 weights; stored are float16 weights."
INTERVALS = " In brackets: intervals of 95 %, Student's for scores, Wilson's for success."
# What storing as float16 may change of any normalised action, which lies in [-1, 1].
TOLERANCE = 0.02
OBSERVATIONS = 256


@dataclass(frozen=True)
class Measured:
    """A file of figures.

    Args:
        label: what is special of it; "": nothing.
        summary: of the evaluation.
        seeds: of its episodes, if the file says them.
    """

    label: str
    summary: Mapping[str, Any]
    seeds: tuple[int, ...] = ()


def read_figures(text: str) -> Measured:
    """Read FILE or LABEL=FILE, what `fewstep policy eval` printed with --json or wrote with -o.

    Raises:
        ValueError: it holds no evaluation.
    """
    label, _, file = ("", "", text) if Path(text).is_file() else text.rpartition("=")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        whole = "summary" in content
        summary = content["summary"] if whole else content
        for key in ("env", "episodes", "score", "length"):
            summary[key]
        seeds = tuple(episode["seed"] for episode in content["episodes"]) if whole else ()
        return Measured(label, summary, seeds)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not hold figures of fewstep policy eval: {error!r}") from error


def figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """The rows of a card: score, success, steps.

    Example:
        >>> figures({"score": {"mean": 0.8, "interval": [0.7, 0.9]}, "length": {"mean": 200.5},
        ...     "success": {"rate": 0.5, "interval": [0.366, 0.634]}})
        {'score': '0.800 (0.700 to 0.900)', 'success': '50 % (37 to 63 %)', 'steps, mean': 200.5}
    """
    score, interval = summary["score"]["mean"], summary["score"].get("interval")
    rows: dict[str, Figure] = {"score": f"{score:.3f}"}
    if interval is not None:
        rows["score"] = f"{score:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    if "success" in summary:
        rate, (low, high) = summary["success"]["rate"], summary["success"]["interval"]
        rows["success"] = f"{100 * rate:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
    rows["steps, mean"] = summary["length"]["mean"]
    if summary.get("problems"):
        rows["episodes broken off"] = len(summary["problems"])
    return rows


def metrics_of(
    env: str, calls: int, measured: Sequence[Measured], baseline: Measured | None
) -> dict[str, dict[str, tuple[Figure, Figure]]]:
    """Figures of a policy beside those of the baseline in the same episodes.

    Args:
        env: environment of the policy.
        calls: network calls of a chunk; what files without a label were made with.
        measured: the policy's.
        baseline: what it is compared with.

    Raises:
        ValueError: a file is of another environment, or the baseline of other episodes.
    """
    found = {}
    theirs = {} if baseline is None else figures(baseline.summary)
    for one in (*measured, *([] if baseline is None else [baseline])):
        if one.summary["env"] != env:
            raise ValueError(f"metrics: the policy is for {env}, a file is of {one.summary['env']}")
    for one in measured:
        count = one.summary["episodes"]
        if baseline is not None and (
            count != baseline.summary["episodes"]
            or (one.seeds and baseline.seeds and one.seeds != baseline.seeds)
        ):
            raise ValueError("--baseline: it was measured in other episodes than the policy")
        label = one.label or ("1 call" if calls == 1 else f"{calls} calls")
        rows = figures(one.summary)
        found[f"{env}, {count} episodes, {label}"] = {
            name: (rows.get(name), theirs.get(name)) for name in dict.fromkeys((*rows, *theirs))
        }
    return found


def facts(name: str, run: Path, metrics: Mapping, baseline: str, machine: str, same: bool) -> CardFacts:
    """What the card says.

    Args:
        name: of the checkpoint.
        run: folder of the run; without a log the card says neither updates nor minutes.
        metrics: rows of the table.
        baseline: heading of what they are compared with.
        machine: that it was trained on.
        same: whether the run's own weights are stored.
    """
    texts = TEXTS[name]
    steps, minutes = run_length(run) if (run / "log.jsonl").is_file() else (None, None)
    told = ("" if same else STORED) + INTERVALS
    return CardFacts(
        title=name,
        summary=texts.summary,
        data=texts.data,
        data_licence=texts.data_licence,
        command=texts.command.replace(RUN_TIME, "" if minutes is None else RUN_TIME.format(minutes=minutes)),
        steps=steps,
        minutes=None if minutes is None else round(minutes, 1),
        machine=machine,
        metrics=metrics,
        baseline=baseline,
        limits=texts.limits + (told if metrics else ""),
    )


def observations(model: PolicyModel, count: int = OBSERVATIONS) -> dict[str, Tensor]:
    """Random observations, even over what the normaliser has seen."""
    known_of, draws = model.normalizer.statistics(), torch.Generator().manual_seed(0)
    made = {}
    for name, shape in model.config.observations.items():
        share = torch.rand(count, model.config.n_obs_steps, *shape, generator=draws)
        if {"min", "max"} <= known_of[name].keys():
            low, high = known_of[name]["min"], known_of[name]["max"]
            made[name] = low + share * (high - low)
        else:
            made[name] = model.normalizer.unnormalize(name, 2 * share - 1)
    return made


def check(original: PolicyModel, stored: PolicyModel) -> str:
    """Hold the actions of stored weights against those of the original ones, from the same noise.

    Raises:
        ValueError: they differ.
    """
    seen = observations(original)
    one, other = (original.normalizer.normalize("action", m.predict(seen)) for m in (original, stored))
    worst = float((one - other).abs().max())
    if not worst <= TOLERANCE:
        raise ValueError(
            f"float16 changes normalised actions by up to {worst:.3f}, more than {TOLERANCE}; --float32 "
            "stores the weights as they are"
        )
    return f"normalised actions differ by {worst:.4f} at most"


def ship(
    name: str,
    run: Path,
    files: Sequence[str],
    machine: str,
    *,
    baseline: str | None = None,
    model: Path | None = None,
    dtype: torch.dtype | None = torch.float16,
    package: Path = FOLDER,
) -> Path:
    """Write a checkpoint into the package; the run's recipe lies beside it.

    Args:
        name: of the checkpoint.
        run: folder of the training run.
        files: of figures, FILE or LABEL=FILE.
        machine: that it was trained on.
        baseline: LABEL=FILE of what the figures are compared with.
        model: folder of the policy (None: run/model).
        dtype: of the stored weights (None: as they are).
        package: folder of the shipped checkpoints.

    Returns:
        Its folder.

    Raises:
        ValueError: no such name, figures or a policy of another environment, or float16 is not enough.
    """
    known(name, TEXTS)
    policy = load_model(model or run / "model")
    env = policy.config.environment
    if not name.startswith(f"{env}-"):
        raise ValueError(
            f"--name: {name} is not for {env or 'no environment'}, which the policy was trained for"
        )
    beside = None if baseline is None else read_figures(baseline)
    if beside is not None and not beside.label:
        raise ValueError("--baseline: give LABEL=FILE")
    metrics = metrics_of(env, calls_of(policy.config), [read_figures(file) for file in files], beside)
    card = facts(name, run, metrics, beside.label if beside else "", machine, dtype is None)
    return put(
        policy,
        package / name,
        card,
        lambda stored: check(policy, load_model(stored)),
        dtype,
        {RECIPE: (run / RECIPE).read_bytes()},
    )


def main() -> None:
    """Write the package's checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help=", ".join(TEXTS))
    parser.add_argument("--model", type=Path, help="folder of the policy instead of RUN/model")
    parser.add_argument("--metrics", nargs="*", default=[], metavar="[LABEL=]FILE")
    parser.add_argument("--baseline", metavar="LABEL=FILE")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--float32", action="store_true", help="store the weights as they are")
    given = parser.parse_args()
    dtype = None if given.float32 else torch.float16
    try:
        ship(
            given.name, given.run, given.metrics, given.machine,
            baseline=given.baseline, model=given.model, dtype=dtype,
        )  # fmt: skip
        if given.name not in shipped(PACKAGE):
            raise ValueError(f"{given.name} is not among the shipped checkpoints")
        Policy.from_pretrained(given.name, "cpu")
    except (OSError, ValueError) as error:
        raise SystemExit(f"ship_policy: {error}") from error
    print(f"all policies together: {megabytes(FOLDER):.1f} MB")


if __name__ == "__main__":
    main()
