"""Minari datasets, HDF5 and Arrow, without the minari package: reading both, writing HDF5.

An episode of T steps has T + 1 observations but T actions and rewards: action t was taken AT observation t.
In the row convention of `formats.episode` it belongs to the next row, so both are shifted by one here.
Layout after Minari 0.5.4; images of at least 32 pixels are JPEGs unless the metadata says otherwise.
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tools import BadInput
from replay.safe_read import MAX_EPISODE_BYTES, refuse_bomb, reported, require
from replay.episode import checked
from replay.formats.vd4rl import read_array

# Where `formats.convert` keeps, within an episode's infos, what Minari's own arrays have no place for.
KEPT = "coworld_rows"

STEPS = ("actions", "rewards", "terminations")
IMAGE_NAMES = ("image", "pixels", "rgb", "observation")

JPEG = b"\xff\xd8"  # how every JPEG begins

# Larger frames than any simulator's; a JPEG header that claims more is damaged.
MAX_SIDE = 4096


def minari_episodes(path: Path, *, raw: bool = False) -> list[tuple[str, Callable[[], dict]]]:
    """Label and loader of each episode of a ``main_data.hdf5``.

    Raises:
        BadInput: the file is damaged or holds no episode.
    """
    with reported(path, "HDF5"), h5py.File(path, "r") as file:
        numbers = sorted(int(name[8:]) for name in file if re.fullmatch(r"episode_\d+", name))
        labels = [str(file[f"episode_{number}"].attrs.get("file", f"episode_{number}")) for number in numbers]
    if not numbers:
        raise BadInput(f"{path}: an HDF5 file without step_type (V-D4RL) or episode_0 (Minari); remove it")
    return [(label, partial(_load_hdf5, path, number, raw)) for number, label in zip(numbers, labels, strict=True)]


def _load_hdf5(path: Path, number: int, raw: bool) -> dict:
    where = f"{path} episode_{number}"
    with reported(where, "HDF5"), h5py.File(path, "r") as file:
        group = file[f"episode_{number}"]
        require(("observations", *STEPS), group, where)
        observations = _leaves(group["observations"])
        kept = _leaves(group[f"infos/{KEPT}"]) if f"infos/{KEPT}" in group else {}
        steps = {key: read_array(group[key]) for key in STEPS}
        episode = _rows(observations, steps, kept, where)
    return _finished(episode, raw, where)


def _leaves(node: h5py.Dataset | h5py.Group) -> dict[str, np.ndarray]:
    """Arrays below a node by their last name; an image-only observation is named ``image``."""
    if isinstance(node, h5py.Dataset):
        return {"image": read_array(node)}
    leaves: dict[str, np.ndarray] = {}
    for name, child in node.items():
        if isinstance(child, h5py.Group):
            leaves |= _leaves(child)
        elif child.shape == ():
            leaves[name] = np.asarray(child[()])
        else:
            leaves[name] = read_array(child)
    return leaves


def arrow_episodes(path: Path, *, raw: bool = False) -> list[tuple[str, Callable[[], dict]]]:
    """Label and loader of the one episode of a ``<number>/part-0.arrow``; needs pyarrow."""
    return [(f"episode_{path.parent.name}", partial(_load_arrow, path, raw))]


def _load_arrow(path: Path, raw: bool) -> dict:
    try:
        import pyarrow
    except ImportError as error:
        raise BadInput(f"{path}: reading Arrow files needs pyarrow; run: pip install pyarrow") from error
    if len(list(path.parent.glob("*.arrow"))) > 1:
        raise BadInput(f"{path.parent}: an episode in several Arrow files; write it as one")
    with reported(path, "Arrow"):
        space = _observation_space(path.parent.parent / "metadata.json")
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_file(file) as reader:
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        table = pyarrow.Table.from_batches(batches).combine_chunks()
        columns = {name: table[name].chunk(0) for name in table.column_names}
        require(("observations", *STEPS), columns, path)
        observations = _arrow_observations(columns["observations"], space)
        # The last row of these is padding, to the length of the observations.
        steps = {key: _arrow_array(columns[key])[:-1] for key in STEPS}
        episode = _rows(observations, steps, {}, path)
    return _finished(episode, raw, path)


def _observation_space(path: Path) -> dict:
    try:
        return json.loads(json.loads(path.read_text())["observation_space"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no observation space, which Arrow data needs; copy it again") from error


def _arrow_observations(column, space: dict) -> dict[str, np.ndarray]:
    if space["type"] == "Box":
        array = _arrow_array(column)
        return {"image": array if array.dtype == object else array.reshape(len(array), *space["shape"])}
    found: dict[str, np.ndarray] = {}
    for name, subspace in space["subspaces"].items():
        if subspace["type"] == "Box":
            found[name] = _arrow_observations(column.field(name), subspace)["image"]
        elif subspace["type"] == "Dict":
            found |= _arrow_observations(column.field(name), subspace)
    return found


def _arrow_array(column) -> np.ndarray:
    """A column as an array; lists of fixed size become rows, JPEG bytes an array of objects."""
    import pyarrow

    if pyarrow.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def _rows(observations: dict, steps: dict, kept: dict, where: object) -> dict[str, np.ndarray]:
    """An episode in the row convention, from Minari's arrays."""
    name = _image_name(observations, where)
    image = observations.pop(name)
    if image.ndim < 4:
        image = _decoded(image)
    actions, rewards, terminations = steps["actions"], steps["rewards"], steps["terminations"]
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


def _image_name(observations: dict, where: object) -> str:
    images = [name for name, array in observations.items() if _holds_images(array)]
    for name in (*IMAGE_NAMES, *images[:1]):
        if name in images:
            return name
    told = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in observations.items())
    raise BadInput(f"{where}: no images (uint8) among the observations ({told}); this data is not from pixels")


def _holds_images(array: np.ndarray) -> bool:
    if array.dtype == np.uint8:
        return array.ndim == 4 or (array.ndim == 2 and array.shape[1] > 3 and bytes(array[0, :2]) == JPEG)
    return array.dtype == object and array.ndim == 1 and len(array) > 0 and bytes(array[0][:2]) == JPEG


def _decoded(frames: Sequence) -> np.ndarray:
    """JPEGs as (N, H, W, 3); all must be as large as the first."""
    first = _decoded_frame(bytes(frames[0]))
    refuse_bomb("image", first.nbytes * len(frames), MAX_EPISODE_BYTES)
    image = np.empty((len(frames), *first.shape), np.uint8)
    for index, frame in enumerate(frames):
        decoded = _decoded_frame(bytes(frame))
        if decoded.shape != first.shape:
            raise ValueError(f"frame {index} is {decoded.shape}, the first {first.shape}")
        image[index] = decoded
    return image


def _decoded_frame(data: bytes) -> np.ndarray:
    if not data.startswith(JPEG):
        raise ValueError("a frame that is no JPEG")
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"a JPEG of {image.size[0]}x{image.size[1]} pixels")
        return np.asarray(image.convert("RGB"))


def _finished(episode: dict, raw: bool, where: object) -> dict:
    standard = checked(episode, where)
    return episode if raw else standard
