"""minari: Minari datasets in HDF5, Arrow or Parquet, read without the minari package.

An episode of T steps has T + 1 observations but T actions and rewards: action t was taken AT observation t. In the row
convention of `replay.episode` it belongs to the next row, so actions and rewards are shifted by one here. The layout is
that of Minari 0.5.4. Images of at least 32 pixels are JPEGs unless the metadata says otherwise.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from replay.episode import as_raw, validate_episode
from replay.formats import Format, LabelledLoaders
from replay.mapping import PLAIN, DataMapping, as_numbers, by_likeness
from replay.minari_writer import KEPT, MAIN_FILE, write
from replay.safe_read import MAX_EPISODE_BYTES, check_expansion, read_hdf5_array, require_arrays, safe_read
from replay.tables import column_array, read_parquet, require_pyarrow
from tools import BadInput

# How many levels below the given folder Minari's `namespace/name-v0/data/0/part-0.arrow` (or .parquet) is searched for.
DEPTH = 6

STEPS = {"action": "actions", "reward": "rewards", "done": "terminations"}  # role -> Minari's name
TABLES = (".arrow", ".parquet")
IMAGE_NAMES = ("image", "pixels", "rgb", "observation")

JPEG = b"\xff\xd8"  # the first bytes of every JPEG

# No simulator's frames are larger. A JPEG header that claims more is damaged.
MAX_SIDE = 4096


# Finding


def find_below(directory: Path) -> list[Path]:
    """The files of the one Minari dataset at or below a folder: its id, its version or its data folder.

    Raises:
        BadInput: there are several datasets.
    """
    found: dict[Path, list[Path]] = {}
    for parent, folders, names in os.walk(directory):
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
    with safe_read(path, "HDF5"), h5py.File(path, "r") as file:
        numbers = sorted(int(name[8:]) for name in file if re.fullmatch(r"episode_\d+", name))
        labels = [str(file[f"episode_{number}"].attrs.get("file", f"episode_{number}")) for number in numbers]
    if not numbers:
        raise BadInput(f"{path}: an HDF5 file without step_type (V-D4RL) or episode_0 (Minari); remove it")
    return [
        (label, partial(_load_hdf5, path, number, raw, mapping)) for number, label in zip(numbers, labels, strict=True)
    ]


def _load_hdf5(path: Path, number: int, raw: bool, mapping: DataMapping) -> dict:
    where = f"{path} episode_{number}"
    with safe_read(where, "HDF5"), h5py.File(path, "r") as file:
        group = file[f"episode_{number}"]
        require_arrays(("observations",), group, where)
        observations = _leaves(group["observations"])
        kept = _leaves(group[f"infos/{KEPT}"]) if f"infos/{KEPT}" in group else {}
        arrays = _step_datasets(group)
        names = _names(mapping, observations, arrays, where)
        steps = {role: _read_steps(arrays[names[role]]) for role in STEPS}
        episode = _to_rows(observations, steps, kept, names["image"], where)
    return _validated(episode, raw, where, mapping)


def _step_datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The arrays of an episode without its observations, by the last part of their names."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith(("observations/", f"infos/{KEPT}/")):
            found.setdefault(name.split("/")[-1], node)

    group.visititems(visit)
    return found


def _read_steps(dataset: h5py.Dataset) -> np.ndarray:
    """An array with a row for each step. Infos begin with those of the reset, which are left out."""
    return read_hdf5_array(dataset, slice(1 if "/infos/" in dataset.name else 0, None))


def _names(mapping: DataMapping, observations: dict, steps: dict, where: object) -> dict[str, str]:
    """The name of the array of each role; that of the image is "" if it is not given.

    Raises:
        BadInput: an array is missing.
    """
    names = mapping.names({"image": "", **STEPS}, (*observations, *steps), where)
    require_arrays([name for role, name in names.items() if role != "image"], steps, where)
    return names


def _leaves(node: h5py.Dataset | h5py.Group) -> dict[str, np.ndarray]:
    """The arrays below a node, by the last part of their names. A node that is an array is named ``image``."""
    if isinstance(node, h5py.Dataset):
        return {"image": read_hdf5_array(node)}
    leaves: dict[str, np.ndarray] = {}
    for name, child in node.items():
        if isinstance(child, h5py.Group):
            leaves |= _leaves(child)
        elif child.shape == ():
            leaves[name] = np.asarray(child[()])
        else:
            leaves[name] = read_hdf5_array(child)
    return leaves


def _load_table(path: Path, raw: bool, mapping: DataMapping) -> dict:
    require_pyarrow(path)
    import pyarrow

    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    if len(list(path.parent.glob(f"*{path.suffix}"))) > 1:
        raise BadInput(f"{path.parent}: an episode in several {kind} files; write it as one")
    with safe_read(path, kind):
        space = _observation_space(path.parent.parent / "metadata.json")
        batches = read_parquet(path).to_batches() if kind == "Parquet" else _arrow_batches(path)
        for batch in batches:
            batch.validate(full=True)
        table = pyarrow.Table.from_batches(batches).combine_chunks()
        columns = {name: table[name].chunk(0) for name in table.column_names}
        require_arrays(("observations",), columns, path)
        observations = _arrow_observations(columns.pop("observations"), space)
        arrays = _step_columns(columns)
        names = _names(mapping, observations, arrays, path)
        steps = {role: arrays[names[role]] for role in STEPS}
        episode = _to_rows(observations, steps, {}, names["image"], path)
    return _validated(episode, raw, path, mapping)


def _arrow_batches(path: Path) -> list:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_file(file) as reader:
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]


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
            found |= {key: column_array(field)[rows] for key, field in fields.items() if key not in STEPS.values()}
        else:
            found[name] = column_array(column)[:-1]
    return found


def _observation_space(path: Path) -> dict:
    try:
        return json.loads(json.loads(path.read_text())["observation_space"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no observation space, which Arrow data needs; copy it again") from error


def _arrow_observations(column, space: dict) -> dict[str, np.ndarray]:
    if space["type"] == "Box":
        array = column_array(column)
        return {"image": array if array.dtype == object else array.reshape(len(array), *space["shape"])}
    found: dict[str, np.ndarray] = {}
    for name, subspace in space["subspaces"].items():
        if subspace["type"] == "Box":
            found[name] = _arrow_observations(column.field(name), subspace)["image"]
        elif subspace["type"] == "Dict":
            found |= _arrow_observations(column.field(name), subspace)
    return found


def _to_rows(observations: dict, steps: dict, kept: dict, image_key: str, where: object) -> dict[str, np.ndarray]:
    """An episode in the row convention, from Minari's arrays; ``steps`` by their roles."""
    name = _image_name(observations, image_key, where)
    image = observations.pop(name)
    if _contains_jpegs(image):
        image = _decode_jpegs(image)
    actions, rewards, terminations = (as_numbers(steps[role]) for role in STEPS)
    if not len(image) - 1 == len(actions) == len(rewards) == len(terminations):
        lengths = f"observations {len(image)}, actions {len(actions)}, rewards {len(rewards)}"
        raise BadInput(f"{where}: arrays differ in length ({lengths}); observations must be one more")
    first_action = kept.pop("first_action", np.zeros(actions.shape[1:], actions.dtype))
    first_reward = kept.pop("first_reward", np.zeros((), rewards.dtype))
    rewards = rewards.reshape(len(rewards), *first_reward.shape)
    episode = {
        "image": image,
        "action": np.concatenate([first_action[None], actions]),
        "reward": np.concatenate([first_reward[None], rewards]),
        "discount": 1 - np.concatenate([[0], terminations.reshape(-1)]).astype(np.float32),
    }
    if kept.pop("no_discount", False):
        del episode["discount"]
    extras = {key: array for key, array in observations.items() if key not in episode}
    return episode | extras | kept


def _image_name(observations: dict, image_key: str, where: object) -> str:
    images = [name for name, array in observations.items() if _contains_images(array)]
    if image_key and image_key not in images:
        listed = by_likeness(image_key, images)
        raise BadInput(f"{where}: {image_key!r} (--image_key) has no images (uint8); those that have: {listed}")
    for name in (*filter(None, [image_key]), *IMAGE_NAMES, *images[:1]):
        if name in images:
            return name
    listed = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in observations.items())
    raise BadInput(f"{where}: no images (uint8) among the observations ({listed}); this data is not from pixels")


def _contains_images(array: np.ndarray) -> bool:
    pictures = array.dtype == np.uint8 and (array.ndim == 4 or (array.ndim == 3 and min(array.shape[1:]) > 3))
    return pictures or _contains_jpegs(array)


def _contains_jpegs(array: np.ndarray) -> bool:
    if array.dtype == np.uint8:
        return array.ndim == 2 and array.shape[1] > 3 and bytes(array[0, :2]) == JPEG
    return array.dtype == object and array.ndim == 1 and len(array) > 0 and bytes(array[0][:2]) == JPEG


def _decode_jpegs(frames: Sequence) -> np.ndarray:
    """Decode JPEGs of equal size to (N, H, W, 3) uint8. Raises ValueError for a damaged one."""
    first = _decode_jpeg(bytes(frames[0]))
    check_expansion("image", first.nbytes * len(frames), MAX_EPISODE_BYTES)
    image = np.empty((len(frames), *first.shape), np.uint8)
    for index, frame in enumerate(frames):
        decoded = _decode_jpeg(bytes(frame))
        if decoded.shape != first.shape:
            raise ValueError(f"frame {index} is {decoded.shape}, the first {first.shape}")
        image[index] = decoded
    return image


def _decode_jpeg(data: bytes) -> np.ndarray:
    if not data.startswith(JPEG):
        raise ValueError("a frame is not a JPEG")
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"a JPEG of {image.size[0]}x{image.size[1]} pixels")
        return np.asarray(image.convert("RGB"))


def _validated(episode: dict, raw: bool, where: object, mapping: DataMapping) -> dict:
    standard = validate_episode(episode, where, mapping.any_actions)
    return as_raw(episode, standard) if raw else standard


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
