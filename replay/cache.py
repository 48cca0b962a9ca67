"""The working copy of an offline dataset: episodes checked, resized and stored plainly, to read slices of.

Decompressing whole episodes to use 50 rows of each is far too slow, and 2 million frames take 25 GB of
memory. So the first opening writes every episode once more, uncompressed, and an index; later openings
only compare the index with the files' names, sizes and times, and read again what changed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from tools import BadInput
from replay import reader_process as guarded
from replay.episode import KEYS, resized
from replay.formats.npz import Column, columns, write_atomically, write_npz
from replay.data_files import Source

VERSION = 2
FOLDER = ".coworld-cache"

# Bytes of data that are prepared too quickly for a progress bar.
SMALL = 5_000_000


@dataclass
class Stored:
    """An episode stored plainly in ``path``, with all that sampling needs to know of it."""

    path: Path
    rows: int
    columns: dict[str, Column]
    total_reward: float
    source: str = ""  # for a copy, the user's own file, by its name within the dataset


@dataclass
class Entry:
    """What the index remembers of one source file."""

    size: int
    mtime: int
    episodes: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resized_from: list[int] = field(default_factory=list)


class Cache:
    """Episodes of a dataset at one image size. Opening it builds or mends it; one builder at a time.

    Attributes:
        folder: where the copies are.
        episodes: the `Stored` episodes, in the order of the sources.
        problems: one line for each file or episode that was left out.

    Raises:
        BadInput: no space or permission for the copies.
    """

    def __init__(self, directory: Path, sources: list[Source], size: int, cache_dir: Path | str | None = None):
        self.size = size
        self.folder = _folder(directory, cache_dir) / f"{size}px"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise BadInput(
                f"{self.folder}: cannot be made or written to: {error.strerror}; give another --dataset_cache"
            ) from error
        with _locked(self.folder):
            entries = self._mend(sources)
        self.problems = [line for entry in entries for line in entry.problems]
        self.episodes = [
            self._stored(episode, source.name)
            for source, entry in zip(sources, entries, strict=True)
            for episode in entry.episodes
        ]
        sizes = {tuple(entry.resized_from) for entry in entries if entry.resized_from}
        for height, width in sorted(sizes):
            print(f"note: {directory}: images of {height}x{width} are resized to {size}x{size}", file=sys.stderr)

    def _stored(self, episode: dict, source: str) -> Stored:
        found = {key: Column(offset, dtype, tuple(shape)) for key, (offset, dtype, shape) in episode["columns"].items()}
        return Stored(self.folder / episode["file"], episode["rows"], found, episode["total_reward"], source)

    def _mend(self, sources: list[Source]) -> list[Entry]:
        """Entries of all sources, in order; new and changed ones are read, those that went are removed."""
        known = self._load_index()
        stats = {source.name: source.path.stat() for source in sources}
        fresh = {name: entry for name, entry in known.items() if name in stats and self._valid(entry, stats[name])}
        for name in known.keys() - fresh.keys():
            self._remove(known[name])
        todo = [source for source in sources if source.name not in fresh]
        try:
            self._read(todo, stats, fresh)
        finally:
            guarded.stop()
            # Also after Ctrl-C or a full disk: what is done need not be done again.
            if todo or known.keys() != fresh.keys():
                with contextlib.suppress(BadInput):
                    self._save_index(fresh)
        return [fresh[source.name] for source in sources]

    def _read(self, todo: list[Source], stats: dict, fresh: dict[str, Entry]) -> None:
        total = sum(stats[source.name].st_size for source in todo)
        look = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "disable": total < SMALL}
        # a log file keeps every line, so it gets one only now and then
        with tqdm(total=total, desc="preparing data", mininterval=0.2 if sys.stderr.isatty() else 10, **look) as bar:
            for source in todo:
                stat = stats[source.name]
                entry = Entry(stat.st_size, stat.st_mtime_ns)
                self._read_source(source, entry, bar)
                fresh[source.name] = entry

    def _read_source(self, source: Source, entry: Entry, bar: tqdm) -> None:
        try:
            loaders = source.episodes()
        except BadInput as error:
            entry.problems.append(str(error))
            bar.update(entry.size)
            return
        done = 0
        for number, (_, load) in enumerate(loaders):
            try:
                episode = load()
            except BadInput as error:
                entry.problems.append(str(error))
            else:
                self._store(source, number, episode, entry)
            reached = entry.size * (number + 1) // len(loaders)
            bar.update(reached - done)
            done = reached

    def _store(self, source: Source, number: int, episode: dict, entry: Entry) -> None:
        shape = episode["image"].shape[1:3]
        if shape != (self.size, self.size):
            entry.resized_from = list(shape)
        episode = {key: episode[key] for key in KEYS} | {"image": resized(episode["image"], self.size)}
        # The source's time is in the name, so that a run still reading an old copy never sees a new one.
        name = f"{source.path.stem[:100]}-{_digest(source.name)}-{number}-{entry.mtime:x}.npz"
        write_npz(self.folder / name, episode, compress=False)
        rows, found = columns(self.folder / name)
        total = float(episode["reward"].sum(dtype="float64"))
        entry.episodes.append({"file": name, "rows": rows, "columns": found, "total_reward": total})

    def _valid(self, entry: Entry, stat: os.stat_result) -> bool:
        if (entry.size, entry.mtime) != (stat.st_size, stat.st_mtime_ns):
            return False
        return all((self.folder / episode["file"]).is_file() for episode in entry.episodes)

    def _remove(self, entry: Entry) -> None:
        for episode in entry.episodes:
            (self.folder / episode["file"]).unlink(missing_ok=True)

    def _load_index(self) -> dict[str, Entry]:
        try:
            index = json.loads((self.folder / "index.json").read_text())
            if index["version"] != VERSION:
                return {}
            return {name: Entry(**entry) for name, entry in index["sources"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _save_index(self, entries: dict[str, Entry]) -> None:
        index = {"version": VERSION, "sources": {name: asdict(entry) for name, entry in entries.items()}}
        write_atomically(self.folder / "index.json", lambda file: file.write(json.dumps(index).encode()))


def _folder(directory: Path, cache_dir: Path | str | None) -> Path:
    """Beside the data, or, for data that may not be written to, in the user's cache directory."""
    directory = directory.resolve()
    if cache_dir is None:
        beside = directory.parent if directory.is_file() else directory
        if may_write(beside):
            return beside / FOLDER / directory.name if directory.is_file() else beside / FOLDER
        home = os.environ.get("XDG_CACHE_HOME")
        cache_dir = (Path(home) if home else Path.home() / ".cache") / "coworld"
    return Path(cache_dir).expanduser() / f"{directory.name}-{_digest(str(directory))}"


def may_write(directory: Path) -> bool:
    """Whether to write beside the data. Root could anywhere, but no write bit means: leave it alone."""
    return os.access(directory, os.W_OK) and bool(directory.stat().st_mode & 0o222)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second run waits for the first to finish preparing the data."""
    with (folder / "lock").open("w") as file:
        # Some network file systems have no locks; there two runs at once write the same files, atomically.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
