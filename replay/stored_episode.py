"""Uncompressed ``.npz`` episodes, of which single rows can be read without reading the whole file."""

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from replay.endings import Ending
from replay.mapping import ActionMap
from replay.npz_files import read_npy_header
from replay.safe_read import READ_ERRORS
from replay.slices import SlicedArray, rows_at_once
from tools import BadInput


class ArrayLocation(NamedTuple):
    """Position of an uncompressed array in a file: offset in bytes, type, shape of one row."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass
class StoredEpisode:
    """An episode in an uncompressed ``.npz`` file.

    Attributes:
        path: the file.
        rows: N, the number of agent steps + 1.
        arrays: location of each array, by its name.
        total_reward: sum of the rewards.
        origin: name, in the dataset, of the file that this is a copy of; "" if it is no copy.
        digest: `episode_digest` of the arrays; "" if it is no copy.
        action_extremes: smallest and largest actions, each a list of A; (None, None) if they are in [-1, 1].
        action_map: rescales the actions when they are read; None: they are read as they are.
    """

    path: Path
    rows: int
    arrays: dict[str, ArrayLocation]
    total_reward: float
    origin: str = ""
    digest: str = ""
    action_extremes: tuple[list[float] | None, list[float] | None] = (None, None)
    action_map: ActionMap | None = None

    @classmethod
    def open(cls, path: Path) -> "StoredEpisode":
        """Locate the arrays of a file and read its rewards.

        Raises:
            BadInput: the file is missing, damaged or compressed.
        """
        if not path.is_file():
            raise BadInput(f"{path}: this episode of the replay is gone; restore it or start a new run")
        rows, arrays = locate_arrays(path)
        episode = cls(path, rows, arrays, 0.0)
        reward = np.empty(rows, arrays["reward"].dtype)
        episode.read_rows(0, {"reward": reward})
        episode.total_reward = float(reward.sum(dtype=np.float64))
        return episode

    @cached_property
    def ending(self) -> Ending:
        """Its end. The first use reads its rewards and discounts."""
        arrays = {key: np.empty(self.rows, self.arrays[key].dtype) for key in ("reward", "discount")}
        self.read_rows(0, arrays)
        return Ending.of(**arrays)

    def read_rows(self, first: int, into: dict[str, np.ndarray]) -> None:
        """Fill arrays (T, ...) with the rows from ``first`` on. The data is read straight into the arrays.

        With an ``action_map`` the actions are rescaled to [-1, 1]; that of row 0, the reset, is zero.

        Raises:
            BadInput: the file cannot be read or is too short.
        """
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                for key, array in into.items():
                    offset = self.arrays[key].offset + first * array[0].nbytes
                    if os.preadv(file, [array], offset) != array.nbytes:
                        raise BadInput(
                            f"{self.path}: shorter than when it was opened; remove its folder and start again"
                        )
            finally:
                os.close(file)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read: {error.strerror}; restore it") from error
        if self.action_map is not None and "action" in into:
            into["action"][:] = self.action_map.to_unit(into["action"])
            if first == 0:
                into["action"][0] = 0

    def sliced(self, key: str) -> SlicedArray:
        """An array of the file, read in slices and as it is stored."""
        shape, dtype = self.arrays[key].shape, np.dtype(self.arrays[key].dtype)
        step = rows_at_once(math.prod(shape) * dtype.itemsize)

        def read() -> Iterator[np.ndarray]:
            for first in range(0, self.rows, step):
                piece = np.empty((min(step, self.rows - first), *shape), dtype)
                self.read_rows(first, {key: piece})
                yield piece

        return SlicedArray((self.rows, *shape), dtype, read, self.path, "npz")


def locate_arrays(path: Path) -> tuple[int, dict[str, ArrayLocation]]:
    """Number of rows of an uncompressed ``.npz`` episode, and the locations of the arrays with that many rows.

    Raises:
        BadInput: the file is damaged or compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            found = {info.filename[:-4]: _locate(info, file) for info in archive.infolist()}
        rows, _ = found["reward"]
        return rows, {key: location for key, (count, location) in found.items() if count == rows}
    except READ_ERRORS as error:
        raise BadInput(f"{path}: not an uncompressed episode ({error}); remove it") from error


def _locate(info: zipfile.ZipInfo, file: BinaryIO) -> tuple[int, ArrayLocation]:
    """Number of rows and location of one array; -1 rows for an array that cannot be read in rows."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    # A local header is 30 bytes, then the name and the extra field. Its last two numbers are their lengths.
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, os.SEEK_CUR)
    shape, fortran, dtype = read_npy_header(file)
    if fortran or not shape or dtype.hasobject:
        return -1, ArrayLocation(0, "", ())
    return shape[0], ArrayLocation(file.tell(), dtype.str, tuple(shape[1:]))
