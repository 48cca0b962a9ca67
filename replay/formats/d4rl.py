"""d4rl: flat arrays of many episodes in HDF5 or ``.npz`` files, with the names of D4RL and OGBench.

Action t was taken AT observation t, and reward t came of it. An episode ends where ``terminals`` or ``timeouts`` is
true. With ``timeouts``, ``terminals`` says where the task terminated; without, as in OGBench, only where episodes end.
An episode of T observations has T rows here, as in `replay.formats.lerobot`; with ``next_observations`` it has T + 1.
"""

import zipfile
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from replay.endings import episode_slices
from replay.formats import Format, LabelledLoaders
from replay.hdf5 import hdf5_columns, open_hdf5
from replay.mapping import PLAIN, DataMapping, as_numbers
from replay.npz_files import npz_columns
from replay.safe_read import safe_read
from replay.slices import whole
from replay.steps import Columns, StepColumns, choose_names, read_episode, used_names
from tools import BadInput

SEEN, NEXT, TERMINALS, TIMEOUTS = "observations", "next_observations", "terminals", "timeouts"
STEPS = ("actions", "rewards", "masks", TERMINALS, TIMEOUTS)
HINT = "this program learns from images, and these are states: take a visual dataset, or render the states"


def recognises(names: Collection[str]) -> bool:
    return {SEEN, "actions"} <= set(names) and not {TERMINALS, TIMEOUTS}.isdisjoint(names)


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each episode of a file.

    Raises:
        BadInput: the file is damaged or has no images, an array is missing, or lengths differ.
    """
    with safe_read(path, "D4RL"):
        arrays = _arrays(path, mapping)
        columns = _columns(arrays)
        names = {} if mapping.list_only else choose_names(columns, mapping, path, path.parent)
        lengths = {name: arrays[name].shape[0] for name in {*used_names(names, mapping), *_ends(arrays, path)}}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
            raise BadInput(f"{path}: arrays differ in length ({listed}); copy the file again or remove it")
        ends = [as_numbers(whole(arrays[name].rows(slice(None)), mapping.read_memory)) for name in _ends(arrays, path)]
        last = np.any([end.reshape(len(end), -1)[:, 0] != 0 for end in ends], axis=0)
        pieces = episode_slices(last)
    return [
        (f"episode_{number}", partial(_load, path, f"{path} episode_{number}", rows, names, raw, mapping))
        for number, rows in enumerate(pieces)
    ]


def _arrays(path: Path, mapping: DataMapping) -> Columns:
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return npz_columns(path, archive, mapping.read_memory)
    with open_hdf5(path) as file:
        return hdf5_columns(path, file, path, mapping.read_memory)


def _ends(arrays: Columns, path: Path) -> list[str]:
    if found := [name for name in (TERMINALS, TIMEOUTS) if name in arrays]:
        return found
    raise BadInput(f"{path}: no array {TERMINALS} or {TIMEOUTS}; add one that is true in the last row of each episode")


def _columns(arrays: Columns) -> StepColumns:
    own = {"image": SEEN, "action": "actions", "reward": "rewards", "done": TERMINALS if TIMEOUTS in arrays else ""}
    acted = {name: column for name, column in arrays.items() if name in STEPS or len(column.shape) == 1}
    observed = {name: column for name, column in arrays.items() if name not in acted and name != NEXT}
    after = {SEEN: arrays[NEXT]} if NEXT in arrays else {}
    return StepColumns(observed, acted, own, after, hint=HINT)


def _load(path: Path, where: str, rows: slice, names: dict[str, str], raw: bool, mapping: DataMapping) -> dict:
    with safe_read(where, "D4RL"):
        return read_episode(_columns(_arrays(path, mapping)), names, rows, where, raw, mapping)


FORMAT = Format(
    name="d4rl",
    title="D4RL",
    list_episodes=list_episodes,
    mapped=True,
    suffixes=(".hdf5", ".h5", ".npz"),
    recognises=recognises,
)
