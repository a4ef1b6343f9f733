"""Films into files: mp4, animated WebP and GIF, and strips of single pictures for pages."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fewstep.core.files import atomic_path
from fewstep.policy.envs.spec import needed

# In the order of preference: H.264 plays everywhere, AV1 in browsers, MPEG-4 in most players.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "20", "preset": "fast"},
    "libopenh264": {},
    "libsvtav1": {"crf": "30", "preset": "8"},
    "libaom-av1": {"crf": "30", "cpu-used": "6"},
    "mpeg4": {"qscale": "4"},
}


def film_writer(path: str | os.PathLike[str]) -> Callable[[Path, np.ndarray, float], None]:
    """What writes films of a file's suffix.

    Args:
        path: of the film.

    Raises:
        ValueError: there is no such format.
    """
    writers: dict[str, Callable[[Path, np.ndarray, float], None]] = {
        ".mp4": _write_mp4,
        ".webp": _write_animation,
        ".gif": _write_animation,
        ".png": _write_strip,
    }
    suffix = Path(path).suffix
    if suffix.lower() not in writers:
        raise ValueError(f"{Path(path).name} ends in {suffix!r}; films are {', '.join(writers)}")
    return writers[suffix.lower()]


def write_film(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> Path:
    """Write a film in the format of the file's suffix, or nothing at all.

    Args:
        path: ending in .mp4, .webp, .gif (animated), or .png (a strip of six frames). Its folder must exist.
        frames: (time, height, width, 3) uint8.
        fps: frames per second.

    Returns:
        The path.

    Raises:
        ValueError: if the suffix, the frames or the rate is none of these.
        ImportError: if mp4 is asked for and PyAV is not installed.
    """
    path, write = Path(path), film_writer(path)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            f"frames is {frames.dtype} {frames.shape}; it must be (time, height, width, 3) uint8, not empty"
        )
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must lie in (0, 1000]")
    with atomic_path(path) as unfinished:
        write(unfinished, frames, fps)
    return path


def strip(
    frames: UInt8[np.ndarray, "time height width 3"], count: int = 6, gap: int = 4
) -> UInt8[np.ndarray, "height wide 3"]:
    """Frames at equal distances, the first and the last among them, in a row.

    Args:
        frames: the film.
        count: of pictures; fewer when the film is shorter.
        gap: white pixels between them.

    Raises:
        ValueError: if count is not positive.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    space = np.full((frames.shape[1], gap, 3), 255, np.uint8)
    parts = [part for i in chosen for part in (frames[i], space)]
    return np.concatenate(parts[:-1], axis=1)


def encoder() -> str:
    """The first video encoder of this PyAV that players understand.

    Raises:
        ImportError: if PyAV is not installed.
        RuntimeError: if it has none.
    """
    av = needed("av")
    for name in _ENCODERS:
        if name in av.codecs_available:
            return name
    raise RuntimeError(f"this PyAV has none of the encoders {', '.join(_ENCODERS)}")


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    av = needed("av")
    name = encoder()
    # Halved colour needs even sides.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), "edge")
    # The index goes to the front so that a browser starts before it has everything.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            name, rate=Fraction(fps).limit_denominator(1000), options=_ENCODERS[name]
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _write_animation(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    # Players slow animations of more than fifty frames a second down.
    every = math.ceil(fps / 50)
    pictures = [Image.fromarray(frame) for frame in frames[::every]]
    settings: dict[str, Any] = {"quality": 80, "method": 4} if path.suffix.lower() == ".webp" else {}
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * every / fps),
        loop=0,
        **settings,
    )


def _write_strip(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    Image.fromarray(strip(frames)).save(path)
