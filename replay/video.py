"""Frames of a video file and of encoded images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from replay.safe_read import MAX_EPISODE_BYTES
from tools import BadInput, resize_images

MAX_SIDE = 4096  # pixels; no camera's frames are larger


class Frames:
    """Collects the frames of an episode, resized to ``size`` x ``size`` pixels; None: as they are.

    Attributes:
        images: (N, H, W, 3) uint8; empty until the first frame.
        shape: height, width and channels of the frames before they were resized; 1 channel if all are stored as grey.
    """

    def __init__(self, count: int, size: int | None):
        self.count, self.size = count, size
        self.images, self.shape = np.zeros((0, 0, 0, 3), np.uint8), (0, 0, 1)
        self.filled = np.zeros(count, bool)

    def add(self, index: int, frame: np.ndarray, grey: bool = False) -> None:
        """Add a frame (H, W, 3), which may be stored as ``grey``.

        Raises ValueError if it has another shape than the first, is too large or comes twice.
        """
        if self.filled[index]:
            raise ValueError(f"two frames at step {index}")
        if not self.filled.any():
            self.shape = (*frame.shape[:2], 1)
            resized = (self.size, self.size, 3) if self.size else frame.shape
            if max(frame.shape) > MAX_SIDE or self.count * int(np.prod(resized)) > MAX_EPISODE_BYTES:
                raise ValueError(f"{self.count} frames of {frame.shape[0]}x{frame.shape[1]} pixels are too many")
            self.images = np.empty((self.count, *resized), np.uint8)
        if frame.shape[:2] != self.shape[:2]:
            raise ValueError(f"frame {index} is {frame.shape[:2]}, the first {self.shape[:2]}")
        self.shape = (*self.shape[:2], self.shape[2] if grey else 3)
        self.images[index] = resize_images(frame[None], self.size)[0] if self.size else frame
        self.filled[index] = True

    def require_all(self) -> None:
        """Raises ValueError if frames are missing."""
        if not self.filled.all():
            raise ValueError(f"{int(self.filled.sum())} of the episode's {self.count} frames are in it")


def read_video(path: Path, start: float, fps: float, count: int, size: int | None) -> Frames:
    """Frames of a video.

    Args:
        path: the file.
        start: time of the first frame in the file, in seconds.
        fps: frames per second.
        count: N, the number of frames.
        size: see `Frames`.

    Raises:
        BadInput: the video's frames per second are others.
        ValueError: the file is damaged, its codec is unknown, or it has not all of the frames.
    """
    import av

    frames, rate = Frames(count, size), None
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise ValueError("its codec is unknown; encode it as AV1 or H.264")
            rate = float(stream.average_rate) if stream.average_rate else None
            stream.codec_context.thread_count = 1
            if start > 0:  # to the key frame before it
                container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                index = round((float(frame.pts * frame.time_base) - start) * fps)
                if index >= count:
                    break
                if index >= 0:
                    bits = max(part.bits for part in frame.format.components)
                    grey = frame.format.name.startswith(("gray", "mono", "ya"))
                    if grey and bits > 8:
                        raise ValueError(f"grey frames of {bits} bits, a depth map and no RGB camera")
                    frames.add(index, frame.to_ndarray(format="rgb24"), grey)
    except av.FFmpegError as error:
        done = f" after {int(frames.filled.sum())} of {count} frames" if frames.filled.any() else ""
        raise ValueError(f"{error.strerror}{done}") from error
    except ValueError:
        _check_rate(path, rate, fps)
        raise
    if not frames.filled.all():
        _check_rate(path, rate, fps)
    frames.require_all()
    return frames


def _check_rate(path: Path, rate: float | None, fps: float) -> None:
    """Raises BadInput if the video's frames per second, ``rate``, are not ``fps``."""
    if rate is not None and abs(rate - fps) > 0.02 * fps:
        raise BadInput(f"{path}: {rate:.4g} frames a second, but meta/info.json says fps {fps:g}; correct it there")


def read_images(encoded: list[bytes], size: int | None) -> Frames:
    """Frames of PNG or JPEG images, one for each. Raises ValueError if one is damaged."""
    frames = Frames(len(encoded), size)
    for index, data in enumerate(encoded):
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"an image of {image.size[0]}x{image.size[1]} pixels")
            if image.mode[0] in "IF":
                raise ValueError(f"an image of more than 8 bits ({image.mode}), a depth map and no RGB image")
            frames.add(index, np.asarray(image.convert("RGB")), image.mode in ("1", "L", "LA"))
    return frames
