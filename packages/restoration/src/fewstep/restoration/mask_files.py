"""The masks of a command line: one for all photographs, or one for each."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from .given import as_mask
from .images import MAX_MEGAPIXELS, READABLE_EXTENSIONS, ImageError, Picture, read


class MaskFiles:
    """Finds the mask of a photograph.

    Args:
        path: a mask for all photographs, or a folder of masks that are called as they are.
        max_megapixels: larger masks are refused.
    """

    def __init__(self, path: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> None:
        self.path = Path(path).expanduser()
        self.max_megapixels = max_megapixels

    def of(self, source: Path, picture: Picture) -> np.ndarray:
        """The mask of a photograph.

        Args:
            source: its file.
            picture: what is in it.

        Returns:
            (height, width) bool, True where it is to be filled.

        Raises:
            ImageError: there is none, it cannot be read, has another size, or marks nothing or everything.
        """
        file = self._file(source)
        try:
            return as_mask(read(file, self.max_megapixels), picture)
        except ImageError:
            raise
        except ValueError as error:
            raise ImageError(f"{error} ({file})") from error

    def _file(self, source: Path) -> Path:
        if not self.path.is_dir():
            return self.path
        found = self._by_stem.get(source.stem, [])
        if len(found) != 1:
            names = " and ".join(sorted(file.name for file in found))
            raise ImageError(
                f"mask: {self.path} has {names}, of which one must go"
                if found
                else f"mask: {self.path} has no image called {source.stem}"
            )
        return found[0]

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in sorted(self.path.iterdir()):
            if file.suffix.lower() in READABLE_EXTENSIONS and file.is_file():
                found.setdefault(file.stem, []).append(file)
        return found
