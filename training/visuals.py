"""Videos of a run: episodes, and what its agents see and predict. The pictures are in training/pictures.py."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools import BadInput, require, side_by_side, write_atomically

CONTEXT = 5  # frames that an open-loop prediction is given
ROWS = ("seen", "predicted", "difference")
LABELS = (66, 18)  # pixels left of the images and above them, in a video of predictions


def encode_gif(frames: np.ndarray, fps: int) -> bytes:
    """A looping GIF. Each frame has its own 256 colours, of an octree: fast, and small objects keep their colour."""
    octree = Image.Quantize.FASTOCTREE
    first, *others = (Image.fromarray(frame).quantize(method=octree, dither=Image.Dither.NONE) for frame in frames)
    file = io.BytesIO()
    first.save(file, format="GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
    return file.getvalue()


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """An mp4, which needs an even height and width."""
    return imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)


VIDEO_ENCODERS = {".gif": encode_gif, ".mp4": encode_mp4}  # uint8 (T, H, W, 3) and frames a second to a file's bytes


def check_video_path(path: Path) -> None:
    """Raises BadInput if the extension is not that of a known video format, or if the file cannot be written.

    An mp4 also needs PyAV.
    """
    if path.suffix not in VIDEO_ENCODERS:
        raise BadInput(f"video {path}: give a name that ends in {' or '.join(VIDEO_ENCODERS)}")
    if path.suffix == ".mp4":
        require("av", "formats", f"video {path}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        wrong = f"{path} is a folder" if path.is_dir() else f"{folder} is not a folder that can be written"
        raise BadInput(f"video {path}: {wrong}; give another --video")


def save_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write a video atomically, in the format of the extension of ``path``."""
    check_video_path(path)
    video = VIDEO_ENCODERS[path.suffix](frames, fps)
    write_atomically(path, lambda file: file.write(video))


def enlarge(frames: np.ndarray, size: int) -> np.ndarray:
    """Enlarge uint8 (T, H, W, 3) until the longer side has ``size`` pixels; larger frames keep their size.

    The aspect is kept, and both sides are rounded to even numbers, as mp4 needs. A whole factor repeats pixels, another
    one interpolates (bicubic).
    """
    old = frames.shape[1:3]
    factor = max(size / max(old), 1)
    height, width = (2 * max(round(side * factor / 2), 1) for side in old)
    whole = height % old[0] == 0 and width % old[1] == 0
    resampling = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
    images = [Image.fromarray(frame).resize((width, height), resampling) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def difference(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Half the difference of two uint8 images, on grey."""
    return ((predicted.astype(int) - truth) // 2 + 128).astype(np.uint8)


def open_loop_images(
    domains: Mapping[str, Any], sequences: int, seed: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Domain.open_loop` of every domain that has it: name -> (truth, predicted)."""
    images = {name: domain.open_loop(sequences, CONTEXT, seed) for name, domain in domains.items()}
    return {name: pair for name, pair in images.items() if pair is not None}


def open_loop_video(
    truth: np.ndarray, predicted: np.ndarray, context: int = CONTEXT, side: int = 0, cameras: Sequence[str] = ()
) -> np.ndarray:
    """Images (B, T, H, W, 3) as frames (T, H', W', 3) with a row for each of `ROWS` and a column for each sequence.

    Images are enlarged by a whole factor until their longer side has ``side`` pixels. Labels name the rows, and say
    whether a frame is given or predicted from actions alone. Those of several ``cameras`` (B, T, H, W, 3 K) are side by
    side, with their names.
    """
    factor = max(-(-side // max(truth.shape[2:4])), 1)
    parts = map(side_by_side, (truth, predicted, difference(truth, predicted)))
    large = [part.repeat(factor, 2).repeat(factor, 3) for part in parts]
    gap, font = max(2, factor), ImageFont.load_default(11)
    above = LABELS[1] * (1 + (len(cameras) > 1))
    frames = []
    for t in range(truth.shape[1]):
        images = mosaic(np.stack([part[:, t] for part in large]), gap)
        page = Image.new("RGB", (images.shape[1] + LABELS[0], images.shape[0] + above), "white")
        page.paste(Image.fromarray(images), (LABELS[0], above))
        pen, row = ImageDraw.Draw(page), images.shape[0] // len(ROWS)
        pen.text((LABELS[0], 2), f"t = {t}, {'given' if t < context else 'from actions alone'}", "black", font)
        for i, name in enumerate(ROWS):
            pen.text((4, above + i * row + row // 2 - 6), name, "black", font)
        for left, name in camera_titles(cameras, len(truth), truth.shape[3] * factor, gap):
            pen.text((LABELS[0] + left, LABELS[1] + 2), name, "black", font)
        frames.append(np.asarray(page))
    return np.stack(frames)


def camera_titles(cameras: Sequence[str], columns: int, width: int, gap: int) -> Iterator[tuple[int, str]]:
    """Position in pixels and text of each title of ``cameras``, if there are several, of ``width`` pixels each.

    The cameras of each of ``columns`` stand together, with ``gap`` pixels after them. Of a name such as
    ``observation.images.wrist`` the last part is shown, as much of it as fits.
    """
    for column in range(columns if len(cameras) > 1 else 0):
        for index, name in enumerate(cameras):
            title = re.split(r"[./]", name)[-1][: max(width // 7, 1)]
            yield column * (len(cameras) * width + gap) + index * width, title


def mosaic(images: np.ndarray, gap: int) -> np.ndarray:
    """uint8 (R, C, H, W, 3) as one image of R rows and C columns, with ``gap`` white pixels after each image."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
