"""Dataset formats: one module in this folder for each.

A new format is one new file here that defines ``FORMAT``. It is discovered by name, so no other file changes. A
format outside this folder is added with `register`.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.mapping import PLAIN, DataMapping
from replay.slices import SlicedArray

TASK = "task"  # array of an episode, not raw, with the text of what was to be done, where each episode says it
Episode = dict[str, np.ndarray | SlicedArray]  # each array (N, ...), see `replay.episode`
Load = Callable[[], Episode]
LabelledLoaders = list[tuple[str, Load]]


@dataclass(frozen=True)
class Format:
    """How the files of one format are recognised, read and, for some formats, written.

    Attributes:
        name: the value of ``--dataset_format``.
        title: how error messages name its files, such as "*.npz".
        list_episodes: called with a path and ``raw``; returns a label and a loader for each episode of the file. It
            reads nothing large. A loader validates the episode. It returns all arrays of the file in the row
            convention if ``raw``, else the result of `validate_episode`. Large ones may be `SlicedArray`. Both raise
            BadInput on a damaged file.
        mapped: ``list_episodes`` takes a `DataMapping` as a third argument, so that ``--image_key``, ``--state_keys``
            and ``--action_range`` work; `replay.observations` says what a format does for that.
        free_rows: its files have a row for each image, and do not say in which one an action is. ``list_episodes`` then
            calls `DataMapping.in_rows`, so that ``--action_at`` works.
        suffixes: endings of its files' names.
        recognises: whether a file of these suffixes is of this format, from the names of the arrays and groups in it
            (`replay.layouts`); None: it is if no other format recognises it.
        filenames: names that belong to this format even if they have the suffix of another one.
        find_below: finds the files, in order, of a dataset whose files are in subfolders of the folder given.
        splits: the names of the parts into which a file divides its episodes, for ``--split``, from the same names;
            None: its files have no such parts.
        separate_process: read the files in another process, because their library can hang or crash on a damaged
            file. Then ``list_episodes`` and ``FORMAT`` must be in the same importable module.
        related: the other files that the episodes of a file are read from. Copies are made again when one changes.
        facts: lines for `dataset.py info`, by their names, from a dataset's folder.
        action_names: what the components of the actions are, from a dataset's folder and the name of its actions ("":
            the format's own); [] where the files do not say it.
        free_cameras: its files name cameras freely, and a file with one needs no ``--image_key``. Then loaders give
            `replay.steps.CAMERA_NAME`, and all files of a dataset must have the camera of the first.
        seconds: least time limit of the separate process for one slice of an episode, or for the list of a file's
            episodes; None: that of ``--read_seconds``.
        notes: lines on how files are read that differ from the format's own, from their paths and the mapping.
        shared_episodes: an episode can go on in another file, which then may have none of its own.
        write: called with an empty folder, pairs of label and raw episode, and the dataset's name; returns the number
            of episodes written. None: `dataset.py convert` cannot write this format.
        usage: one line printed after writing, with the fields {folder} (the parent folder) and {name}.
    """

    name: str
    title: str
    list_episodes: Callable[..., LabelledLoaders]
    mapped: bool = False
    free_rows: bool = False
    suffixes: tuple[str, ...] = ()
    recognises: Callable[[Collection[str]], bool] | None = None
    filenames: tuple[str, ...] = ()
    find_below: Callable[[Path], list[Path]] | None = None
    splits: Callable[[Collection[str]], list[str]] | None = None
    separate_process: bool = True
    related: Callable[[Path], list[Path]] = lambda path: []
    facts: Callable[[Path], dict[str, str]] = lambda directory: {}
    action_names: Callable[[Path, str], list[str]] = lambda directory, key: []
    free_cameras: bool = False
    seconds: int | None = None
    notes: Callable[[list[Path], DataMapping], list[str]] = lambda paths, mapping: []
    shared_episodes: bool = False
    write: Callable[[Path, Iterator[tuple[str, Episode]], str], int] | None = None
    usage: str = ""

    @property
    def module(self) -> str:
        """Name of the module that the separate process imports."""
        return self.list_episodes.__module__

    def episodes(self, path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
        """Label and loader of each episode of a file; see ``list_episodes``."""
        return self.list_episodes(path, raw, mapping) if self.mapped else self.list_episodes(path, raw)


FORMATS: dict[str, Format] = {}


def register(format: Format) -> None:
    """Add a format to `FORMATS`.

    Raises:
        ValueError: the name is "auto" or already used, or the separate process could not import the format.
    """
    if format.name == "auto" or format.name in FORMATS:
        raise ValueError(f"the format name {format.name!r} is already used")
    if format.separate_process:
        module = sys.modules.get(format.module)
        if format.module == "__main__" or getattr(module, "FORMAT", None) is not format:
            raise ValueError(f"format {format.name!r}: define it as FORMAT in the module of {format.list_episodes!r}")
    FORMATS[format.name] = format


for _module in pkgutil.iter_modules(__path__):
    register(importlib.import_module(f"{__name__}.{_module.name}").FORMAT)
