"""Few-step diffusion for image restoration."""

from .pipeline import Restored, Restorer
from .settings import Settings

__all__ = ["Restored", "Restorer", "Settings"]
