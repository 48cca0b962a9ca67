"""minari: Minari datasets in HDF5, Arrow or Parquet, read without the minari package.

An episode of T steps has T + 1 observations but T actions and rewards: action t was taken AT observation t. In the row
convention of `replay.episode` it belongs to the next row, so actions and rewards are shifted by one here. The layout is
that of Minari 0.5.4. Images of at least 32 pixels are JPEGs unless the metadata says otherwise.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from replay.encoded import decoded, is_encoded
from replay.formats import Format, LabelledLoaders
from replay.hdf5 import open_hdf5, read_hdf5_array, sliced_hdf5
from replay.labels import no_rewards
from replay.mapping import PLAIN, DataMapping, as_numbers, by_likeness, is_picture, require_one_camera
from replay.minari_writer import KEPT, MAIN_FILE, write
from replay.observations import finished
from replay.safe_read import require_arrays, safe_read
from replay.slices import ENCODED_ROWS, SLICE_BYTES, SlicedArray, rows_at_once
from replay.tables import column_array, read_batches, require_pyarrow, require_values, table_columns
from tools import BadInput

# How many levels below the given folder Minari's `namespace/name-v0/data/0/part-0.arrow` (or .parquet) is searched for.
DEPTH = 6

STEPS = {"action": "actions", "reward": "rewards", "done": "terminations"}  # role -> Minari's name
TABLES = (".arrow", ".parquet")
IMAGE_NAMES = ("image", "pixels", "rgb", "observation")


# Finding


def find_below(directory: Path) -> list[Path]:
    """The files of the one Minari dataset at or below a folder: its id, its version or its data folder.

    Raises:
        BadInput: there are several datasets, or a folder cannot be looked into.
    """
    found: dict[Path, list[Path]] = {}
    for parent, folders, names in os.walk(directory, onerror=_raise_unlisted):
        depth = len(Path(parent).relative_to(directory).parts)
        folders[:] = [] if depth >= DEPTH else sorted(name for name in folders if name[0] != ".")
        for name in names:
            if name == MAIN_FILE:
                found.setdefault(Path(parent), []).append(Path(parent, name))
            elif re.fullmatch(r".*\.arrow|part-\d+\.parquet", name):
                found.setdefault(Path(parent).parent, []).append(Path(parent, name))
    if len(found) > 1:
        listed = ", ".join(str(root.relative_to(directory)) for root in sorted(found)[:4])
        raise BadInput(f"{directory}: {len(found)} Minari datasets below it ({listed}, ...); give one of them")
    return sorted((path for paths in found.values() for path in paths), key=_episode_order)


def _raise_unlisted(error: OSError) -> None:
    raise BadInput(f"{error.filename}: cannot be listed: {error.strerror}; check its permissions") from error


def _episode_order(path: Path) -> tuple[int, str]:
    number = path.parent.name
    return (int(number) if number.isdecimal() else 0, str(path))


# Reading


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each episode of a ``main_data.hdf5``, or of the one in a ``<number>/part-0.arrow``.

    Reading an Arrow or Parquet file needs pyarrow.

    Raises:
        BadInput: an HDF5 file is damaged or contains no episode, or ``action_at`` is given.
    """
    if mapping.action_at == "current":
        raise BadInput(f"{path}: action_at current has no effect on Minari files; remove it")
    if path.suffix in TABLES:
        return [(f"episode_{path.parent.name}", partial(_load_table, path, raw, mapping))]
    with safe_read(path, "HDF5"), open_hdf5(path) as file:
        numbers = sorted(int(name[8:]) for name in file if re.fullmatch(r"episode_\d+", name))
        labels = [str(file[f"episode_{number}"].attrs.get("file", f"episode_{number}")) for number in numbers]
    if not numbers:
        raise BadInput(
            f"{path}: an HDF5 file without step_type (V-D4RL), episode_0 (Minari) or another known layout; "
            "--dataset_format NAME says what is missing for that format (docs/datasets.md)"
        )
    return [
        (label, partial(_load_hdf5, path, number, raw, mapping)) for number, label in zip(numbers, labels, strict=True)
    ]


def _load_hdf5(path: Path, number: int, raw: bool, mapping: DataMapping) -> dict:
    where, limit = f"{path} episode_{number}", mapping.read_memory
    with safe_read(where, "HDF5"), open_hdf5(path) as file:
        group = file[f"episode_{number}"]
        require_arrays(("observations",), group, where)
        leaves = _leaves(group["observations"])
        short = _short_names(leaves)
        observations = {
            short[place]: sliced_hdf5(path, leaf, where, limit) if leaf.shape else np.asarray(leaf[()])
            for place, leaf in leaves.items()
        }
        leaves = _leaves(group[f"infos/{KEPT}"]) if f"infos/{KEPT}" in group else {}
        kept = {
            place: read_hdf5_array(leaf, limit=limit) if leaf.shape else np.asarray(leaf[()])
            for place, leaf in leaves.items()
        }
        arrays = _step_datasets(group)
        names = _names(mapping, observations | kept, arrays, where)
        steps = {role: _read_steps(arrays[names[role]], limit) for role in STEPS if names[role]}
        steps = mapping.with_rewards(steps, len(steps["action"]))
        episode = _to_rows(observations, steps, kept, mapping, where, raw)
    return finished(episode, where, mapping, raw)


def _step_datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The arrays of an episode without its observations, by the last part of their names."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith(("observations/", f"infos/{KEPT}/")):
            found.setdefault(name.split("/")[-1], node)

    group.visititems(visit)
    return found


def _read_steps(dataset: h5py.Dataset, limit: float) -> np.ndarray:
    """An array with a row for each step. Infos begin with those of the reset, which are left out."""
    return read_hdf5_array(dataset, slice(1 if "/infos/" in dataset.name else 0, None), limit)


def _names(mapping: DataMapping, observations: dict, steps: dict, where: object) -> dict[str, str]:
    """The name of the array of each role; that of the image is "" if it is not given.

    Raises:
        BadInput: an array is missing.
    """
    names = mapping.names({"image": "", **STEPS}, (*observations, *steps), where)
    if names["reward"] and names["reward"] not in steps:
        raise BadInput(no_rewards(where, Path("DIR"), names["reward"], by_likeness("reward", steps)))
    require_arrays([name for role, name in names.items() if name and role != "image"], steps, where)
    return names


def _leaves(node: h5py.Dataset | h5py.Group, parent: str = "") -> dict[str, h5py.Dataset]:
    """The arrays below a node, by their paths from there. A node that is an array is named ``image``."""
    if isinstance(node, h5py.Dataset):
        return {parent.rstrip("/") or "image": node}
    leaves: dict[str, h5py.Dataset] = {}
    for name, child in node.items():
        leaves |= _leaves(child, f"{parent}{name}/")
    return leaves


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path, by the path; the whole path of those whose last parts are equal."""
    last_parts = {path: path.split("/")[-1] for path in paths}
    counts = Counter(last_parts.values())
    return {path: last if counts[last] == 1 else path for path, last in last_parts.items()}


def _load_table(path: Path, raw: bool, mapping: DataMapping) -> dict:
    require_pyarrow(path)
    import pyarrow

    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    if len(list(path.parent.glob(f"*{path.suffix}"))) > 1:
        raise BadInput(f"{path.parent}: an episode in several {kind} files; write it as one")
    with safe_read(path, kind):
        space = _observation_space(path.parent.parent / "metadata.json")
        found = table_columns(path)
        require_arrays(("observations",), found, path)
        table = pyarrow.Table.from_batches(read_batches(path, [name for name in found if name != "observations"]))
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        observations = _table_observations(path, space, len(table), kind)
        arrays = _step_columns(columns)
        names = _names(mapping, observations, arrays, path)
        steps = {role: arrays[names[role]] for role in STEPS if names[role]}
        require_values(steps, names, path)
        steps = mapping.with_rewards(steps, len(steps["action"]))
        episode = _to_rows(observations, steps, {}, mapping, path, raw)
    return finished(episode, path, mapping, raw)


def _table_observations(path: Path, space: dict, rows: int, kind: str) -> dict[str, SlicedArray]:
    """The observations of a table, which are read in slices. Their types and shapes are those of the first row."""
    first = next(read_batches(path, ["observations"], 1))["observations"].slice(0, 1)
    arrays = _arrow_observations(first, space)
    names = _short_names(arrays)
    at_once = min(map(rows_at_once, (array.nbytes for array in arrays.values())), default=1)
    found: dict[str, SlicedArray] = {}
    for place, array in arrays.items():
        at_once = ENCODED_ROWS if array.dtype == object else at_once
        read = partial(_observation_rows, path, space, place, at_once)
        found[names[place]] = SlicedArray((rows, *array.shape[1:]), array.dtype, read, path, kind)
    return found


def _observation_rows(path: Path, space: dict, place: str, at_once: int) -> Iterator[np.ndarray]:
    for batch in read_batches(path, ["observations"], at_once):
        yield _arrow_observations(batch["observations"], space)[place]


def _step_columns(columns: dict) -> dict[str, np.ndarray]:
    """The columns without the observations, with a row for each step.

    Minari pads them at the end by one row, to the length of the observations. Infos begin with those of the reset.
    """
    import pyarrow

    found: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if pyarrow.types.is_struct(column.type):
            rows = slice(1, None) if name == "infos" else slice(None, -1)
            fields = {field.name: column.field(index) for index, field in enumerate(column.type)}
            for key in fields.keys() - STEPS.values():
                with contextlib.suppress(ValueError, NotImplementedError):  # lists of different lengths, and so on
                    found[key] = column_array(fields[key])[rows]
        else:
            found[name] = column_array(column)[:-1]
    return found


def _observation_space(path: Path) -> dict:
    try:
        return json.loads(json.loads(path.read_text())["observation_space"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no observation space, which Arrow data needs; copy it again") from error


def _arrow_observations(column, space: dict, parent: str = "") -> dict[str, np.ndarray]:
    """The arrays of a column by their paths in the observation space; that of a space that is a box is ``image``."""
    if space["type"] == "Box":
        array = column_array(column)
        array = array if array.dtype == object else array.reshape(len(array), *space["shape"])
        return {parent.rstrip("/") or "image": array}
    found: dict[str, np.ndarray] = {}
    for name, subspace in space["subspaces"].items():
        if subspace["type"] in ("Box", "Dict"):
            found |= _arrow_observations(column.field(name), subspace, f"{parent}{name}/")
    return found


def _to_rows(
    observations: dict[str, np.ndarray | SlicedArray], steps: dict, kept: dict, mapping: DataMapping, where: object,
    raw: bool,
) -> dict[str, np.ndarray | SlicedArray]:  # fmt: skip
    """An episode in the row convention, from Minari's arrays; ``steps`` by their roles, other observations if raw."""
    cameras = {}
    for name in [_image_name(observations, key, where) for key in mapping.cameras or [""]]:
        cameras[name] = observations.pop(name)
        if is_encoded(cameras[name]):
            cameras[name] = decoded(cameras[name])
    image = next(iter(cameras.values()))
    actions, rewards, terminations = (as_numbers(steps[role]) for role in STEPS)
    if not len(image) - 1 == len(actions) == len(rewards) == len(terminations):
        lengths = f"observations {len(image)}, actions {len(actions)}, rewards {len(rewards)}"
        raise BadInput(f"{where}: arrays differ in length ({lengths}); observations must be one more")
    first_action = kept.pop("first_action", np.zeros(actions.shape[1:], actions.dtype))
    first_reward = kept.pop("first_reward", np.zeros((), rewards.dtype))
    rewards = rewards.reshape(len(rewards), *first_reward.shape)
    episode = {
        "image": cameras if len(cameras) > 1 else image,
        "action": np.concatenate([first_action[None], actions]),
        "reward": np.concatenate([first_reward[None], rewards]),
        "discount": 1 - np.concatenate([[0], terminations.reshape(-1)]).astype(np.float32),
    }
    if kept.pop("no_discount", False):
        del episode["discount"]
    used = observations if raw else mapping.states
    others = {key: array for key, array in observations.items() if key in used and key not in episode}
    return episode | {key: np.asarray(a) if a.nbytes <= SLICE_BYTES else a for key, a in others.items()} | kept


def _image_name(observations: dict[str, np.ndarray | SlicedArray], image_key: str, where: object) -> str:
    images = {name: array for name, array in observations.items() if _contains_images(array)}
    if image_key in images:
        return image_key
    if image_key:
        listed = by_likeness(image_key, images)
        raise BadInput(f"{where}: {image_key!r} (--image_key) has no images (uint8); those that have: {listed}")
    if not images:
        listed = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in observations.items())
        raise BadInput(f"{where}: no images (uint8) among the observations ({listed}); this data is not from pixels")
    usual = next((name for name in IMAGE_NAMES if name in images), "")
    if len(images) > 1:
        shapes = {name: (decoded(a) if is_encoded(a) else a).shape for name, a in images.items()}
        require_one_camera(usual, shapes, where)
    return usual or next(iter(images))


def _contains_images(array: np.ndarray | SlicedArray) -> bool:
    return is_picture(array.shape, array.dtype) or is_encoded(array)


FORMAT = Format(
    name="minari",
    title="Minari",
    list_episodes=list_episodes,
    mapped=True,
    suffixes=(".arrow",),
    filenames=(MAIN_FILE, "part-0.parquet"),
    find_below=find_below,
    write=write,
    usage="Minari loads it with MINARI_DATASETS_PATH set to {folder} and the id {name!r}",
)
