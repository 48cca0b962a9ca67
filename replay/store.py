"""Sequences to train on: the fixed offline dataset and the growing online replay, behind one ``sample``.

Both keep their episodes on disk, stored plainly, and read only the slices that a batch needs, straight into
the batch. Positioned reads do the work of a memory map without its pages counting as the program's own
memory, which stays flat however large the set is; the operating system's file cache keeps what fits.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tools import BadInput
from replay.data_files import find_sources
from replay.cache import Cache, Stored
from replay.episode import KEYS, checked
from replay.formats.npz import columns, episode_filename, save_episode, write_npz

__all__ = ["OfflineDataset", "OnlineReplay", "Prefetcher", "episode_filename", "save_episode"]

Batch = dict[str, Any]  # arrays or tensors, (B, T, ...)


class SequenceStore:
    """Sampling over stored episodes; the base of both kinds.

    Attributes:
        directory: where the episodes are.
        description: contents of the directory's ``dataset.json`` (task, render setting, ...), or {}.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory).expanduser()
        self.description = read_description(self.directory)
        self._held: list[Stored] = []
        self._starts: dict[int, np.ndarray] = {}
        self._steps = 0

    @property
    def episodes(self) -> int:
        """How many episodes are held."""
        return len(self._held)

    @property
    def steps(self) -> int:
        """Agent steps held; an episode of N rows has N - 1, as its first row is the reset."""
        return self._steps

    @property
    def returns(self) -> list[float]:
        """Sum of rewards of each episode, in order."""
        return [stored.total_reward for stored in self._held]

    @property
    def lengths(self) -> list[int]:
        """Agent steps of each episode, in order."""
        return [stored.rows - 1 for stored in self._held]

    @property
    def action_dim(self) -> int:
        """Size A of an action; 0 while nothing is held."""
        return self._held[0].columns["action"].shape[0] if self._held else 0

    def sample(
        self, batch_size: int, length: int, rng: np.random.Generator, keys: Sequence[str] = KEYS
    ) -> dict[str, np.ndarray]:
        """A batch of sequences, uniform over all valid starts; no sequence crosses an episode's end.

        Args:
            batch_size: B.
            length: T, in rows. An episode of N rows has N - T + 1 starts.
            rng: the only source of chance.
            keys: the arrays wanted; extras are kept by `OnlineReplay` alone.

        Returns:
            image (B, T, H, W, 3) uint8, action (B, T, A) float32, reward (B, T) float32,
            discount (B, T) float32; extras (B, T, ...).

        Raises:
            BadInput: no episode has ``length`` rows, or an array asked for is not stored.
        """
        ends = self._start_ends(length)
        picks = rng.integers(ends[-1], size=batch_size)
        which = np.searchsorted(ends, picks, side="right")
        first_rows = picks - np.concatenate([[0], ends])[which]
        batch = {key: self._empty(key, batch_size, length) for key in keys}
        for row, (index, first) in enumerate(zip(which, first_rows, strict=True)):
            _read_slice(self._held[index], int(first), {key: array[row] for key, array in batch.items()})
        return batch

    def _start_ends(self, length: int) -> np.ndarray:
        """Running count of valid starts by episode, so that a start's number tells its episode."""
        if length not in self._starts:
            counts = [max(0, stored.rows - length + 1) for stored in self._held]
            self._starts[length] = np.cumsum(counts)
        ends = self._starts[length]
        if len(ends) == 0 or ends[-1] == 0:
            longest = max((stored.rows for stored in self._held), default=0)
            raise BadInput(
                f"{self.directory}: no episode has {length} rows, the sequence length (the longest has "
                f"{longest}); lower batch_length or collect longer episodes"
            )
        return ends

    def _empty(self, key: str, batch_size: int, length: int) -> np.ndarray:
        try:
            column = self._held[0].columns[key]
        except KeyError:
            stored = ", ".join(self._held[0].columns)
            raise BadInput(f"{self.directory}: array {key!r} is not stored; there are: {stored}") from None
        return np.empty((batch_size, length, *column.shape), column.dtype)

    def _hold(self, stored: list[Stored]) -> None:
        self._held = stored
        self._steps = sum(episode.rows - 1 for episode in stored)
        self._starts.clear()


class OfflineDataset(SequenceStore):
    """A fixed, read-only dataset of any of the known formats.

    The first opening writes a plain copy (see `formats.cache`) that takes size * size * 3 bytes a step: 12 kB
    at 64 pixels, 25 GB for 2 million steps.

    Args:
        directory: the folder with the episodes.
        size: side of the model's images, in pixels; others are resized once, with a note on stderr.
        format: one of `formats.FORMATS`; "auto" recognises it.
        length: when given, the sequence length that at least one episode must have.
        cache_dir: where to put the plain copy; by default a hidden folder beside the episodes, or the user's
            cache directory when that place may not be written to.

    Raises:
        BadInput: the directory is missing or empty, all its files are bad, actions differ in size between
            episodes, no episode is as long as ``length``, or there is no space for the copy. A bad file
            among good ones is only warned of, on stderr.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        size: int,
        format: str = "auto",
        length: int | None = None,
        cache_dir: Path | str | None = None,
    ):
        super().__init__(directory)
        sources = find_sources(self.directory, format)
        self.description = self.description or read_description(sources[0].path)
        cache = Cache(self.directory, sources, size, cache_dir)
        self.problems = cache.problems
        self._hold(cache.episodes)
        if not self._held:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise BadInput(f"{self.directory}: no usable episode: {self.problems[0]}{more}")
        _warn(self.problems)
        _same_action_size(self.directory, self._held)
        if length is not None:
            self._start_ends(length)


class OnlineReplay(SequenceStore):
    """Episodes as they come from a simulator, oldest dropped first; one plainly stored ``.npz`` an episode.

    It starts empty and leaves files already in the directory alone until `load_state_dict`.

    Args:
        directory: made when missing.
        capacity: in agent steps.

    Raises:
        BadInput: the capacity is not positive, or the directory cannot be made or written to.
    """

    def __init__(self, directory: Path | str, *, capacity: int):
        super().__init__(directory)
        if capacity < 1:
            raise BadInput(f"replay capacity {capacity} must be at least 1 step")
        self.capacity = capacity
        self._added = 0
        self._dropped: list[Path] = []
        self._deletable: list[Path] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.directory}: cannot be made: {error.strerror}; choose another place") from error

    def add_episode(self, episode: dict) -> None:
        """Write an episode (see `formats.episode.checked`) and hold it; drop the oldest above the capacity.

        Raises:
            BadInput: the episode is not valid or not like those held, or the disk is full.
        """
        episode = checked({key: np.asarray(value) for key, value in episode.items()}, "episode to add")
        self._same_layout(episode)
        name = episode_filename(len(episode["reward"]), datetime.now(), f"{self._added:032x}")
        write_npz(self.directory / name, episode, compress=False)
        self._added += 1
        self._hold([*self._held, _stored(self.directory / name)])
        while self.steps > self.capacity and self.episodes > 1:
            self._dropped.append(self._held[0].path)
            self._hold(self._held[1:])

    def _same_layout(self, episode: dict) -> None:
        for key, column in self._held[0].columns.items() if self._held else ():
            found = (episode[key].dtype.str, episode[key].shape[1:]) if key in episode else "missing"
            if found != (column.dtype, column.shape):
                raise BadInput(
                    f"{self.directory}: {key} of a new episode is {found}, of those held "
                    f"{(column.dtype, column.shape)}; use one replay a task and setting"
                )

    def state_dict(self) -> dict:
        """Names of the episodes held, in order, and how many were ever added."""
        self._deletable = list(self._dropped)
        return {"episodes": [stored.path.name for stored in self._held], "added": self._added}

    def load_state_dict(self, state: dict) -> None:
        """Hold exactly the episodes named; files of any other episodes in the directory are removed.

        Raises:
            BadInput: a file named is missing or damaged.
        """
        held = [_stored(self.directory / name) for name in state["episodes"]]
        keep = set(state["episodes"])
        for path in [*self.directory.glob("*.npz"), *self.directory.glob(".*.npz.*.tmp")]:
            if path.name not in keep:
                path.unlink()
        self._hold(held)
        self._added = state["added"]
        self._dropped, self._deletable = [], []

    def forget_dropped(self) -> None:
        """Delete the files of episodes dropped before the last `state_dict`; call once that state is on disk.

        Until then an older checkpoint, which names them, may still be the one to continue from.
        """
        for path in self._deletable:
            path.unlink(missing_ok=True)
        self._dropped = [path for path in self._dropped if path not in set(self._deletable)]
        self._deletable = []


class Prefetcher:
    """Draws the next batch in a thread while the present one is learned from.

    The batches are those of drawing each when it is asked for: one drawn ahead is dropped, and its chance taken back,
    by `withdraw`, which whoever changes the store or wants the generator's state calls first.

    Args:
        draw: makes a batch; of what it reads, only ``rng`` may change without a call of `withdraw`.
        rng: its only source of chance.
    """

    def __init__(self, draw: Callable[[], Batch], rng: np.random.Generator):
        self.draw, self.rng = draw, rng
        self.pool = ThreadPoolExecutor(1)
        self.ahead: Future | None = None
        self._before: dict | None = None

    def next(self) -> Batch:
        """The next batch; a `BadInput` of drawing it is raised here."""
        ahead, self.ahead = self.ahead, None
        batch = self.draw() if ahead is None else ahead.result()
        self._before = self.rng.bit_generator.state
        self.ahead = self.pool.submit(self.draw)
        return batch

    def withdraw(self) -> None:
        """As if nothing had been drawn ahead."""
        if self.ahead is not None:
            self.ahead.exception()  # waits for it
            self.ahead, self.rng.bit_generator.state = None, self._before

    def close(self) -> None:
        self.pool.shutdown()


def _stored(path: Path) -> Stored:
    if not path.is_file():
        raise BadInput(f"{path}: this episode of the replay is gone; restore it or start a new run")
    rows, found = columns(path)
    reward = np.empty(rows, found["reward"].dtype)
    stored = Stored(path, rows, found, 0.0)
    _read_slice(stored, 0, {"reward": reward})
    stored.total_reward = float(reward.sum(dtype=np.float64))
    return stored


def _read_slice(stored: Stored, first: int, into: dict[str, np.ndarray]) -> None:
    """Fill arrays of T rows each with the rows from ``first`` on, without a copy in between."""
    try:
        file = os.open(stored.path, os.O_RDONLY)
        try:
            for key, array in into.items():
                offset = stored.columns[key].offset + first * array[0].nbytes
                if os.preadv(file, [array], offset) != array.nbytes:
                    raise BadInput(f"{stored.path}: shorter than when it was opened; remove its folder and start again")
        finally:
            os.close(file)
    except OSError as error:
        raise BadInput(f"{stored.path}: cannot be read: {error.strerror}; restore it") from error


def _same_action_size(directory: Path, held: list[Stored]) -> None:
    sizes: dict[int, str] = {}
    for stored in held:
        sizes.setdefault(stored.columns["action"].shape[0], stored.source)
    if len(sizes) > 1:
        told = ", ".join(f"{size} in {name}" for size, name in sizes.items())
        raise BadInput(f"{directory}: action sizes differ between episodes ({told}); keep one task a folder")


def _warn(problems: list[str]) -> None:
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)


def read_description(place: Path) -> dict:
    """A dataset's ``dataset.json`` (task, render setting, ...), or {} where there is none.

    Args:
        place: the dataset's folder, or one of its files, whose folder or the one above may have it.

    Returns:
        Its names and values; a null value counts as not recorded.

    Raises:
        BadInput: the file cannot be read, is not JSON, or holds something else than names with values.
    """
    folders = [place.parent, place.parent.parent] if place.is_file() else [place]
    for folder in folders:
        path = folder / "dataset.json"
        try:
            described = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}; mend or remove it") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: not JSON ({str(error)[:120]}); mend or remove it") from error
        if not isinstance(described, dict):
            raise BadInput(f'{path}: holds no names with values, as in {{"task": ...}}; mend or remove it')
        return {key: value for key, value in described.items() if value is not None}
    return {}
