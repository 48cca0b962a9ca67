"""Writing a Minari dataset in HDF5, without the minari package. The layout is that of Minari 0.5.4."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from replay.slices import SlicedArray, rows_at_once

# Minari's HDF5 storage has one file of this name.
MAIN_FILE = "main_data.hdf5"

# Group in an episode's infos for the arrays that have no place in Minari's layout.
KEPT = "coworld_rows"

# The Minari release whose layout is written.
MINARI_VERSION = "0.5.4"

# Upper bound in bytes of what an episode takes in an HDF5 file in addition to its arrays.
SPARE = 1 << 20


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
    # A chunk is about one training sequence, or a slice. gzip is lossless, and every HDF5 reader supports it.
    rows = min(len(image), 50, rows_at_once(image.nbytes // len(image)))
    chunks = {"chunks": (rows, *image.shape[1:]), "compression": "gzip", "shuffle": False}
    _write_array(group, "observations/image", image, rows, **chunks)
    steps = {"actions": episode["action"][1:], "rewards": episode["reward"][1:].reshape(len(terminations))}
    for key, array in (steps | {"terminations": terminations, "truncations": truncations}).items():
        group.create_dataset(key, data=array)
    kept = {"first_action": episode["action"][0], "first_reward": episode["reward"][0]}
    kept |= {key: array for key, array in episode.items() if key not in ("image", "action", "reward")}
    if "discount" not in episode:
        kept["no_discount"] = np.True_
    for key, array in kept.items():
        _write_array(group, f"infos/{KEPT}/{key}", array, 1)


def _write_array(group: h5py.Group, name: str, array: np.ndarray | SlicedArray, rows: int, **options: Any) -> None:
    """Write an array; one that is read in slices, in multiples of ``rows`` rows, so that no chunk is written twice."""
    if not isinstance(array, SlicedArray):
        group.create_dataset(name, data=array, **options)
        return
    dataset = group.create_dataset(name, array.shape, array.dtype, **options)
    first, waiting = 0, np.empty((0, *array.shape[1:]), array.dtype)
    for piece in array:
        waiting = np.concatenate([waiting, piece])
        count = len(waiting) // rows * rows
        dataset[first : first + count] = waiting[:count]
        first, waiting = first + count, waiting[count:]
    dataset[first:] = waiting


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
