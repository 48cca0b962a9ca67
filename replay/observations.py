"""The observations of an episode: images of one camera or several, and low-dimensional states.

What a format does so that ``--image_key front,wrist`` and ``--state_keys qpos,gripper`` work for it:

1. `DataMapping.names` checks the names against those that exist; the name of the images may be several, see
   `camera_names`.
2. It reads the arrays of `camera_names` and of `DataMapping.states`. States have a row for each image.
3. ``episode["image"]`` is the array of the camera, or of several a dict of their arrays by name (`mapping.renamed`
   makes it so); the states are in the episode under their own names.
4. Its loader returns `finished` of that episode.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from replay.episode import as_raw, image_standard, state_standard, validate_episode
from replay.mapping import DataMapping, is_picture
from replay.slices import SlicedArray, resized, rows_at_once, shrunk, slices, whole
from tools import CAMERA, BadInput

Images = np.ndarray | SlicedArray

MOST_NUMBERS = 1024  # of a matrix that is one row of a state


def is_state(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether an array can be a low-dimensional state: rows of numbers or booleans.

    One list of numbers a row may be longer. Larger matrices, and arrays of more dimensions, are depth or masks.
    """
    few = len(shape) in (1, 2) or (len(shape) == 3 and math.prod(shape[1:]) <= MOST_NUMBERS)
    return dtype.kind in "fiub" and few and not is_picture(shape, dtype)


def camera_names(names: Mapping[str, str]) -> list[str]:
    """The names of the cameras' arrays, from those of all roles that `DataMapping.names` returned."""
    return names["image"].split(",")


def finished(episode: dict, where: object, mapping: DataMapping, raw: bool) -> dict:
    """An episode as a loader returns it, from one in the row convention (`replay.episode`).

    Args:
        episode: its arrays; images of several cameras are a dict.
        where: file or place, named in errors.
        mapping: the states are in it.
        raw: keep all arrays as they are, but for images of several cameras, which become one array.

    Returns:
        The arrays of `validate_episode`, the states (N, S) float32 under their own names, and the extras. Images of
        several cameras are side by side along the last axis, (N, H, W, 3 K), at ``mapping.image_size``; their own
        shapes are then in ``image_shape``.

    Raises:
        BadInput: see `validate_episode`; or cameras differ in length, or in size if there is no ``image_size``.
    """
    several = isinstance(episode.get("image"), dict)  # without any, the validation says so
    if several:
        image, shapes = stacked_cameras(episode["image"], mapping.image_size, where)
        episode = {"image_shape": shapes} | episode | {"image": image}
    standard = validate_episode(episode, where, mapping.any_actions)
    states = {
        key: state_standard(whole(episode[key], mapping.read_memory), key, len(standard["reward"]), where)
        for key in mapping.states
    }
    if raw:
        return as_raw({key: array for key, array in episode.items() if not several or key != "image_shape"}, standard)
    return shrunk(standard | states, mapping.image_size)


def stacked_cameras(cameras: dict[str, Images], size: int | None, where: object) -> tuple[Images, np.ndarray]:
    """Images (N, H, W, 3 K) of K cameras, and height, width and channels of each, (K, 3)."""
    found, shapes = [], []
    for image in cameras.values():
        image, grey = image_standard(image, where)
        shapes.append([*image.shape[1:3], 1 if grey else CAMERA])
        found.append(image if size is None else resized(image, size))
    lengths = {name: len(image) for name, image in zip(cameras, found, strict=True)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BadInput(f"{where}: cameras differ in length ({listed}); give cameras that see the same steps")
    if len({image.shape[1:3] for image in found}) > 1:
        listed = ", ".join(f"{name} {h}x{w}" for name, (h, w, _) in zip(cameras, shapes, strict=True))
        raise BadInput(f"{where}: cameras differ in size ({listed}), so they cannot be kept as one array; give one")
    return joined_channels(found), np.array(shapes)


def joined_channels(images: list[Images]) -> Images:
    """Images (N, H, W, 3) of K cameras as (N, H, W, 3 K); if one is read in slices, so is the result."""
    if all(isinstance(image, np.ndarray) for image in images):
        return np.concatenate(images, -1)
    first = next(image for image in images if isinstance(image, SlicedArray))
    shape = (*first.shape[:3], sum(image.shape[3] for image in images))
    step = rows_at_once(int(np.prod(shape[1:])))

    def read() -> Iterator[np.ndarray]:
        for parts in zip(*(_in_steps(image, step) for image in images), strict=True):
            yield np.concatenate(parts, -1)

    return SlicedArray(shape, np.uint8, read, first.where, first.kind)


def names_of_cameras(given: list[str], description: dict, count: int) -> list[str]:
    """The names of ``count`` cameras, if they are several: those given, or those of ``dataset.json``, or numbers.

    There ``cameras`` has those of a converted dataset, ``camera`` the simulator's setting.
    """
    if count == 1:
        return []
    for names in (given, description.get("cameras"), str(description.get("camera", "")).split(",")):
        if isinstance(names, list) and len(names) == len(set(names)) == count:
            return names
    return [f"camera_{number}" for number in range(count)]


def _in_steps(image: Images, step: int) -> Iterator[np.ndarray]:
    """Slices of ``step`` rows each, but for the last."""
    waiting = np.empty((0, *image.shape[1:]), image.dtype)
    for piece in slices(image):
        waiting = np.concatenate([waiting, piece])
        while len(waiting) >= step:
            yield waiting[:step]
            waiting = waiting[step:]
    if len(waiting):
        yield waiting
