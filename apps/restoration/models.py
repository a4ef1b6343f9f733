"""The models that the page offers: one for each task that ships, loaded when it is first used."""

from threading import Lock

from fewstep.restoration import Restorer
from fewstep.restoration.catalogue import shipped_models
from fewstep.restoration.tasks import TASKS


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
        return [(TASKS[task].summary.capitalize(), task) for task in self.names]

    def __getitem__(self, task: str) -> Restorer:
        name = self.names[task]
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Restorer.from_pretrained(name, device=self.device)
            return self._loaded[name]
