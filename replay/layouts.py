"""The names of the arrays and groups in a file, by which a format recognises its files."""

import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import h5py

from replay.hdf5 import open_hdf5
from replay.safe_read import safe_read

MOST_NAMES = 1000  # of a group; a file with many episodes has as many groups


def npz_names(path: Path) -> frozenset[str]:
    """The names of the arrays of an ``.npz`` file. Raises BadInput if it cannot be read."""
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist())


def hdf5_names(path: Path) -> frozenset[str]:
    """The names of the arrays and groups of an HDF5 file, of two levels: ``data``, ``data/demo_0``.

    Only the separate process calls it. Raises BadInput if the file cannot be read.
    """
    with safe_read(path, "HDF5"), open_hdf5(path) as file:
        return frozenset(name for name in _names(file) if isinstance(name, str))


def _names(file: h5py.File) -> Iterator[str]:
    for name in islice(file, MOST_NAMES):
        yield name  # bytes, if they are no text
        if isinstance(group := file.get(name), h5py.Group):
            yield from (f"{name}/{below}" for below in islice(group, MOST_NAMES))
