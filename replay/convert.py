"""Rewriting datasets, whole or in part. All arrays keep their values, and nothing is left half-written."""

import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from replay.data_files import DataFile
from replay.description import FILENAME
from replay.episode import action_extremes
from replay.formats import FORMATS
from replay.mapping import ActionMap, outside_range
from replay.slices import SlicedArray
from replay.summary import summarize
from tools import BadInput, StopRequest, directory_when_complete, progress_bar, write_text

# Kinds of numpy types that every format can store: numbers and booleans, but no strings and no objects.
NUMBER_KINDS = "biufc"

WHOLE_BYTES = 64 << 20  # larger arrays are not in memory whole


class Part(NamedTuple):
    """A new folder of episodes.

    Attributes:
        out: the folder; an empty one is replaced.
        description: contents of its ``dataset.json``; no file is written for {}.
        keep: its episodes, see `ListedEpisode.key`; None: all.
    """

    out: Path
    description: dict
    keep: Collection[tuple[str, str]] | None = None


def convert(files: list[DataFile], parts: list[Part], to: str, action_range: str = "") -> list[int]:
    """Write the episodes of a dataset into new folders.

    Images and all other arrays keep their values bit for bit; only actions are rescaled to [-1, 1] if there is an
    ``action_range``, and ``dataset.json`` records the map. With ``action_at`` current, actions, rewards and discounts
    are moved to the next row (`replay.mapping.moved_down`), and ``dataset.json`` says next. Several cameras become one
    array, and ``dataset.json`` has their names. Bad files are left out,
    with a warning on stderr.

    Args:
        files: the dataset.
        parts: the new folders.
        to: name of a format in `FORMATS` that can be written.
        action_range: see `replay.mapping.parse_range`.

    Returns:
        The number of episodes written into each folder.

    Raises:
        BadInput: a folder is not empty or within another one, no episode is usable, or the disk is full. The folders
            are then not made.
        KeyboardInterrupt: Ctrl-C or SIGTERM, between two episodes. The folders are not made either.
    """
    for one, other in permutations(parts, 2):
        refuse_within(one.out, other.out, "new folder")
    stop = StopRequest()  # an exception from a signal handler would be lost in HDF5's finalizers

    def raise_if_stopped() -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt

    with stop.listening(), ExitStack() as stack:
        folders = [stack.enter_context(directory_when_complete(part.out)) for part in parts]
        found = _measured_map(files, action_range)
        added = {"action_map": found.as_dict()} if found else {}
        if any(file.mapping.action_at == "current" for file in files):
            added["action_at"] = "next"
        if len(cameras := files[0].mapping.cameras) > 1:
            added["cameras"] = cameras
        counts = []
        for part, folder in zip(parts, folders, strict=True):
            episodes = _rescaled(_raw_episodes(files, part.keep, raise_if_stopped), found, action_range)
            counts.append(FORMATS[to].write(folder, episodes, part.out.name))
            raise_if_stopped()
            if counts[-1] == 0:
                raise BadInput("no usable episode to convert; see the warnings above")
            if description := part.description | added:
                write_text(folder / FILENAME, json.dumps(description, indent=2) + "\n")
    return counts


def refuse_within(out: Path, directory: Path, what: str = "dataset") -> None:
    """Raise BadInput if the new folder would lie within the dataset, or be the same."""
    if out.resolve().is_relative_to(directory.resolve()):
        raise BadInput(f"{out}: lies within the {what} {directory}; give a folder outside it")


def _measured_map(files: list[DataFile], action_range: str) -> ActionMap | None:
    """The map of an ``action_range``, for which the whole dataset is read once."""
    if not action_range:
        return None
    summary, _ = summarize(files, action_range)
    if summary.action_map is None:
        raise BadInput(f"no usable episode with actions in --action_range {action_range}; see dataset.py check")
    return summary.action_map


def _rescaled(
    episodes: Iterator[tuple[str, dict]], found: ActionMap | None, action_range: str
) -> Iterator[tuple[str, dict]]:
    """Episodes with their actions in [-1, 1]; those outside the range are left out with a warning."""
    for label, episode in episodes:
        if found is not None:
            extremes = action_extremes(episode)
            if not found.contains(*extremes):
                print(f"warning: left out: {outside_range(label, extremes, action_range)}", file=sys.stderr)
                continue
            action = found.to_unit(episode["action"])
            action[0] = 0  # the reset has no action
            episode = episode | {"action": action}
        yield label, episode


def _raw_episodes(
    files: list[DataFile], keep: Collection[tuple[str, str]] | None, raise_if_stopped: Callable[[], None]
) -> Iterator[tuple[str, dict]]:
    action_size = None
    kept_files = None if keep is None else {name for name, _ in keep}
    with progress_bar(len(files), "converting", unit="file", disable=None) as bar:
        for file in files:
            if kept_files is not None and file.name not in kept_files:
                bar.update()
                continue
            for label, episode in _readable_episodes(file, keep, raise_if_stopped):
                size = episode["action"].shape[1]
                if size != (action_size := action_size or size):
                    raise BadInput(f"{file.path}: actions of size {size} after {action_size}; keep one task a folder")
                yield label, _only_numbers(episode, file.path)
            bar.update()


def _readable_episodes(
    file: DataFile, keep: Collection[tuple[str, str]] | None, raise_if_stopped: Callable[[], None]
) -> Iterator[tuple[str, dict]]:
    raise_if_stopped()
    try:
        episodes = file.episodes(raw=True, sliced=True)
    except BadInput as error:
        print(f"warning: left out: {error}", file=sys.stderr)
        return
    for label, load in episodes:
        raise_if_stopped()
        if keep is not None and (file.name, label) not in keep:
            continue
        try:
            episode = {key: _readable(array) for key, array in load().items()}
        except BadInput as error:
            print(f"warning: left out: {error}", file=sys.stderr)
        else:
            yield label, episode


def _readable(array: np.ndarray | SlicedArray) -> np.ndarray | SlicedArray:
    """The array, read whole if it is small. A large one is read once, so that nothing of a damaged one is written."""
    if isinstance(array, SlicedArray) and array.nbytes > WHOLE_BYTES:
        for _ in array:
            pass
        return array
    return np.asarray(array)


def _only_numbers(episode: dict, path: Path) -> dict:
    others = [key for key, array in episode.items() if array.dtype.kind not in NUMBER_KINDS]
    if others:
        print(f"warning: {path}: left out arrays that are not numbers: {', '.join(others)}", file=sys.stderr)
    return {key: array for key, array in episode.items() if key not in others}
