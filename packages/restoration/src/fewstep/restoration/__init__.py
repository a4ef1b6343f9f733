"""Few-step diffusion for image restoration."""

from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .pipeline import Restored, Restorer

__all__ = ["Restored", "Restorer", "Settings"]


def __getattr__(name: str) -> Any:
    """What brings PyTorch along is imported when it is asked for: the command's help has no need of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)
