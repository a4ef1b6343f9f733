"""Seeds of episodes and of the noise inside them.

An episode has one seed. It draws the environment's start, `env.reset(seed=seed)`, and the noise of the
policy's call at a step is drawn from `noise_seed(seed, step)`. So an episode's course depends neither on the
slot it runs in, nor on what ran there before, nor on how many run beside it.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def noise_seed(episode_seed: int, step: int) -> int:
    """Seed of the noise that a policy draws at a step of an episode.

    Neighbouring episodes and steps give unrelated seeds: two rounds of the SplitMix64 mixing function.

    Args:
        episode_seed: not negative.
        step: of the episode, from 0.

    Returns:
        A number in 0..2^63 − 1, for a generator of torch or NumPy.

    Raises:
        ValueError: if one of them is negative.

    Reference: Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 16.

    Example:
        >>> noise_seed(100_000, 0) == noise_seed(100_000, 0) != noise_seed(100_001, 0)
        True
    """
    if episode_seed < 0 or step < 0:
        raise ValueError(f"episode_seed is {episode_seed} and step is {step}; neither may be negative")
    return _mixed(_mixed(episode_seed & _MASK) + step) >> 1


def _mixed(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
