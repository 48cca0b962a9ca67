"""Writing episodes as ``.npz`` files, and the headers of the arrays in them."""

import math
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from replay.episode import validate_episode
from replay.safe_read import DEFLATE_RATIO, OTHER_RATIO, check_expansion
from replay.slices import SlicedArray, rows_at_once
from tools import write_atomically


def episode_filename(length: int, when: datetime, id: str) -> str:
    """``<timestamp>-<id>-<length>.npz`` as in the Dreamer family; ``length`` counts rows (steps + 1)."""
    return f"{when:%Y%m%dT%H%M%S}-{id}-{length}.npz"


def save_episode(directory: Path | str, episode: dict, *, id: str) -> Path:
    """Validate an episode and write it atomically as one compressed ``.npz`` file.

    Args:
        directory: made if it is missing.
        episode: see `replay.episode.validate_episode`; extra arrays are written too.
        id: middle part of the file name; see `episode_filename`.

    Returns:
        The path of the file.

    Raises:
        BadInput: the episode is not valid, or the file cannot be written (no space, no permission).
    """
    episode = validate_episode({key: np.asarray(value) for key, value in episode.items()}, "episode to save")
    path = Path(directory) / episode_filename(len(episode["reward"]), datetime.now(), id)
    write_npz(path, episode, compress=True)
    return path


def write_npz(path: Path, episode: dict, *, compress: bool) -> None:
    """Write arrays as one ``.npz`` file, atomically.

    Args:
        path: the file.
        episode: arrays by name. A `SlicedArray` is written slice by slice.
        compress: deflate the arrays (a seventh of the size for simulator images). Uncompressed arrays can be read in
            parts, see `replay.stored_episode`.

    Raises:
        BadInput: the file cannot be written.
        ValueError: an array contains Python objects.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", method) as archive:
            for key, array in episode.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    if isinstance(array, SlicedArray):
                        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                        np.lib.format.write_array_header_1_0(member, header)
                        for rows in array:
                            member.write(np.ascontiguousarray(rows))
                    else:
                        np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    write_atomically(path, write)


class NpzArray(NamedTuple):
    """An array of an ``.npz`` file, of which the header was read.

    Attributes:
        name: without ``.npy``.
        shape, fortran, dtype: see `read_npy_header`.
    """

    name: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_npz_array(archive: zipfile.ZipFile, name: str) -> NpzArray:
    """What an archive says of one of its arrays; its data is not read.

    Raises:
        ValueError: it claims more than can be stored in it, or not the size that its header says.
    """
    info = archive.getinfo(f"{name}.npy")
    ratio = DEFLATE_RATIO if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else OTHER_RATIO
    check_expansion(name, info.file_size, info.compress_size, ratio)
    with archive.open(info) as file:
        header = NpzArray(name, *read_npy_header(file))
        if not header.dtype.hasobject and header.nbytes != info.file_size - file.tell():
            raise ValueError(f"{name} is shorter or longer than its header says")
    return header


def read_npz_array(archive: zipfile.ZipFile, header: NpzArray) -> np.ndarray:
    """The whole array."""
    with archive.open(f"{header.name}.npy") as file:
        read_npy_header(file)
        array = np.frombuffer(file.read(), header.dtype, math.prod(header.shape))
    return array.reshape(header.shape, order="F" if header.fortran else "C")


def read_npz_rows(path: Path, header: NpzArray) -> Iterator[np.ndarray]:
    """Slices of rows of an array in C order.

    Raises:
        ValueError: the file has ended, or is not the one whose header was read.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{header.name}.npy") as file:
        if (header.shape, header.fortran, header.dtype) != read_npy_header(file):
            raise ValueError("changed while it was read")
        rows, step = header.shape[0], rows_at_once(header.row_bytes)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = file.read(count * header.row_bytes)
            yield np.frombuffer(data, header.dtype, count * math.prod(header.shape[1:])).reshape(
                count, *header.shape[1:]
            )
        file.read(1)  # at its end the archive's checksum is compared


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type of the array that begins at the file's position.

    Raises:
        ValueError: not a header that numpy writes.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = read[version](file)
    if any(n < 0 for n in shape) or dtype.itemsize == 0:
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype
