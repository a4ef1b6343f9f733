"""The models that the page offers: one for each task that ships, loaded when it is first used."""

from dataclasses import dataclass
from threading import Lock

from fewstep.restoration import Restorer
from fewstep.restoration.catalogue import shipped_models
from fewstep.restoration.tasks import TASKS

TITLES = {
    "super-resolution": "Enlarge",
    "denoise": "Remove noise",
    "derain": "Remove rain",
    "low-light": "Brighten",
    "jpeg": "Remove JPEG artefacts",
    "inpaint": "Fill what you paint",
    "compressed-sensing": "Rebuild from measurements",
}
# What a summary does not say and somebody at the page has to know.
HINTS = {
    "compressed-sensing": "The page measures the photograph and rebuilds it from the measurements alone; "
    "“before” is the photograph itself."
}


@dataclass(frozen=True)
class Abilities:
    """What can be set for a model.

    Args:
        modes: "faithful", "detailed" or both; the first is the usual one.
        steps: published network calls of a sample, of which more would not improve on it.
        fewer: fewer can be asked for.
        draws: samples with different seeds differ.
        mask: it fills what is painted.
        level: it can be told how noisy a photograph is.
        needs_level: and has to be.
    """

    modes: tuple[str, ...]
    steps: int
    fewer: bool
    draws: bool
    mask: bool
    level: bool
    needs_level: bool

    @classmethod
    def of(cls, restorer: Restorer) -> "Abilities":
        """Ask a model."""
        model = restorer.model
        steps = model.steps_of("sample") if "detailed" in restorer.modes else 1
        fewer = steps > 1
        if fewer:
            try:
                model.steps_of("sample", 1)
            except ValueError:
                fewer = False
        told = "mask" in model.takes, "level" in model.takes
        return cls(restorer.modes, steps, fewer, model.draws, *told, model.needs_level)


class Models:
    """Tasks and their models.

    Args:
        device: "auto", "cpu", "cuda" …
        only: a checkpoint name, folder or Hub id that is used for all its tasks; None: what ships.

    Raises:
        ValueError: the model or the device is not there.
    """

    def __init__(self, device: str = "auto", only: str | None = None) -> None:
        self.device = device
        self._lock = Lock()
        self._loaded: dict[str, Restorer] = {}
        self.names: dict[str, str]
        if only is None:
            found = {model.name for model in shipped_models()}
            self.names = {task: about.model for task, about in TASKS.items() if about.model in found}
        else:
            restorer = Restorer.from_pretrained(only, device=device)
            self.names = dict.fromkeys(restorer.model.tasks or ("super-resolution",), only)
            self._loaded[only] = restorer
        # The device is tried now, and not when somebody presses a button.
        self[next(iter(self.names))]

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """What the page offers: (what is read, name)."""
        return [(TITLES[task], task) for task in self.names]

    def about(self, task: str) -> str:
        """What a task does, and by which model, in a sentence or two."""
        summary = TASKS[task].summary
        words = f"{summary[0].upper()}{summary[1:]}. {HINTS.get(task, '')}".strip()
        return f"{words} Model: {self.names[task]}."

    def __getitem__(self, task: str) -> Restorer:
        name = self.names[task]
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Restorer.from_pretrained(name, device=self.device)
            return self._loaded[name]
