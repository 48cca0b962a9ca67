"""Recognising the format of a dataset's folder and listing its files."""

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from replay import reader_process
from replay.action_rows import resolve_action_at
from replay.description import read_description
from replay.episode import camera_shapes
from replay.formats import FORMATS, Episode, Format, LabelledLoaders, Load
from replay.mapping import PLAIN, DataMapping
from replay.safe_read import CAUSES, named_file
from replay.slices import whole
from replay.unfetched import is_pointer, pointer_problem, unfetched_hint
from tools import BadInput, nearest


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, with one episode or many.

    Attributes:
        path: the file.
        format: its format.
        name: its path relative to the dataset; unique in the dataset.
        mapping: which of its arrays are used.
    """

    path: Path
    format: Format
    name: str
    mapping: DataMapping = PLAIN

    def episodes(self, *, raw: bool = False, sliced: bool = False) -> LabelledLoaders:
        """Label and loader of each episode. No episode is read before its loader is called.

        Args:
            raw: loaders return all arrays of the file, else the four standard ones.
            sliced: images and other large arrays may be `SlicedArray`, which raise BadInput while they are read.

        Raises:
            BadInput: the file as a whole cannot be used. A loader raises it if only its episode cannot be used.
        """
        clip, mapping = self.mapping.clip_actions, self.mapping
        mapping = replace(mapping, any_actions=True) if clip else mapping
        if is_pointer(self.path):
            raise BadInput(pointer_problem(self.path))
        try:
            if self.format.separate_process:
                found = reader_process.list_episodes_in_process(self.format, self.path, raw, mapping)
            else:
                found = self.format.episodes(self.path, raw, mapping)
        except BadInput as error:
            raise _with_cause(error) from error
        if not found and not (self.format.shared_episodes and self.format.related(self.path)):
            raise BadInput(f"{self.path}: there is no episode in it; remove it or write it again")
        return [(label, partial(self._load, load, sliced)) for label, load in found]

    def _load(self, load: Load, sliced: bool) -> Episode:
        try:
            episode = load()
            if self.mapping.clip_actions:
                episode = episode | {"action": np.clip(whole(episode["action"], self.mapping.read_memory), -1, 1)}
            if sliced:
                return episode
            return {name: whole(array, self.mapping.read_memory) for name, array in episode.items()}
        except BadInput as error:
            raise _with_cause(error) from error

    def with_any_actions(self) -> "DataFile":
        """The same file, with episodes that have actions outside [-1, 1], if its format can read them so."""
        return replace(self, mapping=replace(self.mapping, any_actions=True)) if self.format.mapped else self

    def unclipped(self) -> "DataFile":
        """The same file, with its actions as they are, if its format can read them so."""
        return replace(self, mapping=replace(self.mapping, clip_actions=False)).with_any_actions()

    def state(self) -> tuple[int, int]:
        """Size in bytes and last time of change, in nanoseconds, of the file and those that belong to it."""
        found = []
        for path in (self.path, *self.format.related(self.path)):
            with suppress(OSError):  # it is gone, or may not be looked at: reading it says so
                if not path.is_dir():
                    found.append(path.stat())
        return sum(stat.st_size for stat in found), max((stat.st_mtime_ns for stat in found), default=0)


def find_data_files(directory: Path | str, format: str = "auto", mapping: DataMapping = PLAIN) -> list[DataFile]:
    """The files of a dataset, in the order of their names (which begin with the time they were made).

    Args:
        directory: a folder of episodes, one file, or a folder above a single Minari dataset.
        format: "auto", or the one to use in a folder with files of several formats.
        mapping: which arrays of the files are used.

    Raises:
        BadInput: no such directory, nothing readable in it, files of two formats, an unknown format, a mapping for a
            format that takes none, or see `resolve_action_at`.
    """
    if format != "auto" and format not in FORMATS:
        raise BadInput(f"dataset format {format!r} is unknown; {nearest(format, ('auto', *FORMATS))}")
    directory = Path(directory).expanduser()
    if not directory.exists():
        raise BadInput(
            f"{directory}: no such directory; give the folder that holds the episodes, or record some: python "
            f"collect.py --task TASK --out {directory}"
        )
    found = _files_by_format([directory] if directory.is_file() else _visible_files(directory))
    if not found and directory.is_dir():
        try:
            found = _files_below(directory)
        except BadInput as error:
            raise _with_cause(error) from error
    if format != "auto":
        found = {name: files for name, files in found.items() if name == format}
    if len(found) > 1:
        counts = " and ".join(f"{len(files)} {name}" for name, files in sorted(found.items()))
        raise BadInput(f"{directory}: two formats mixed ({counts} files); move one away or give --dataset_format")
    if not found:
        raise BadInput(f"{directory}: no episodes in it{_hint(directory, format)}")
    files = next(iter(found.values()))
    if files[0].format.mapped and _says_clip(directory):
        mapping = replace(mapping, clip_actions=True)
    mapping = resolve_action_at(mapping, files[0].format, directory, files[0].path)
    if mapping.changes_episodes and not files[0].format.mapped:
        given = [f"--{role}_key" for role in mapping.keys] + ["--state_keys"] * bool(mapping.states)
        given = given or ["--action_range"]
        raise BadInput(f"{directory}: {given[0]} has no effect on format {files[0].format.name}; remove it")
    return [replace(file, mapping=mapping) for file in files]


def first_image_shape(
    directory: Path | str, format: str = "auto", mapping: DataMapping = PLAIN
) -> tuple[int, int, int] | None:
    """Height, width and channels of the images of the first episode that can be read; None if none can.

    Of several cameras those of the one with the smallest images.

    Raises BadInput as `find_data_files` does.
    """
    try:
        for file in find_data_files(directory, format, mapping):
            with suppress(BadInput):
                for _, load in file.with_any_actions().episodes(sliced=True):
                    with suppress(BadInput):
                        return min(camera_shapes(load()))
    finally:
        reader_process.stop()
    return None


def print_notes(directory: Path, files: list[DataFile]) -> None:
    """Say on stderr what is unusual about how the files are read."""
    if files[0].mapping.clip_actions:
        print(f"note: {directory}: actions are clipped to [-1, 1], as dataset.json says", file=sys.stderr)
    for line in files[0].format.notes([file.path for file in files], files[0].mapping):
        print(f"note: {directory}: {line}", file=sys.stderr)


def _files_by_format(paths: list[Path]) -> dict[str, list[DataFile]]:
    """The files that each format recognises. A file of several formats is listed under each of them."""
    found: dict[str, list[DataFile]] = {}
    for path in paths:
        by_name = [format for format in FORMATS.values() if path.name in format.filenames]
        by_suffix = [format for format in FORMATS.values() if path.name.endswith(format.suffixes)]
        for format in by_name or by_suffix:
            found.setdefault(format.name, []).append(DataFile(path, format, path.name))
    return found


def _says_clip(directory: Path) -> bool:
    """Whether the dataset's description says that its actions are to be clipped; a damaged one is reported later."""
    with suppress(BadInput):
        return read_description(directory).get("clip_actions") is True
    return False


def _files_below(directory: Path) -> dict[str, list[DataFile]]:
    found: dict[str, list[DataFile]] = {}
    for format in FORMATS.values():
        paths = format.find_below(directory) if format.find_below else []
        if paths:
            found[format.name] = [DataFile(path, format, path.relative_to(directory).as_posix()) for path in paths]
    return found


def _visible_files(directory: Path) -> list[Path]:
    try:  # a link that leads nowhere is listed, so that reading it says so
        return sorted(path for path in directory.iterdir() if path.name[0] != "." and not path.is_dir())
    except OSError as error:
        _, advice = CAUSES.get(error.errno, ("", "check its permissions"))
        raise BadInput(f"{directory}: cannot be listed: {error.strerror}; {advice}") from error


def _with_cause(error: BadInput) -> BadInput:
    """The error, or another one if the file that it names at its beginning is only a pointer to the data."""
    path = named_file(str(error).split(": ")[0])
    return BadInput(pointer_problem(path)) if path and is_pointer(path) else error


def _hint(directory: Path, format: str) -> str:
    if format != "auto":
        return f" of format {format}; leave --dataset_format at auto or give another folder"
    suffixes = [suffix for known in FORMATS.values() for suffix in known.suffixes]
    below = sorted({path.parent for suffix in suffixes for path in directory.glob(f"*/*{suffix}")})
    if below:
        return f", but in {', '.join(path.name for path in below[:4])}; give one of these folders"
    if hint := unfetched_hint(directory):
        return hint
    *others, last = [known.title for known in FORMATS.values()]
    return f" ({', '.join(others)} or {last}); collect some with collect.py or give another folder"
