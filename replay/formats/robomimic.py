"""robomimic: HDF5 files of robomimic, MimicGen, robosuite and LIBERO, with many demonstrations in the group ``data``.

Action t was taken AT observation t, and reward t came of it. An episode of T observations has T rows here, as in
`replay.formats.lerobot`; with ``next_obs`` it has T + 1, and no action is lost. LIBERO's own script writes what was
seen AFTER the action, so there the action of a row led to its images; its files have ``macros_image_convention``.
"""

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

import h5py

from replay.formats import Format, LabelledLoaders
from replay.hdf5 import hdf5_columns, open_hdf5, read_hdf5_array
from replay.mapping import PLAIN, DataMapping, by_likeness
from replay.safe_read import safe_read
from replay.steps import StepColumns, choose_names, read_episode, row_count, used_names
from tools import BadInput

DEMO = re.compile(r"demo_(\d{1,9})")
MASK = "mask/"  # group with an array of names for each split
OWN = {"image": "", "action": "actions", "reward": "rewards", "done": "dones"}
LIBERO = "macros_image_convention"  # an attribute that only LIBERO's script writes
HINT = (
    "add them with robomimic's dataset_states_to_obs.py --camera_names agentview --camera_height 84 --camera_width 84"
)


def recognises(names: Collection[str]) -> bool:
    return any(name.startswith("data/") and DEMO.fullmatch(name[5:]) for name in names)


def splits(names: Collection[str]) -> list[str]:
    return sorted(name.removeprefix(MASK) for name in names if name.startswith(MASK))


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each demonstration of a file, or of those of its ``mask`` that ``mapping.split`` names.

    Raises:
        BadInput: the file is damaged, has no such split or no images, or no camera is chosen of several.
    """
    with safe_read(path, "HDF5"), open_hdf5(path) as file:
        labels = [name for name in file["data"] if isinstance(name, str) and DEMO.fullmatch(name)]
        if mapping.split:
            labels = _part(file, labels, mapping.split, path)
        if not labels:
            raise BadInput(f"{path}: no demonstrations data/demo_0, ... in it; copy the file again or remove it")
        labels = sorted(labels, key=lambda label: int(label.removeprefix("demo_")))
        if mapping.list_only:
            return [(label, partial(_load, path, label, {}, raw, mapping)) for label in labels]
        seen = (label for label in labels if "obs" in file["data"][label] and len(file["data"][label]["obs"]))
        first = _columns(file, path, next(seen, labels[0]), path, mapping)  # an empty one costs only itself
        names = choose_names(first, mapping, path, path.parent)
    return [(label, partial(_load, path, label, names, raw, mapping)) for label in labels]


def _part(file: h5py.File, labels: list[str], split: str, path: Path) -> list[str]:
    """The demonstrations of a split, of those that exist."""
    splits = list(file["mask"]) if "mask" in file else []
    if split not in splits:
        listed = by_likeness(split, splits) if splits else "none in this file"
        raise BadInput(f"{path}: no split {split!r} (--split); there are: {listed}")
    wanted = read_hdf5_array(file["mask"][split]).ravel().tolist()
    found = {name.decode() if isinstance(name, bytes) else str(name) for name in wanted}
    if absent := sorted(found - set(labels)):
        raise BadInput(
            f"{path}: split {split} names {len(absent)} demonstration(s) that are not in the file, such as "
            f"{absent[0]!r}; write the file again, or its mask"
        )
    return [label for label in labels if label in found]


def _columns(file: h5py.File, path: Path, label: str, where: object, mapping: DataMapping) -> StepColumns:
    demo, limit = file["data"][label], mapping.read_memory
    groups = {name: hdf5_columns(path, demo[name], where, limit) for name in ("obs", "next_obs") if name in demo}
    acted = hdf5_columns(path, demo, where, limit)
    if "action_dict" in demo:
        acted |= hdf5_columns(path, demo["action_dict"], where, limit)
    after_action = LIBERO in file["data"].attrs and "next_obs" not in groups
    seen, after = groups.get("obs", {}), groups.get("next_obs", {})
    return StepColumns(seen, acted, OWN, after, led=after_action, ends_only=True, hint=HINT)


def _load(path: Path, label: str, names: dict[str, str], raw: bool, mapping: DataMapping) -> dict:
    where = f"{path} {label}"
    with safe_read(where, "HDF5"):
        with open_hdf5(path) as file:
            columns = _columns(file, path, label, where, mapping)
        available = columns.observed | columns.acted
        if missing := [name for name in used_names(names, mapping) if name not in available]:
            raise BadInput(f"{where}: no array named {', '.join(missing)}; write it again or remove it")
        return read_episode(columns, names, slice(0, row_count(columns, names, mapping)), where, raw, mapping)


FORMAT = Format(
    name="robomimic",
    title="robomimic",
    list_episodes=list_episodes,
    mapped=True,
    free_cameras=True,
    suffixes=(".hdf5", ".h5"),
    recognises=recognises,
    splits=splits,
)
