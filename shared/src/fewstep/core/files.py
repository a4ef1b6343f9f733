"""Writing files so that a reader never sees half of one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `target` to write to; it becomes `target` when the block ends well.

    The temporary name is hidden, unique and keeps the suffix of `target`, so that writers that choose a
    format by the suffix work. When the block raises, the temporary file is removed and `target` is as it was.

    Args:
        target: the file to be written; its folder must exist.

    Yields:
        The path to write to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as path:
        ...     _ = path.write_text("whole")
        >>> [p.name for p in folder.iterdir()]
        ['a.txt']
    """
    target = Path(target)
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        # Some writers make files that only their owner may read, whatever the umask says.
        temporary.chmod(mode)
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_to_disk(path: Path) -> None:
    """Wait for the disk: otherwise a power cut may leave the new name without its content."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
