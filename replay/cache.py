"""The prepared copy of an offline dataset: validated and resized episodes, stored uncompressed.

Decompressing a whole episode to use 50 of its rows is far too slow, and 2 million frames take 25 GB of memory. So the
first opening writes every episode once more, uncompressed, and an index. Later openings compare the index with the
files' names, sizes and times, and read only the files that changed.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from replay import reader_process
from replay.data_files import DataFile
from replay.episode import KEYS, action_extremes, camera_shapes, episode_digest
from replay.formats import Load
from replay.npz_files import write_npz
from replay.slices import SlicedArray, resized
from replay.stored_episode import ArrayLocation, StoredEpisode, locate_arrays
from tools import BadInput, delete_temporary_files, progress_bar, write_text

VERSION = 5  # of the index; with another one, the data is prepared again
FOLDER = ".coworld-cache"

# Fewer bytes of data than this are prepared too quickly for a progress bar.
SMALL = 5_000_000


@dataclass
class Entry:
    """What the index records of one data file, and what could not be read this time.

    Attributes:
        format: its name.
        size, mtime: see `DataFile.state`.
        listed: number of its episodes, those that cannot be read included; 0 if they could not be listed.
        episodes: of each copy: the episode's number in the file, the copy's name and what `StoredEpisode` needs.
        resized_from: height and width of its images if they are not the copies'.
        image_shape: height, width and channels; [] without episodes. Of several cameras those of the first.
        cameras: of several cameras, the same of each.
        problems: not recorded: what could not be read is tried again at the next opening.
    """

    format: str
    size: int
    mtime: int
    listed: int = 0
    episodes: list[dict] = field(default_factory=list)
    resized_from: list[int] = field(default_factory=list)
    image_shape: list[int] = field(default_factory=list)
    cameras: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.listed > 0 and len(self.episodes) == self.listed


class _Unreadable(Exception):
    """An episode's images cannot be read. Unlike BadInput, which says that the copy cannot be written."""


class Cache:
    """Copies of a dataset's episodes at one image size. Opening makes or updates them, in one process at a time.

    Attributes:
        folder: where the copies are.
        episodes: the copies, in the order of the data files.
        problems: one line for each file or episode that was left out.
        image_shape: height and width of the first file's images; 1 channel if all images are stored as grey, else 3.
        cameras: of several cameras, height, width and channels of each in the first file; else [].

    Raises:
        BadInput: no space or permission for the copies.
    """

    def __init__(self, directory: Path, files: list[DataFile], size: int, cache_dir: Path | str | None = None):
        self.size = size
        files = [replace(file, mapping=replace(file.mapping, image_size=size)) for file in files]
        mapped = "-".join(filter(None, [f"{size}px", files[0].mapping.digest()]))
        self.folder = _cache_folder(directory, cache_dir) / mapped
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise BadInput(
                f"{self.folder}: cannot be made or written to: {error.strerror}; give another --dataset_cache"
            ) from error
        with _locked(self.folder / "lock"):
            entries = self._update(files)
        self.problems = [line for entry in entries for line in entry.problems]
        self.episodes = [
            self._stored_episode(episode, file.name)
            for file, entry in zip(files, entries, strict=True)
            for episode in entry.episodes
        ]
        shapes = [entry.image_shape for entry in entries if entry.episodes] or [[size, size, 3]]
        self.image_shape = (*shapes[0][:2], max(shape[2] for shape in shapes))
        self.cameras = next((entry.cameras for entry in entries if entry.episodes), [])
        if len({shape[2] for shape in shapes}) > 1:
            print(f"note: {directory}: grey and RGB images; a policy takes images of 3 channels", file=sys.stderr)
        sizes = {tuple(entry.resized_from) for entry in entries if entry.resized_from}
        for height, width in sorted(sizes):
            print(f"note: {directory}: images of {height}x{width} are resized to {size}x{size}", file=sys.stderr)

    def _stored_episode(self, episode: dict, origin: str) -> StoredEpisode:
        arrays = {
            key: ArrayLocation(offset, dtype, tuple(shape)) for key, (offset, dtype, shape) in episode["arrays"].items()
        }
        path, total, digest = self.folder / episode["file"], episode["total_reward"], episode["digest"]
        extremes = episode.get("action_low"), episode.get("action_high")
        return StoredEpisode(path, episode["rows"], arrays, total, origin, digest, extremes)

    def _update(self, files: list[DataFile]) -> list[Entry]:
        """Entries of all files, in order. New and changed files are read, copies of deleted ones are deleted.

        Of files that did not change, only episodes that could not be read before are read.
        """
        known = self._load_index()
        stats = {file.name: file.state() for file in files}
        fresh = {file.name: known[file.name] for file in files if self._is_fresh(known, file, stats[file.name])}
        # Another run may read the same folder's files of another format: their copies stay. So do those of files about
        # which the file system says nothing this time.
        others = {name: e for name, e in known.items() if e.format != files[0].format.name and name not in stats}
        others |= {name: known[name] for name, state in stats.items() if name in known and state == (0, 0)}
        for name in known.keys() - fresh.keys() - others.keys():
            self._remove(known[name])
        unread = [file for file in files if file.name not in fresh or not fresh[file.name].complete]
        try:
            self._read_files(unread, stats, fresh)
        finally:
            reader_process.stop()
            # Also after Ctrl-C or on a full disk, so that finished files are not read again.
            if unread or known.keys() != fresh.keys() | others.keys():
                with contextlib.suppress(BadInput):
                    self._save_index(fresh | others)
        return [fresh[file.name] for file in files]

    def _read_files(self, files: list[DataFile], stats: dict[str, tuple[int, int]], entries: dict[str, Entry]) -> None:
        total = sum(stats[file.name][0] for file in files)
        with progress_bar(total, "preparing data", unit="B", unit_scale=True, disable=total < SMALL) as bar:
            for file in files:
                entry = entries.get(file.name) or Entry(file.format.name, *stats[file.name])
                self._read_file(file, entry, bar)
                entries[file.name] = entry

    def _read_file(self, file: DataFile, entry: Entry, bar: tqdm) -> None:
        try:
            episodes = file.episodes(sliced=True)
        except BadInput as error:
            entry.problems.append(str(error))
            bar.update(entry.size)
            return
        if entry.listed != len(episodes):
            entry.listed, entry.episodes = len(episodes), []
        copied = {episode["number"] for episode in entry.episodes}
        done = 0
        for number, (_, load) in enumerate(episodes):
            if number not in copied:
                self._read_episode(file, number, load, entry)
            reached = entry.size * (number + 1) // len(episodes)
            bar.update(reached - done)
            done = reached
        entry.episodes.sort(key=lambda episode: episode["number"])

    def _read_episode(self, file: DataFile, number: int, load: Load, entry: Entry) -> None:
        """Make the copy of an episode. If it cannot be read, that is a problem of the ``entry``."""
        try:
            episode = load()
        except BadInput as error:
            entry.problems.append(str(error))
            return
        try:
            self._write_copy(file, number, episode, entry)
        except _Unreadable as error:
            entry.problems.append(str(error))

    def _write_copy(self, file: DataFile, number: int, episode: dict, entry: Entry) -> None:
        image = _told_apart(episode["image"])
        image = image if image.shape[1:3] == (self.size, self.size) else resized(image, self.size)
        keys = (*KEYS, *file.mapping.states)
        arrays = {key: episode[key] for key in keys} | {"image": image}
        # The data file's time is in the name, so a run that still reads an old copy never reads a new one.
        name = f"{file.path.stem[:100]}-{_digest(file.name)}-{number}-{entry.mtime:x}.npz"
        write_npz(self.folder / name, arrays, compress=False)
        rows, places = locate_arrays(self.folder / name)
        total = float(episode["reward"].sum(dtype="float64"))
        copy = StoredEpisode(self.folder / name, rows, places, total)
        digest = episode_digest(arrays | {"image": copy.sliced("image")}, keys)
        record = {"number": number, "file": name, "rows": rows, "arrays": places, "total_reward": total}
        entry.episodes.append(record | {"digest": digest})
        if file.mapping.any_actions:
            low, high = action_extremes(episode)
            entry.episodes[-1] |= {"action_low": low.tolist(), "action_high": high.tolist()}
        shapes = camera_shapes(episode)
        entry.cameras = [list(shape) for shape in shapes] if len(shapes) > 1 else []
        height, width, channels = shapes[0]
        if (height, width) != (self.size, self.size):
            entry.resized_from = [height, width]
        height, width, before = entry.image_shape or (height, width, 1)
        entry.image_shape = [height, width, max(before, channels)]

    def _is_fresh(self, known: dict[str, Entry], file: DataFile, stat: tuple[int, int]) -> bool:
        """Whether the copies of a file are those of its present contents."""
        entry = known.get(file.name)
        if entry is None or entry.format != file.format.name:
            return False
        if (entry.size, entry.mtime) != stat or stat == (0, 0):
            return False
        return all((self.folder / episode["file"]).is_file() for episode in entry.episodes)

    def _remove(self, entry: Entry) -> None:
        for episode in entry.episodes:
            (self.folder / episode["file"]).unlink(missing_ok=True)

    def _load_index(self) -> dict[str, Entry]:
        try:
            index = json.loads((self.folder / "index.json").read_text())
            if (version := index["version"]) != VERSION:
                print(
                    f"note: {self.folder}: index format {version}, not {VERSION}; preparing the data again",
                    file=sys.stderr,
                )
                return {}
            return {name: Entry(**entry) for name, entry in index["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _save_index(self, entries: dict[str, Entry]) -> None:
        files = {name: asdict(replace(entry, problems=[])) for name, entry in entries.items()}
        index = {"version": VERSION, "files": files}
        write_text(self.folder / "index.json", json.dumps(index))


def _told_apart(image: np.ndarray | SlicedArray) -> np.ndarray | SlicedArray:
    """The images, with `_Unreadable` in place of BadInput."""
    if not isinstance(image, SlicedArray):
        return image

    def read() -> Iterator[np.ndarray]:
        try:
            yield from image
        except BadInput as error:
            raise _Unreadable(str(error)) from error

    return SlicedArray(image.shape, image.dtype, read, image.where, image.kind)


def _cache_folder(directory: Path, cache_dir: Path | str | None) -> Path:
    """A hidden folder beside the data, or a folder in the user's cache directory if the data is read-only."""
    directory = directory.resolve()
    if cache_dir is None:
        beside = directory.parent if directory.is_file() else directory
        if may_write(beside):
            return beside / FOLDER / directory.name if directory.is_file() else beside / FOLDER
        home = os.environ.get("XDG_CACHE_HOME")
        cache_dir = (Path(home) if home else Path.home() / ".cache") / "coworld"
    return Path(cache_dir).expanduser() / f"{directory.name}-{_digest(str(directory))}"


def may_write(directory: Path) -> bool:
    """Whether files may be added to a folder. Root can always write, so a missing write bit counts as no for it."""
    return os.access(directory, os.W_OK) and bool(directory.stat().st_mode & 0o222)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file. Another process waits here, without a time limit, until the data is prepared.

    Temporary files that a killed process left beside it are deleted.
    """
    lock = FileLock(path, fallback_to_soft=False)
    # Some network file systems have no locks. There, two processes write the same files, each file atomically.
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        if lock.is_locked:
            delete_temporary_files(path.parent)
        yield
    finally:
        lock.release()
