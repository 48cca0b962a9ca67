"""Rewriting a dataset in another format. All arrays keep their values, and nothing is left half-written."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from replay.data_files import DataFile
from replay.description import FILENAME
from replay.formats import FORMATS
from tools import BadInput, StopRequest, directory_when_complete, progress_bar, write_text

# Kinds of numpy types that every format can store: numbers and booleans, but no strings and no objects.
NUMBER_KINDS = "biufc"


def convert(files: list[DataFile], out: Path, to: str, description: dict) -> int:
    """Write all episodes of a dataset into a new folder.

    Images and all other arrays keep their values bit for bit. Bad files are left out, with a warning on stderr.

    Args:
        files: the dataset.
        out: the new folder; an empty one is replaced.
        to: name of a format in `FORMATS` that can be written.
        description: contents of the new ``dataset.json``; no file is written for {}.

    Returns:
        The number of episodes written.

    Raises:
        BadInput: the folder is not empty, no episode is usable, or the disk is full. The folder is then not made.
        KeyboardInterrupt: Ctrl-C or SIGTERM, between two episodes. The folder is not made either.
    """
    stop = StopRequest()  # an exception from a signal handler would be lost in HDF5's finalizers

    def raise_if_stopped() -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt

    with stop.listening(), directory_when_complete(out) as folder:
        count = FORMATS[to].write(folder, _raw_episodes(files, raise_if_stopped), out.name)
        raise_if_stopped()
        if count == 0:
            raise BadInput("no usable episode to convert; see the warnings above")
        if description:
            write_text(folder / FILENAME, json.dumps(description, indent=2) + "\n")
    return count


def _raw_episodes(files: list[DataFile], raise_if_stopped: Callable[[], None]) -> Iterator[tuple[str, dict]]:
    action_size = None
    with progress_bar(len(files), "converting", unit="file", disable=None) as bar:
        for file in files:
            for label, episode in _readable_episodes(file, raise_if_stopped):
                size = episode["action"].shape[1]
                if size != (action_size := action_size or size):
                    raise BadInput(f"{file.path}: actions of size {size} after {action_size}; keep one task a folder")
                yield label, _only_numbers(episode, file.path)
            bar.update()


def _readable_episodes(file: DataFile, raise_if_stopped: Callable[[], None]) -> Iterator[tuple[str, dict]]:
    raise_if_stopped()
    try:
        episodes = file.episodes(raw=True)
    except BadInput as error:
        print(f"warning: left out: {error}", file=sys.stderr)
        return
    for label, load in episodes:
        raise_if_stopped()
        try:
            episode = load()
        except BadInput as error:
            print(f"warning: left out: {error}", file=sys.stderr)
        else:
            yield label, episode


def _only_numbers(episode: dict, path: Path) -> dict:
    others = [key for key, array in episode.items() if array.dtype.kind not in NUMBER_KINDS]
    if others:
        print(f"warning: {path}: left out arrays that are not numbers: {', '.join(others)}", file=sys.stderr)
    return {key: array for key, array in episode.items() if key not in others}
