"""Writing episodes as ``.npz`` files, and the headers of the arrays in them."""

import math
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from replay.episode import validate_episode
from replay.safe_read import DEFLATE_RATIO, OTHER_RATIO, check_expansion, check_memory
from replay.slices import SlicedArray, rows_at_once
from replay.steps import Column, Columns
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


def npz_columns(path: Path, archive: zipfile.ZipFile, limit: float) -> Columns:
    """The arrays of an archive of many episodes, by their names, which are read from front to back; not scalars.

    Raises:
        ValueError: the archive is damaged, or an array cannot be read in rows.
    """
    names = [info.filename[:-4] for info in archive.infolist() if info.filename.endswith(".npy")]
    headers = [header for name in names if (header := open_npz_array(archive, name)).shape]
    found: Columns = {}
    for header in headers:
        if header.dtype.hasobject or (header.fortran and len(header.shape) > 1):
            kind = "of Python objects, which are never unpickled" if header.dtype.hasobject else "in Fortran order"
            raise ValueError(f"{header.name} is an array {kind}")
        check_memory(4 * header.row_bytes, limit)
        found[header.name] = Column(header.shape, header.dtype, partial(_cursor_rows, path, header))
    return found


def _cursor_rows(path: Path, header: NpzArray, rows: slice) -> SlicedArray:
    first, end, _ = rows.indices(header.shape[0])
    read = partial(_read_forward, path, path.stat().st_mtime_ns, header, first, end)
    return SlicedArray((max(0, end - first), *header.shape[1:]), header.dtype, read, path, "npz")


def _read_forward(path: Path, changed: int, header: NpzArray, first: int, end: int) -> Iterator[np.ndarray]:
    cursor, step = _cursor(path, changed, header), rows_at_once(header.row_bytes)
    for start in range(first, end, step):
        yield cursor.read(start, min(step, end - start))


class _Cursor:
    """The place in an array up to which it has been read. What is compressed can be read forward only."""

    def __init__(self, path: Path, header: NpzArray):
        self.path, self.header, self.file, self.row = path, header, None, 0

    def read(self, first: int, count: int) -> np.ndarray:
        """Rows of the array. The next ones are read without a new beginning."""
        row_bytes, shape = self.header.row_bytes, self.header.shape
        try:
            if self.file is None or self.row > first:
                self.file = zipfile.ZipFile(self.path).open(f"{self.header.name}.npy")  # noqa: SIM115 (stays open)
                self.row = 0
                if (shape, self.header.fortran, self.header.dtype) != read_npy_header(self.file):
                    raise ValueError("changed while it was read")
            while self.row < first:
                skipped = min(rows_at_once(row_bytes), first - self.row)
                if len(self.file.read(skipped * row_bytes)) != skipped * row_bytes:
                    raise ValueError("it ends too early")
                self.row += skipped
            data = self.file.read(count * row_bytes)
            array = np.frombuffer(data, self.header.dtype, count * math.prod(shape[1:])).reshape(count, *shape[1:])
            self.row += count
            if self.row == shape[0]:
                self.file.read(1)  # at its end the archive's checksum is compared
            return array
        except Exception:
            self.file = None
            raise


_cursor = lru_cache(maxsize=16)(lambda path, changed, header: _Cursor(path, header))


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
