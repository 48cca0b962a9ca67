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
from replay.labels import labels_path, read_labels
from replay.layouts import npz_names
from replay.mapping import PLAIN, DataMapping
from replay.safe_read import CAUSES, named_file
from replay.slices import whole
from replay.steps import CAMERA_NAME
from replay.unfetched import is_pointer, pointer_problem, unfetched_hint
from tools import BadInput, nearest

MOST_TRIED = 5  # files of a folder that are looked into until one says its format


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, with one episode or many.

    Attributes:
        path: the file.
        format: its format.
        name: its path relative to the dataset; unique in the dataset.
        mapping: which of its arrays are used.
        labels: names of its episodes that succeeded, if rewards come from labels.
        labels_path: the file that says so.
    """

    path: Path
    format: Format
    name: str
    mapping: DataMapping = PLAIN
    labels: frozenset[str] | None = None
    labels_path: Path | None = None

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
        unknown = (self.labels or frozenset()) - {label for label, _ in found}
        if unknown and not self.mapping.split:
            raise BadInput(f"{self.labels_path}: no {min(unknown)} in {self.path}; run dataset.py label again")
        return [(label, partial(self._load, label, load, sliced)) for label, load in found]

    def _load(self, label: str, load: Load, sliced: bool) -> Episode:
        try:
            episode = load()
            if self.labels is not None:
                episode = episode | {"reward": np.zeros(len(episode["reward"]), np.float32)}
                episode["reward"][-1] = label in self.labels
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
        labels = [] if self.labels is None else [self.labels_path]
        for path in (self.path, *self.format.related(self.path), *labels):
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
        BadInput: no such directory, nothing readable in it, files of two formats, an unknown format, a mapping or a
            split for a format that takes none, labels of other episodes, or see `resolve_action_at`.
    """
    if format != "auto" and format not in FORMATS:
        raise BadInput(f"dataset format {format!r} is unknown; {nearest(format, ('auto', *FORMATS))}")
    mapping.check_lists()
    directory = Path(directory).expanduser()
    if not directory.exists():
        raise BadInput(
            f"{directory}: no such directory; give the folder that holds the episodes, or record some: python "
            f"collect.py --task TASK --out {directory}"
        )
    paths = [directory] if directory.is_file() else _visible_files(directory)
    found = _files_by_format(paths, mapping, every=format != "auto")
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
    if mapping.split and files[0].format.splits is None:
        raise BadInput(f"{directory}: --split has no effect on format {files[0].format.name}; remove it")
    return _with_usual_camera(_labelled([replace(file, mapping=mapping) for file in files], directory))


def _with_usual_camera(files: list[DataFile]) -> list[DataFile]:
    """The files, which then must have the camera of the first that can be read, if none is chosen."""
    mapping = files[0].mapping
    if len(files) == 1 or not files[0].format.free_cameras or mapping.image_key or mapping.list_only:
        return files
    for file in files[:MOST_TRIED]:
        with suppress(BadInput):
            _, load = file.with_any_actions().episodes(sliced=True)[0]
            usual = str(load()[CAMERA_NAME])
            return [replace(file, mapping=replace(file.mapping, usual_camera=usual)) for file in files]
    return files


def _labelled(files: list[DataFile], directory: Path) -> list[DataFile]:
    """The files with the labels of their episodes, if the dataset has labels and rewards are not named otherwise."""
    path = labels_path(directory, files[0].path)
    if files[0].mapping.list_only or files[0].mapping.reward_key or (labels := read_labels(path)) is None:
        return files
    names = {file.name for file in files}
    if files[0].path == directory:  # beside it can be files with labels that are not of this dataset
        labels = {name: found for name, found in labels.items() if name in names}
        if not labels:
            return files
    if differing := labels.keys() ^ names:
        what = "is not in the dataset" if min(differing) in labels else "has no labels"
        raise BadInput(f"{path}: {min(differing)} {what}; run dataset.py label again, or remove {path.name}")
    mapping = replace(files[0].mapping, labelled=True)
    return [replace(file, mapping=mapping, labels=labels[file.name], labels_path=path) for file in files]


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


def splits_of(file: DataFile) -> list[str]:
    """The names of the parts into which a file divides its episodes, see ``--split``; none if it cannot be read."""
    with suppress(BadInput):
        if file.format.splits is not None:
            return file.format.splits(reader_process.names_in_process(file.path, file.mapping))
    return []


def print_notes(directory: Path, files: list[DataFile]) -> None:
    """Say on stderr what is unusual about how the files are read."""
    if files[0].mapping.clip_actions:
        print(f"note: {directory}: actions are clipped to [-1, 1], as dataset.json says", file=sys.stderr)
    if files[0].labels_path:
        print(f"note: {directory}: rewards are those of {files[0].labels_path.name}", file=sys.stderr)
    for line in files[0].format.notes([file.path for file in files], files[0].mapping):
        print(f"note: {directory}: {line}", file=sys.stderr)


def _files_by_format(paths: list[Path], mapping: DataMapping, every: bool) -> dict[str, list[DataFile]]:
    """The files of each format.

    A file whose name fits several formats is listed under the one that recognises it. If ``every``, or if none does, it
    is listed under all of them, but not under those that do not recognise it.
    """
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        by_name = [name for name, format in FORMATS.items() if path.name in format.filenames]
        by_suffix = [name for name, format in FORMATS.items() if path.name.endswith(format.suffixes)]
        groups.setdefault(tuple(by_name or by_suffix), []).append(path)
    found: dict[str, list[DataFile]] = {}
    for names, members in groups.items():
        for format in map(FORMATS.get, names if every else _recognised(names, members, mapping)):
            found.setdefault(format.name, []).extend(DataFile(path, format, path.name) for path in members)
    return {name: sorted(files, key=lambda file: file.path) for name, files in found.items()}


def _recognised(names: tuple[str, ...], paths: list[Path], mapping: DataMapping) -> list[str]:
    """Those of several formats that files are of, by what is in the first that can be read."""
    choosy = [name for name in names if FORMATS[name].recognises]
    others = [name for name in names if not FORMATS[name].recognises]
    if not choosy or not others:
        return list(names)
    for path in paths[:MOST_TRIED]:
        with suppress(BadInput):
            inside = npz_names(path) if path.suffix == ".npz" else reader_process.names_in_process(path, mapping)
            return [name for name in choosy if FORMATS[name].recognises(inside)] or others
    return others


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
            found[format.name] = [DataFile(path, format, _name_below(path, directory)) for path in paths]
    return found


def _name_below(path: Path, directory: Path) -> str:
    return path.name if path == directory else path.relative_to(directory).as_posix()


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
