"""Moving backgrounds (the paper's Table 10): images and videos from a folder replace the sky."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import imageio.v3
import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from tools import BadInput, require

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}  # read by Pillow, animated or not
_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg"}  # read by PyAV
_MAX_FRAMES = 2000  # of one clip: 25 MB at 64 pixels


def _frames(path: Path) -> Iterator[Image.Image]:
    if path.suffix.lower() in _VIDEOS:
        require("av", "formats", path)
        from av import FFmpegError

        try:
            yield from map(Image.fromarray, imageio.v3.imiter(path, plugin="pyav"))
        except FFmpegError as error:
            raise ValueError(str(error)) from error
        return
    with Image.open(path) as image:
        yield from ImageSequence.Iterator(image)


def _read(path: Path, size: int) -> np.ndarray:
    """The clip's frames, cropped to the square in the middle, (frames, size, size, 3) uint8."""
    try:
        frames = islice(_frames(path), _MAX_FRAMES)
        square = [ImageOps.fit(frame.convert("RGB"), (size, size)) for frame in frames]
    except (
        UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, LookupError
    ) as error:  # fmt: skip
        what = "a video" if path.suffix.lower() in _VIDEOS else "a picture"
        raise BadInput(f"{path}: cannot be read as {what}: remove or replace it ({error})") from error
    if not square:
        raise BadInput(f"{path}: has no frames; remove or replace it")
    return np.stack([np.asarray(frame) for frame in square])


def _clips(directory: Path, size: int) -> list[np.ndarray]:
    """One clip per video or animation, and one more of all still images, sorted by name."""
    paths = sorted(p for p in directory.iterdir() if p.suffix.lower() in _IMAGES | _VIDEOS)
    read = [_read(path, size) for path in paths]
    stills = [frames for frames in read if len(frames) == 1]
    return [frames for frames in read if len(frames) > 1] + ([np.concatenate(stills)] if stills else [])


class Background:
    """Clips of a folder, one per episode. The seed selects the clip and its first frame; the clip repeats."""

    def __init__(self, directory: str, size: int):
        """Read all images and videos of ``directory``, scaled to ``size`` pixels.

        Raises BadInput if there is no such folder, no image or video in it, or a file that cannot be read.
        """
        path = Path(directory).expanduser()
        if not path.is_dir():
            raise BadInput(f"background {directory}: no such folder; give one with images, GIFs or videos")
        self._all = _clips(path, size)
        if not self._all:
            raise BadInput(f"background {directory}: no images, GIFs or videos in it")
        self._clip, self._first = self._all[0], 0

    def start(self, seed: int) -> None:
        """Select the clip and its first frame for an episode."""
        rng = np.random.default_rng(seed)
        self._clip = self._all[rng.integers(len(self._all))]
        self._first = int(rng.integers(len(self._clip)))

    def replace_sky(self, image: np.ndarray, sky: np.ndarray, step: int) -> np.ndarray:
        """``image`` (size, size, 3 K) uint8 with the clip's frame of agent step ``step`` where ``sky`` is true.

        sky: (size, size, K) bool.
        """
        frame = self._clip[(self._first + step) % len(self._clip)]
        return np.where(np.repeat(sky, 3, -1), np.tile(frame, sky.shape[-1]), image)
