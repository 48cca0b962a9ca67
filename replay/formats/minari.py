"""minari: Minari datasets in HDF5 or Arrow, read without the minari package, and written in HDF5.

An episode of T steps has T + 1 observations but T actions and rewards: action t was taken AT observation t. In the row
convention of `replay.episode` it belongs to the next row, so actions and rewards are shifted by one here. The layout is
that of Minari 0.5.4. Images of at least 32 pixels are JPEGs unless the metadata says otherwise.
"""

import importlib.metadata
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from replay.episode import validate_episode
from replay.formats import Format, LabelledLoaders
from replay.safe_read import MAX_EPISODE_BYTES, check_expansion, read_hdf5_array, require_arrays, safe_read
from tools import BadInput

# Minari's HDF5 storage has one file of this name.
MAIN_FILE = "main_data.hdf5"

# How many levels below the given folder Minari's `namespace/name-v0/data/0/part-0.arrow` is searched for.
DEPTH = 6

# Group in an episode's infos for the arrays that have no place in Minari's layout.
KEPT = "coworld_rows"

STEPS = ("actions", "rewards", "terminations")
IMAGE_NAMES = ("image", "pixels", "rgb", "observation")

JPEG = b"\xff\xd8"  # the first bytes of every JPEG

# No simulator's frames are larger. A JPEG header that claims more is damaged.
MAX_SIDE = 4096

# The Minari release whose layout is written.
MINARI_VERSION = "0.5.4"

# Upper bound in bytes of what an episode takes in an HDF5 file in addition to its arrays.
SPARE = 1 << 20


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
            elif name.endswith(".arrow"):
                found.setdefault(Path(parent).parent, []).append(Path(parent, name))
    if len(found) > 1:
        listed = ", ".join(str(root.relative_to(directory)) for root in sorted(found)[:4])
        raise BadInput(f"{directory}: {len(found)} Minari datasets below it ({listed}, ...); give one of them")
    return sorted((path for paths in found.values() for path in paths), key=_episode_order)


def _episode_order(path: Path) -> tuple[int, str]:
    number = path.parent.name
    return (int(number) if number.isdecimal() else 0, str(path))


# Reading


def list_episodes(path: Path, raw: bool) -> LabelledLoaders:
    """Label and loader of each episode of a ``main_data.hdf5``, or of the one in a ``<number>/part-0.arrow``.

    Reading an Arrow file needs pyarrow.

    Raises:
        BadInput: an HDF5 file is damaged or contains no episode.
    """
    if path.suffix == ".arrow":
        return [(f"episode_{path.parent.name}", partial(_load_arrow, path, raw))]
    with safe_read(path, "HDF5"), h5py.File(path, "r") as file:
        numbers = sorted(int(name[8:]) for name in file if re.fullmatch(r"episode_\d+", name))
        labels = [str(file[f"episode_{number}"].attrs.get("file", f"episode_{number}")) for number in numbers]
    if not numbers:
        raise BadInput(f"{path}: an HDF5 file without step_type (V-D4RL) or episode_0 (Minari); remove it")
    return [(label, partial(_load_hdf5, path, number, raw)) for number, label in zip(numbers, labels, strict=True)]


def _load_hdf5(path: Path, number: int, raw: bool) -> dict:
    where = f"{path} episode_{number}"
    with safe_read(where, "HDF5"), h5py.File(path, "r") as file:
        group = file[f"episode_{number}"]
        require_arrays(("observations", *STEPS), group, where)
        observations = _leaves(group["observations"])
        kept = _leaves(group[f"infos/{KEPT}"]) if f"infos/{KEPT}" in group else {}
        steps = {key: read_hdf5_array(group[key]) for key in STEPS}
        episode = _to_rows(observations, steps, kept, where)
    return _validated(episode, raw, where)


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


def _load_arrow(path: Path, raw: bool) -> dict:
    try:
        import pyarrow
    except ImportError as error:
        raise BadInput(f"{path}: reading Arrow files needs pyarrow; run: pip install pyarrow") from error
    if len(list(path.parent.glob("*.arrow"))) > 1:
        raise BadInput(f"{path.parent}: an episode in several Arrow files; write it as one")
    with safe_read(path, "Arrow"):
        space = _observation_space(path.parent.parent / "metadata.json")
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_file(file) as reader:
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        table = pyarrow.Table.from_batches(batches).combine_chunks()
        columns = {name: table[name].chunk(0) for name in table.column_names}
        require_arrays(("observations", *STEPS), columns, path)
        observations = _arrow_observations(columns["observations"], space)
        # These are padded by one row, to the length of the observations.
        steps = {key: _arrow_array(columns[key])[:-1] for key in STEPS}
        episode = _to_rows(observations, steps, {}, path)
    return _validated(episode, raw, path)


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
    """A column as an array. Lists of fixed size become rows, JPEG bytes an array of objects."""
    import pyarrow

    if pyarrow.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def _to_rows(observations: dict, steps: dict, kept: dict, where: object) -> dict[str, np.ndarray]:
    """An episode in the row convention, from Minari's arrays."""
    name = _image_name(observations, where)
    image = observations.pop(name)
    if image.ndim < 4:
        image = _decode_jpegs(image)
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
    images = [name for name, array in observations.items() if _contains_images(array)]
    for name in (*IMAGE_NAMES, *images[:1]):
        if name in images:
            return name
    listed = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in observations.items())
    raise BadInput(f"{where}: no images (uint8) among the observations ({listed}); this data is not from pixels")


def _contains_images(array: np.ndarray) -> bool:
    if array.dtype == np.uint8:
        return array.ndim == 4 or (array.ndim == 2 and array.shape[1] > 3 and bytes(array[0, :2]) == JPEG)
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


def _validated(episode: dict, raw: bool, where: object) -> dict:
    standard = validate_episode(episode, where)
    return episode if raw else standard


# Writing


def write(folder: Path, episodes: Iterator[tuple[str, dict]], name: str) -> int:
    """Write an HDF5 dataset with the id ``name``. Returns the number of episodes.

    Raises:
        OSError: there is no space.
    """
    path = folder / "data" / MAIN_FILE
    path.parent.mkdir()
    _check_space(path, SPARE)
    count, steps = 0, 0
    with h5py.File(path, "w", track_order=True) as file:
        for count, (label, episode) in enumerate(episodes, 1):
            _check_space(path, sum(array.nbytes for array in episode.values()) + SPARE)
            _write_group(file.create_group(f"episode_{count - 1}"), count - 1, label, episode)
            file.flush()
            steps += len(episode["reward"]) - 1
    if count > 0:
        metadata = _metadata(name, count, steps, episode, path.stat().st_size)
        (path.parent / "metadata.json").write_text(json.dumps(metadata))
        if "-v" not in name:
            note = "Minari's own loader wants an id that ends in a version, such as name-v0"
            print(f"note: {note}", file=sys.stderr)
    return count


def _check_space(path: Path, size: int) -> None:
    """Raise OSError if the disk has no space for ``size`` more bytes. HDF5 itself crashes on a full disk."""
    spacer = path.with_suffix(".space")
    try:
        with spacer.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        spacer.unlink(missing_ok=True)


def _write_group(group: h5py.Group, number: int, label: str, episode: dict) -> None:
    """Write one episode: the action and reward of row t + 1 are stored at t, those of row 0 in the infos."""
    discount = episode.get("discount", np.ones(len(episode["reward"]), np.float32)).reshape(-1)
    terminations = discount[1:] == 0
    truncations = np.zeros_like(terminations)
    truncations[-1] = not terminations[-1]
    group.attrs.update({"id": number, "total_steps": len(terminations), "file": label})
    image = episode["image"]
    # A chunk is about one training sequence. gzip is lossless, and every HDF5 reader supports it.
    chunks = (min(len(image), 50), *image.shape[1:])
    group.create_dataset("observations/image", data=image, chunks=chunks, compression="gzip", shuffle=False)
    steps = {"actions": episode["action"][1:], "rewards": episode["reward"][1:].reshape(len(terminations))}
    for key, array in (steps | {"terminations": terminations, "truncations": truncations}).items():
        group.create_dataset(key, data=array)
    kept = {"first_action": episode["action"][0], "first_reward": episode["reward"][0]}
    kept |= {key: array for key, array in episode.items() if key not in ("image", "action", "reward")}
    if "discount" not in episode:
        kept["no_discount"] = np.True_
    for key, array in kept.items():
        group.create_dataset(f"infos/{KEPT}/{key}", data=array)


def _metadata(name: str, episodes: int, steps: int, episode: dict, size: int) -> dict:
    shape = episode["image"].shape[1:]
    image = _box("uint8", shape, 0, 255)
    action = _box(episode["action"].dtype.name, episode["action"].shape[1:], -1.0, 1.0)
    return {
        "total_episodes": episodes,
        "total_steps": steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps({"type": "Dict", "subspaces": {"image": image}}),
        "action_space": json.dumps(action),
        "dataset_id": name,
        "minari_version": MINARI_VERSION,
        "dataset_size": round(size / 1e6, 1),
        "algorithm_name": f"coworld {_version()}",
    }


def _box(dtype: str, shape: tuple[int, ...], low: float, high: float) -> dict:
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": dtype, "shape": list(shape), **bounds}


def _version() -> str:
    try:
        return importlib.metadata.version("coworld")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


FORMAT = Format(
    name="minari",
    title="Minari",
    list_episodes=list_episodes,
    suffixes=(".arrow",),
    filenames=(MAIN_FILE,),
    find_below=find_below,
    unsupported={
        ".parquet": "only Minari's Parquet files; write them again with Minari's data_format hdf5 or arrow",
    },
    write=write,
    usage="Minari loads it with MINARI_DATASETS_PATH set to {folder} and the id {name!r}",
)
