"""Statistics of demonstrations, and the affine scaling that follows from them."""

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from fewstep.policy.names import is_image

Mode = Literal["limits", "gaussian", "min_max", "mean_std", "unit", "identity"]
Statistics = Mapping[str, Any]
STATISTICS = ("min", "max", "mean", "std")
_CONSTANT = 1e-4
_LEROBOT_EPS = 1e-8
_NEEDED = {
    "limits": {"min", "max"},
    "min_max": {"min", "max"},
    "gaussian": {"mean", "std"},
    "mean_std": {"mean", "std"},
}


def statistics_of(name: str, array: np.ndarray | Tensor) -> dict[str, Tensor]:
    """Minimum, maximum, mean and unbiased standard deviation over all steps, in float64.

    Args:
        name: of the array; images have their channels last and are divided by 255 if they are bytes.
        array: (steps, …, D).

    Returns:
        By name (D,), of images (C, 1, 1); the deviation of a single value is 0.

    Raises:
        ValueError: the array is empty or holds NaN or infinity.
    """
    values = torch.as_tensor(np.asarray(array) if not isinstance(array, Tensor) else array)
    if values.ndim == 1:
        values = values[:, None]
    if values.numel() == 0:
        raise ValueError(f"array {name!r} must hold values to fit to, got shape {tuple(values.shape)}")
    rows = values.reshape(-1, values.shape[-1])
    total, squares = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    low, high = rows[0].double(), rows[0].double()
    # Blocks keep the float64 copy of a large set of images small; the first row is taken off the sums
    # because the squares of large values with a small spread would cancel.
    first = rows[0].double()
    for block in rows.split(1 << 20):
        block = block.double()
        low, high = torch.minimum(low, block.amin(0)), torch.maximum(high, block.amax(0))
        total, squares = total + (block - first).sum(0), squares + (block - first).square().sum(0)
    count = len(rows)
    variance = (squares - total.square() / count).clamp(min=0) / max(count - 1, 1)
    found = {"min": low, "max": high, "mean": first + total / count, "std": variance.sqrt()}
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise ValueError(f"array {name!r} must be finite")
    if is_image(name):
        unit = 255.0 if values.dtype == torch.uint8 else 1.0
        found = {key: (value / unit)[:, None, None] for key, value in found.items()}
    return found


def scale_and_offset(mode: Mode, found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and offset of a mode, whose formulas `Normalizer` states, from checked statistics."""
    if mode in ("unit", "identity"):
        twice = mode == "unit"
        return torch.tensor([2.0 if twice else 1.0]), torch.tensor([-1.0 if twice else 0.0])
    if mode in ("gaussian", "mean_std"):
        std = found["std"]
        tiny = std < _CONSTANT if mode == "gaussian" else std == 0
        scale = 1 / torch.where(tiny, 1.0, std if mode == "gaussian" else std + _LEROBOT_EPS)
        return scale, -found["mean"] * scale
    width = found["max"] - found["min"]
    tiny = width < _CONSTANT if mode == "limits" else width == 0
    # LeRobot divides a constant dimension by 1e-8, which float32 cannot follow; a width of 2 gives the same
    # value, -1, wherever the data are.
    scale = 2 / torch.where(tiny, 2.0, width)
    centre = torch.where(tiny, 0.0 if mode == "limits" else -1.0, -1.0)
    return scale, centre - scale * found["min"]


def checked_modes(modes: Mapping[str, str]) -> dict[str, Mode]:
    """Return modes by name.

    Raises:
        ValueError: there is no such mode, or a name cannot be kept.
    """
    for name, mode in modes.items():
        if mode not in get_args(Mode):
            raise ValueError(f"modes[{name!r}] must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if "/" in name:
            raise ValueError(f"a name must not hold a slash, got {name!r}")
    return cast(dict[str, Mode], dict(modes))


def checked_statistics(name: str, mode: Mode, statistics: Statistics) -> dict[str, Tensor]:
    """Return the given statistics in float64.

    Raises:
        ValueError: one that the mode needs is absent, not finite, of another shape or contradicts another.
    """
    if mode == "unit":
        # A uniform distribution on [0, 1], as the published image normaliser states it.
        uniform = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 12**-0.5}
        return {key: torch.tensor([value], dtype=torch.float64) for key, value in uniform.items()}
    if mode == "identity":
        return {}
    needed = _NEEDED[mode]
    if not needed <= set(statistics):
        raise ValueError(f"mode {mode!r} of {name!r} needs {sorted(needed)}, got {sorted(statistics)}")
    found = {
        key: torch.as_tensor(statistics[key], dtype=torch.float64, device="cpu")
        for key in STATISTICS
        if key in statistics
    }
    shapes = {tuple(value.shape) for value in found.values()}
    if len(shapes) != 1 or not next(iter(shapes)):
        raise ValueError(f"the statistics of {name!r} must have one shape, (D,) or (C, 1, 1), got {shapes}")
    for key in needed:
        if not bool(found[key].isfinite().all()):
            raise ValueError(f"statistic {key!r} of {name!r} must be finite, got {found[key].flatten()}")
    if "max" in needed and bool((found["max"] < found["min"]).any()):
        raise ValueError(f"the maximum of {name!r} must not be below its minimum")
    if "std" in needed and bool((found["std"] < 0).any()):
        raise ValueError(f"the standard deviation of {name!r} must not be negative")
    return found
