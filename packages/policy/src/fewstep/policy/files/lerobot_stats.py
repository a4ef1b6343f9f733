"""Statistics of features as LeRobot data sets store them, per episode and over the whole set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
ENTRIES = ("min", "max", "mean", "std", "count", *QUANTILES)
_FEWEST_SAMPLES, _MOST_SAMPLES, _POWER = 100, 10_000, 0.75
_LARGE, _REDUCED = 300, 150

Stats = dict[str, np.ndarray]


def stats_of_numbers(values: np.ndarray) -> Stats:
    """Statistics over the steps of (steps, …): min, max, mean, std (population), count and quantiles.

    Returns:
        By name, each of the shape of one step, at least (1,); minimum and maximum keep the type of the
        values, "count" is (1,).
    """
    values = values[:, None] if values.ndim == 1 else values
    exact = values.astype(np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    if values.dtype.kind == "f":
        low, high = low.astype(np.float64), high.astype(np.float64)
    elif values.dtype.kind in "iu":
        low, high = low.astype(np.int64), high.astype(np.int64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": low,
        "max": high,
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def stats_of_images(frames: UInt8[np.ndarray, "steps height width 3"]) -> Stats:
    """Statistics per channel in [0, 1], (3, 1, 1), from some frames and pixels as LeRobot samples them."""
    sampled = frames[sampled_steps(len(frames))]
    height, width = sampled.shape[1:3]
    if max(height, width) >= _LARGE:
        stride = max(1, max(height, width) // _REDUCED)
        sampled = sampled[:, ::stride, ::stride]
    stats = stats_of_numbers(sampled.reshape(-1, sampled.shape[-1]))
    count = np.array([len(sampled)])
    return {name: count if name == "count" else stats[name][:, None, None] / 255.0 for name in ENTRIES}


def sampled_steps(steps: int) -> Int[np.ndarray, " samples"]:
    """Evenly spread steps whose frames are looked at: all up to 100, then at least 100 or steps^0.75.

    Example:
        >>> len(sampled_steps(50)), len(sampled_steps(400)), len(sampled_steps(5000))
        (50, 100, 594)
    """
    least = min(_FEWEST_SAMPLES, steps)
    count = max(least, min(int(steps**_POWER), _MOST_SAMPLES))
    return np.round(np.linspace(0, steps - 1, count)).astype(np.int64)


def joined(parts: Sequence[Stats]) -> Stats:
    """Statistics of a whole set from those of its episodes; the quantiles are weighted means.

    mean = Σ n_i·m_i / Σ n_i    std² = Σ n_i·(s_i² + (m_i − mean)²) / Σ n_i
    """
    shape = (-1,) + (1,) * parts[0]["mean"].ndim
    weights = np.array([part["count"][0] for part in parts], np.float64).reshape(shape)
    weights = weights / weights.sum()
    stacked = {name: np.stack([part[name] for part in parts]) for name in ENTRIES}
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    return {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": stacked["count"].sum(axis=0),
        **{name: (weights * stacked[name]).sum(axis=0) for name in QUANTILES},
    }
