"""The row convention of an episode, and the validation that every reader and writer uses.

An episode is a dict of arrays of equal length N = T + 1, for T agent steps. Row 0 is the reset, with zero action and
reward. Row t has the action that LED to image t and the reward that came with it (the convention of Dreamer, V-D4RL
and the CoWorld release).
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from replay.slices import SlicedArray, slices
from tools import CAMERA, MOST_CAMERAS, BadInput

KEYS = ("image", "action", "reward", "discount")

# Actions are stored as float32 by programs that clip in float64, so a value slightly outside [-1, 1] is rounding.
ACTION_ROUNDING = 1e-3
CLIP_ADVICE = "if the simulator clipped them: dataset.py describe DIR --clip_actions"  # of actions outside [-1, 1]


def validate_episode(episode: dict, where: object, any_actions: bool = False) -> dict:
    """The episode with the four keys in their standard form, and any extra keys unchanged.

    Args:
        episode: arrays of N rows; ``discount`` may be missing and is then 1.
        where: file or place, named in errors.
        any_actions: accept actions outside [-1, 1], which are rescaled later.

    Returns:
        image (N, H, W, 3) uint8, or of K cameras (N, H, W, 3 K), action (N, A) float32 in [-1, 1], reward (N,) float32,
        discount (N,) float32, all C-contiguous, then the extras; for grey images also ``image_shape``, see
        `camera_shapes`.

    Raises:
        BadInput: a key is missing, or of the wrong type, shape, length or range.
    """
    missing = [key for key in KEYS[:3] if key not in episode]
    if missing:
        raise BadInput(f"{where}: no array named {', '.join(missing)}; an episode needs image, action, reward")
    image, grey = image_standard(episode["image"], where)
    action = _numbers(episode["action"], "action", where)
    if action.ndim == 1 and np.asarray(episode["action"]).dtype.kind in "iu":
        raise BadInput(
            f"{where}: actions are whole numbers, one a row (discrete ones); agents learn continuous actions: give "
            "another dataset, or write them as one-hot rows"
        )
    if action.ndim != 2 or action.shape[1] == 0:
        raise BadInput(f"{where}: action has shape {action.shape}; it must be (rows, action size)")
    rows = len(image)
    discount = _vector(episode.get("discount", np.ones(rows, np.float32)), "discount", where)
    standard = {
        "image": image,
        "action": action if any_actions else _in_range(action, where),
        "reward": _vector(episode["reward"], "reward", where),
        "discount": _fraction(discount, "discount", where),
    }
    lengths = {key: len(array) for key, array in standard.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        shifted = lengths["action"] == rows - 1
        advice = (
            "row t needs the action that led to image t: begin with a row of zeros (if action t was taken at image t, "
            "--action_at current does it)"
            if shifted
            else "write it again"
        )
        raise BadInput(f"{where}: arrays differ in length ({listed}); {advice}, or remove the file")
    if rows < 2:
        raise BadInput(f"{where}: {rows} row(s); an episode needs the reset and at least one step")
    shape = {"image_shape": np.array([*image.shape[1:3], 1])} if grey else {}
    return standard | shape | {key: value for key, value in episode.items() if key not in KEYS}


def camera_shapes(episode: dict) -> list[tuple[int, int, int]]:
    """Height, width and channels of each camera's images as the dataset has them; 1 channel for grey ones.

    The array ``image_shape``, (3,) or (cameras, 3), says it if images were stored with one channel, or if a format
    returns smaller ones. The values never decide: a picture without colours can be one of a camera with colours.
    """
    height, width, channels = episode["image"].shape[1:]
    stored = np.atleast_2d(episode.get("image_shape", ()))
    if stored.shape == (channels // CAMERA, 3):
        return [tuple(map(int, shape)) for shape in stored]
    height, width = map(int, stored[0, :2] if stored.shape == (1, 3) else (height, width))
    return [(height, width, CAMERA)] * (channels // CAMERA)


def action_extremes(episode: dict) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each component of the actions, (A,) each, without row 0."""
    action = episode["action"][1:]
    return action.min(0), action.max(0)


def as_raw(episode: dict, standard: dict) -> dict:
    """All arrays of a file as they are; only grey images are those of the validated episode, with three channels."""
    grey = episode["image"].size != standard["image"].size
    return episode | {"image": standard["image"]} if grey else episode


def episode_digest(episode: dict, keys: Iterable[str] = KEYS) -> str:
    """A hash of the arrays ``keys``: their types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        digest.update(f"{key} {episode[key].dtype.str} {episode[key].shape}".encode())
        for rows in slices(episode[key]):
            digest.update(np.ascontiguousarray(rows))
    return digest.hexdigest()


def image_standard(image: np.ndarray | SlicedArray, where: object) -> tuple[np.ndarray | SlicedArray, bool]:
    """Images (N, H, W, 3), or (N, H, W, 3 K) of K cameras, and whether they are stored with one channel."""
    if isinstance(image, SlicedArray):
        _, grey = image_standard(np.zeros((1, *image.shape[1:]), image.dtype), where)
        return image.map(lambda rows: image_standard(rows, where)[0]), grey
    if image.dtype != np.uint8:
        raise BadInput(f"{where}: images are {image.dtype}, not uint8; store them as bytes 0 to 255")
    if image.ndim == 3:
        image = image[..., None]
    if image.ndim == 4 and channels_at(image.shape) == 1:
        image = image.transpose(0, 2, 3, 1)
    grey = image.ndim == 4 and image.shape[-1] == 1
    if grey:
        image = np.repeat(image, 3, axis=3)
    if image.ndim != 4 or channels_at(image.shape) != 3 or 0 in image.shape:
        raise BadInput(
            f"{where}: image has shape (rows, {', '.join(map(str, image.shape[1:]))}); it must be "
            "(rows, height, width, 3), or "
            "(rows, height, width) if grey"
        )
    return np.ascontiguousarray(image), grey


def channels_at(shape: tuple[int, ...]) -> int | None:
    """The axis, 3 or 1, of an array of images (N, ., ., .) that has the channels: 1, 3, or on axis 3 those of several
    cameras, 3 each. None if there is none."""
    if shape[3] in (1, CAMERA):
        return 3
    if shape[1] in (1, CAMERA):
        return 1
    return 3 if shape[3] in range(2 * CAMERA, MOST_CAMERAS * CAMERA + 1, CAMERA) else None


def state_standard(array: np.ndarray, key: str, rows: int, where: object) -> np.ndarray:
    """A low-dimensional state (N, ...) as (N, S) float32. Raises BadInput if it is no such array of ``rows`` rows."""
    array = np.asarray(array)
    array = _numbers(array.astype(np.float32) if array.dtype == bool else array, key, where)
    if array.ndim == 0 or len(array) != rows or array.size == 0:
        raise BadInput(
            f"{where}: {key} (--state_keys) has shape {array.shape}; a state has a row for each of the {rows} images"
        )
    return array.reshape(rows, -1)


def _numbers(array: np.ndarray, key: str, where: object) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise BadInput(f"{where}: {key} is of type {array.dtype}; it must be numbers")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise BadInput(f"{where}: NaN or infinite {key} in row {_first_row(~np.isfinite(array))}; remove it")
    return array


def _vector(array: np.ndarray, key: str, where: object) -> np.ndarray:
    array = _numbers(array, key, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise BadInput(f"{where}: {key} has shape {array.shape}; it must be (rows,)")
    return np.ascontiguousarray(array)


def _in_range(action: np.ndarray, where: object) -> np.ndarray:
    wrong = np.abs(action) > 1 + ACTION_ROUNDING
    if wrong.any():
        value, low, high = action[wrong].flat[0], action.min(), action.max()
        raise BadInput(
            f"{where}: action {value:.4g} in row {_first_row(wrong)} is outside [-1, 1]; give --action_range data, or "
            f"LOW,HIGH (here they are from {low:.4g} to {high:.4g}); {CLIP_ADVICE}"
        )
    # np.clip can turn -0.0 into 0.0, so arrays that need no clipping are returned as they are.
    return np.clip(action, -1, 1) if (np.abs(action) > 1).any() else action


def _fraction(array: np.ndarray, key: str, where: object) -> np.ndarray:
    wrong = (array < 0) | (array > 1)
    if wrong.any():
        raise BadInput(
            f"{where}: {key} {array[wrong][0]:.4g} in row {_first_row(wrong)} is outside [0, 1]; "
            "write the episode again or remove the file"
        )
    return array


def _first_row(wrong: np.ndarray) -> int:
    return int(np.argwhere(wrong)[0, 0])
