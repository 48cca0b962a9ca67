"""Recognising what a directory holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from errors import BadInput, nearest
from formats.npz import read_npz

FORMATS = ("auto", "npz")

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

    def episodes(self, *, extras: bool = False) -> list[tuple[str, Load]]:
        """Label and loader of each episode; nothing large is read before a loader is called.

        Raises:
            BadInput: the file as a whole cannot be used. A loader raises it for its episode alone.
        """
        return [(self.path.name, partial(read_npz, self.path, extras=extras))]


def find_sources(directory: Path | str, format: str = "auto") -> list[Source]:
    """The files of a dataset, in the order of their names (which begin with the time they were made).

    Raises:
        BadInput: no such directory, nothing readable in it, or an unknown format.
    """
    if format not in FORMATS:
        raise BadInput(f"dataset format {format!r} is unknown; {nearest(format, FORMATS)}")
    directory = Path(directory).expanduser()
    if not directory.exists():
        raise BadInput(f"{directory}: no such directory; give the folder that holds the episodes")
    files = [directory] if directory.is_file() else _visible(directory)
    sources = [Source(path, "npz", path.name) for path in files if path.suffix == ".npz"]
    if not sources:
        raise BadInput(
            f"{directory}: no episodes (*.npz) in it; collect some with collect.py or give another folder"
        )
    return sources


def _visible(directory: Path) -> list[Path]:
    try:
        return sorted(
            path for path in directory.iterdir() if not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise BadInput(f"{directory}: cannot be listed: {error.strerror}; check its permissions") from error
