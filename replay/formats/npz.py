"""npz: one episode in one ``.npz`` file, as Dreamer, the CoWorld release and V-D4RL (64 pixels) write it."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from replay import dreamer_replay
from replay.episode import KEYS
from replay.formats import Format, LabelledLoaders
from replay.labels import no_rewards
from replay.mapping import PLAIN, ROLES, DataMapping, by_likeness, is_picture, renamed, require_one_camera
from replay.npz_files import NpzArray, episode_filename, open_npz_array, read_npz_array, read_npz_rows, write_npz
from replay.observations import camera_names, finished
from replay.safe_read import READ_ERRORS, check_memory, safe_read
from replay.slices import SLICE_BYTES, SlicedArray, whole
from tools import BadInput

NOTED_FILES = 20  # so many are looked at for the notes


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """The file's name and the loader of its only episode, or those of the episodes of a Dreamer's replay.

    A chunk of a replay can have none of its own, see `replay.dreamer_replay`.

    Raises:
        BadInput: the file is damaged, or does not say where episodes begin.
    """
    file = _replay_file(path, mapping)
    if file is None or (len(file.pieces) == 1 and not file.taken_at_image and not related(path)):
        return [(path.name, partial(read_npz, path, raw, mapping))]
    found = dreamer_replay.episodes(path, file, partial(_replay_file, mapping=mapping))
    if not found and file.rows > 1 and file.first.all():
        raise BadInput(f"{path}: {dreamer_replay.FIRST} is true in every row, so no episode has a step; write it again")
    labels = [f"episode_{number}" for number in range(len(found))]
    if len(found) == 1 and dreamer_replay.successor(path) is None:  # the name of a chunk says what follows it
        labels = [path.name]
    return [
        (label, partial(_read_piece, rows, file, path if label == path.name else f"{path} {label}", raw, mapping))
        for label, rows in zip(labels, found, strict=True)
    ]


def related(path: Path) -> list[Path]:
    """The other chunks of a DreamerV3's replay that decide which episodes a chunk has; see `Format`."""
    if dreamer_replay.successor(path) is None:
        return []
    return dreamer_replay.neighbours(path, partial(_replay_file, mapping=PLAIN))


def notes(paths: list[Path], mapping: DataMapping) -> list[str]:
    """How the first files are read, if they are a Dreamer's replays; see `Format`."""
    found: dict[str, None] = {}  # in order, each line once
    for path in paths[:NOTED_FILES]:
        with contextlib.suppress(BadInput):
            found |= dict.fromkeys(_notes_of(path, mapping))
    return list(found)


def _notes_of(path: Path, mapping: DataMapping) -> Iterator[str]:
    file, action_key = _replay_file(path, mapping), mapping.action_key or "action"
    arrays = _read_small(path, {action_key, "discount", *dreamer_replay.TERMINAL})
    if file is not None and (len(file.pieces) > 1 or related(path)):
        yield "a Dreamer's replay: episodes begin where is_first is true and end at is_last"
    if file is not None and file.taken_at_image:
        yield "actions are those taken AT an image (DreamerV3); they are moved down by one row"
    terminates = not mapping.done_key and "discount" not in arrays
    if terminates and dreamer_replay.discount_of(arrays, path) is not None:
        name = next(name for name in dreamer_replay.TERMINAL if name in arrays)
        yield f"no array discount; {name} says where an episode terminates (discount 0)"
    if dreamer_replay.is_one_hot(arrays.get(action_key, np.zeros(0))):
        size = arrays[action_key].shape[1]
        yield f"actions are one-hot, of {size} discrete ones; agents learn {size} continuous ones in [-1, 1]"


def read_npz(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> dict[str, np.ndarray]:
    """The episode of one ``.npz`` file, validated. Its images are a `SlicedArray`.

    Args:
        path: the file. Nothing in it is ever unpickled.
        raw: return all arrays exactly as they are in the file, instead of the four in their standard form. Large ones
            are `SlicedArray` too.
        mapping: the names of the arrays.

    Raises:
        BadInput: the file is truncated, no zip archive, or not a valid episode.
    """
    arrays, names = _episode_arrays(path, raw, mapping)
    return _validated(mapping.in_rows(renamed(arrays, names, path), path), arrays, path, raw, mapping)


def _read_piece(
    rows: list[dreamer_replay.Rows], file: dreamer_replay.ReplayFile, where: object, raw: bool, mapping: DataMapping
) -> dict[str, np.ndarray]:
    """An episode that is part of a file, or in several files."""
    parts = []
    for path, *_ in rows:
        with safe_read(path, "npz"):
            changed = path.stat().st_mtime_ns
        arrays, names = _recent_arrays(path, changed, raw, mapping)
        parts.append(arrays)
    arrays = dreamer_replay.assembled(parts, rows, file, names)
    episode = renamed(arrays, names, where)
    if file.taken_at_image:  # the actions have been moved
        episode = mapping.with_rewards(episode, sum(end - first for _, first, end in rows))
    else:
        episode = mapping.in_rows(episode, where)
    return _validated(episode, arrays, where, raw, mapping)


def _validated(episode: dict, arrays: dict, where: object, raw: bool, mapping: DataMapping) -> dict:
    """The episode in its standard form. A replay's flags of termination belong to images, and stay in their rows."""
    if "discount" not in episode and (discount := dreamer_replay.discount_of(arrays, where)) is not None:
        episode["discount"] = discount
    return finished(episode, where, mapping, raw)


def _episode_arrays(path: Path, raw: bool, mapping: DataMapping) -> tuple[dict, dict[str, str]]:
    """The arrays of a file that are used, or all of them if ``raw``; and the name of the array of each role."""
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        found = _names(archive)
        names = mapping.names(dict(zip(ROLES, (*KEYS[:3], ""), strict=True)), found, path)
        _require(names, found, path)
        cameras = camera_names(names)
        used = {*names.values(), *cameras, *mapping.states, "discount"}
        used |= set() if "discount" in found else set(dreamer_replay.TERMINAL)
        headers = {name: open_npz_array(archive, name) for name in found if raw or name in used}
        if "image" not in mapping.keys:
            _require_one_camera(names["image"], archive, found, path)
        arrays = {
            name: _read_array(archive, header, path, name in cameras, mapping) for name, header in headers.items()
        }
    return arrays, names


# A file of many episodes is read once for all of them. An episode can begin in one and end in the next.
@lru_cache(maxsize=2)
def _recent_arrays(path: Path, changed: int, raw: bool, mapping: DataMapping) -> tuple[dict, dict[str, str]]:
    arrays, names = _episode_arrays(path, raw, mapping)
    return {name: whole(array, mapping.read_memory) for name, array in arrays.items()}, names


def _replay_file(path: Path, mapping: DataMapping) -> dreamer_replay.ReplayFile | None:
    with safe_read(path, "npz"):
        with zipfile.ZipFile(path) as archive:
            names = set(_names(archive))
        return dreamer_replay.replay_file(path, names, _read_small, mapping.action_key or "action")


def _read_small(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that are in a file; they are numbers, a few for each row."""
    with safe_read(path, "npz"), zipfile.ZipFile(path) as archive:
        headers = [open_npz_array(archive, name) for name in _names(archive) if name in names]
        return {
            header.name: whole(_read_array(archive, header, path, False, PLAIN), PLAIN.read_memory)
            for header in headers
        }


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [info.filename[:-4] for info in archive.infolist() if info.filename.endswith(".npy")]


def _require_one_camera(own: str, archive: zipfile.ZipFile, found: list[str], path: Path) -> None:
    """Raise BadInput if arrays beside ``own`` have images too."""
    pictures: dict[str, tuple[int, ...]] = {}
    for name in found:
        with contextlib.suppress(*READ_ERRORS):  # damage in an array that is not used is no problem
            header = open_npz_array(archive, name)
            if is_picture(header.shape, header.dtype):
                pictures[name] = header.shape
    rows = pictures.get(own, ())[:1]
    require_one_camera(own, {name: shape for name, shape in pictures.items() if shape[:1] == rows}, path)


def _require(names: dict[str, str], found: list[str], path: Path) -> None:
    """Raise BadInput, with the options to give, if arrays are missing but there are others."""
    missing = [role for role in KEYS[:3] if names[role] and not set(names[role].split(",")) <= set(found)]
    others = by_likeness("reward", set(found) - {*names.values(), "discount"})
    if missing == ["reward"]:
        raise BadInput(no_rewards(path, path.parent, names["reward"], others))
    if missing and set(found) - {*names.values(), "discount"}:
        options = ", ".join(f"--{role}_key" for role in missing)
        raise BadInput(
            f"{path}: no array named {', '.join(missing)}; there are: {by_likeness(missing[0], found)}; "
            f"name them with {options}, and with --done_key what is true where the task terminated"
        )


def _read_array(
    archive: zipfile.ZipFile, header: NpzArray, path: Path, is_image: bool, mapping: DataMapping
) -> np.ndarray | SlicedArray:
    """An array; images and other large arrays are read in slices."""
    if header.dtype.hasobject:
        raise BadInput(f"{path}: {header.name} is an array of python objects, which are never unpickled; remove it")
    if len(header.shape) > 1 and not header.fortran and (is_image or header.nbytes > SLICE_BYTES):
        check_memory(4 * header.row_bytes, mapping.read_memory)
        return SlicedArray(header.shape, header.dtype, partial(read_npz_rows, path, header), path, "npz")
    check_memory(header.nbytes, mapping.read_memory)
    return read_npz_array(archive, header)


def write(folder: Path, episodes: Iterator[tuple[str, dict]], name: str) -> int:
    """Write one file for each episode. A label that is a valid new file name is kept as the name."""
    count = 0
    for label, episode in episodes:
        filename = label
        if not re.fullmatch(r"[\w-][\w.-]*\.npz", label) or (folder / label).exists():
            filename = episode_filename(len(episode["reward"]), datetime.now(), f"{count:032x}")
        write_npz(folder / filename, episode, compress=True)
        count += 1
    return count


FORMAT = Format(
    name="npz",
    title="*.npz",
    list_episodes=list_episodes,
    mapped=True,
    free_rows=True,
    suffixes=(".npz",),
    separate_process=False,
    write=write,
    related=related,
    notes=notes,
    shared_episodes=True,
)
