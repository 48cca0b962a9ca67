"""Frames of a video file and of encoded images."""

import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from replay.slices import SlicedArray, resized, stacked
from tools import BadInput, require

DEPTH_FORMAT = re.compile(r"gray(9|1\d|32|f)")  # names of pixel formats with more than 8 bits and no colours
MAX_SIDE = 4096  # pixels; no camera's frames are larger


class Frames(NamedTuple):
    """The frames of an episode.

    Attributes:
        images: (N, H, W, 3) uint8, read in slices; resized to ``size`` x ``size`` pixels if a size was given.
        shape: height, width and channels of the frames before they were resized; 1 channel if they are stored as grey.
    """

    images: SlicedArray
    shape: tuple[int, ...]


def _frames(
    read: Callable[[], Iterator[np.ndarray]], count: int, size: int | None, where: object, kind: str, grey: bool
) -> Frames:
    """The frames that ``read`` decodes one by one, of which the first is decoded here; ``grey``: as they are stored."""
    first = next(read(), None)
    if first is None:
        raise ValueError(f"0 of the episode's {count} frames are in it")
    if max(first.shape) > MAX_SIDE:
        raise ValueError(f"frames of {first.shape[0]}x{first.shape[1]} pixels are too large")
    images = SlicedArray((count, *first.shape), np.uint8, lambda: stacked(read()), where, kind)
    return Frames(resized(images, size) if size else images, (*first.shape[:2], 1 if grey else 3))


def read_video(path: Path, start: float, fps: float, count: int, size: int | None, where: object = "") -> Frames:
    """Frames of a video.

    Args:
        path: the file.
        start: time of the first frame in the file, in seconds.
        fps: frames per second.
        count: N, the number of frames.
        size: see `Frames`.
        where: names the episode in errors while the frames are read; "": the file.

    Raises:
        BadInput: the video's frames per second are others, or PyAV is not installed.
        ValueError: the file is damaged, its codec is unknown, or the first frame is not in it.
    """
    require("av", "formats", path)
    read = partial(_decoded, path, start, fps, count)
    return _frames(read, count, size, where or path, "video", _is_grey(path))


def _is_grey(path: Path) -> bool:
    """Whether a video has grey frames. Raises ValueError if they have more than 8 bits: depth, not pictures."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            kind = str(stream.codec_context.pix_fmt) if stream and stream.codec_context else ""
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if DEPTH_FORMAT.match(kind):
        raise ValueError(f"frames of the format {kind}, more than 8 bits and no colours: a depth map, no RGB camera")
    return kind.startswith(("gray", "mono", "ya"))


def _decoded(path: Path, start: float, fps: float, count: int) -> Iterator[np.ndarray]:
    """The frames 0 to ``count`` - 1. Raises as `read_video` does, also if frames are missing."""
    import av

    done, rate = 0, None
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
                if index < 0:
                    continue
                if index < done:
                    raise ValueError(f"two frames at step {index}")
                if index > done:
                    raise ValueError(f"no frame at step {done}, of {count} frames")
                yield frame.to_ndarray(format="rgb24")
                done += 1
    except av.FFmpegError as error:
        after = f" after {done} of {count} frames" if done else ""
        raise ValueError(f"{error.strerror}{after}") from error
    except ValueError:
        _check_rate(path, rate, fps)
        raise
    if done < count:
        _check_rate(path, rate, fps)
        raise ValueError(f"{done} of the episode's {count} frames are in it")


def _check_rate(path: Path, rate: float | None, fps: float) -> None:
    """Raises BadInput if the video's frames per second, ``rate``, are not ``fps``."""
    if rate is not None and abs(rate - fps) > 0.02 * fps:
        raise BadInput(f"{path}: {rate:.4g} frames a second, but meta/info.json says fps {fps:g}; correct it there")


def read_images(encoded: list[bytes], size: int | None, where: object) -> Frames:
    """Frames of PNG or JPEG images, one for each. Raises ValueError if the first is damaged."""
    grey = all(map(_is_grey_image, encoded))
    return _frames(lambda: map(_decoded_image, encoded), len(encoded), size, where, "Parquet", grey)


def _is_grey_image(data: bytes) -> bool:
    """Whether an image has one channel, by its header. Raises ValueError if it has more than 8 bits: depth."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"an image of more than 8 bits ({image.mode}), a depth map and no RGB image")
        return image.mode in ("1", "L", "LA")


def _decoded_image(data: bytes) -> np.ndarray:
    """Pixels (H, W, 3) of a PNG or JPEG image. Raises ValueError if it is damaged or too large."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"an image of {image.size[0]}x{image.size[1]} pixels")
        return np.asarray(image.convert("RGB"))
