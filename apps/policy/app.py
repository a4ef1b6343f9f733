"""What the page's buttons do: watch an episode, compare numbers of calls, take over with the mouse."""

import html
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar
from weakref import WeakSet

import gradio as gr
import numpy as np

from fewstep.policy.live import LiveEpisode
from fewstep.policy.rollouts import side_by_side
from fewstep.policy.video import write_film

from .demonstrations import Demonstrations
from .markup import Shown, calls_text, facts, picture, row, table
from .models import Models, Offered
from .takeover import Session, encoded

MAX_SEED = 2**31 - 1
MAX_STEPS = 1000
SIDES = (256, 384, 512)
MAX_COMPARED = 4
MAX_SESSIONS = 16
# Browsers show no more, and a long episode should not wait for its pictures.
_SECONDS_BETWEEN_PICTURES = 0.06

Item = TypeVar("Item")


@dataclass(frozen=True)
class App:
    """The actions of the page.

    Args:
        models: that are offered.
        results: a folder of this process, where films to be downloaded are put.
        sessions: of those who take over.
    """

    models: Models
    results: Path
    sessions: WeakSet[Session] = field(default_factory=WeakSet)

    def watch(
        self, name: str, calls: int, seed: int, side: int, most: int
    ) -> Iterator[tuple[str, dict, str, dict]]:
        """Run an episode.

        Yields:
            The picture of now with a bar; the finished film; a line of facts; the film to be downloaded.
        """
        hidden = gr.update(visible=False, value=None), gr.update(interactive=False, value=None)
        with _one_sentence():
            offered, seed, side, most = self._checked(name, seed, side, most)
            self._clear()
            for now in self._episode(offered, calls, seed, side, most):
                if isinstance(now, str):
                    yield now, hidden[0], "", hidden[1]
                    continue
                film = self._film(f"{offered.spec.name}-seed-{seed}.mp4", now.frames, now.fps)
                yield (
                    "",
                    gr.update(visible=True, value=str(film)),
                    facts(now),
                    gr.update(interactive=True, value=str(film)),
                )

    def compare(
        self, entries: Sequence[str], environment: str, seed: int, most: int
    ) -> Iterator[tuple[str, dict, str, dict]]:
        """Run the same episode with several policies or numbers of calls.

        Yields:
            The picture of now with a bar; the films side by side; a table; the film to be downloaded.
        """
        hidden = gr.update(visible=False, value=None), gr.update(interactive=False, value=None)
        with _one_sentence():
            chosen = [self._entry(entry, environment) for entry in entries or ()]
            if not 1 <= len(chosen) <= MAX_COMPARED:
                raise ValueError(f"Choose one to {MAX_COMPARED} to compare.")
            self._clear()
            shown, rows = [], []
            for offered, calls in chosen:
                _, seed, side, most = self._checked(offered.name, seed, SIDES[0], most)
                for now in self._episode(offered, calls, seed, side, most):
                    if isinstance(now, str):
                        yield now, hidden[0], table(rows), hidden[1]
                    else:
                        shown.append(now)
                        rows.append(row(offered, calls, now))
            captions = [
                f"{offered.name}: {calls_text(calls)}, {now.episode.score:.2f}"
                for (offered, calls), now in zip(chosen, shown, strict=True)
            ]
            frames = side_by_side([now.frames for now in shown], captions)
            film = self._film(f"{environment}-seed-{seed}-compared.mp4", frames, shown[0].fps)
            done = gr.update(visible=True, value=str(film)), gr.update(interactive=True, value=str(film))
            yield "", done[0], table(rows), done[1]

    def begin(self, before: Session | None, name: str, calls: int, seed: int) -> tuple[Session, str, str]:
        """Start an episode in which the visitor may take over.

        Returns:
            The visitor's session, its picture, a line of facts.
        """
        with _one_sentence():
            offered, seed, _, _ = self._checked(name, seed, SIDES[0], MAX_STEPS)
            if offered.spec.picture_span is None:
                raise ValueError("Only where actions are positions in the picture can the mouse act.")
            if before is not None:
                self.leave(before)
            if sum(not other.closed for other in self.sessions) >= MAX_SESSIONS:
                raise ValueError(f"{MAX_SESSIONS} visitors are at it already; try again later.")
            session = Session(offered, self.models.policy(name, int(calls)), seed)
            self.sessions.add(session)
            return session, picture(session.film[-1]), session.facts()

    def tick(self, session: Session | None, held: str, policy_goes_on: bool) -> tuple[Any, Any, Any]:
        """Go on by one action; the same picture when nothing happens.

        Returns:
            The picture, a line of facts, whether the clock goes on.
        """
        if session is None or not session.running:
            return gr.skip(), gr.skip(), gr.Timer(active=False)
        with _one_sentence():
            if not session.step(held, policy_goes_on):
                return gr.skip(), gr.skip(), gr.skip()
        return picture(session.film[-1]), session.facts(), gr.Timer(active=session.running)

    def film(self, session: Session | None) -> dict:
        """The visitor's episode so far as a film."""
        with _one_sentence():
            if session is None:
                raise ValueError("Begin an episode first.")
            name = f"{session.spec.name}-seed-{session.seed}-by-hand.mp4"
            film = self._film(name, session.frames(), session.spec.fps, session.own_folder)
        return gr.update(interactive=True, value=str(film))

    def keep(self, session: Session | None, kept: Demonstrations) -> tuple[Demonstrations, dict]:
        """Keep the visitor's episode as a demonstration.

        Returns:
            All that are kept; a zip of them to be downloaded.
        """
        with _one_sentence():
            if session is None:
                raise ValueError("Begin an episode first.")
            kept.keep(session)
            file = kept.archive(self.results / session.own_folder / f"{session.spec.name}-demonstrations.zip")
        episodes = "1 demonstration" if len(kept) == 1 else f"{len(kept)} demonstrations"
        return kept, gr.update(interactive=True, value=str(file), label=f"Download {episodes}")

    def compared(self, environment: str) -> list[str]:
        """What can be compared in an environment: names with numbers of calls."""
        offered = [self.models[name] for name in self.models.names(environment)]
        return [f"{one.name}: {calls_text(calls)}" for one in offered for calls in one.calls]

    def leave(self, session: Session) -> None:
        """End a visitor's episode; what was made of it goes away."""
        session.close()
        shutil.rmtree(self.results / session.own_folder, ignore_errors=True)

    def _entry(self, entry: str, environment: str) -> tuple[Offered, int]:
        for name in self.models.names(environment):
            for calls in self.models[name].calls:
                if entry == f"{name}: {calls_text(calls)}":
                    return self.models[name], calls
        raise ValueError("Choose what is offered.")

    def _episode(
        self, offered: Offered, calls: int, seed: int, side: int, most: int
    ) -> Iterator[str | Shown]:
        """Pictures while it runs, then the whole."""
        policy = self.models.policy(offered.name, int(calls))
        limit = min(most, offered.spec.max_steps)

        def run() -> Iterator[str | Shown]:
            frames, last = [], 0.0
            with LiveEpisode(policy, offered.spec, seed, side) as live:
                for frame in live.frames(limit):
                    frames.append(frame)
                    if time.monotonic() - last > _SECONDS_BETWEEN_PICTURES:
                        last = time.monotonic()
                        line = f"{offered.name}, {calls_text(calls)}: step {live.steps} of {limit}"
                        yield picture(encoded(frame), line, live.steps / limit)
                yield Shown(np.stack(frames), live.episode(), live.seconds_per_action, offered.spec.fps)

        # A renderer of MuJoCo belongs to the thread that made it, and gradio changes threads.
        return _in_one_thread(run)

    def _checked(self, name: str, seed: Any, side: Any, most: Any) -> tuple[Offered, int, int, int]:
        """What came from the browser, which may send anything."""
        limits = {"seed": (seed, 0, MAX_SEED), "steps": (most, 1, MAX_STEPS)}
        for what, (value, low, high) in limits.items():
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
            if not whole or not low <= value <= high:
                raise ValueError(f"The {what} must be a whole number from {low} to {high}.")
        if side not in SIDES:
            raise ValueError(f"The side must be one of {', '.join(map(str, SIDES))}.")
        return self.models[name], int(seed), int(side), int(most)

    def _clear(self) -> None:
        """One run at a time: what the last one left has been handed out."""
        shutil.rmtree(self.results / "run", ignore_errors=True)

    def _film(self, name: str, frames: np.ndarray, fps: float, kind: str = "run") -> Path:
        folder = self.results / kind
        folder.mkdir(parents=True, exist_ok=True)
        return write_film(folder / name, frames, fps)


def _in_one_thread(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """What an iterator gives, all of it made in one thread, whichever threads ask for it."""
    passed: Queue[tuple[str, Any]] = Queue(maxsize=4)
    left = threading.Event()

    def work() -> None:
        try:
            for item in make():
                passed.put(("item", item))
                if left.is_set():
                    return
            passed.put(("end", None))
        except Exception as error:
            passed.put(("error", error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while (given := passed.get())[0] == "item":
            yield given[1]
        if given[0] == "error":
            raise given[1]
    finally:
        left.set()
        # Room for the one item that the thread may wait to hand over.
        while not passed.empty():
            passed.get_nowait()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what a user can do something about into a message on the page."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        # The message is shown as HTML.
        message = html.escape(str(error)) or "There is not enough memory."
        raise gr.Error(message, print_exception=False) from error
