"""Frames of evaluation episodes."""

from pathlib import Path

import numpy as np

from analysis.episodes import EvaluatedRun
from training.pictures import plt, save_figure

FRAMES = 9  # of an episode


def frames_picture(runs: list[EvaluatedRun], path: Path) -> None:
    """A row for each run: evenly spaced frames of its first episode, with the step and the return up to it."""
    figure = plt.figure(figsize=(1.5 * FRAMES, 2.2 * len(runs)), layout="constrained")
    for part, run in zip(figure.subfigures(len(runs), squeeze=False).flat, runs, strict=True):
        part.suptitle(run.label, fontsize=9)
        row = part.subplots(1, FRAMES)
        returns = run.episodes[0].rewards.cumsum()
        steps = np.unique(np.linspace(0, len(returns) - 1, FRAMES).round().astype(int))
        for axis, step in zip(row, steps, strict=False):
            axis.imshow(run.frames[step], interpolation="nearest")
            axis.set_title(f"step {step}\nreturn {returns[step]:.1f}", fontsize=8)
            axis.set(xticks=[], yticks=[])
        for axis in row[len(steps) :]:
            axis.set_axis_off()
    save_figure(figure, path)
