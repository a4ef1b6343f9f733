"""What the page shows: a picture, a line of facts, a table."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.policy.results import Episode

from .models import Offered

COLUMNS = ("policy", "calls", "score", "solved", "steps", "ms per action", "Hz")


@dataclass(frozen=True)
class Shown:
    """An episode that was watched to its end."""

    frames: np.ndarray
    episode: Episode
    seconds_per_action: float
    fps: float


def picture(encoded_frame: bytes, line: str = "", share: float | None = None) -> str:
    """A picture as markup that needs no file, with a bar under it.

    Args:
        encoded_frame: JPEG.
        line: under the picture.
        share: of the bar.
    """
    data = base64.b64encode(encoded_frame).decode()
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    text = f"<span>{html.escape(line)}</span>" if line else ""
    return f'<img draggable="false" alt="the environment now" src="data:image/jpeg;base64,{data}">{bar}{text}'


def facts(shown: Shown) -> str:
    """One line about an episode."""
    episode = shown.episode
    solved = "" if episode.success is None else (", solved" if episode.success else ", not solved")
    line = f"score **{episode.score:.3f}**{solved}, {episode.length} steps; {_speed(shown)}"
    return f"{line}; {html.escape(episode.problem)}" if episode.problem else line


def _speed(shown: Shown) -> str:
    seconds = shown.seconds_per_action
    return f"{1000 * seconds:.2f} ms per action, {1 / seconds:.0f} Hz" if seconds else "no action"


def row(offered: Offered, calls: int, shown: Shown) -> list[Any]:
    """One line of the table."""
    episode, seconds = shown.episode, shown.seconds_per_action
    solved = {None: "–", True: "yes", False: "no"}[episode.success]
    numbers = [round(1000 * seconds, 2), round(1 / seconds) if seconds else 0]
    return [offered.name, calls, round(episode.score, 3), solved, episode.length, *numbers]


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as markup."""
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    cells = ["".join(f"<td>{html.escape(str(value))}</td>" for value in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def calls_text(number: int) -> str:
    """How many network calls, in words."""
    return "1 call" if number == 1 else f"{number} calls"
