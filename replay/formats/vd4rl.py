"""V-D4RL's 84-pixel files: many episodes end to end in flat HDF5 arrays, told apart by ``step_type``."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from tools import BadInput
from replay.safe_read import refuse_bomb, reported, require
from replay.episode import checked

FIRST, LAST = 0, 2
NEEDED = ("observation", "action", "reward", "step_type")


def has_steps(file: h5py.File) -> bool:
    """Whether an HDF5 file is of this kind."""
    return "step_type" in file


def vd4rl_episodes(path: Path, *, raw: bool = False) -> list[tuple[str, Callable[[], dict]]]:
    """Label and loader of each episode of a file.

    It holds ``observation`` (rows, 3, H, W), ``action``, ``reward``, ``step_type`` (0 first, 1 mid, 2 last)
    and perhaps ``discount``. Rows already follow the convention of `formats.episode`: the action of a row led
    to its observation.

    Raises:
        BadInput: the file is damaged, an array is missing, or lengths differ.
    """
    with reported(path, "HDF5"), h5py.File(path, "r") as file:
        require(NEEDED, file, path)
        step_type = read_array(file["step_type"])
        lengths = {key: len(file[key]) for key in NEEDED}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise BadInput(f"{path}: arrays differ in length ({told}); copy the file again or remove it")
    firsts = np.flatnonzero(step_type == FIRST)
    if step_type.ndim != 1 or len(firsts) == 0 or firsts[0] != 0:
        raise BadInput(f"{path}: step_type does not begin with 0, the first step of an episode; remove the file")
    ends = [*firsts[1:], len(step_type)]
    return [
        (f"{path.stem}-{number}", partial(_load, path, number, int(first), int(end), raw))
        for number, (first, end) in enumerate(zip(firsts, ends, strict=True))
    ]


def _load(path: Path, number: int, first: int, end: int, raw: bool) -> dict:
    where = f"{path} episode {number}"
    with reported(where, "HDF5"), h5py.File(path, "r") as file:
        rows = slice(first, end)
        episode = {key: read_array(file[key], rows) for key in ("action", "reward", "discount") if key in file}
        episode["image"] = read_array(file["observation"], rows)
        if (read_array(file["step_type"], rows)[:-1] == LAST).any():
            raise BadInput(f"{where}: steps go on after the last one (step_type 2) without a first; remove it")
    standard = checked(episode, where)
    return episode | {"image": standard["image"]} if raw else standard


def read_array(dataset: h5py.Dataset, rows: slice = slice(None)) -> np.ndarray:
    """Rows of an HDF5 array, refused when it claims far more bytes than the file holds.

    Raises:
        ValueError: that, or the name stands for a group and not an array.
    """
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError("no array where one should be")
    stored = dataset.id.get_storage_size()
    row_bytes = dataset.nbytes // max(1, len(dataset))
    refuse_bomb(dataset.name, row_bytes * len(range(*rows.indices(len(dataset)))), stored)
    refuse_bomb(dataset.name, dataset.dtype.itemsize * math.prod(dataset.chunks or ()), stored)
    return dataset[rows]
