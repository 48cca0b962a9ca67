"""Learning curves: the return in the target's simulator as a run goes on."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from training.visuals import plt, save_figure
from analysis.cells import Results
from analysis.rows import RANDOM, grouped, label_order
from analysis.runs import RunResult, task_order
from wrappers.shared.tasks import Task

AXES = {"step": "iterations (source agent steps + target iterations)", "target_updates": "updates of the target agent"}


def mean_curve(runs: list[RunResult], x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where, mean, deviation over seeds) of the evaluations, (P,) each.

    Seeds that were evaluated elsewhere are interpolated, never past their ends; where one is alone, deviation is 0.
    """
    curves = [{getattr(score, x): score.mean for score in run.scores} for run in runs]
    curves = [dict(sorted(curve.items())) for curve in curves]
    where = np.array(sorted({point for curve in curves for point in curve}), float)
    values = np.array([np.interp(where, [*c.keys()], [*c.values()], left=np.nan, right=np.nan) for c in curves])
    count = (~np.isnan(values)).sum(0)
    mean = np.nanmean(values, 0)
    squares = np.nansum((values - mean) ** 2, 0)
    return where, mean, np.sqrt(squares / np.maximum(count - 1, 1))


def draw_curve(axis: Axes, runs: list[RunResult], x: str, name: str, look: dict[str, Any]) -> None:
    where, mean, std = mean_curve(runs, x)
    axis.plot(where, mean, markersize=4, label=f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})", **look)
    axis.fill_between(where, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)


def draw_curves(results: Results, target: Task, x: str, path: Path) -> None:
    """Return against ``x``: a line for each row and source, its band the deviation over seeds; random dashed."""
    runs = [run for run in results.runs if run.target == target]
    groups = grouped(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    several = len({sources for _, sources in groups if sources}) > 1
    crowded = len(groups) > 4
    figure, axis = plt.subplots(figsize=(9.6 if crowded else 7.2, 4.2))
    colours = plt.get_cmap("tab10" if len(groups) <= 10 else "tab20").colors
    for i, key in enumerate(sorted(groups, key=lambda k: (label_order(k[0]), list(map(task_order, k[1]))))):
        source = f" from {key[1][0].name}" if several and key[1] else ""
        look = {"color": colours[i % len(colours)], "marker": "os"[i >= len(colours)]}
        draw_curve(axis, groups[key], x, key[0] + source, look)
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set(title=f"{target}: mean over seeds, band ± one standard deviation", xlabel=AXES[x], ylabel="episode return")
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if crowded else {"loc": "best"}
    axis.legend(fontsize=8, **place)
    figure.tight_layout()
    save_figure(figure, path)
