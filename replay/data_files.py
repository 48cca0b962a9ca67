"""Recognising what a directory holds, and giving its episodes one at a time."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tools import BadInput, nearest
from replay.reader_process import guarded_episodes
from replay.formats.npz import read_npz

# npz: Dreamer, the CoWorld release, V-D4RL's 64 pixels; hdf5: V-D4RL's 84 pixels; minari: HDF5 or Arrow.
FORMATS = ("auto", "npz", "hdf5", "minari")

SUFFIXES = {".npz": "npz", ".hdf5": "hdf5", ".h5": "hdf5", ".arrow": "minari"}

# Minari's HDF5 storage has one file of this name.
MAIN_FILE = "main_data.hdf5"

# How far below the given folder Minari's `namespace/name-v0/data/0/part-0.arrow` is looked for.
DEPTH = 6

Load = Callable[[], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """One file of a dataset, which holds one episode or many.

    Attributes:
        path: the file.
        format: one of `FORMATS`.
        name: its path within the dataset, which tells it from the dataset's other files.
    """

    path: Path
    format: str
    name: str

    def episodes(self, *, raw: bool = False) -> list[tuple[str, Load]]:
        """Label and loader of each episode; nothing large is read before a loader is called.

        Args:
            raw: loaders return all arrays as they are in the file; else the four standard ones.

        Raises:
            BadInput: the file as a whole cannot be used. A loader raises it for its episode alone.
        """
        if self.format == "npz":
            return [(self.path.name, partial(read_npz, self.path, raw=raw))]
        return guarded_episodes(self.path, raw=raw)


def find_sources(directory: Path | str, format: str = "auto") -> list[Source]:
    """The files of a dataset, in the order of their names (which begin with the time they were made).

    Args:
        directory: a folder of episodes, one file, or a folder above a single Minari dataset.
        format: "auto", or the one kind to use where a folder holds several.

    Raises:
        BadInput: no such directory, nothing readable in it, two kinds of files, or an unknown format.
    """
    if format not in FORMATS:
        raise BadInput(f"dataset format {format!r} is unknown; {nearest(format, FORMATS)}")
    directory = Path(directory).expanduser()
    if not directory.exists():
        raise BadInput(f"{directory}: no such directory; give the folder that holds the episodes")
    files = [directory] if directory.is_file() else _visible(directory)
    kinds: dict[str, list[Source]] = {}
    for path in files:
        if path.suffix in SUFFIXES:
            kind = "minari" if path.name == MAIN_FILE else SUFFIXES[path.suffix]
            kinds.setdefault(kind, []).append(Source(path, kind, path.name))
    if not kinds and directory.is_dir():
        kinds = _minari_below(directory)
    if format != "auto":
        kinds = {kind: sources for kind, sources in kinds.items() if kind == format}
    if len(kinds) > 1:
        told = " and ".join(f"{len(sources)} {kind}" for kind, sources in sorted(kinds.items()))
        raise BadInput(f"{directory}: two formats mixed ({told} files); move one away or give --dataset_format")
    if not kinds:
        raise BadInput(f"{directory}: no episodes in it{_hint(directory, format)}")
    return next(iter(kinds.values()))


def _visible(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name[0] != "." and path.is_file())
    except OSError as error:
        raise BadInput(f"{directory}: cannot be listed: {error.strerror}; check its permissions") from error


def _minari_below(directory: Path) -> dict[str, list[Source]]:
    """The one Minari dataset at or below a folder, as people point at its id, its version or its data."""
    found: dict[Path, list[Path]] = {}
    for parent, folders, names in os.walk(directory):
        depth = len(Path(parent).relative_to(directory).parts)
        folders[:] = [] if depth >= DEPTH else sorted(name for name in folders if name[0] != ".")
        for name in names:
            if name == MAIN_FILE:
                found.setdefault(Path(parent), []).append(Path(parent, name))
            elif name.endswith(".arrow"):
                found.setdefault(Path(parent).parent, []).append(Path(parent, name))
    if len(found) > 1:
        told = ", ".join(str(root.relative_to(directory)) for root in sorted(found)[:4])
        raise BadInput(f"{directory}: {len(found)} Minari datasets below it ({told}, ...); give one of them")
    paths = sorted((path for paths in found.values() for path in paths), key=_episode_order)
    sources = [Source(path, "minari", path.relative_to(directory).as_posix()) for path in paths]
    return {"minari": sources} if sources else {}


def _episode_order(path: Path) -> tuple[int, str]:
    number = path.parent.name
    return (int(number) if number.isdecimal() else 0, str(path))


def _hint(directory: Path, format: str) -> str:
    if format != "auto":
        return f" of format {format}; leave --dataset_format at auto or give another folder"
    below = sorted({path.parent for kind in SUFFIXES for path in directory.glob(f"*/*{kind}")})
    if below:
        return f", but in {', '.join(path.name for path in below[:4])}; give one of these folders"
    if next(directory.glob("**/*.parquet"), None):
        return ", only Minari's Parquet files; write them again with Minari's data_format hdf5 or arrow"
    return " (*.npz, *.hdf5 or Minari); collect some with collect.py or give another folder"
