"""Learning curves: the return in the target's simulator during a run."""

import math
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.cells import Results
from analysis.figures import save_figure, styles
from analysis.rows import RANDOM, group_by, label_order
from analysis.runs import RunResult, task_order
from training.visuals import plt
from wrappers import Task

CurveKey = tuple[str, tuple[Task, ...]]  # a row, and its source if it has exactly one
ONE_PANEL = 10  # curves of several sources that are still in one panel
PANEL_COLUMNS = 2
LEGEND_WIDTH = 40  # characters of a line in a legend
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
    axis.plot(points, mean, markersize=4, label=name, **style)
    axis.fill_between(points, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)


def share_a_range(groups: Iterable[list[RunResult]], x: str) -> bool:
    """Whether the curves of all groups have values of ``x`` in common."""
    points = [[getattr(score, x) for run in runs for score in run.scores] for runs in groups]
    return max(map(min, points)) <= min(map(max, points))


def source_panels(groups: dict[CurveKey, list[RunResult]]) -> dict[str, dict[CurveKey, str]]:
    """Title of a panel -> its curves, with their names.

    A few curves are in one panel. If a target has several sources and more curves than `ONE_PANEL`, each source has a
    panel, and methods with no source, or with several, are in all of them.
    """
    sources = sorted({key[1][0] for key in groups if key[1]}, key=task_order)
    order = sorted(groups, key=lambda key: (label_order(key[0]), list(map(task_order, key[1]))))
    if len(sources) < 2 or len(groups) <= ONE_PANEL:
        several = len(sources) > 1
        return {"": {key: key[0] + (f" from {key[1][0].name}" if several and key[1] else "") for key in order}}
    return {
        f"from {source.name}": {key: key[0] for key in order if key[1] in ((source,), ())} for source in sources
    }  # fmt: skip


def seeds_text(groups: Iterable[list[RunResult]]) -> str:
    """``(3 seeds)``, or ``(2-3 seeds)`` if curves with one name have different numbers."""
    counts = {len(runs) for runs in groups}
    low, high = min(counts), max(counts)
    return f"({low} seed{'s' * (low > 1)})" if low == high else f"({low}-{high} seeds)"


def draw_curves(results: Results, target: Task, x: str | None, path: Path) -> None:
    """Return against ``x``: a line for each row and source, a band for the deviation over seeds, the random return.

    Without ``x``, the first of `AXES` on which all curves share a range, if there is one.
    """
    runs = [run for run in results.runs if run.target == target]
    groups = group_by(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    x = x or next((axis for axis in AXES if share_a_range(groups.values(), axis)), "step")
    title = f"{target}: mean over seeds, band ± one standard deviation"
    if not share_a_range(groups.values(), x):
        title += f"\nthe curves have no {x.rstrip('s').replace('_', ' ')}s in common"
    panels = source_panels(groups)
    names = group_by([(key, name) for panel in panels.values() for key, name in panel.items()], lambda item: item[1])
    seeds = {name: seeds_text(groups[key] for key, _ in items) for name, items in names.items()}
    style = styles(list(names))
    columns = min(len(panels), PANEL_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for axis, (subtitle, curves) in zip(axes.flat, panels.items(), strict=False):
        for key, name in curves.items():
            draw_curve(axis, groups[key], x, f"{name} {seeds[name]}", style[name])
        finish_axis(axis, results, target, subtitle or title)
    if len(panels) > 1:
        figure.suptitle(title, fontsize=10)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("episode return")
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axes[0, 0].set_ylim(bottom=-0.02 * axes[0, 0].get_ylim()[1])  # a curve at 0 is visible
    figure.supxlabel(AXES[x], fontsize=10) if len(panels) > 1 else axes[0, 0].set_xlabel(AXES[x])
    add_legend(figure, list(names), (rows, columns))
    save_figure(figure, path)


def finish_axis(axis: Axes, results: Results, target: Task, title: str) -> None:
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set_title(title, fontsize=10)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 100k
    axis.tick_params(labelbottom=True)
    axis.grid(alpha=0.3)


def add_legend(figure: Figure, labels: list[str], panels: tuple[int, int] = (1, 1)) -> None:
    """A legend below the axes if there are few curves, else beside them; and the figure's size, with room for it.

    panels: rows and columns of the figure.
    """
    handles = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    found = list(handles.values()), [textwrap.fill(label, LEGEND_WIDTH) for label in handles]
    lines = [line for label in found[1] for line in label.splitlines()]
    rows, columns = panels
    width, height = (6.8, 4.2) if panels == (1, 1) else (4.4 * columns, 3.6 * rows + 0.6)
    if len(labels) <= 4:
        figure.set_size_inches(max(width, 7.2), max(height, 4.2) + 0.12 * len(lines))
        figure.legend(*found, loc="outside lower center", ncols=2, fontsize=8)
    else:
        figure.set_size_inches(width + 0.07 * max(map(len, lines)), max(height, 1 + 0.2 * len(lines)))
        figure.legend(*found, loc="outside right center", fontsize=8)


def draw_all_curves(results: Results, x: str | None, folder: Path) -> list[str]:
    """A picture of curves for each target. Returns the names of the files."""
    names = []
    for target in results.targets:
        names.append(f"curves-{re.sub(r'[^A-Za-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, x, folder / names[-1])
    return names
