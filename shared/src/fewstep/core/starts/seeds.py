"""Golden seeds: some start noises give better samples than others whatever the prompt; find and keep them."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import torch
from torch import Tensor

from fewstep.core.files import atomic_path

Generate = Callable[[list[int]], Tensor]
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SeedRanking:
    """Scores by seed.

    Attributes:
        scores: by seed; None where the metric was not finite (such a seed is last).
        best: "max" if a high score is good, "min" if a low one is.
        metric: what was measured, for people.
    """

    scores: dict[int, float | None]
    best: str = "max"
    metric: str = ""

    @property
    def seeds(self) -> list[int]:
        """All seeds, the best first; equal scores in increasing order of the seed."""
        sign = -1.0 if self.best == "max" else 1.0
        return sorted(self.scores, key=lambda s: (math.inf if (v := self.scores[s]) is None else sign * v, s))

    def top(self, count: int) -> list[int]:
        """The best `count` seeds, to be passed to `sample` as seed.

        Raises:
            ValueError: if there are not so many finite scores.
        """
        finite = sum(score is not None for score in self.scores.values())
        if not 1 <= count <= finite:
            raise ValueError(f"count must be between 1 and the {finite} seeds with a score, got {count}")
        return self.seeds[:count]

    def save(self, file: str | File) -> None:
        """Write the ranking as JSON, the best seed first."""
        content = {
            "metric": self.metric,
            "best": self.best,
            "scores": [[seed, self.scores[seed]] for seed in self.seeds],
        }
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(file: str | File) -> "SeedRanking":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is something else.
        """
        try:
            content = json.loads(File(file).read_text("utf-8"))
            scores = {int(seed): None if v is None else float(v) for seed, v in content["scores"]}
            return SeedRanking(scores, _sense(content["best"]), str(content["metric"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a seed ranking: {error}") from error


@dataclass(frozen=True)
class SeedMiner:
    """Score seeds by the samples they lead to.

    Args:
        metric: samples (batch, ...) -> scores, shape (batch,), or (batch, k) of which the mean counts.
        best: "max" if a high score is good, "min" if a low one is.
        name: what is measured; kept in the file, and a file of another name is not continued.
        batch: seeds that are generated together.

    Raises:
        ValueError: if best or batch is out of range.

    Example:
        >>> from fewstep.core import paths, sample
        >>> path = paths.EDM()
        >>> ball = lambda x, t: x / (1 + t * t)
        >>> generate = lambda seeds: sample(ball, path, steps=4, shape=(len(seeds), 1, 2, 2), seed=seeds)
        >>> miner = SeedMiner(lambda x: x.flatten(1).norm(dim=1), best="min", name="norm")
        >>> len(miner.rank(range(32), generate).top(4))
        4

    Reference: Xu, Zhang and Shi 2025, "Good Seed Makes a Good Crop".
    """

    metric: Metric
    best: str = "max"
    name: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        _sense(self.best)
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")

    def rank(
        self,
        seeds: Iterable[int],
        generate: Generate,
        file: str | File | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> SeedRanking:
        """Generate from every seed, score and sort.

        Args:
            seeds: to be tried; each once.
            generate: list of seeds -> one sample per seed, with `sample(..., seed=seeds)` say.
            file: JSON that is written after every batch and continued if it is there.
            on_batch: called with (seeds done, seeds in all) after every batch.

        Raises:
            ValueError: if there is no seed, the file belongs to another metric, or scores have a wrong shape.
        """
        wanted = list(dict.fromkeys(int(seed) for seed in seeds))
        if not wanted:
            raise ValueError("seeds must hold at least one seed, got none")
        scores = self._known(file)
        left = [seed for seed in wanted if seed not in scores]
        for i in range(0, len(left), self.batch):
            group = left[i : i + self.batch]
            scores |= self._scored(group, generate(group))
            if file is not None:
                SeedRanking(scores, self.best, self.name).save(file)
            if on_batch is not None:
                on_batch(len(wanted) - len(left) + i + len(group), len(wanted))
        return SeedRanking({seed: scores[seed] for seed in wanted}, self.best, self.name)

    def _known(self, file: str | File | None) -> dict[int, float | None]:
        if file is None or not File(file).is_file():
            return {}
        found = SeedRanking.load(file)
        if (found.metric, found.best) != (self.name, self.best):
            raise ValueError(
                f"{file} ranks by {found.metric!r} ({found.best}), not by {self.name!r} ({self.best})"
            )
        return dict(found.scores)

    def _scored(self, seeds: Sequence[int], samples: Tensor) -> dict[int, float | None]:
        with torch.no_grad():
            scores = self.metric(samples)
        if scores.ndim not in (1, 2) or scores.shape[0] != len(seeds):
            raise ValueError(
                f"metric must return shape ({len(seeds)},) or ({len(seeds)}, k) here, "
                f"it returned {tuple(scores.shape)}"
            )
        values = (scores if scores.ndim == 1 else scores.mean(1)).double().tolist()
        return {seed: v if math.isfinite(v) else None for seed, v in zip(seeds, values, strict=True)}


def _sense(best: str) -> str:
    if best not in ("max", "min"):
        raise ValueError(f"best must be 'max' or 'min', not {best!r}")
    return best
