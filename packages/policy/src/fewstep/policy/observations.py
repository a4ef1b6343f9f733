"""Observations: named arrays, whatever a robot, a data set or an environment calls them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .names import from_lerobot_name, is_image

VECTORS = ("state", "environment_state")
Observation = Mapping[str, np.ndarray | Tensor] | np.ndarray | Tensor


def check_observation(name: str, shape: Sequence[int]) -> None:
    """Refuse a name or a shape that no observation has.

    Raises:
        ValueError: an unknown name, or a shape that is not (D,), (C, H, W) for images, (N, C) for points.
    """
    ranks = 3 if is_image(name) else {"points": 2, **dict.fromkeys(VECTORS, 1)}.get(name)
    if ranks is None:
        known = ", ".join((*VECTORS, "points", "image", "image.<camera>"))
        raise ValueError(f"observations must be named {known}; got {name!r}")
    if len(shape) != ranks or min(shape) < 1:
        kind = {1: "(D,)", 2: "(N, C)", 3: "(C, H, W)"}[ranks]
        raise ValueError(f"{name!r} must have a shape {kind}, got {shape}")


def read_observation(
    observation: Observation,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Take the observations of one control step as tensors (batch, *shape).

    Images may be uint8 (height, width, channels) or floats in [0, 1], channels first or last. A bare array is
    "state".

    Args:
        observation: by our names or LeRobot's; further entries are ignored.
        shapes: of one step by our names, what is expected.
        batch: how many there are in the arrays; None: one, without a leading axis.
        device: of the tensors.
        dtype: of the tensors.

    Returns:
        One tensor per name of `shapes`.

    Raises:
        ValueError: an observation is absent or has another shape.
    """
    if not isinstance(observation, Mapping):
        if "state" not in shapes:
            raise ValueError(f"observation must be a mapping with {', '.join(shapes)}, got a bare array")
        observation = {"state": observation}
    given = {from_lerobot_name(name): value for name, value in observation.items()}
    absent = [name for name in shapes if name not in given]
    if absent:
        raise ValueError(f"observation has no {', '.join(map(repr, absent))}; it has {', '.join(given)}")
    read = {}
    for name, shape in shapes.items():
        value = torch.as_tensor(given[name], device=device)
        value = value if batch is not None else value[None]
        if is_image(name):
            value = _image(value, shape)
        wanted = (1 if batch is None else batch, *shape)
        if tuple(value.shape) != wanted:
            offered = tuple(value.shape[1:]) if batch is None else tuple(value.shape)
            expected = shape if batch is None else wanted
            raise ValueError(f"observation {name!r} must have the shape {expected}, got {offered}")
        read[name] = value.to(dtype)
    return read


def not_finite(observation: Mapping[str, Tensor]) -> list[str]:
    """Names of those observations that hold NaN or an infinite number."""
    return [name for name, value in observation.items() if not bool(torch.isfinite(value).all())]


def _image(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Channels first, in [0, 1]."""
    shape = tuple(shape)
    if tuple(value.shape[-3:]) != shape and tuple(value.shape[-3:]) == (*shape[1:], shape[0]):
        value = value.movedim(-1, -3)
    return value.float() / 255 if value.dtype == torch.uint8 else value
