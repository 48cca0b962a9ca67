"""Arrays of HDF5 files, whole or a slice of rows at a time."""

import errno
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from replay.safe_read import DEFLATE_RATIO, OTHER_RATIO, check_expansion, check_memory, error_number
from replay.slices import ENCODED_ROWS, SlicedArray, rows_at_once
from replay.steps import Column, Columns

# File systems without locks, such as NFS without its lock daemon.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

MOST_AT_ONCE = 256 << 20  # bytes; up to here, whole chunks are read so that none is decompressed twice


def open_hdf5(path: Path) -> h5py.File:
    """The file, opened for reading. Where the file system has no locks, it is opened without one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error_number(error) not in NO_LOCKS:
            raise
        return h5py.File(path, "r", locking=False)


def read_hdf5_array(dataset: h5py.Dataset, rows: slice = slice(None), limit: float = 2.0) -> np.ndarray:
    """Rows of an HDF5 array.

    Raises:
        ValueError: the array claims far more bytes than the file contains or than ``limit`` GiB, or it is a group or a
            scalar.
    """
    check_hdf5(dataset)
    row_bytes = dataset.nbytes // max(1, len(dataset))
    check_memory(row_bytes * len(range(*rows.indices(len(dataset)))), limit)
    check_memory(dataset.dtype.itemsize * math.prod(dataset.chunks or ()), limit)
    return dataset[rows]


def check_hdf5(dataset: h5py.Dataset) -> None:
    """Raise ValueError if this is no array, or if it or one of its chunks claims far more bytes than are stored."""
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError("no array where one should be")
    stored = dataset.id.get_storage_size()
    ratio = DEFLATE_RATIO if dataset.compression in (None, "gzip", "lzf") else OTHER_RATIO
    check_expansion(dataset.name, dataset.nbytes, stored, ratio)


def sliced_hdf5(
    path: Path, dataset: h5py.Dataset, where: object, limit: float, rows: slice = slice(None)
) -> SlicedArray:
    """Rows of an array of the file at ``path``, which is opened again to read them.

    Raises:
        ValueError: see `read_hdf5_array`; only one slice and one chunk have to be smaller than ``limit`` GiB.
    """
    check_hdf5(dataset)
    first, end, _ = rows.indices(len(dataset))
    row_bytes = dataset.nbytes // max(1, len(dataset))
    chunk_rows = (dataset.chunks or (1,))[0]
    check_memory(dataset.dtype.itemsize * math.prod(dataset.chunks or ()), limit)
    check_memory(4 * row_bytes, limit)  # with the slice's standard form, resized form and copy in the pipe
    step = ENCODED_ROWS if dataset.dtype == object else rows_at_once(row_bytes)
    if chunk_rows * row_bytes <= MOST_AT_ONCE:
        step = max(1, step // chunk_rows) * chunk_rows
    read = partial(_read_slices, path, dataset.name, first, max(first, end), step)
    return SlicedArray((max(first, end) - first, *dataset.shape[1:]), dataset.dtype, read, where, "HDF5")


def hdf5_columns(path: Path, group: h5py.Group, where: object, limit: float) -> Columns:
    """The arrays directly in a group of the file at ``path``, by their names; not scalars."""
    names = [name for name in group if isinstance(name, str)]  # bytes, if they are no text
    arrays = {name: node for name in names if isinstance(node := group.get(name), h5py.Dataset) and node.shape}
    return {
        name: Column(array.shape, array.dtype, partial(_column_rows, path, array.name, where, limit))
        for name, array in arrays.items()
    }


def _column_rows(path: Path, name: str, where: object, limit: float, rows: slice) -> SlicedArray:
    with open_hdf5(path) as file:
        return sliced_hdf5(path, file[name], where, limit, rows)


def _read_slices(path: Path, name: str, first: int, end: int, step: int) -> Iterator[np.ndarray]:
    """Rows ``first`` to ``end``; slices end at multiples of ``step``, so at the borders of chunks."""
    with open_hdf5(path) as file:
        while first < end:
            until = min(end, (first // step + 1) * step)
            yield file[name][first:until]
            first = until
