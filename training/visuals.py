"""Videos and pictures of a run: what its agents see and predict, and its scores."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import matplotlib
import numpy as np
from PIL import Image

from tools import BadInput, write_atomically

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

CONTEXT = 5  # frames that an open-loop prediction is given
ROWS = ("seen", "predicted", "difference")


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
    """Raises BadInput if the extension is not that of a known video format, or if the file cannot be written."""
    if path.suffix not in VIDEO_ENCODERS:
        raise BadInput(f"video {path}: give a name that ends in {' or '.join(VIDEO_ENCODERS)}")
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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG atomically, and close it."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def difference(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Half the difference of two uint8 images, on grey."""
    return ((predicted.astype(int) - truth) // 2 + 128).astype(np.uint8)


def open_loop_images(
    domains: Mapping[str, Any], sequences: int, seed: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Domain.open_loop` of every domain that has it: name -> (truth, predicted)."""
    images = {name: domain.open_loop(sequences, CONTEXT, seed) for name, domain in domains.items()}
    return {name: pair for name, pair in images.items() if pair is not None}


def open_loop_video(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Images (B, T, H, W, 3) as frames (T, 3 H, B W, 3): rows seen, predicted, difference; a column a sequence."""
    rows = np.concatenate([truth, predicted, difference(truth, predicted)], 2)  # (B, T, 3 H, W, 3)
    return np.concatenate(list(rows), 2)


def mosaic(images: np.ndarray, gap: int) -> np.ndarray:
    """uint8 (R, C, H, W, 3) as one image of R rows and C columns, with ``gap`` white pixels after each image."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)


def shown_columns(frames: np.ndarray) -> np.ndarray:
    """Evenly spaced frames that a sheet shows, at most nine."""
    return np.unique(np.linspace(0, len(frames) - 1, 9).astype(int))


def prediction_sheet(predictions: dict[str, tuple[np.ndarray, np.ndarray]], context: int, path: Path) -> None:
    """Frames of each domain: seen, predicted open loop after ``context`` frames, and their difference.

    predictions: name -> (truth, predicted), uint8 (T, H, W, 3) each. Of fewer frames, all but the last are given.
    """
    width = max(len(shown_columns(truth)) for truth, _ in predictions.values())
    size = (width + 0.6, 3.5 * len(predictions))
    figure, axes = plt.subplots(len(predictions), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, (truth, predicted)) in zip(axes[:, 0], predictions.items(), strict=True):
        columns, given = shown_columns(truth), min(context, len(truth) - 1)
        images = np.stack([frames[columns] for frames in (truth, predicted, difference(truth, predicted))])
        height, width = images.shape[2:4]
        gap = max(width // 16, 1)
        axis.imshow(mosaic(images, gap), interpolation="nearest")
        titles = [f"t = {t}" + (" (given)" if t < given else "") for t in columns]
        axis.set_xticks(width / 2 + (width + gap) * np.arange(len(columns)), titles, fontsize=8)
        axis.set_yticks(height / 2 + (height + gap) * np.arange(len(ROWS)), ROWS, fontsize=8, rotation=90, va="center")
        axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axis.set_ylabel(name)
        axis.set_frame_on(False)
    save_figure(figure, path)


def score_curve(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Evaluation returns, mean and deviation over episodes; the random policy's return is a dashed line.

    A run's directory may be called "run", which says nothing; the title is then the folder that it is in.
    """
    title = path.resolve().parents[1].name if title == "run" else title
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    scored = [row for row in rows if row["phase"] == "evaluate"]
    steps, mean, std = (np.array([float(row[k]) for row in scored]) for k in ("step", "mean", "std"))
    axis.plot(steps, mean, marker="o", label="agent, mode of its policy")
    axis.fill_between(steps, mean - std, mean + std, alpha=0.2)
    for row in rows:
        if row["phase"] == "evaluate_random":
            axis.axhline(float(row["mean"]), color="gray", linestyle="--", label="random policy")
    axis.set_title(title, fontsize=min(12, 720 / max(len(title), 1)))  # a long title fits the width
    axis.set(xlabel="iterations (source agent steps + target iterations)", ylabel="episode return")
    if all(float(row["mean"]) >= 0 for row in rows):
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="best")
    figure.tight_layout()
    save_figure(figure, path)


def line_panels(curves: Mapping[str, Sequence[tuple[int, float | None]]], xlabel: str, title: str, path: Path) -> None:
    """A panel for each named curve of (x, y), without the points that have no y; a curve without points has none."""
    points = {name: [(x, y) for x, y in curve if y is not None] for name, curve in curves.items()}
    points = {name: curve for name, curve in points.items() if curve}
    columns = min(4, len(points))
    rows = -(-len(points) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for axis, (name, curve) in zip(axes.flat, points.items(), strict=False):
        axis.plot(*zip(*curve, strict=True), marker="o")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(xlabel, fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(points) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
