"""npz: one episode in one ``.npz`` file, as Dreamer, the CoWorld release and V-D4RL (64 pixels) write it."""

import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from replay.episode import KEYS, validate_episode
from replay.formats import Format, LabelledLoaders
from replay.npz_files import episode_filename, read_npy_header, write_npz
from replay.safe_read import check_expansion, safe_read
from tools import BadInput


def list_episodes(path: Path, raw: bool) -> LabelledLoaders:
    """The file's name and the loader of its only episode."""
    return [(path.name, partial(read_npz, path, raw))]


def read_npz(path: Path, raw: bool) -> dict[str, np.ndarray]:
    """The episode of one ``.npz`` file, validated.

    Args:
        path: the file. Nothing in it is ever unpickled.
        raw: return all arrays exactly as they are in the file, instead of the four in their standard form.

    Raises:
        BadInput: the file is truncated, no zip archive, or not a valid episode.
    """
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
        wanted = [name for name in names if raw or name[:-4] in KEYS]
        episode = {name[:-4]: _read_array(archive, name, path) for name in wanted}
    standard = validate_episode(episode, path)
    return episode if raw else standard


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
    suffixes=(".npz",),
    separate_process=False,
    write=write,
)
