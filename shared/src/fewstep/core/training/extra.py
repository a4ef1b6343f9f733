"""The optional libraries of the training extra."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def train_extra() -> Iterator[None]:
    """Turn a failed import of a training library into a sentence that says how to get it.

    Raises:
        ImportError: a library of the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        needed = error.name or "a library"
        raise ImportError(
            f'training needs {needed}, which is not installed: pip install "fewstep-core[train]"'
        ) from error
