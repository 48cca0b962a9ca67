"""Columns of Arrow and Parquet tables as arrays."""

from pathlib import Path

import numpy as np

from tools import require


def require_pyarrow(where: object) -> None:
    """Raises BadInput if pyarrow is not installed."""
    require("pyarrow", "formats", where)


def column_array(column) -> np.ndarray:
    """An Arrow array as a numpy array. Lists of equal length become rows, bytes an array of objects."""
    import pyarrow

    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    if pyarrow.types.is_fixed_size_list(column.type) or pyarrow.types.is_list(column.type):
        if column.null_count:
            raise ValueError("a row without a value")
        return column_array(column.flatten()).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


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
