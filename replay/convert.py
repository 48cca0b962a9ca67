"""Rewriting a dataset in another format, images as they are, nothing left half-written."""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from tools import BadInput
from replay.formats.minari import KEPT
from replay.formats.npz import episode_filename, write_npz
from replay.data_files import MAIN_FILE, Source

# What an episode's arrays may be made of; anything else (strings, objects) has no place in both formats.
PLAIN = "biufc"

# The release of Minari whose layout is written.
MINARI_VERSION = "0.5.4"

# Bytes beyond its arrays that an episode's names and tables take in an HDF5 file, with much to spare.
SPARE = 1 << 20


def convert(sources: list[Source], out: Path, to: str, description: dict) -> int:
    """Write all episodes of a dataset into a new folder, as ``to`` ("npz" or "minari").

    Images and all other arrays keep their values bit for bit. Bad files are left out, named on stderr.

    Returns:
        How many episodes were written.

    Raises:
        BadInput: the folder is there and not empty, no episode is usable, or the disk is full; the folder is
            then not made at all.
        KeyboardInterrupt: Ctrl-C, between two episodes; the folder is not made then either.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: exists already; give a folder that is empty or not there")
    if out.resolve() == Path.cwd():
        raise BadInput(f"{out}: the folder you are in cannot be replaced; give a new one")
    with _interrupts_held_back() as stop_if_asked, _all_or_nothing(out) as folder:
        write = {"npz": _write_npz, "minari": _write_minari}[to]
        count = write(folder, _episodes(sources, stop_if_asked), out.name)
        stop_if_asked()
        if count == 0:
            raise BadInput("no usable episode to convert; see the warnings above")
        if description:
            (folder / "dataset.json").write_text(json.dumps(description, indent=2))
    return count


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises only where the function given is called, and not at all while things are tidied up.

    Raised anywhere, it is lost where it hits one of HDF5's finalizers, which ignore exceptions.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True

    def stop_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop_if_asked  # someone else decides what Ctrl-C does
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stop_if_asked
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when all went well, and is removed when not."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:120]
        raise BadInput(f"{out}: cannot be written: {reason}; free space or choose another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _episodes(sources: list[Source], stop_if_asked: Callable[[], None]) -> Iterator[tuple[str, dict]]:
    action_size = None
    for source in tqdm(sources, unit="file", desc="converting", disable=None):
        stop_if_asked()
        try:
            loaders = source.episodes(raw=True)
        except BadInput as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            continue
        for label, load in loaders:
            stop_if_asked()
            try:
                episode = load()
            except BadInput as error:
                print(f"warning: left out: {error}", file=sys.stderr)
                continue
            size = episode["action"].shape[1]
            if size != (action_size := action_size or size):
                raise BadInput(f"{source.path}: actions of size {size} after {action_size}; keep one task a folder")
            yield label, _plain(episode, source.path)


def _plain(episode: dict, path: Path) -> dict:
    odd = [key for key, array in episode.items() if array.dtype.kind not in PLAIN]
    if odd:
        print(f"warning: {path}: left out arrays that are not numbers: {', '.join(odd)}", file=sys.stderr)
    return {key: array for key, array in episode.items() if key not in odd}


def _write_npz(folder: Path, episodes: Iterator[tuple[str, dict]], _: str) -> int:
    count = 0
    for label, episode in episodes:
        name = label
        if not re.fullmatch(r"[\w-][\w.-]*\.npz", label) or (folder / label).exists():
            name = episode_filename(len(episode["reward"]), datetime.now(), f"{count:032x}")
        write_npz(folder / name, episode, compress=True)
        count += 1
    return count


def _write_minari(folder: Path, episodes: Iterator[tuple[str, dict]], name: str) -> int:
    path = folder / "data" / MAIN_FILE
    path.parent.mkdir()
    _make_sure_of_room(path, SPARE)
    count, steps = 0, 0
    with h5py.File(path, "w", track_order=True) as file:
        for count, (label, episode) in enumerate(episodes, 1):
            _make_sure_of_room(path, sum(array.nbytes for array in episode.values()) + SPARE)
            _add_group(file.create_group(f"episode_{count - 1}"), count - 1, label, episode)
            file.flush()
            steps += len(episode["reward"]) - 1
    if count > 0:
        metadata = _metadata(name, count, steps, episode, path.stat().st_size)
        (path.parent / "metadata.json").write_text(json.dumps(metadata))
    return count


def _make_sure_of_room(path: Path, size: int) -> None:
    """Raise OSError where the disk has no room for ``size`` more bytes; HDF5 itself crashes on a full disk."""
    spacer = path.with_suffix(".room")
    try:
        with spacer.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        spacer.unlink(missing_ok=True)


def _add_group(group: h5py.Group, number: int, label: str, episode: dict) -> None:
    """One episode in Minari's convention: what led to row t + 1 stands at t; row 0 goes to the infos."""
    discount = episode.get("discount", np.ones(len(episode["reward"]), np.float32)).reshape(-1)
    terminations = discount[1:] == 0
    truncations = np.zeros_like(terminations)
    truncations[-1] = not terminations[-1]
    group.attrs.update({"id": number, "total_steps": len(terminations), "file": label})
    image = episode["image"]
    # About one sequence a chunk; gzip is lossless, and any HDF5 reader undoes it.
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
