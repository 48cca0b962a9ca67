"""Arrays of zarr groups, in a folder or a zip file, read in slices with the zarr package."""

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from replay.safe_read import OTHER_RATIO, check_expansion, check_memory
from replay.slices import SlicedArray, rows_at_once
from replay.steps import Column
from tools import BadInput, require

ZIP = ".zarr.zip"
METADATA = (".zarray", "zarr.json")  # of an array, in formats 2 and 3
LARGEST_METADATA = 1 << 20  # bytes

# Codecs that only compress or reorder numbers. numcodecs has others: `pickle` would run what a file says.
CODECS = set(
    "blosc zlib gzip zstd lz4 bz2 lzma delta shuffle packbits crc32 crc32c adler32 fletcher32 fixedscaleoffset astype "
    "quantize bitround bytes endian transpose sharding_indexed".split()
)
MOST_AT_ONCE = 256 << 20  # bytes; up to here whole chunks are read, so that none is decompressed twice


@dataclass(frozen=True)
class ZarrRoot:
    """A zarr group.

    Attributes:
        path: its folder, or the zip file that it is in.
        inside: where it is in the zip file; "" or a folder that ends with a slash.
    """

    path: Path
    inside: str = ""

    @property
    def is_zip(self) -> bool:
        return self.path.is_file()

    def names(self, group: str) -> list[str]:
        """The names of the arrays directly in a group."""
        if not self.is_zip:
            folder = self.path / group
            return sorted({file.parent.name for name in METADATA for file in folder.glob(f"*/{name}")})
        parts = [name.removeprefix(self.inside).split("/") for name in _members(self.path, self.changed)]
        return sorted({part[1] for part in parts if len(part) == 3 and part[0] == group and part[2] in METADATA})

    @property
    def changed(self) -> int:
        return self.path.stat().st_mtime_ns

    def stored(self, name: str) -> dict[str, int]:
        """The bytes of each file of an array, by its path: its chunks and its description."""
        if self.is_zip:
            sizes, start = _members(self.path, self.changed), f"{self.inside}{name}/"
            return {member: size for member, size in sizes.items() if member.startswith(start)}
        return {str(file): file.stat().st_size for file in (self.path / name).rglob("*") if file.is_file()}

    def metadata(self, name: str) -> tuple[int, dict]:
        """The zarr format of an array, 2 or 3, and its description. Raises ValueError if it is none."""
        for number, file in enumerate(METADATA, 2):
            if (data := self._read(f"{name}/{file}")) is not None:
                found = json.loads(data)
                if not isinstance(found, dict):
                    raise ValueError(f"{file} of {name} is no JSON object")
                return number, found
        raise ValueError(f"no array {name}")

    def _read(self, name: str) -> bytes | None:
        if self.is_zip:
            with zipfile.ZipFile(self.path) as archive:
                if self.inside + name not in archive.NameToInfo:
                    return None
                with archive.open(self.inside + name) as file:
                    return file.read(LARGEST_METADATA)
        if not (self.path / name).is_file():
            return None
        with (self.path / name).open("rb") as file:
            return file.read(LARGEST_METADATA)


def zarr_root(path: Path) -> ZarrRoot:
    """The group at a path. Raises ValueError if a zip file has none with ``meta/episode_ends`` in it."""
    if not path.is_file():
        return ZarrRoot(path)
    for name in _members(path, path.stat().st_mtime_ns):
        for file in METADATA:
            if name.endswith(f"meta/episode_ends/{file}"):
                return ZarrRoot(path, name.removesuffix(f"meta/episode_ends/{file}"))
    raise ValueError("no meta/episode_ends in it")


@lru_cache(maxsize=2)
def _members(path: Path, changed: int) -> dict[str, int]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.compress_size for info in archive.infolist()}


def unstored_chunks(root: ZarrRoot, name: str) -> int:
    """How many chunks of an array of images are not stored, and so read as its fill value; 0 for other arrays.

    Raises any of `READ_ERRORS` if its description is damaged.
    """
    version, found = root.metadata(name)
    if len(found["shape"]) != 4:
        return 0
    chunks = found["chunks"] if version == 2 else found["chunk_grid"]["configuration"]["chunk_shape"]
    whole = math.prod(-(-int(rows) // int(chunk)) for rows, chunk in zip(found["shape"], chunks, strict=True))
    files = [path.rpartition("/")[2] for path in root.stored(name)]
    return max(0, whole - sum(file[:1].isalnum() and file not in METADATA for file in files))


def zarr_column(root: ZarrRoot, name: str, where: object, limit: float) -> Column:
    """An array of the group.

    Raises:
        BadInput: zarr is not installed, or a codec of the array is not one of `CODECS`.
        ValueError: it claims far more than is stored.
    """
    require("zarr", "formats", root.path)
    shape, dtype, chunks = _checked(root, name)
    check_expansion(name, math.prod(shape) * dtype.itemsize, sum(root.stored(name).values()), OTHER_RATIO)
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    check_memory(2 * math.prod(chunks) * dtype.itemsize, limit)
    check_memory(4 * row_bytes, limit)
    step = rows_at_once(row_bytes)
    if chunks[0] * row_bytes <= MOST_AT_ONCE:
        step = max(1, step // chunks[0]) * chunks[0]
    return Column(shape, dtype, partial(_rows, root, name, step, where))


def _rows(root: ZarrRoot, name: str, step: int, where: object, rows: slice) -> SlicedArray:
    shape, dtype, _ = _checked(root, name)
    first, end, _ = rows.indices(shape[0])
    read = partial(_slices, root, name, step, first, end)
    return SlicedArray((max(0, end - first), *shape[1:]), dtype, read, where, "zarr")


def _slices(root: ZarrRoot, name: str, step: int, first: int, end: int) -> Iterator[np.ndarray]:
    """Rows ``first`` to ``end``; slices end at multiples of ``step``, so at the borders of chunks."""
    version, _ = root.metadata(name)
    array = _opened(root, name, version, root.changed)
    while first < end:
        until = min(end, (first // step + 1) * step)
        yield np.asarray(array[first:until])
        first = until


def _checked(root: ZarrRoot, name: str) -> tuple[tuple[int, ...], np.dtype, tuple[int, ...]]:
    """Shape, type and shape of a chunk of an array. Nothing is opened before its codecs are known to be harmless."""
    version, found = root.metadata(name)
    for codec in _codecs(found):
        if codec not in CODECS:
            raise BadInput(
                f"{root.path}: {name} is compressed with {codec}, which is not read here; write it again with blosc "
                "(docs/formats.md)"
            )
    array = _opened(root, name, version, root.changed)
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
    chunks = tuple(map(int, array.chunks))
    if not shape or dtype.hasobject or dtype.itemsize == 0 or len(chunks) != len(shape) or min(chunks) < 1:
        raise ValueError(f"{name} is no array of numbers ({dtype}{shape})")
    return shape, dtype, chunks


def _codecs(metadata: dict) -> Iterator[str]:
    """The names of all codecs that an array's metadata has, also within other codecs."""
    waiting = [metadata.get(key) for key in ("compressor", "filters", "codecs", "storage_transformers")]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting += entry
        elif isinstance(entry, dict):
            if name := entry.get("id", entry.get("name")):
                yield str(name).removeprefix("numcodecs.")
            waiting += [value for value in entry.values() if isinstance(value, dict | list)]


@lru_cache(maxsize=64)
def _opened(root: ZarrRoot, name: str, version: int, changed: int):
    """A zarr array. It is opened by itself: the copies of all metadata that a group can have are not used."""
    import zarr

    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    if root.is_zip:
        store = zarr.storage.ZipStore(root.path, read_only=True)
    else:
        store = zarr.storage.LocalStore(root.path, read_only=True)
    return zarr.open_array(store, path=root.inside + name, mode="r", zarr_format=version)
