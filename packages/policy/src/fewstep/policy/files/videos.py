"""Frames of a video file by their times, and writing such a file."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from fewstep.policy.episodes import DataError


def read_frames(
    path: Path, times: Float[np.ndarray, " frames"], fps: float, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "frames height width channels"]:
    """Decode the frames that are shown at these times.

    Args:
        path: of the video.
        times: in seconds, increasing; each is met by the frame nearest to it, at most half a period away.
        fps: frames per second.
        shape: (height, width, channels) that the frames must have.

    Returns:
        The frames, RGB or grey.

    Raises:
        DataError: the video is damaged, shorter than the times, or has another size.
    """
    frames = np.empty((len(times), *shape), np.uint8)
    found = np.full(len(times), np.inf)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream")
            stream = container.streams.video[0]
            for moment, frame in _from(container, stream, float(times[0]) - 0.5 / fps, path):
                if moment > times[-1] + 0.5 / fps:
                    break
                # Times increase: those that this frame may serve are neighbours.
                near = np.arange(*np.searchsorted(times, [moment - 0.5 / fps, moment + 0.5 / fps]))
                better = near[np.abs(times[near] - moment) < found[near]]
                if len(better):
                    frames[better] = _pixels(path, frame, shape)
                    found[better] = np.abs(times[better] - moment)
    except av.FFmpegError as error:
        raise DataError(f"{path} is damaged or no video ({error})") from error
    missing = np.flatnonzero(np.isinf(found))
    if len(missing):
        raise DataError(
            f"{path} has no frame at {times[missing[0]]:.3f} s; {len(missing)} of {len(times)} are missing"
        )
    return frames


class VideoWriter:
    """Writes frames to an mp4 file as they come, seekable in steps of two frames.

    Args:
        path: of the file, ending in .mp4.
        fps: frames per second.
        height: of the frames, even.
        width: of the frames, even.
        codec: "libsvtav1" (AV1, what LeRobot writes) or "libx264".

    Attributes:
        count: of the frames so far.
        size: in bytes so far, without frames that the encoder still holds.

    Raises:
        ValueError: a size is odd, which these codecs cannot store.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int, codec: str = "libsvtav1") -> None:
        if height % 2 or width % 2:
            raise ValueError(f"height and width of a video must be even, got {height} and {width}")
        self.count, self.size = 0, 0
        # The AV1 encoder prints its settings to the terminal otherwise, and only the environment stops it.
        os.environ.setdefault("SVT_LOG", "1")
        self._container = av.open(str(path), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = cast(
            VideoStream, self._container.add_stream(codec, rate=rate, options={"g": "2", "crf": "30"})
        )
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def write(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        """Add a frame, RGB."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._add(self._stream.encode(picture))
        self.count += 1

    def close(self) -> None:
        """Finish the file; without this it cannot be read."""
        self._add(self._stream.encode(None))
        self._container.close()

    def _add(self, packets: list[av.Packet]) -> None:
        self._container.mux(packets)
        self.size += sum(packet.size for packet in packets)


def _from(
    container: InputContainer, stream: VideoStream, start: float, path: Path
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames from the last key frame before the start on, with their times in seconds."""
    if start > 1 and stream.time_base is not None:
        container.seek(int(start / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.time is None:
            raise DataError(f"{path} has frames without a time")
        yield frame.time, frame


def _pixels(path: Path, frame: av.VideoFrame, shape: tuple[int, int, int]) -> np.ndarray:
    height, width, channels = shape
    if (frame.height, frame.width) != (height, width):
        raise DataError(
            f"{path} has frames of {frame.height} × {frame.width}, meta/info.json says {height} × {width}"
        )
    if channels == 3:
        return frame.to_ndarray(format="rgb24")
    if channels == 1:
        return frame.to_ndarray(format="gray")[..., None]
    raise DataError(f"pictures of {path} must have 1 or 3 channels, got {channels}")
