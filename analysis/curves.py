"""Learning curves: the return in the target's simulator during a run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from analysis.cells import Results
from analysis.rows import RANDOM, group_by, label_order
from analysis.runs import RunResult, task_order
from training.visuals import plt, save_figure
from wrappers import Task

AXES = {"step": "iterations (source agent steps + target iterations)", "target_updates": "updates of the target agent"}


def mean_curve(runs: list[RunResult], x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values of ``x``, mean return, standard deviation over seeds) of the evaluations, (P,) each.

    A seed is interpolated between its evaluations, and has no values outside them. The deviation of one seed is 0.
    """
    curves = [{getattr(score, x): score.mean for score in run.scores} for run in runs]
    curves = [dict(sorted(curve.items())) for curve in curves]
    points = np.array(sorted({point for curve in curves for point in curve}), float)
    values = np.array([np.interp(points, [*c.keys()], [*c.values()], left=np.nan, right=np.nan) for c in curves])
    count = (~np.isnan(values)).sum(0)
    mean = np.nanmean(values, 0)
    squares = np.nansum((values - mean) ** 2, 0)
    return points, mean, np.sqrt(squares / np.maximum(count - 1, 1))


def draw_curve(axis: Axes, runs: list[RunResult], x: str, name: str, style: dict[str, Any]) -> None:
    points, mean, std = mean_curve(runs, x)
    axis.plot(points, mean, markersize=4, label=f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})", **style)
    axis.fill_between(points, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)


def draw_curves(results: Results, target: Task, x: str, path: Path) -> None:
    """Return against ``x``: a line for each row and source, a band for the deviation over seeds, the random return."""
    runs = [run for run in results.runs if run.target == target]
    groups = group_by(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    several = len({sources for _, sources in groups if sources}) > 1
    crowded = len(groups) > 4
    figure, axis = plt.subplots(figsize=(10.4 if crowded else 7.2, 4.2))
    colours = plt.get_cmap("tab10" if len(groups) <= 10 else "tab20").colors
    for i, key in enumerate(sorted(groups, key=lambda k: (label_order(k[0]), list(map(task_order, k[1]))))):
        source = f" from {key[1][0].name}" if several and key[1] else ""
        style = {"color": colours[i % len(colours)], "marker": "os"[i >= len(colours)]}
        draw_curve(axis, groups[key], x, key[0] + source, style)
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set_title(f"{target}: mean over seeds, band ± one standard deviation", fontsize=10)
    axis.set(xlabel=AXES[x], ylabel="episode return")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 100k
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if crowded else {"loc": "best"}
    axis.legend(fontsize=8, **place)
    figure.tight_layout()
    save_figure(figure, path)


def draw_all_curves(results: Results, x: str, folder: Path) -> list[str]:
    """A picture of curves for each target. Returns the names of the files."""
    names = []
    for target in results.targets:
        names.append(f"curves-{re.sub(r'[^a-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, x, folder / names[-1])
    return names
