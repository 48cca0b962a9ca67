"""npz: one episode in one ``.npz`` file, as Dreamer, the CoWorld release and V-D4RL (64 pixels) write it."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from replay.episode import KEYS, as_raw, validate_episode
from replay.formats import Format, LabelledLoaders
from replay.mapping import PLAIN, ROLES, DataMapping, by_likeness, is_picture, renamed, require_one_camera
from replay.npz_files import NpzArray, episode_filename, open_npz_array, read_npz_array, read_npz_rows, write_npz
from replay.safe_read import READ_ERRORS, check_memory, safe_read
from replay.slices import SLICE_BYTES, SlicedArray, shrunk
from tools import BadInput


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """The file's name and the loader of its only episode."""
    return [(path.name, partial(read_npz, path, raw, mapping))]


def read_npz(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> dict[str, np.ndarray]:
    """The episode of one ``.npz`` file, validated. Its images are a `SlicedArray`.

    Args:
        path: the file. Nothing in it is ever unpickled.
        raw: return all arrays exactly as they are in the file, instead of the four in their standard form. Large ones
            are `SlicedArray` too.
        mapping: the names of the arrays.

    Raises:
        BadInput: the file is truncated, no zip archive, or not a valid episode.
    """
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        found = [info.filename[:-4] for info in archive.infolist() if info.filename.endswith(".npy")]
        names = mapping.names(dict(zip(ROLES, (*KEYS[:3], ""), strict=True)), found, path)
        _require(names, found, path)
        used = {*names.values(), "discount"}
        headers = {name: open_npz_array(archive, name) for name in found if raw or name in used}
        if "image" not in mapping.keys:
            _require_one_camera(names["image"], archive, found, path)
        arrays = {
            name: _read_array(archive, header, path, name == names["image"], mapping)
            for name, header in headers.items()
        }
    episode = renamed(arrays, names, path)
    standard = validate_episode(episode, path, mapping.any_actions)
    return as_raw(episode, standard) if raw else shrunk(standard, mapping.image_size)


def _require_one_camera(own: str, archive: zipfile.ZipFile, found: list[str], path: Path) -> None:
    """Raise BadInput if arrays beside ``own`` have images too."""
    pictures: dict[str, tuple[int, ...]] = {}
    for name in found:
        with contextlib.suppress(*READ_ERRORS):  # damage in an array that is not used is no problem
            header = open_npz_array(archive, name)
            if is_picture(header.shape, header.dtype):
                pictures[name] = header.shape
    rows = pictures.get(own, ())[:1]
    require_one_camera(own, {name: shape for name, shape in pictures.items() if shape[:1] == rows}, path)


def _require(names: dict[str, str], found: list[str], path: Path) -> None:
    """Raise BadInput, with the options to give, if arrays are missing but there are others."""
    missing = [role for role in KEYS[:3] if names[role] not in found]
    if missing and set(found) - {*names.values(), "discount"}:
        options = ", ".join(f"--{role}_key" for role in missing)
        raise BadInput(
            f"{path}: no array named {', '.join(missing)}; there are: {by_likeness(missing[0], found)}; "
            f"name them with {options}"
        )


def _read_array(
    archive: zipfile.ZipFile, header: NpzArray, path: Path, is_image: bool, mapping: DataMapping
) -> np.ndarray | SlicedArray:
    """An array; images and other large arrays are read in slices."""
    if header.dtype.hasobject:
        raise BadInput(f"{path}: {header.name} is an array of python objects, which are never unpickled; remove it")
    if len(header.shape) > 1 and not header.fortran and (is_image or header.nbytes > SLICE_BYTES):
        check_memory(4 * header.row_bytes, mapping.read_memory)
        return SlicedArray(header.shape, header.dtype, partial(read_npz_rows, path, header), path, "npz")
    check_memory(header.nbytes, mapping.read_memory)
    return read_npz_array(archive, header)


def write(folder: Path, episodes: Iterator[tuple[str, dict]], name: str) -> int:
    """Write one file for each episode. A label that is a valid new file name is kept as the name."""
    count = 0
    for label, episode in episodes:
        filename = label
        if not re.fullmatch(r"[\w-][\w.-]*\.npz", label) or (folder / label).exists():
            filename = episode_filename(len(episode["reward"]), datetime.now(), f"{count:032x}")
        write_npz(folder / filename, episode, compress=True)
        count += 1
    return count


FORMAT = Format(
    name="npz",
    title="*.npz",
    list_episodes=list_episodes,
    mapped=True,
    suffixes=(".npz",),
    separate_process=False,
    write=write,
)
