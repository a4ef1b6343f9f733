"""Progress on standard error: a bar on a terminal, silence elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Progress over files, and within the present file.

    Args:
        total: number of files.
        verb: what is done to them, such as "restore".
    """

    def __init__(self, total: int, verb: str) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # A bar over files moves by fractions of a file, but counts whole ones.
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._task = self._progress.add_task(verb, total=total)
        self._done = 0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, name: str) -> None:
        """Say which file is being worked on."""
        self._progress.update(self._task, description=escape(name))

    def tick(self, fraction: float) -> None:
        """Say how much of the present file is done, in [0, 1]."""
        self._progress.update(self._task, completed=self._done + min(max(fraction, 0.0), 1.0))

    def finish(self, line: str) -> None:
        """Count the present file and leave a line about it (on a terminal)."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        if self._console.is_terminal:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
