"""Columns of parquet files as NumPy arrays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.policy.episodes import DataError


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read columns of a parquet file.

    Args:
        path: of the file.
        columns: names (None: all).

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is damaged or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with pq.ParquetFile(path) as file:
            absent = [name for name in columns or () if name not in file.schema_arrow.names]
            if absent:
                raise DataError(f"{path} lacks the columns {absent}; it has {file.schema_arrow.names}")
            return file.read(columns)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or no parquet file ({error})") from error


def to_numpy(path: Path, name: str, column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of numbers or of (nested) lists of numbers as (rows, *shape).

    Args:
        path: of the file, for messages.
        name: of the column.
        column: as read.
        shape: of one row; (1,) also fits plain numbers.

    Raises:
        DataError: a value is absent, the lists differ in length, or they do not have this shape.
    """
    try:
        array = column.combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} of {path} cannot be read ({error})") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    rows = len(array)
    while _is_list(array.type):
        _check_whole(path, name, array)
        array = _inner(path, name, array)
    _check_whole(path, name, array)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"column {name!r} of {path} must hold numbers, got {kind}")
    values = array.to_numpy(zero_copy_only=False)
    if values.size != rows * int(np.prod(shape)):
        raise DataError(
            f"column {name!r} of {path} must have the shape {shape} a row, as meta/info.json says; it holds "
            f"{values.size} numbers in {rows} rows"
        )
    return values.reshape(rows, *shape)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _inner(path: Path, name: str, array: pa.Array) -> pa.Array:
    """Values of lists, one after the other, once it is sure that the lists are equally long."""
    if not pa.types.is_fixed_size_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            raise DataError(f"the lists in column {name!r} of {path} must be equally long")
    return array.flatten()


def _check_whole(path: Path, name: str, array: pa.Array) -> None:
    if array.null_count:
        raise DataError(f"column {name!r} of {path} lacks {array.null_count} values")
