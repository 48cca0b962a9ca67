"""Episodes of files in which row t has what was seen at step t and the action that was taken there.

The robot formats use it. A format gives the arrays of its file as `Column`s; which of them are images and which are
states is decided here alone.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from replay.encoded import decoded, is_encoded
from replay.episode import KEYS
from replay.labels import no_rewards
from replay.mapping import DataMapping, as_numbers, by_likeness, discount_of, is_picture, moved_down, require_one_camera
from replay.observations import camera_names, finished, is_state
from replay.slices import SLICE_BYTES, SlicedArray, joined, whole
from tools import BadInput

CAMERA_NAME = "camera_name"  # array of an episode, not raw, with the text of its camera, where files name it freely
LEAST_SIDE = 8  # pixels of images that are stored as floating point numbers; smaller arrays are states


class Column(NamedTuple):
    """An array of a file, of which nothing has been read.

    Attributes:
        shape, dtype: of all its rows.
        rows: returns some of its rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[slice], SlicedArray]


Columns = dict[str, Column]


@dataclass(frozen=True)
class StepColumns:
    """The arrays of a file or of an episode, by their names.

    Attributes:
        observed: seen at each step: images and states.
        acted: actions, rewards and others.
        own: the format's own name of each role, see `replay.mapping.ROLES`; "" where it has none. That of the reward is
            used only if it exists.
        after: those of ``observed`` that were seen after each step's action. Their last row is added to the episode.
        led: the action of a row led to what was seen in it.
        ends_only: terminations count in the last row only, unless ``--done_key`` names them.
        hint: what to do if there are no images.
    """

    observed: Columns
    acted: Columns
    own: Mapping[str, str]
    after: Columns = field(default_factory=dict)
    led: bool = False
    ends_only: bool = False
    hint: str = "this program learns from images (uint8, rows x height x width x 3)"


def image_columns(observed: Columns) -> Columns:
    """Those that are images: uint8, floating point numbers 0 to 255, JPEGs or PNGs.

    Of arrays that could be JPEGs the first row is read.
    """
    return {name: column for name, column in observed.items() if _is_image(column)}


def state_columns(observed: Columns) -> Columns:
    """Those that are low-dimensional, see `replay.observations.is_state`."""
    return {
        name: column
        for name, column in observed.items()
        if is_state(column.shape, column.dtype) and not _is_image(column)
    }


def choose_names(columns: StepColumns, mapping: DataMapping, where: object, folder: object) -> dict[str, str]:
    """The name of the array of each role; "" for a reward that comes from labels, and for a missing ``done``.

    That of several cameras is their names, separated by commas; see `used_names`.

    Args:
        columns: the arrays.
        mapping: the names that were given.
        where: the file or place in errors.
        folder: the dataset's.

    Raises:
        BadInput: an array is missing, there are no images, or there are several cameras and none is chosen.
    """
    images = image_columns(columns.observed)
    own = {**columns.own, "done": columns.own["done"] if columns.own["done"] in columns.acted else ""}
    names = mapping.names(own, [*columns.observed, *columns.acted], where)
    if not images:
        listed = ", ".join(f"{n} {c.dtype} {c.shape}" for n, c in list(columns.observed.items())[:6]) or "none"
        shapes = [column.shape for column in columns.observed.values() if len(column.shape) == 4]
        unlike = any({3, 4} & {shape[1], shape[-1]} for shape in shapes)  # of another type, or with an alpha channel
        hint = "write images as uint8, rows x height x width x 3" if unlike else columns.hint
        raise BadInput(f"{where}: no images among the observations ({listed}); {hint}")
    for name in [name for name in mapping.cameras if name not in images]:
        listed = by_likeness(name, images)
        raise BadInput(f"{where}: {name!r} (--image_key) has no images; those that have: {listed}")
    states = state_columns(columns.observed)
    for name in [name for name in mapping.states if name not in states]:
        raise BadInput(f"{where}: {name!r} (--state_keys) is no state; those that are: {by_likeness(name, states)}")
    if not mapping.image_key:
        if mapping.usual_camera and mapping.usual_camera not in images:
            raise BadInput(
                f"{where}: no camera {mapping.usual_camera}, which other files have, but {by_likeness('', images)}; "
                "keep files with different cameras in folders of their own"
            )
        require_one_camera(names["image"], {name: _image_shape(column) for name, column in images.items()}, where)
        names["image"] = names["image"] if names["image"] in images else next(iter(images))
    available = columns.observed | columns.acted
    if names["reward"] and names["reward"] not in available:
        one = {name for name, c in available.items() if c.dtype.kind in "fiu" and math.prod(c.shape[1:]) == 1}
        raise BadInput(no_rewards(where, folder, names["reward"], by_likeness("reward", one - {names["action"]})))
    if names["action"] not in available:
        listed = by_likeness("action", columns.acted)
        raise BadInput(f"{where}: no array {names['action']}; name the actions with --action_key: {listed}")
    return names


def used_names(names: Mapping[str, str], mapping: DataMapping) -> list[str]:
    """The names of all arrays that an episode is made of, from those that `choose_names` returned."""
    cameras = camera_names(names) if names.get("image") else []
    others = [name for role, name in names.items() if role != "image" and name]
    return [*cameras, *others, *mapping.states]


def row_count(columns: StepColumns, names: Mapping[str, str], mapping: DataMapping) -> int:
    """The most rows that an array of the episode has, so that no row of a longer one is left out unseen."""
    available = columns.observed | columns.acted
    return max(available[name].shape[0] for name in used_names(names, mapping))


def read_episode(
    columns: StepColumns, names: Mapping[str, str], rows: slice, where: object, raw: bool, mapping: DataMapping
) -> dict[str, np.ndarray | SlicedArray]:
    """Some rows of the arrays as one episode, see `observations.finished`; with all states if ``raw``.

    Raises:
        BadInput: it is not valid, or not in the file.
        Any of `safe_read.READ_ERRORS`: the file is damaged.
    """
    available = columns.observed | columns.acted
    if empty := [name for name in used_names(names, mapping) if available[name].shape[0] == 0]:
        raise BadInput(f"{where}: no rows in {', '.join(empty)}: an episode without steps; remove it")
    images = {name: _images(columns, name, rows, where) for name in camera_names(names)}
    image = next(iter(images.values()))
    episode = {role: _numbers(available[names[role]], rows, mapping) for role in ("action", "reward") if names[role]}
    if names["done"]:
        episode["discount"] = discount_of(_numbers(available[names["done"]], rows, mapping), where)
        if columns.ends_only and not mapping.done_key:
            episode["discount"][:-1] = 1
    episode = mapping.with_rewards(episode | {"image": image}, len(image))
    episode = _at_their_images(episode) if columns.led else moved_down(episode, len(image), where)
    states = _states(columns, used_names(names, mapping), rows, len(image), where) if raw else {}
    states |= {name: _seen(columns, name, rows, where) for name in mapping.states}
    found = finished(episode | {"image": images if len(images) > 1 else image} | states, where, mapping, raw)
    return found if raw or columns.own["image"] else found | {CAMERA_NAME: np.array(names["image"])}


def _is_image(column: Column) -> bool:
    shape = column.shape
    if column.dtype.kind == "f" and len(shape) == 4 and shape[-1] == 3:  # with one channel it is depth
        return min(shape[1:3]) >= LEAST_SIDE
    if is_picture(shape, column.dtype):
        return True
    could_be = (column.dtype == np.uint8 and len(shape) == 2) or (column.dtype.kind in "OSV" and len(shape) == 1)
    return could_be and shape[0] > 0 and is_encoded(column.rows(slice(0, 1)))


def _image_shape(column: Column) -> tuple[int, ...]:
    """The shape of a column of images, decoded."""
    if len(column.shape) > 2:
        return column.shape
    return (column.shape[0], *decoded(column.rows(slice(0, 1))).shape[1:])


def _images(columns: StepColumns, name: str, rows: slice, where: object) -> SlicedArray:
    """The images of a camera as uint8."""
    image = _seen(columns, name, rows, where)
    return decoded(image) if is_encoded(image) else _as_uint8(image, where)


def _seen(columns: StepColumns, name: str, rows: slice, where: object) -> SlicedArray:
    """What was seen at some steps and, if the file has it, after the last of them."""
    seen = columns.observed[name].rows(rows)
    if (after := columns.after.get(name)) is None or len(seen) == 0:
        return seen
    count = columns.observed[name].shape[0]
    if not _same_rows(columns, name):
        raise BadInput(
            f"{where}: {name} has {count} rows, but {after.shape[0]} of what was seen next; write it again or remove it"
        )
    end = range(*rows.indices(count))[-1]
    return joined([seen, after.rows(slice(end, end + 1))])


def _as_uint8(image: SlicedArray, where: object) -> SlicedArray:
    return image if image.dtype.kind != "f" else image.map(partial(_rounded, where))


def _rounded(where: object, image: np.ndarray) -> np.ndarray:
    """Images of numbers 0 to 255 as uint8. Raises BadInput if they have another range."""
    low, high = float(image.min()), float(image.max())
    if not 0 <= low <= high <= 255:  # NaN too
        raise BadInput(f"{where}: images are {image.dtype} from {low:g} to {high:g}, not 0 to 255; write them as uint8")
    if 0 < high <= 1 and (image % 1).any():
        raise BadInput(f"{where}: images are {image.dtype} from 0 to 1; write them as uint8, 0 to 255")
    return np.rint(image).astype(np.uint8)


def _numbers(column: Column, rows: slice, mapping: DataMapping) -> np.ndarray:
    return as_numbers(whole(column.rows(rows), mapping.read_memory))


def _at_their_images(episode: dict) -> dict:
    """An episode whose actions led to the images of their rows. That of row 0 led to the first image from no other."""
    changed = {key: episode[key].copy() for key in ("action", "reward")}
    for array in changed.values():
        array[:1] = 0
    return episode | changed


def _states(columns: StepColumns, names: Iterable[str], rows: slice, count: int, where: object) -> dict:
    """The states that are not among ``names``, if they have ``count`` rows."""
    taken = {*names, *KEYS}
    usual = [name for name in state_columns(columns.observed) if name not in taken]
    found = {name: _seen(columns, name, rows, where) for name in usual if _same_rows(columns, name)}
    found = {name: array for name, array in found.items() if len(array) == count}
    return {name: np.asarray(array) if array.nbytes <= SLICE_BYTES else array for name, array in found.items()}


def _same_rows(columns: StepColumns, name: str) -> bool:
    """Whether what was seen next has as many rows, if the file has it."""
    return name not in columns.after or columns.after[name].shape[0] == columns.observed[name].shape[0]
