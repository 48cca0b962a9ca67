"""One episode, one ``.npz``: reading, atomic writing, and finding arrays inside a file for partial reads."""

import contextlib
import hashlib
import os
import struct
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tools import BadInput
from replay.safe_read import DAMAGE, refuse_bomb, reported
from replay.episode import KEYS, checked


class Column(NamedTuple):
    """Where one array lies, uncompressed, in a file: byte offset, type, shape of one row."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


def read_npz(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The episode of one ``.npz`` file, checked.

    Args:
        path: the file. Nothing in it is ever unpickled.
        raw: return all arrays exactly as they are in the file, instead of the four in their standard form.

    Raises:
        BadInput: the file is truncated, no zip archive, or not a valid episode.
    """
    with reported(path, "npz"), zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
        wanted = [name for name in names if raw or name[:-4] in KEYS]
        episode = {name[:-4]: _member(archive, name, path) for name in wanted}
    standard = checked(episode, path)
    return episode if raw else standard


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    info = archive.getinfo(name)
    refuse_bomb(name, info.file_size, info.compress_size)
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file)
        if dtype.hasobject:
            raise BadInput(f"{path}: {name[:-4]} is an array of python objects, which are never unpickled; remove it")
        count = int(np.prod([int(n) for n in shape], dtype=object))
        if count * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"{name} is shorter or longer than its header says")
        array = np.frombuffer(file.read(), dtype=dtype, count=count)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = read[version](file)
    if any(n < 0 for n in shape) or dtype.itemsize == 0:
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def episode_filename(length: int, when: datetime, id: str) -> str:
    """``<timestamp>-<id>-<length>.npz`` as in the Dreamer family; length counts rows (steps + 1)."""
    return f"{when:%Y%m%dT%H%M%S}-{id}-{length}.npz"


def save_episode(
    directory: Path | str,
    episode: dict,
    *,
    id: str | None = None,
    rng: np.random.Generator | None = None,
    when: datetime | None = None,
    compress: bool = True,
) -> Path:
    """Check an episode and write it atomically as one ``.npz`` of ``directory``.

    Args:
        directory: made when missing.
        episode: see `formats.episode.checked`; extra arrays are written too.
        id: middle part of the name. Without it, 32 hex digits drawn from ``rng``, or without that a hash
            of the contents, so that names do not depend on any hidden state.
        when: the timestamp; now by default.
        compress: deflate the arrays (a seventh of the size for simulator images), or store them plainly,
            which lets `columns` read slices.

    Returns:
        The path of the file.

    Raises:
        BadInput: the episode is not valid, or the file cannot be written (no space, no permission).
    """
    directory = Path(directory)
    episode = checked({key: np.asarray(value) for key, value in episode.items()}, "episode to save")
    if id is None:
        id = rng.bytes(16).hex() if rng is not None else _digest(episode)
    name = episode_filename(len(episode["reward"]), when or datetime.now(), id)
    write_npz(directory / name, episode, compress=compress)
    return directory / name


def _digest(episode: dict) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in KEYS:
        digest.update(episode[key])
    return digest.hexdigest()


def write_npz(path: Path, episode: dict, *, compress: bool) -> None:
    """Write arrays as one ``.npz``, atomically; object arrays are refused."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", method) as archive:
            for key, array in episode.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Run ``write`` on a temporary file beside ``path``, flush it to the disk and rename it.

    Raises:
        BadInput: no space, no permission, or another failure of the disk; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(
            f"{path.parent}: cannot write {path.name}: {reason}; free space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def columns(path: Path) -> tuple[int, dict[str, Column]]:
    """Row count and column positions of a plainly stored ``.npz`` (one that was not compressed).

    Raises:
        BadInput: the file is damaged or compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            found = {info.filename[:-4]: _column(info, file) for info in archive.infolist()}
        rows, _ = found["reward"]
        return rows, {key: column for key, (count, column) in found.items() if count == rows}
    except DAMAGE as error:
        raise BadInput(f"{path}: not a plainly stored episode ({error}); remove it") from error


def _column(info: zipfile.ZipInfo, file: BinaryIO) -> tuple[int, Column]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    # A local header is 30 bytes, then the name and the extra field, whose lengths are its last two numbers.
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, os.SEEK_CUR)
    shape, fortran, dtype = _header(file)
    if fortran or not shape or dtype.hasobject:
        return -1, Column(0, "", ())
    return shape[0], Column(file.tell(), dtype.str, tuple(shape[1:]))
