"""The state file of `tune`: what has been measured so far, so that an interrupted search goes on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.files import atomic_path
from fewstep.core.search.evolution import Progress, Scored
from fewstep.core.search.unified import Steps
from fewstep.core.solvers.unified import StepChoice

FORMAT = "fewstep-tune-1"


@dataclass
class State:
    """What a search knows.

    Args:
        key: what the scores depend on; a file with another key is refused.
        file: where it is kept; None: nowhere.
        untuned: cheap scores of untuned plans, by solver and grid.
        progress: of the evolution.
        chosen: scores of the finalists on the start noises of the choice, by a hash of the plan.
        report: scores on the start noises of the report, likewise.
    """

    key: dict[str, Any]
    file: Path | None = None
    untuned: dict[str, float] = field(default_factory=dict)
    progress: Progress[Steps] | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    report: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def open(key: dict[str, Any], file: Path | None) -> "State":
        """The state in a file, or a new one where there is no file.

        Raises:
            ValueError: if the file is no such state or belongs to another search.
        """
        if file is None or not file.is_file():
            return State(key, file)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            progress = _progress(content["progress"])
            scores = (dict(content["chosen"]), dict(content["report"]))
            found = State(content["key"], file, dict(content["untuned"]), progress, *scores)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not the state of a search: {error}") from error
        wanted = json.loads(json.dumps(key))
        for name, value in wanted.items():
            if found.key.get(name) != value:
                raise ValueError(
                    f"{file} belongs to a search with {name} = {found.key.get(name)!r}, not {value!r}; "
                    "remove it or name another file"
                )
        return found

    def save(self) -> None:
        """Write the file at one stroke, if there is to be one."""
        if self.file is None:
            return
        progress = None
        if self.progress is not None:
            best = [[one.score, [asdict(choice) for choice in one.genome]] for one in self.progress.best]
            progress = {**asdict(self.progress), "best": best}
        scores = {"untuned": self.untuned, "chosen": self.chosen, "report": self.report}
        content = {"format": FORMAT, "key": self.key, "progress": progress, **scores}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _progress(saved: dict[str, Any] | None) -> Progress[Steps] | None:
    if saved is None:
        return None
    best = tuple(Scored(score, tuple(map(_choice, genome))) for score, genome in saved["best"])
    return Progress(saved["generation"], best, saved["tried"], tuple(saved["history"]))


def _choice(saved: dict[str, Any]) -> StepChoice:
    prediction = saved["prediction"]
    return StepChoice(
        **{**saved, "prediction": prediction if isinstance(prediction, str) else tuple(prediction)}
    )
