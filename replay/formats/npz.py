"""npz: one episode in one ``.npz`` file, as Dreamer, the CoWorld release and V-D4RL (64 pixels) write it."""

import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from replay.episode import KEYS, as_raw, validate_episode
from replay.formats import Format, LabelledLoaders
from replay.mapping import PLAIN, ROLES, DataMapping, by_likeness, renamed
from replay.npz_files import episode_filename, read_npy_header, write_npz
from replay.safe_read import check_expansion, safe_read
from tools import BadInput


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """The file's name and the loader of its only episode."""
    return [(path.name, partial(read_npz, path, raw, mapping))]


def read_npz(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> dict[str, np.ndarray]:
    """The episode of one ``.npz`` file, validated.

    Args:
        path: the file. Nothing in it is ever unpickled.
        raw: return all arrays exactly as they are in the file, instead of the four in their standard form.
        mapping: the names of the arrays.

    Raises:
        BadInput: the file is truncated, no zip archive, or not a valid episode.
    """
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        found = [info.filename[:-4] for info in archive.infolist() if info.filename.endswith(".npy")]
        names = mapping.names(dict(zip(ROLES, (*KEYS[:3], ""), strict=True)), found, path)
        _require(names, found, path)
        used = {*names.values(), "discount"}
        arrays = {name: _read_array(archive, f"{name}.npy", path) for name in found if raw or name in used}
    episode = mapping.in_rows(renamed(arrays, names, path), path)
    standard = validate_episode(episode, path, mapping.any_actions)
    return as_raw(episode, standard) if raw else standard


def _require(names: dict[str, str], found: list[str], path: Path) -> None:
    """Raise BadInput, with the options to give, if arrays are missing but there are others."""
    missing = [role for role in KEYS[:3] if names[role] not in found]
    if missing and set(found) - {*names.values(), "discount"}:
        options = ", ".join(f"--{role}_key" for role in missing)
        raise BadInput(
            f"{path}: no array named {', '.join(missing)}; there are: {by_likeness(missing[0], found)}; "
            f"name them with {options}"
        )


def _read_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    info = archive.getinfo(name)
    check_expansion(name, info.file_size, info.compress_size)
    with archive.open(info) as file:
        shape, fortran, dtype = read_npy_header(file)
        if dtype.hasobject:
            raise BadInput(f"{path}: {name[:-4]} is an array of python objects, which are never unpickled; remove it")
        count = int(np.prod([int(n) for n in shape], dtype=object))
        if count * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"{name} is shorter or longer than its header says")
        array = np.frombuffer(file.read(), dtype=dtype, count=count)
    return array.reshape(shape, order="F" if fortran else "C")


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
    free_rows=True,
    suffixes=(".npz",),
    separate_process=False,
    write=write,
)
