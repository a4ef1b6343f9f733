"""What an evaluation found: numbers of every episode, their means and how sure these are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.core.files import atomic_path

_Z = 1.959963984540054
# Student's t at 97.5 %, for one to four degrees of freedom, where the expansion below is too coarse.
_T = (12.706204736, 4.302652730, 3.182446305, 2.776445105)


@dataclass(frozen=True)
class Episode:
    """One episode of an evaluation.

    Attributes:
        seed: of its start and of the policy's noise.
        score: in the environment's own sense (`EnvSpec.score`).
        total_reward: the return.
        length: steps that were carried out.
        success: whether the task was solved; None where the environment does not say.
        problem: why the episode was broken off, for instance numbers that are not finite; None for a whole
            one. A broken episode is no success, and its score and return are those of the steps before.
    """

    seed: int
    score: float
    total_reward: float
    length: int
    success: bool | None
    problem: str | None = None


@dataclass(frozen=True)
class Results:
    """All episodes of an evaluation, in the order of their seeds as given.

    Attributes:
        env: name of the environment.
        episodes: their numbers.
        seconds_per_action: wall time inside the policy, per action it gave.
        seconds: wall time of the evaluation.
    """

    env: str
    episodes: tuple[Episode, ...]
    seconds_per_action: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.episodes:
            raise ValueError("results have no episodes")

    @property
    def seeds(self) -> list[int]:
        """Of the episodes."""
        return [episode.seed for episode in self.episodes]

    @property
    def scores(self) -> list[float]:
        """Of the episodes."""
        return [episode.score for episode in self.episodes]

    @property
    def returns(self) -> list[float]:
        """Of the episodes."""
        return [episode.total_reward for episode in self.episodes]

    @property
    def lengths(self) -> list[int]:
        """Of the episodes, in steps."""
        return [episode.length for episode in self.episodes]

    @property
    def successes(self) -> list[bool] | None:
        """Of the episodes; None where the environment does not say."""
        known = [episode.success for episode in self.episodes if episode.success is not None]
        return known if len(known) == len(self.episodes) else None

    @property
    def problems(self) -> list[Episode]:
        """Episodes that were broken off."""
        return [episode for episode in self.episodes if episode.problem is not None]

    def summary(self) -> dict[str, Any]:
        """Means with standard errors and 95 % intervals: Student's for scores, Wilson's for success."""
        found: dict[str, Any] = {"env": self.env, "episodes": len(self.episodes)}
        for name, values in (("score", self.scores), ("return", self.returns), ("length", self.lengths)):
            found[name] = mean_and_interval(values)
        if self.successes is not None:
            hits = sum(self.successes)
            interval = wilson(hits, len(self.successes))
            found["success"] = {"rate": hits / len(self.successes), "interval": list(interval)}
        found["problems"] = [
            {"seed": episode.seed, "step": episode.length, "what": episode.problem}
            for episode in self.problems
        ]
        found["seconds_per_action"] = self.seconds_per_action
        found["seconds"] = self.seconds
        return found

    def __str__(self) -> str:
        found = self.summary()
        text = f"{self.env}, {len(self.episodes)} episodes: score {found['score']['mean']:.3f}"
        if (interval := found["score"]["interval"]) is not None:
            text += f" ({interval[0]:.3f} to {interval[1]:.3f})"
        if "success" in found:
            low, high = found["success"]["interval"]
            text += f", success {found['success']['rate']:.0%} ({low:.0%} to {high:.0%})"
        text += f", {found['length']['mean']:.1f} steps"
        if self.problems:
            first = self.problems[0]
            text += f"; {len(self.problems)} broken off (seed {first.seed}: {first.problem})"
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write summary and episodes as JSON.

        Args:
            path: of the file; its folder must exist.
        """
        content = {"summary": self.summary(), "episodes": [asdict(episode) for episode in self.episodes]}
        with atomic_path(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read what `save` wrote.

        Args:
            path: of the file.

        Raises:
            ValueError: if the file does not hold results.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            summary = content["summary"]
            return cls(
                summary["env"],
                tuple(Episode(**episode) for episode in content["episodes"]),
                summary["seconds_per_action"],
                summary["seconds"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold results of an evaluation: {error}") from error


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error s/√n and Student's 95 % interval, mean ± t s/√n.

    Args:
        values: one per episode. A single one says nothing about its spread: error and interval are None.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> found = mean_and_interval([1.0, 2.0, 3.0])
        >>> [round(end, 3) for end in found["interval"]]
        [-0.484, 4.484]
    """
    count = len(values)
    if count == 0:
        raise ValueError("values is empty")
    mean = math.fsum(values) / count
    if count == 1:
        return {"mean": mean, "error": None, "interval": None}
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    reach = student_quantile(count - 1) * error
    return {"mean": mean, "error": error, "interval": [mean - reach, mean + reach]}


def student_quantile(freedom: int) -> float:
    """Student's t at 97.5 %, to four digits.

    Args:
        freedom: degrees of freedom, at least 1.

    Reference: Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 26.7.5.

    Example:
        >>> round(student_quantile(49), 4)
        2.0096
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, which stays in [0, 1] and has a width even at 0 and 1.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        hits: successes.
        count: trials.

    Raises:
        ValueError: if there are no trials, or more hits than trials.

    Reference: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
        >>> [round(end, 4) for end in wilson(0, 50)]
        [0.0, 0.0713]
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"hits is {hits} of count {count}; a rate needs trials, and no more hits than these")
    rate, square = hits / count, _Z * _Z
    middle = rate + square / (2 * count)
    reach = _Z * math.sqrt(rate * (1 - rate) / count + square / (4 * count * count))
    scale = 1 + square / count
    return max((middle - reach) / scale, 0.0), min((middle + reach) / scale, 1.0)
