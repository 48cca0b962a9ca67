"""Pictures at the end of a run: what its agents see and predict, and its scores.

Functions import this module when they draw, because matplotlib takes a second to load.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from tools import side_by_side, write_atomically
from training.visuals import ROWS, difference, mosaic

if "inline" not in str(matplotlib.get_backend(auto_select=False)):  # in a notebook its own backend shows the figures
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG atomically, and close it."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def shown_columns(frames: np.ndarray) -> np.ndarray:
    """Evenly spaced frames that a sheet shows, at most nine."""
    return np.unique(np.linspace(0, len(frames) - 1, 9).astype(int))


def prediction_sheet(
    predictions: dict[str, tuple[np.ndarray, np.ndarray]], context: int, path: Path,
    cameras: Mapping[str, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Frames of each domain: seen, predicted open loop after ``context`` frames, and their difference.

    predictions: name -> (truth, predicted), uint8 (T, H, W, 3) each. Of fewer frames, all but the last are given.
    cameras: name -> the domain's cameras; several are side by side, with their names.
    """
    cameras = cameras or {}
    width = max(len(shown_columns(truth)) * truth.shape[-1] // 3 for truth, _ in predictions.values())
    size = (width + 0.6, 3.5 * len(predictions))
    figure, axes = plt.subplots(len(predictions), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, (truth, predicted)) in zip(axes[:, 0], predictions.items(), strict=True):
        columns, given = shown_columns(truth), min(context, len(truth) - 1)
        shown = (side_by_side(frames[columns]) for frames in (truth, predicted, difference(truth, predicted)))
        images = np.stack(list(shown))
        height, width = images.shape[2:4]
        gap = max(width // 16, 1)
        axis.imshow(mosaic(images, gap), interpolation="nearest")
        titles = [f"t = {t}" + (" (given)" if t < given else "") for t in columns]
        axis.set_xticks(width / 2 + (width + gap) * np.arange(len(columns)), titles, fontsize=8)
        axis.set_yticks(height / 2 + (height + gap) * np.arange(len(ROWS)), ROWS, fontsize=8, rotation=90, va="center")
        axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axis.set_ylabel(name)
        if len(several := cameras.get(name, ())) > 1:
            axis.set_xlabel(f"cameras, from left to right: {', '.join(several)}", fontsize=8)
        axis.set_frame_on(False)
    save_figure(figure, path)


def score_curve(rows: list[dict[str, Any]], title: str, path: Path, warning: str | None = None) -> None:
    """Evaluation returns, mean and deviation over episodes; the random policy's return is a dashed line.

    A ``warning`` stands above the title, in red. A run's directory may be called "run", which says nothing; the title
    is then the folder that it is in.
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
        axis.set_ylim(bottom=-0.03 * axis.get_ylim()[1])  # a line at 0 is inside, not on the frame
    axis.grid(alpha=0.3)
    axis.legend(loc="best")
    if warning:
        figure.suptitle(textwrap.fill(warning, 95), fontsize=8, color="tab:red")
    figure.tight_layout()
    save_figure(figure, path)


def line_panels(
    curves: Mapping[str, Sequence[tuple[int, float | None]]], xlabel: str, title: str, path: Path,
    warning: str | None = None,
) -> None:  # fmt: skip
    """A panel for each named curve of (x, y), without the points that have no y; a curve without points has none.

    A ``warning`` stands below the panels, in red.
    """
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
    if warning:
        figure.supxlabel(textwrap.fill(warning, 40 * columns), fontsize=9, color="tab:red")
    save_figure(figure, path)
