"""Which episodes are for training and which for validation."""

import numpy as np
from jaxtyping import Bool


def validation_mask(episodes: int, ratio: float, seed: int) -> Bool[np.ndarray, " episodes"]:
    """Choose the episodes that are kept for validation: at least one, and never all.

    Args:
        episodes: how many there are.
        ratio: share for validation, in [0, 1); 0 chooses none.
        seed: of the choice.

    Returns:
        True where an episode is for validation.

    Raises:
        ValueError: the ratio is outside [0, 1).

    Reference: Chi et al. (2023), Diffusion Policy, the published data sets' split (ratio 0.02, seed 42).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio!r}")
    mask = np.zeros(episodes, dtype=bool)
    if ratio > 0 and episodes > 1:
        count = min(max(1, round(episodes * ratio)), episodes - 1)
        mask[np.random.default_rng(seed).choice(episodes, size=count, replace=False)] = True
    return mask


def limited_mask(mask: Bool[np.ndarray, " episodes"], most: int, seed: int) -> Bool[np.ndarray, " episodes"]:
    """Keep at most so many of the chosen episodes, drawn at random.

    Reference: Chi et al. (2023), Diffusion Policy; its PushT policies see 90 episodes (seed 42).
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most!r}")
    if mask.sum() <= most:
        return mask.copy()
    kept = np.zeros_like(mask)
    candidates = np.flatnonzero(mask)
    kept[candidates[np.random.default_rng(seed).choice(len(candidates), size=most, replace=False)]] = True
    return kept
