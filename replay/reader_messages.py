"""What the program and the separate process that reads files send each other."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from replay.mapping import DataMapping


class Request(NamedTuple):
    """What the process is asked for.

    Attributes:
        format, module, search_path: name of the format, its module, and sys.path. ``format`` is "" if the names in
            an HDF5 file are asked for, by which its format is recognised.
        path, raw, mapping: see `Format`.
        number: of the episode; None: the labels of all episodes.
        array: None: the episode, with a `Sliced` in place of each array that is read in slices. A name: the next slice
            of this array, or None after the last one.
        index: number of that slice.
        seconds: time limit.
    """

    format: str
    module: str
    search_path: list[str]
    path: Path
    raw: bool
    mapping: DataMapping
    number: int | None
    array: str | None
    index: int
    seconds: int

    @property
    def file(self) -> tuple:
        return self.format, self.path, self.raw, self.mapping


class Sliced(NamedTuple):
    """What is known of a `SlicedArray` before its rows are read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    where: str
    kind: str
