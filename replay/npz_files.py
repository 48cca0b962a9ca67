"""Writing episodes as ``.npz`` files, and the headers of the arrays in them."""

import zipfile
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np

from replay.episode import validate_episode
from tools import write_atomically


def episode_filename(length: int, when: datetime, id: str) -> str:
    """``<timestamp>-<id>-<length>.npz`` as in the Dreamer family; ``length`` counts rows (steps + 1)."""
    return f"{when:%Y%m%dT%H%M%S}-{id}-{length}.npz"


def save_episode(directory: Path | str, episode: dict, *, id: str) -> Path:
    """Validate an episode and write it atomically as one compressed ``.npz`` file.

    Args:
        directory: made if it is missing.
        episode: see `replay.episode.validate_episode`; extra arrays are written too.
        id: middle part of the file name; see `episode_filename`.

    Returns:
        The path of the file.

    Raises:
        BadInput: the episode is not valid, or the file cannot be written (no space, no permission).
    """
    episode = validate_episode({key: np.asarray(value) for key, value in episode.items()}, "episode to save")
    path = Path(directory) / episode_filename(len(episode["reward"]), datetime.now(), id)
    write_npz(path, episode, compress=True)
    return path


def write_npz(path: Path, episode: dict, *, compress: bool) -> None:
    """Write arrays as one ``.npz`` file, atomically.

    Args:
        path: the file.
        episode: arrays by name.
        compress: deflate the arrays (a seventh of the size for simulator images). Uncompressed arrays can be read in
            parts, see `replay.stored_episode`.

    Raises:
        BadInput: the file cannot be written.
        ValueError: an array contains Python objects.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", method) as archive:
            for key, array in episode.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    write_atomically(path, write)


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type of the array that begins at the file's position.

    Raises:
        ValueError: not a header that numpy writes.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = read[version](file)
    if any(n < 0 for n in shape) or dtype.itemsize == 0:
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype
