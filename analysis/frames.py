"""Frames of evaluation episodes."""

from pathlib import Path

import numpy as np

from analysis.values import Evaluated
from training.visuals import plt, save_figure

FRAMES = 9  # in a strip


def frames_picture(runs: list[Evaluated], path: Path) -> None:
    """A row a run: evenly spaced frames of its first evaluation episode, each with the step and the return so far."""
    figure, axes = plt.subplots(
        len(runs), FRAMES, figsize=(1.5 * FRAMES + 0.5, 1.95 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        total = run.episodes[0].rewards.cumsum()
        shown = np.unique(np.linspace(0, len(total) - 1, FRAMES).round().astype(int))
        for axis, step in zip(row, shown, strict=False):
            axis.imshow(run.frames[step], interpolation="nearest")
            axis.set_title(f"step {step}\nreturn {total[step]:.1f}", fontsize=8)
            axis.set(xticks=[], yticks=[])
        for axis in row[len(shown) :]:
            axis.set_axis_off()
        row[0].set_ylabel(run.label, fontsize=8)
    save_figure(figure, path)
