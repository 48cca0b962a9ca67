"""The setting of a suite's camera: a name or number, or several of them, which commas separate."""

from collections.abc import Sequence

import numpy as np

from tools import MOST_CAMERAS, BadInput


def split_cameras(cameras: str | int | None) -> list[str | int]:
    """The cameras of a setting, in order; "" and None are one camera, the suite's own.

    Raises BadInput if one is empty, given twice, or there are more than `MOST_CAMERAS`.
    """
    if isinstance(cameras, int):
        return [cameras]
    names = [name.strip() for name in (cameras or "").split(",")]
    if len(names) > 1 and ("" in names or len(names) != len(set(names)) or len(names) > MOST_CAMERAS):
        raise BadInput(f"camera {cameras}: give up to {MOST_CAMERAS} different cameras, separated by commas, like 0,1")
    return names


def beside_each_other(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames (size, size, 3) of K cameras as an image (size, size, 3 K)."""
    return frames[0] if len(frames) == 1 else np.concatenate(frames, -1)
