"""Data that is not there yet: pointer files of Git LFS, and archives that are not unpacked."""

import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1"  # the first line of every pointer file
POINTER_SIZE = 1024  # bytes; they are smaller

MOST_FILES = 2000  # of a folder that are looked at for pointers

ARCHIVE = re.compile(
    r"\.(zip|zipx|tar|tgz|tbz2?|txz|tzst|tlz|7z|rar|gz|bz2|xz|zst|lz4|lzma|z|cab|tar-\w+)(\.\d{2,3}|\.[a-z]{2}|\.part\d*)?$"
    r"|\.part\d+\.rar$|\.z\d\d$",
    re.IGNORECASE,
)


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left a pointer in place of this file."""
    with suppress(OSError):
        if path.is_file() and path.stat().st_size < POINTER_SIZE:
            with path.open("rb") as file:
                return file.read(len(POINTER)) == POINTER
    return False


def pointer_problem(path: Path) -> str:
    """The line about a pointer file."""
    return f"{path}: a Git LFS pointer, the file itself is not there; run: cd {path.parent} && git lfs pull"


def is_archive(path: Path) -> bool:
    """Whether the name of a file is that of an archive, or of a part of one."""
    return ARCHIVE.search(path.name) is not None


def unfetched_hint(directory: Path) -> str:
    """What has to be done before there can be episodes in a folder or file; "" if neither kind is in it."""
    paths = [directory] if directory.is_file() else list(islice(_files(directory), MOST_FILES))
    if pointers := [path for path in paths if is_pointer(path)]:
        folder = directory.parent if directory.is_file() else directory
        return f", only Git LFS pointers ({_listed(pointers, folder)}); run: cd {folder} && git lfs pull"
    if archives := [path for path in paths if is_archive(path)]:
        folder = directory.parent if directory.is_file() else directory
        return f", but archives that are not unpacked: unpack {_listed(archives, folder)} and give the unpacked folder"
    return ""


def _files(directory: Path) -> Iterable[Path]:
    """The visible files in a folder, then those in its folders and one level below."""
    for pattern in ("*", "*/*", "*/*/*"):
        with suppress(OSError):
            yield from (path for path in sorted(directory.glob(pattern)) if _is_visible_file(path, directory))


def _is_visible_file(path: Path, directory: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)


def _listed(paths: list[Path], directory: Path) -> str:
    names = [path.relative_to(directory).as_posix() for path in paths[:4]]
    return ", ".join(names) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
