"""Episodes as pictures: one is run for watching, with the action chunk that the policy planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.evaluation import Acting, Slot, ask
from fewstep.policy.results import Episode

_STEM = (200, 30, 40)
_TIP = (255, 190, 60)
_BAND = 28


@runtime_checkable
class Planning(Protocol):
    """A policy that can show what it plans, beside what `Acting` asks for."""

    def plan(self, index: int) -> np.ndarray | None:
        """The planned actions of a slot, the one just given first.

        Args:
            index: the slot.

        Returns:
            (steps, action_dim) in the environment's units, or None when there is no plan.
        """
        ...


@dataclass(frozen=True)
class Rollout:
    """An episode that was watched.

    Attributes:
        frames: (steps + 1, height, width, 3) uint8; a frame shows the plan made in it.
        episode: its numbers, the same as `evaluate` finds for its seed.
        fps: control steps per second.
    """

    frames: UInt8[np.ndarray, "time height width 3"]
    episode: Episode
    fps: float


def roll_out(
    policy: Acting, env: EnvSpec, seed: int, picture_side: int = 384, max_steps: int | None = None
) -> Rollout:
    """Run one episode and keep its pictures.

    Where actions are positions in the picture (Push-T), the plan of a policy that has `plan` is drawn as a
    line that grows lighter with time.

    Args:
        policy: what acts; slot 0 is used.
        env: the environment.
        seed: of the episode.
        picture_side: in pixels.
        max_steps: to look at, if fewer than the episode has.

    Raises:
        ValueError: if the seed is negative or the policy's actions have the wrong shape.
        ImportError: if a package of the extra [envs] is not installed.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    slot = Slot(env, picture_side)
    try:
        slot.begin(0, seed)
        policy.reset([0], [seed])
        frames = []
        while slot.running and slot.problem is None and len(frames) != max_steps:
            action = ask(policy, [slot], [0])[0]
            frames.append(_with_plan(_picture(slot), policy, env))
            slot.advance(action)
        frames.append(_picture(slot))
    finally:
        slot.env.close()
    return Rollout(np.stack(frames), slot.episode(), env.fps)


def draw_chunk(
    frame: UInt8[np.ndarray, "height width 3"], chunk: np.ndarray, span: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw planned positions onto a picture, from dark red, now, to yellow, last.

    Args:
        frame: the picture, which is left as it is.
        chunk: (steps, 2): x to the right and y downwards, from the picture's corner.
        span: the picture's side in the chunk's units.

    Raises:
        ValueError: if the chunk is not (steps, 2) finite numbers.
    """
    from PIL import Image, ImageDraw

    chunk = np.asarray(chunk, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != 2 or not np.isfinite(chunk).all():
        raise ValueError(f"chunk must be (steps, 2) finite numbers; its shape is {chunk.shape}")
    height, width = frame.shape[:2]
    # Coordinates far outside would only make the drawing slow.
    points = np.clip(chunk / span, -1.0, 2.0) * (width, height)
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    thick = max(1, round(width / 160))
    colours = [_between(i / max(len(points) - 1, 1)) for i in range(len(points))]
    for i in range(len(points) - 1):
        pen.line([*points[i], *points[i + 1]], fill=colours[i], width=thick)
    for (x, y), colour in zip(points, colours, strict=True):
        pen.ellipse([x - thick, y - thick, x + thick, y + thick], fill=colour)
    return np.asarray(image)


def caption(
    frames: UInt8[np.ndarray, "time height width 3"], text: str
) -> UInt8[np.ndarray, "time taller width 3"]:
    """Put a white band with a line of text above every frame.

    Args:
        frames: the pictures.
        text: one line; what does not fit is cut off.
    """
    from PIL import Image, ImageDraw, ImageFont

    band = Image.new("RGB", (frames.shape[2], _BAND), "white")
    font = ImageFont.load_default(size=15)
    ImageDraw.Draw(band).text((8, 5), text, fill=(20, 20, 20), font=font)
    top = np.broadcast_to(np.asarray(band), (len(frames), _BAND, frames.shape[2], 3))
    return np.concatenate([top, frames], axis=1)


def side_by_side(
    films: Sequence[np.ndarray], captions: Sequence[str], columns: int | None = None
) -> UInt8[np.ndarray, "time height width 3"]:
    """Several films in one, each under its caption; a shorter one holds its last frame.

    Args:
        films: (time, height, width, 3) uint8 each, of one size.
        captions: one each.
        columns: films in a row; by default all.

    Raises:
        ValueError: if there are no films, their sizes differ, or the captions are not one each.
    """
    if not films or len(films) != len(captions):
        raise ValueError(f"there are {len(films)} films and {len(captions)} captions; give one for each")
    if len({film.shape[1:] for film in films}) > 1:
        raise ValueError(f"the films' sizes differ: {[film.shape[1:] for film in films]}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    longest = max(len(film) for film in films)
    tiles = [caption(_held(film, longest), text) for film, text in zip(films, captions, strict=True)]
    across = columns or len(tiles)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % across)
    rows = [np.concatenate(tiles[i : i + across], axis=2) for i in range(0, len(tiles), across)]
    return np.concatenate(rows, axis=1)


def _picture(slot: Slot) -> np.ndarray:
    return np.array(slot.env.render(), dtype=np.uint8)


def _with_plan(frame: np.ndarray, policy: Acting, env: EnvSpec) -> np.ndarray:
    if env.picture_span is None or not isinstance(policy, Planning):
        return frame
    chunk = policy.plan(0)
    return frame if chunk is None else draw_chunk(frame, chunk, env.picture_span)


def _held(film: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([film, np.repeat(film[-1:], length - len(film), axis=0)])


def _between(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_STEM, _TIP, strict=True))
    return red, green, blue
