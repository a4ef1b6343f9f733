"""Small general networks; the published ones of a field live in its package."""

from fewstep.core.nets.dit import DiT, DiTConfig

__all__ = ["DiT", "DiTConfig"]
