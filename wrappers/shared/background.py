"""Moving backgrounds (the paper's Table 10): the user's own pictures and videos where the sky would be."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import imageio.v3
import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from tools import BadInput

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}  # read by Pillow, animated or not
_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg"}  # read by imageio, given a plugin
_LONGEST = 2000  # frames of one clip: 25 MB at 64 pixels


def _frames(path: Path) -> Iterator[Image.Image]:
    if path.suffix.lower() in _VIDEOS:
        yield from map(Image.fromarray, imageio.v3.imiter(path))
        return
    with Image.open(path) as image:
        yield from ImageSequence.Iterator(image)


def _read(path: Path, size: int) -> np.ndarray:
    """The clip's frames, cut to a square around the middle, (frames, size, size, 3) uint8."""
    try:
        frames = islice(_frames(path), _LONGEST)
        square = [ImageOps.fit(frame.convert("RGB"), (size, size)) for frame in frames]
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, ImportError) as error:
        what = "a video" if path.suffix.lower() in _VIDEOS else "a picture"
        raise BadInput(f"{path}: cannot be read as {what}: remove or replace it ({error})") from error
    if not square:
        raise BadInput(f"{path}: has no frames; remove or replace it")
    return np.stack([np.asarray(frame) for frame in square])


def _clips(directory: Path, size: int) -> Iterable[np.ndarray]:
    """Each video or animation is a clip; all still pictures together, by name, are the frames of one more."""
    paths = sorted(p for p in directory.iterdir() if p.suffix.lower() in _PICTURES | _VIDEOS)
    read = [_read(path, size) for path in paths]
    stills = [frames for frames in read if len(frames) == 1]
    return [frames for frames in read if len(frames) > 1] + ([np.concatenate(stills)] if stills else [])


class Background:
    """Clips from a folder, one an episode: the seed chooses it and the frame it starts at; it goes round."""

    def __init__(self, directory: str, size: int):
        """Read every picture and video of ``directory``.

        Raises:
            BadInput: no such folder, nothing to show in it, or a file that cannot be read.
        """
        path = Path(directory).expanduser()
        if not path.is_dir():
            raise BadInput(f"background {directory}: no such folder; give one with images, GIFs or videos")
        self._all = _clips(path, size)
        if not self._all:
            raise BadInput(f"background {directory}: no images, GIFs or videos in it")
        self._clip, self._first = self._all[0], 0

    def start(self, seed: int) -> None:
        """Choose the clip and its first frame for an episode."""
        rng = np.random.default_rng(seed)
        self._clip = self._all[rng.integers(len(self._all))]
        self._first = int(rng.integers(len(self._clip)))

    def behind(self, image: np.ndarray, sky: np.ndarray, step: int) -> np.ndarray:
        """``image`` (size, size, 3) uint8, with the clip's frame at agent step ``step`` where ``sky`` is."""
        frame = self._clip[(self._first + step) % len(self._clip)]
        return np.where(sky[..., None], frame, image)
