"""Recognising the format of a dataset's folder and listing its files."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from replay import reader_process
from replay.episode import image_shape
from replay.formats import FORMATS, Format, LabelledLoaders
from replay.mapping import PLAIN, DataMapping
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

    def episodes(self, *, raw: bool = False) -> LabelledLoaders:
        """Label and loader of each episode. No episode is read before its loader is called.

        Args:
            raw: loaders return all arrays of the file, else the four standard ones.

        Raises:
            BadInput: the file as a whole cannot be used. A loader raises it if only its episode cannot be used.
        """
        if self.format.separate_process:
            found = reader_process.list_episodes_in_process(self.format, self.path, raw, self.mapping)
        else:
            found = self.format.episodes(self.path, raw, self.mapping)
        if not found:
            raise BadInput(f"{self.path}: there is no episode in it; remove it or write it again")
        return found

    def with_any_actions(self) -> "DataFile":
        """The same file, with episodes that have actions outside [-1, 1], if its format can read them so."""
        return replace(self, mapping=replace(self.mapping, any_actions=True)) if self.format.mapped else self

    def state(self) -> tuple[int, int]:
        """Size in bytes and last time of change, in nanoseconds, of the file and those that belong to it."""
        found = [path.stat() for path in (self.path, *self.format.related(self.path)) if path.is_file()]
        return sum(stat.st_size for stat in found), max((stat.st_mtime_ns for stat in found), default=0)


def find_data_files(directory: Path | str, format: str = "auto", mapping: DataMapping = PLAIN) -> list[DataFile]:
    """The files of a dataset, in the order of their names (which begin with the time they were made).

    Args:
        directory: a folder of episodes, one file, or a folder above a single Minari dataset.
        format: "auto", or the one to use in a folder with files of several formats.
        mapping: which arrays of the files are used.

    Raises:
        BadInput: no such directory, nothing readable in it, files of two formats, an unknown format, or a mapping for
            a format that takes none.
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
        found = _files_below(directory)
    if format != "auto":
        found = {name: files for name, files in found.items() if name == format}
    if len(found) > 1:
        counts = " and ".join(f"{len(files)} {name}" for name, files in sorted(found.items()))
        raise BadInput(f"{directory}: two formats mixed ({counts} files); move one away or give --dataset_format")
    if not found:
        raise BadInput(f"{directory}: no episodes in it{_hint(directory, format)}")
    files = next(iter(found.values()))
    if mapping.changes_episodes and not files[0].format.mapped:
        given = [f"--{role}_key" for role in mapping.keys] or ["--action_range"]
        raise BadInput(f"{directory}: {given[0]} has no effect on format {files[0].format.name}; remove it")
    return [replace(file, mapping=mapping) for file in files]


def first_image_shape(
    directory: Path | str, format: str = "auto", mapping: DataMapping = PLAIN
) -> tuple[int, int, int] | None:
    """Height, width and channels of the images of the first episode that can be read; None if none can.

    Raises BadInput as `find_data_files` does.
    """
    try:
        for file in find_data_files(directory, format, mapping):
            with suppress(BadInput):
                for _, load in file.with_any_actions().episodes():
                    with suppress(BadInput):
                        return image_shape(load())
    finally:
        reader_process.stop()
    return None


def _files_by_format(paths: list[Path]) -> dict[str, list[DataFile]]:
    """The files that each format recognises. A file of several formats is listed under each of them."""
    found: dict[str, list[DataFile]] = {}
    for path in paths:
        by_name = [format for format in FORMATS.values() if path.name in format.filenames]
        by_suffix = [format for format in FORMATS.values() if path.name.endswith(format.suffixes)]
        for format in by_name or by_suffix:
            found.setdefault(format.name, []).append(DataFile(path, format, path.name))
    return found


def _files_below(directory: Path) -> dict[str, list[DataFile]]:
    found: dict[str, list[DataFile]] = {}
    for format in FORMATS.values():
        paths = format.find_below(directory) if format.find_below else []
        if paths:
            found[format.name] = [DataFile(path, format, path.relative_to(directory).as_posix()) for path in paths]
    return found


def _visible_files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name[0] != "." and path.is_file())
    except OSError as error:
        raise BadInput(f"{directory}: cannot be listed: {error.strerror}; check its permissions") from error


def _hint(directory: Path, format: str) -> str:
    if format != "auto":
        return f" of format {format}; leave --dataset_format at auto or give another folder"
    suffixes = [suffix for known in FORMATS.values() for suffix in known.suffixes]
    below = sorted({path.parent for suffix in suffixes for path in directory.glob(f"*/*{suffix}")})
    if below:
        return f", but in {', '.join(path.name for path in below[:4])}; give one of these folders"
    *others, last = [known.title for known in FORMATS.values()]
    return f" ({', '.join(others)} or {last}); collect some with collect.py or give another folder"
