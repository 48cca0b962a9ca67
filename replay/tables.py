"""Columns of Arrow and Parquet tables as arrays."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tools import BadInput, require


def require_pyarrow(where: object) -> None:
    """Raises BadInput if pyarrow is not installed."""
    require("pyarrow", "formats", where)


LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")  # of pyarrow.types


def column_array(column) -> np.ndarray:
    """An Arrow array as a numpy array.

    Lists of equal length become rows. Encodings (dictionary, run ends, extension types) are decoded. A number that is
    missing is NaN, and so is all of a column of type null. Texts and bytes become an array of objects.

    Raises:
        ValueError: lists of different lengths, or a row without its list.
    """
    import pyarrow
    from pyarrow import compute, types

    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    if isinstance(column, pyarrow.ExtensionArray):
        return column_array(column.storage)
    if types.is_dictionary(column.type):
        return column_array(column.dictionary_decode())
    if types.is_run_end_encoded(column.type):
        return column_array(compute.run_end_decode(column))
    if types.is_null(column.type):
        return np.full(len(column), np.nan, np.float32)
    if any(getattr(types, kind)(column.type) for kind in LISTS):
        if column.null_count:
            raise ValueError("a row without a value")
        if len(compute.unique(compute.list_value_length(column))) > 1:
            raise ValueError("rows of different lengths")
        return column_array(column.flatten()).reshape(len(column), -1)
    if types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    return column.to_numpy(zero_copy_only=False)


def require_values(arrays: dict[str, np.ndarray], names: dict[str, str], where: object) -> None:
    """Raise BadInput if an array has no values at all; both arguments are by role, see `replay.mapping.ROLES`."""
    for role, array in arrays.items():
        if array.dtype.kind == "f" and len(array) and np.isnan(array).all():
            raise BadInput(f"{where}: column {names[role]} has no values; name another one with --{role}_key")


def read_parquet(path: Path, columns: list[str] | None = None, rows: list[tuple] | None = None):
    """A pyarrow table of a Parquet file.

    Args:
        path: the file.
        columns: those to read; None: all.
        rows: conditions on rows, as in `pyarrow.parquet.read_table`'s filters; None: all rows.

    Raises:
        ValueError: one of the columns is missing.
    """
    import pyarrow.parquet

    if missing := set(columns or ()) - set(pyarrow.parquet.read_schema(path).names):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    # The path of a folder such as `episode_id=3` is not to become a column.
    return pyarrow.parquet.read_table(path, columns=columns, filters=rows, partitioning=None, use_threads=False)


def table_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file (``.parquet``) or an Arrow file."""
    import pyarrow.parquet

    if path.suffix == ".parquet":
        return pyarrow.parquet.read_schema(path).names
    return _open_arrow(path, None)[1].schema.names


def read_batches(path: Path, columns: list[str], rows: int = 1 << 16) -> Iterator:
    """Batches of at most ``rows`` rows with some columns of a Parquet or an Arrow file, validated.

    Raises:
        ValueError: the file is damaged.
    """
    import pyarrow.parquet

    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(rows, columns=columns, use_threads=False):
                batch.validate(full=True)
                yield batch
        return
    mapped, file = _open_arrow(path, columns)
    for index in range(file.num_record_batches):
        batch = file.get_batch(index)
        for first in range(0, len(batch), rows):
            part = batch.slice(first, rows)
            part.validate(full=True)
            yield part
            mapped.madvise(mmap.MADV_DONTNEED)  # pages that were read would count as memory of this process


def _open_arrow(path: Path, columns: list[str] | None):
    """The memory map of an Arrow file and the reader of it, for some or all columns."""
    import pyarrow

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = pyarrow.py_buffer(mapped)
    reader = pyarrow.ipc.open_file(pyarrow.BufferReader(buffer))
    if columns is None:
        return mapped, reader
    fields = [reader.schema.get_field_index(name) for name in columns]
    options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    return mapped, pyarrow.ipc.open_file(pyarrow.BufferReader(buffer), options=options)
