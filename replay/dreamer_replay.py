"""Replays that Dreamers write: where episodes begin in a file, which action led to an image, which file comes next.

DreamerV2 and its ports write a file an episode, or several, one after the other; row t has the action that led to it.
DreamerV3 writes chunks of 1024 steps of one environment. An episode goes on in the chunk that the file's name names:
``<time>-<id>-<id of the next chunk>-<rows>.npz``. Row t has the action taken AT image t; at ``is_last`` it is zeros.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from replay.safe_read import READ_ERRORS
from tools import BadInput

FIRST, LAST = "is_first", "is_last"
RESET = "reset"  # pydreamer's name of is_first; DreamerV3's chunks have both, and there it means is_last
TERMINAL = ("is_terminal", "terminal")  # names of the array that is true where the task terminated
CHUNK_KEYS = {"stepid", "id", RESET}  # one of them is in each of DreamerV3's chunks, beside FIRST

Read = Callable[[Path, set[str]], dict[str, np.ndarray]]  # those of the named arrays that are in a file


class Rows(NamedTuple):
    """Rows ``first`` to ``end`` (not included) of a file."""

    path: Path
    first: int
    end: int


class ReplayFile(NamedTuple):
    """What the flags of a file say.

    Attributes:
        rows: N.
        first, last: (N,) bool, where an episode begins and ends.
        taken_at_image: actions are those taken AT an image.
    """

    rows: int
    first: np.ndarray
    last: np.ndarray
    taken_at_image: bool

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First and last row (not included) of each episode or part of one."""
        begins = self.first.copy()
        begins[1:] |= self.last[:-1]
        begins[0] = True
        starts = np.flatnonzero(begins).tolist()
        return list(zip(starts, [*starts[1:], self.rows], strict=True))


def replay_file(path: Path, names: set[str], read: Read, action_key: str = "action") -> ReplayFile | None:
    """The flags of a file whose arrays are ``names``; None if it has none.

    Raises:
        BadInput: a flag is not true or false in each row, or differs in length.
    """
    wanted = {FIRST, LAST} if FIRST in names else {RESET, LAST}
    if not wanted & names:
        return None
    arrays = read(path, {*wanted, action_key} & names)
    action = arrays.get(action_key)
    if RESET in arrays and not _are_flags(arrays[RESET]):
        del arrays[RESET]
    flags = {name: as_flags(array, name, path) for name, array in arrays.items() if name != action_key}
    if not flags:
        return None
    rows = len(action) if action is not None and action.ndim else len(next(iter(flags.values())))
    for name, flag in flags.items():
        if len(flag) != rows:
            raise BadInput(f"{path}: arrays differ in length ({action_key} {rows}, {name} {len(flag)}); write it again")
    none = np.zeros(rows, bool)
    first, last = flags.get(FIRST, flags.get(RESET, none)), flags.get(LAST, none)
    if rows == 0 or (FIRST not in names and not first[0]):  # another meaning of `reset`, or a part without a beginning
        first = none
    chunk = successor(path) is not None and FIRST in names and bool(CHUNK_KEYS & names)
    acts = none if action is None else action.reshape(rows, -1).astype(bool).any(1)
    return ReplayFile(rows, first, last, _taken_at_image(first, last, acts, chunk))


def _taken_at_image(first: np.ndarray, last: np.ndarray, acts: np.ndarray, chunk: bool) -> bool:
    """Whether actions are those taken AT an image. ``acts``: not all zeros; ``chunk``: named as DreamerV3 does."""
    zeros_at_last = not acts[last].any()
    if not first.any():
        return chunk and zeros_at_last
    return bool(acts[first].any()) and zeros_at_last and (chunk or bool(last.any()))


def episodes(path: Path, file: ReplayFile, open_file: Callable[[Path], ReplayFile | None]) -> list[list[Rows]]:
    """The rows of each episode that begins in a file, also those in the next chunks; without episodes of one row.

    Args:
        path: the file.
        file: its flags.
        open_file: the flags of another file; it may raise BadInput, and the episode then ends before that file.
    """
    found = [[Rows(path, first, end)] for first, end in file.pieces]
    before = predecessor(path)
    if before is not None and not file.first[0] and (other := _flags(before, open_file)) and not other.last[-1]:
        del found[0]  # it belongs to the episode that begins in an earlier chunk
    if found and not file.last[-1]:
        found[-1] += _continuation(path, open_file)
    return [rows for rows in found if sum(end - first for _, first, end in rows) > 1]


def neighbours(path: Path, open_file: Callable[[Path], ReplayFile | None]) -> list[Path]:
    """The chunk before this one, and those in which its last episode goes on."""
    before, file = predecessor(path), _flags(path, open_file)
    after = _continuation(path, open_file) if file is not None and not file.last[-1] else []
    return [*([before] if before else []), *(rows.path for rows in after)]


def _continuation(path: Path, open_file: Callable[[Path], ReplayFile | None]) -> list[Rows]:
    """The rows of an episode in the chunks that follow ``path``."""
    found: list[Rows] = []
    seen = {path}
    while (path := following(path)) is not None and path not in seen:
        seen.add(path)
        file = _flags(path, open_file)
        if file is None or file.first[0]:
            break
        _, end = file.pieces[0]
        found.append(Rows(path, 0, end))
        if end < file.rows or file.last[-1]:
            break
    return found


def _flags(path: Path, open_file: Callable[[Path], ReplayFile | None]) -> ReplayFile | None:
    try:
        file = open_file(path)
    except (BadInput, *READ_ERRORS):
        return None
    return file if file is not None and file.rows else None


def assembled(parts: list[dict[str, np.ndarray]], rows: list[Rows], file: ReplayFile, names: dict) -> dict:
    """The arrays of one episode, in the row convention.

    Args:
        parts: the arrays of the files of ``rows``.
        rows: see `episodes`.
        file: the flags of the first file.
        names: of the arrays of the roles.
    """
    first_part, start = parts[0], rows[0].first
    arrays = {}
    for name, array in first_part.items():
        if array.ndim == 0 or len(array) != file.rows:  # not one value a row
            arrays[name] = array
        elif all(name in part for part in parts):
            arrays[name] = np.concatenate([part[name][a:b] for part, (_, a, b) in zip(parts, rows, strict=True)])
    action = arrays.get(names["action"])
    if action is not None and action.ndim:
        if file.taken_at_image:
            arrays[names["action"]] = np.concatenate([np.zeros_like(action[:1]), action[:-1]])
        elif not file.first[start]:
            action[0] = 0  # it led to the first image from one that is missing
    return arrays


def as_flags(array: np.ndarray, name: str, where: object) -> np.ndarray:
    """An array (N,) or (N, 1) of any type that is true or false (1 or 0) in each row, as booleans (N,).

    Raises:
        BadInput: it has other values or another shape.
    """
    if not _are_flags(array):
        raise BadInput(f"{where}: {name} must be true or false (1 or 0) in each row; correct it or remove the array")
    return array.reshape(-1).astype(bool)


def _are_flags(array: np.ndarray) -> bool:
    one_a_row = array.ndim > 0 and array.size == len(array)
    return bool(array.dtype.kind in "biuf" and one_a_row and np.isin(array, (0, 1)).all())


def discount_of(arrays: dict[str, np.ndarray], where: object) -> np.ndarray | None:
    """Discounts (N,) of a file without them: 0 where the task terminated. None if no array says where.

    Raises:
        BadInput: ``is_terminal`` is not true or false in each row.
    """
    if "is_terminal" in arrays:
        return 1 - as_flags(arrays["is_terminal"], "is_terminal", where).astype(np.float32)
    if "terminal" in arrays and _are_flags(arrays["terminal"]):
        return 1 - arrays["terminal"].reshape(-1).astype(np.float32)
    return None


def is_one_hot(action: np.ndarray) -> bool:
    """Whether actions (N, A) are one-hot: a single 1 in each row but the first of an episode, which may be zeros."""
    if action.ndim != 2 or action.shape[1] < 2 or not np.isin(action, (0, 1)).all():
        return False
    ones = action.astype(np.float64).sum(1)
    return bool((ones <= 1).all() and ones.sum() >= max(1, len(action) // 2))


# The names of chunks


def successor(path: Path) -> str | None:
    """The id of the chunk that follows; None if the name is not that of a chunk."""
    parts = path.stem.split("-")
    return parts[2] if len(parts) == 4 and parts[3].isdecimal() else None


def following(path: Path) -> Path | None:
    """The chunk after this one, if it is in the same folder."""
    return _folder_of(path)[0].get(successor(path) or "")


def predecessor(path: Path) -> Path | None:
    """The chunk before this one, if it is in the same folder."""
    return _folder_of(path)[1].get(path.stem.split("-")[1]) if successor(path) is not None else None


def _folder_of(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    return _chunks(path.parent, path.parent.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _chunks(folder: Path, changed: int) -> tuple[dict[str, Path], dict[str, Path]]:
    """The chunks of a folder, last ``changed`` then: by their ids, and by the ids of those that follow them."""
    paths = [path for path in sorted(folder.glob("*-*-*-*.npz")) if successor(path) is not None]
    return {path.stem.split("-")[1]: path for path in paths}, {successor(path): path for path in paths}
