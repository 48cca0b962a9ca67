"""The row convention of an episode, and the validation that every reader and writer uses.

An episode is a dict of arrays of equal length N = T + 1, for T agent steps. Row 0 is the reset, with zero action and
reward. Row t has the action that LED to image t and the reward that came with it (the convention of Dreamer, V-D4RL
and the CoWorld release).
"""

import hashlib

import numpy as np

from tools import BadInput

KEYS = ("image", "action", "reward", "discount")

# Actions are stored as float32 by programs that clip in float64, so a value slightly outside [-1, 1] is rounding.
ACTION_ROUNDING = 1e-3


def validate_episode(episode: dict, where: object) -> dict:
    """The episode with the four keys in their standard form, and any extra keys unchanged.

    Args:
        episode: arrays of N rows; ``discount`` may be missing and is then 1.
        where: file or place, named in errors.

    Returns:
        image (N, H, W, 3) uint8, action (N, A) float32 in [-1, 1], reward (N,) float32,
        discount (N,) float32, all C-contiguous, then the extras.

    Raises:
        BadInput: a key is missing, or of the wrong type, shape, length or range.
    """
    missing = [key for key in KEYS[:3] if key not in episode]
    if missing:
        raise BadInput(f"{where}: no array named {', '.join(missing)}; an episode needs image, action, reward")
    image = _image(episode["image"], where)
    action = _numbers(episode["action"], "action", where)
    if action.ndim != 2 or action.shape[1] == 0:
        raise BadInput(f"{where}: action has shape {action.shape}; it must be (rows, action size)")
    rows = len(image)
    discount = _vector(episode.get("discount", np.ones(rows, np.float32)), "discount", where)
    standard = {
        "image": image,
        "action": _in_range(action, where),
        "reward": _vector(episode["reward"], "reward", where),
        "discount": _fraction(discount, "discount", where),
    }
    lengths = {key: len(array) for key, array in standard.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise BadInput(f"{where}: arrays differ in length ({listed}); write the episode again or remove the file")
    if rows < 2:
        raise BadInput(f"{where}: {rows} row(s); an episode needs the reset and at least one step")
    return standard | {key: value for key, value in episode.items() if key not in KEYS}


def episode_digest(episode: dict) -> str:
    """A hash of the four standard arrays: their types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for key in KEYS:
        digest.update(f"{key} {episode[key].dtype.str} {episode[key].shape}".encode())
        digest.update(np.ascontiguousarray(episode[key]))
    return digest.hexdigest()


def _image(image: np.ndarray, where: object) -> np.ndarray:
    if image.dtype != np.uint8:
        raise BadInput(f"{where}: images are {image.dtype}, not uint8; store them as bytes 0 to 255")
    if image.ndim == 4 and image.shape[-1] != 3 and image.shape[1] == 3:
        image = image.transpose(0, 2, 3, 1)
    if image.ndim != 4 or image.shape[-1] != 3 or 0 in image.shape:
        raise BadInput(f"{where}: image has shape {image.shape}; it must be (rows, height, width, 3)")
    return np.ascontiguousarray(image)


def _numbers(array: np.ndarray, key: str, where: object) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise BadInput(f"{where}: {key} is of type {array.dtype}; it must be numbers")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise BadInput(f"{where}: NaN or infinite {key} in row {_first_row(~np.isfinite(array))}; remove the file")
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
        value = action[wrong].flat[0]
        raise BadInput(
            f"{where}: action {value:.4g} in row {_first_row(wrong)} is outside [-1, 1]; rescale the actions"
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
