"""Where a large result lives until it is saved."""

from __future__ import annotations

import os
import tempfile

import numpy as np

# Larger results live in an unlinked temporary file that the system may page out.
_IN_MEMORY = 2**29


def canvas(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make an uninitialised array, in memory when it is small and in a temporary file when it is large.

    The file has no name, so it disappears with the array. Its space is reserved at once: a full disk shows
    here, as an exception, and not as a crash in the middle of the work.

    Args:
        shape: of the array.
        dtype: of the array.

    Returns:
        The array.

    Raises:
        OSError: the temporary folder has no room (TMPDIR chooses another).
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="fewstep-") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"no room for a result of {size / 1e9:.1f} GB in {tempfile.gettempdir()} "
                    "(set TMPDIR to a folder on a larger disk)",
                ) from error
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
