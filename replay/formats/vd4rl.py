"""hdf5: V-D4RL's 84-pixel files. Flat HDF5 arrays contain many episodes, separated by ``step_type``."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np

from replay.formats import Format, LabelledLoaders, minari
from replay.hdf5 import open_hdf5, read_hdf5_array, sliced_hdf5
from replay.labels import no_rewards
from replay.mapping import PLAIN, DataMapping, by_likeness, is_picture, renamed, require_one_camera
from replay.observations import camera_names, finished
from replay.safe_read import require_arrays, safe_read
from tools import BadInput

FIRST, LAST = 0, 2
NAMES = {"image": "observation", "action": "action", "reward": "reward", "done": ""}


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each episode of a file.

    Its arrays are ``observation`` (rows, 3, H, W), ``action``, ``reward``, ``step_type`` (0 first, 1 mid, 2 last) and,
    in some files, ``discount``. The rows already follow the convention of `replay.episode`. A file without
    ``step_type`` is read as a Minari file with another name.

    Raises:
        BadInput: the file is damaged, an array is missing, or lengths differ.
    """
    with safe_read(path, "HDF5"), open_hdf5(path) as file:
        if "step_type" not in file:
            return minari.list_episodes(path, raw, mapping)
        names = mapping.names(NAMES, file, path)
        needed = [*camera_names(names), *mapping.states, "step_type"]
        needed += [names[role] for role in names if role != "image" and names[role]]
        if names["reward"] and names["reward"] not in file:
            raise BadInput(no_rewards(path, path.parent, names["reward"], by_likeness("reward", file)))
        require_arrays(needed, file, path)
        step_type = read_hdf5_array(file["step_type"], limit=mapping.read_memory)
        lengths = {key: len(file[key]) for key in needed}
        if "image" not in mapping.keys and not mapping.list_only:
            arrays = {name: node for name in file if isinstance(node := file.get(name), h5py.Dataset)}
            pictures = {name: array.shape for name, array in arrays.items() if is_picture(array.shape, array.dtype)}
            rows = {name: shape for name, shape in pictures.items() if shape[0] == len(step_type)}
            require_one_camera(names["image"], rows, path)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise BadInput(f"{path}: arrays differ in length ({listed}); copy the file again or remove it")
    firsts = np.flatnonzero(step_type == FIRST)
    if step_type.ndim != 1 or len(firsts) == 0 or firsts[0] != 0:
        raise BadInput(f"{path}: step_type does not begin with 0, the first step of an episode; remove the file")
    ends = [*firsts[1:], len(step_type)]
    return [
        (f"{path.stem}-{number}", partial(_load, path, number, slice(int(first), int(end)), names, raw, mapping))
        for number, (first, end) in enumerate(zip(firsts, ends, strict=True))
    ]


def _load(path: Path, number: int, rows: slice, names: dict[str, str], raw: bool, mapping: DataMapping) -> dict:
    where = f"{path} episode {number}"
    limit = mapping.read_memory
    with safe_read(where, "HDF5"), open_hdf5(path) as file:
        cameras = camera_names(names)
        wanted = {*filter(None, names.values()), *mapping.states, "discount"} - {*cameras}
        arrays = {key: read_hdf5_array(file[key], rows, limit) for key in wanted if key in file}
        arrays |= {name: sliced_hdf5(path, file[name], where, limit, rows) for name in cameras}
        if (read_hdf5_array(file["step_type"], rows)[:-1] == LAST).any():
            raise BadInput(f"{where}: steps follow the last one (step_type 2) without a first one; remove it")
    episode = mapping.in_rows(renamed(arrays, names, where), where)
    return finished(episode, where, mapping, raw)


FORMAT = Format(
    name="hdf5",
    title="*.hdf5",
    list_episodes=list_episodes,
    mapped=True,
    free_rows=True,
    suffixes=(".hdf5", ".h5"),
)
