"""Mutated files of the robot formats give one line each, and neither hang, crash nor fill the memory.

More files: ``COWORLD_FUZZ=1000 pytest -k mutated`` reads 1,000 of each kind.
"""

import os
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from robot_files import (
    mutated_zip,
    write_aloha,
    write_d4rl,
    write_diffusion_policy,
    write_libero,
    write_robomimic,
)
from test_formats import mutated, peak_memory

from replay import DataMapping, reader_process
from replay.data_files import find_data_files
from tools import BadInput


def with_rewards(path: Path) -> Path:
    with h5py.File(path, "a") as file:
        file["reward"] = np.zeros(len(file["action"]))
    return path


def write_folder(folder: Path, part: str) -> Path:
    """The file of a zarr folder that is changed."""
    return write_diffusion_policy(folder / "a.zarr") / part


TARGETS = {  # kind -> writes the dataset and returns the file that is changed
    "robomimic": lambda folder: write_robomimic(folder / "a.hdf5"),
    "libero": lambda folder: write_libero(folder / "a.hdf5"),
    "aloha variable": lambda folder: with_rewards(write_aloha(folder, "variable") / "episode_0.hdf5"),
    "aloha padded": lambda folder: with_rewards(write_aloha(folder, "padded") / "episode_0.hdf5"),
    "d4rl hdf5": lambda folder: write_d4rl(folder / "a.hdf5"),
    "d4rl npz": lambda folder: write_d4rl(folder / "a.npz"),
    "d4rl npz inside": lambda folder: write_d4rl(folder / "a.npz", following=True),
    "zarr metadata": lambda folder: write_folder(folder, "data/img/.zarray"),
    "zarr ends": lambda folder: write_folder(folder, "meta/episode_ends/0"),
    "zarr chunk": lambda folder: write_folder(folder, "data/img/1.0.0.0"),
    "zarr zip": lambda folder: write_diffusion_policy(folder / "a.zarr.zip"),
    "zarr zip inside": lambda folder: write_diffusion_policy(folder / "a.zarr.zip"),
}
OPTIONS = {"libero": {"image_key": "agentview_rgb"}, "zarr": {"reward_key": "n_contacts"}}


def read_all(path: Path, mapping: DataMapping) -> tuple[int, int]:
    """How many episodes of a dataset are read, and how many files or episodes give an error of one line."""
    read = refused = 0
    loaders = []
    try:
        files = find_data_files(path, mapping=mapping)
    except BadInput as error:
        assert "\n" not in str(error)
        return 0, 1
    for file in files:
        try:
            loaders += [load for _, load in file.episodes()]
        except BadInput as error:
            assert "\n" not in str(error)
            refused += 1
    for load in loaders:
        try:
            load()
            read += 1
        except BadInput as error:
            assert "\n" not in str(error)
            refused += 1
    return read, refused


@pytest.mark.parametrize("kind", TARGETS)
def test_mutated_robot_files_give_one_line_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    if kind.startswith("zarr"):
        pytest.importorskip("zarr", reason="zarr is not installed (requirements/formats.txt)")
    monkeypatch.setattr(reader_process, "SECONDS", 2)  # damaged JPEG storage can hang HDF5
    path = TARGETS[kind](tmp_path / "data")
    for other in path.parent.glob("episode_[12].hdf5"):
        other.unlink()
    mapping = DataMapping(**OPTIONS.get(kind.split()[0], {}))
    good, rng, before = path.read_bytes(), random.Random(kind), peak_memory()
    read, refused = read_all(tmp_path / "data", mapping)
    assert read and not refused, "the file is good before it is changed"
    for number in range(int(os.environ.get("COWORLD_FUZZ", 4))):
        path.write_bytes(good)
        if kind.endswith("inside"):
            changed = mutated_zip(path, lambda data: mutated(data, rng) if data and rng.random() < 0.3 else data)
        else:
            changed = mutated(good, rng)
        path.write_bytes(changed)
        start = time.monotonic()
        found = read_all(tmp_path / "data", mapping)
        assert time.monotonic() - start < 10, f"mutation {number}"
        read, refused = read + found[0], refused + found[1]
    reader_process.stop()
    grown = peak_memory() - before
    assert refused > 0 and grown < 700_000, f"{read} read, {refused} refused, {grown} kB more memory"
