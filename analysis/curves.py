"""Learning curves: the return in the target's simulator during a run."""

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.cells import Results
from analysis.figures import save_figure, styles
from analysis.rows import RANDOM, group_by, label_order
from analysis.runs import RunResult, task_order
from training.pictures import plt
from wrappers import Task

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # (P,) each: x, mean, deviation of P evaluations
CurveKey = tuple[str, tuple[Task, ...]]  # a row, and its source if it has exactly one
CURVES = 4  # of a panel
PANEL_COLUMNS = 2
LEGEND_WIDTH = 60  # characters of a line in a legend
BARS = 12  # error bars of a curve, at most; of more evaluations, not all have one
SHIFT = 0.012  # between the curves of a panel, as a share of the x range
AXES = {"step": "iterations (source agent steps + target iterations)", "target_updates": "updates of the target agent"}


def mean_curve(runs: list[RunResult], x: str, figure: str = "") -> Curve:
    """(values of ``x``, mean return, standard deviation over seeds) of the evaluations, (P,) each.

    ``figure``: an offline figure, in place of the return, that an evaluation of each run has. A seed is interpolated
    between its evaluations, and has no values outside them. The deviation of one seed is 0.
    """
    curves = []
    for run in runs:
        curve = {getattr(score, x): score.offline.get(figure) if figure else score.mean for score in run.scores}
        curves.append({point: value for point, value in sorted(curve.items()) if value is not None})
    points = np.array(sorted({point for curve in curves for point in curve}), float)
    values = np.array([np.interp(points, [*c.keys()], [*c.values()], left=np.nan, right=np.nan) for c in curves])
    count = (~np.isnan(values)).sum(0)
    mean = np.nanmean(values, 0)
    squares = np.nansum((values - mean) ** 2, 0)
    return points, mean, np.sqrt(squares / np.maximum(count - 1, 1))


class Panel(NamedTuple):
    """A part of the picture.

    Attributes:
        title: its source, if the panels differ in it.
        curves: the name of each of its curves, at most `CURVES`.
    """

    title: str
    curves: dict[CurveKey, str]


def share_a_range(groups: Iterable[list[RunResult]], x: str) -> bool:
    """Whether the curves of all groups have values of ``x`` in common."""
    points = [[getattr(score, x) for run in runs for score in run.scores] for runs in groups]
    return max(map(min, points)) <= min(map(max, points))


def curve_panels(groups: dict[CurveKey, list[RunResult]]) -> list[Panel]:
    """The panels of a target: one for at most `CURVES` curves.

    Of more curves, each source has panels of its own. A method with no source, or with several, is in those of all.
    """
    sources = sorted({key[1][0] for key in groups if key[1]}, key=task_order)
    order = sorted(groups, key=lambda key: (label_order(key[0]), list(map(task_order, key[1]))))
    if len(groups) <= CURVES and len(sources) > 1:
        return [Panel("", {key: key[0] + (f" from {key[1][0].name}" if key[1] else "") for key in order})]
    if len(sources) < 2:
        return split_panel("", order)
    panels = []
    for source in sources:
        panels += split_panel(f"from {source.name}", [key for key in order if key[1] in ((source,), ())])
    return panels


def split_panel(title: str, order: list[CurveKey]) -> list[Panel]:
    """Panels with at most `CURVES` curves of ``order``. The first curve is in all of them, to compare with."""
    count = max(1, math.ceil((len(order) - 1) / (CURVES - 1)))
    parts = [[order[i] for i in part] for part in np.array_split(np.arange(1, len(order)), count)]
    return [Panel(title, {key: key[0] for key in (order[0], *part)}) for part in parts]


def seed_texts(panels: list[Panel], groups: dict[CurveKey, list[RunResult]]) -> dict[str, str]:
    """Name of a curve -> ``(3 seeds)``, or ``(2-3 seeds)`` if curves with one name have different numbers."""
    counts = defaultdict(set)
    for panel in panels:
        for key, name in panel.curves.items():
            counts[name].add(len(groups[key]))
    ranges = {name: sorted({min(found), max(found)}) for name, found in counts.items()}
    return {name: f"({'-'.join(map(str, ends))} seed{'s' * (ends[-1] > 1)})" for name, ends in ranges.items()}


def draw_curves(results: Results, target: Task, x: str | None, path: Path) -> None:
    """Return against ``x``: a line for each row and source, error bars over seeds, the random policy's return.

    Without ``x``, the first of `AXES` on which all curves share a range, if there is one.
    """
    runs = [run for run in results.runs if run.target == target]
    groups = group_by(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    x = x or next((axis for axis in AXES if share_a_range(groups.values(), axis)), "step")
    title = f"{target}: mean over seeds ± one standard deviation"
    if not share_a_range(groups.values(), x):
        title += f"\nthe curves have no {x.rstrip('s').replace('_', ' ')}s in common"
    panels = curve_panels(groups)
    columns = min(len(panels), PANEL_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, layout="constrained")
    curves = {key: mean_curve(group, x) for key, group in groups.items()}
    draw_panels(axes.flat, panels, curves, seed_texts(panels, groups))
    for axis, panel in zip(axes.flat, panels, strict=False):
        finish_axis(axis, results, target, panel.title if len(panels) > 1 else title, AXES[x])
    if len(panels) > 1:
        figure.suptitle(title, fontsize=10)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("episode return")
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axes[0, 0].set_ylim(bottom=-0.02 * axes[0, 0].get_ylim()[1])  # a curve at 0 is visible
    add_legends(figure, (rows, columns))
    save_figure(figure, path)


def draw_panels(
    axes: Iterable[Axes], panels: list[Panel], curves: dict[CurveKey, Curve], seeds: dict[str, str]
) -> None:
    """The curves of all panels, each a little to the right of the one before, so that error bars do not overlap."""
    style = styles(list(seeds))
    shift = SHIFT * np.ptp(np.concatenate([points for points, _, _ in curves.values()]))
    for axis, panel in zip(axes, panels, strict=False):
        for i, (key, name) in enumerate(panel.curves.items()):
            points, mean, std = curves[key]
            points = points + shift * (i - (len(panel.curves) - 1) / 2)
            axis.plot(points, mean, markersize=4, label=f"{name} {seeds[name]}", **style[name])
            every = math.ceil(len(points) / BARS)
            bars = slice(i % every, None, every)
            low, high = (mean - std)[bars], (mean + std)[bars]
            axis.vlines(points[bars], low, high, color=style[name]["color"], alpha=0.6)


def finish_axis(axis: Axes, results: Results, target: Task, title: str, label: str) -> None:
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(label, fontsize=9)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 100k
    axis.tick_params(labelbottom=True, labelleft=True)
    axis.grid(alpha=0.3)


def add_legends(figure: Figure, panels: tuple[int, int]) -> None:
    """A legend below each panel, and the figure's size, with room for them. panels: rows and columns of the figure."""
    most = 0
    for axis in filter(lambda axis: axis.lines, figure.axes):
        handles, labels = axis.get_legend_handles_labels()
        labels = [textwrap.fill(label, LEGEND_WIDTH) for label in labels]
        most = max(most, sum(label.count("\n") + 1 for label in labels))
        axis.legend(
            handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, fontsize=8, frameon=False
        )  # 5 font sizes: below the axis' numbers and name
    rows, columns = panels
    width = 6.8 if panels == (1, 1) else 4.8 * columns
    figure.set_size_inches(width, rows * (3.4 + 0.17 * most) + 0.4)


def draw_all_curves(results: Results, x: str | None, folder: Path) -> list[str]:
    """A picture of curves for each target. Returns the names of the files."""
    names = []
    for target in results.targets:
        names.append(f"curves-{re.sub(r'[^A-Za-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, x, folder / names[-1])
    return names
