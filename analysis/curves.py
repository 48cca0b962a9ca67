"""Learning curves: the return in the target's simulator during a run."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def colours(count: int) -> list[tuple[float, float, float]]:
    """Colours for ``count`` curves, repeated if there are more. Grey is for the random policy."""
    found = plt.get_cmap("tab10" if count < 10 else "tab20").colors
    return [colour for colour in found if len(set(colour)) > 1]


def share_a_range(groups: Iterable[list[RunResult]], x: str) -> bool:
    """Whether the curves of all groups have values of ``x`` in common."""
    points = [[getattr(score, x) for run in runs for score in run.scores] for runs in groups]
    return max(map(min, points)) <= min(map(max, points))


def draw_curves(results: Results, target: Task, x: str | None, path: Path) -> None:
    """Return against ``x``: a line for each row and source, a band for the deviation over seeds, the random return.

    Without ``x``, the first of `AXES` on which all curves share a range, if there is one.
    """
    runs = [run for run in results.runs if run.target == target]
    groups = group_by(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    several = len({sources for _, sources in groups if sources}) > 1
    x = x or next((axis for axis in AXES if share_a_range(groups.values(), axis)), "step")
    title = f"{target}: mean over seeds, band ± one standard deviation"
    if not share_a_range(groups.values(), x):
        title += f"\nthe curves have no {x.rstrip('s').replace('_', ' ')}s in common"
    figure, axis = plt.subplots(layout="constrained")
    cycle = colours(len(groups))
    for i, key in enumerate(sorted(groups, key=lambda k: (label_order(k[0]), list(map(task_order, k[1]))))):
        source = f" from {key[1][0].name}" if several and key[1] else ""
        style = {"color": cycle[i % len(cycle)], "marker": "os^D"[i // len(cycle) % 4]}
        draw_curve(axis, groups[key], x, key[0] + source, style)
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set_title(title, fontsize=10)
    axis.set(xlabel=AXES[x], ylabel="episode return")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 100k
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axis.set_ylim(bottom=-0.02 * axis.get_ylim()[1])  # a curve at 0 is visible
    axis.grid(alpha=0.3)
    add_legend(figure, [key[0] for key in groups])
    save_figure(figure, path)


def add_legend(figure: Figure, labels: list[str]) -> None:
    """A legend below the axes if there are few curves, else beside them; and the figure's size, with room for it."""
    if len(labels) <= 4 and max(map(len, labels)) <= 40:
        figure.set_size_inches(7.2, 4.8)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    else:
        figure.set_size_inches(6.8 + 0.07 * max(map(len, labels)), max(4.2, 1 + 0.2 * len(labels)))
        figure.legend(loc="outside right center", fontsize=8)


def draw_all_curves(results: Results, x: str | None, folder: Path) -> list[str]:
    """A picture of curves for each target. Returns the names of the files."""
    names = []
    for target in results.targets:
        names.append(f"curves-{re.sub(r'[^a-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, x, folder / names[-1])
    return names
