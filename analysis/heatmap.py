"""The heat map: coworld's score for each source and target."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tools import BadInput
from training.visuals import plt, save_figure
from analysis.cells import Results
from analysis.markdown import SUITE_NAMES, number
from analysis.rows import Column
from analysis.runs import task_order
from wrappers.shared.tasks import SUITES

BASELINES = ("offline_dv2", "dv2_finetune")  # what the improvement may be over


def heat_cells(results: Results, baseline: str | None) -> dict[Column, float]:
    """Plain coworld with one source: mean return, or its ratio to ``baseline``'s where that is above 0."""
    values = {}
    for column in results.columns:
        cell = results.cell("coworld", column, "mean") if column.source else None
        base = results.cell(baseline, column, "mean") if baseline else None
        if cell and not baseline:
            values[column] = cell.mean
        elif cell and base and base.mean > 0:
            values[column] = cell.mean / base.mean
    return values


def heat_baseline(results: Results, kind: str | None) -> str | None:
    """The baseline whose improvement the heat map shows; None for the return.

    Without a wish it is the first of `BASELINES` that stands beside every cell of coworld. BadInput if improvement is
    asked for and neither has a run in any of them.
    """
    if kind == "return":
        return None
    everywhere = heat_cells(results, None).keys()
    filled = {baseline: heat_cells(results, baseline).keys() for baseline in BASELINES}
    best = max(BASELINES, key=lambda baseline: len(filled[baseline]))
    if kind == "improvement" and not filled[best]:
        raise BadInput(f"--heatmap improvement: no run of {' or '.join(BASELINES)} beside coworld's; give return")
    return best if kind == "improvement" or filled[best] == everywhere else None


def draw_heatmap(results: Results, baseline: str | None, path: Path) -> None:
    """Rows are sources, columns targets; a panel for each suite of targets, whose returns have one scale.

    A frame marks the best source of a target; hatched cells have no run.
    """
    values = heat_cells(results, baseline)
    panels = [list(filter(lambda c: c.target.suite == suite, values)) for suite in SUITES]
    panels = [panel for panel in panels if panel]
    shapes = [(len({c.target for c in panel}), len({c.source for c in panel})) for panel in panels]
    size = (sum(1.25 * wide + 3.2 for wide, _ in shapes), max(max(0.6 * high + 2.2 for _, high in shapes), 3.2))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, width_ratios=[1.25 * wide + 2 for wide, _ in shapes]
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        draw_panel(axis, {column: values[column] for column in panel}, bool(baseline))
        axis.set_title(f"{SUITE_NAMES[panel[0].target.suite]} targets", fontsize=10)
    shown = f"mean return divided by {baseline}'s" if baseline else "mean return"
    gap = "no run or no baseline" if baseline else "no run"
    figure.suptitle(f"CoWorld: {shown}\n(framed: a target's best source; hatched: {gap})", fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def draw_panel(axis: Axes, values: dict[Column, float], ratio: bool) -> None:
    sources, targets = (sorted({c[i] for c in values}, key=task_order) for i in (0, 1))
    grid = np.array([[values.get(Column(s, t), np.nan) for t in targets] for s in sources])
    image = axis.imshow(grid, cmap="viridis", aspect="auto")
    axis.figure.colorbar(image, ax=axis, label="ratio" if ratio else "return")
    low, high = np.nanmin(grid), np.nanmax(grid)
    for (row, column), value in np.ndenumerate(grid):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(value):
            axis.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="lightgray", hatch="///", linewidth=0))
            continue
        colour = "black" if value > (low + high) / 2 else "white"
        axis.text(column, row, f"{value:.2f}" if ratio else number(value), ha="center", va="center", color=colour)
        if value == np.nanmax(grid[:, column]) and np.isfinite(grid[:, column]).sum() > 1:
            inside = (corner[0] + 0.03, corner[1] + 0.04)
            axis.add_patch(Rectangle(inside, 0.94, 0.92, fill=False, edgecolor="red", linewidth=2.5, zorder=3))
    axis.set_xticks(range(len(targets)), [task.name for task in targets], rotation=30, ha="right")
    axis.set_yticks(range(len(sources)), [task.name for task in sources])
    axis.set(xlabel="target", ylabel="source")
