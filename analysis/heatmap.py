"""The heat map: coworld's return for each source and target, or its ratio to a baseline's return."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from analysis.cells import Results
from analysis.figures import save_figure
from analysis.markdown import number
from analysis.rows import TaskPair
from analysis.runs import task_order
from tools import BadInput
from training.pictures import plt
from wrappers import SUITES, Task

NEAR_ZERO = 0.1  # of the highest mean return of a target: the ratio to a return below it says nothing
BASELINES = ("offline_dv2", "dv2_finetune")  # for the ratio


def heatmap_values(results: Results, baseline: str | None) -> dict[TaskPair, float]:
    """Mean return of coworld with default settings and one source, or its ratio to the ``baseline``'s mean return.

    Pairs are left out if a run is missing, or if the baseline's return is below `NEAR_ZERO` of the target's highest.
    """
    values, highest = {}, {target: highest_mean(results, target) for target in results.targets}
    for pair in results.columns:
        cell = results.cell("coworld", pair, "mean") if pair.source else None
        base = results.cell(baseline, pair, "mean") if baseline else None
        if cell and not baseline:
            values[pair] = cell.mean
        elif cell and base and base.mean > 0 and base.mean >= NEAR_ZERO * highest[pair.target]:
            values[pair] = cell.mean / base.mean
    return values


def highest_mean(results: Results, target: Task) -> float:
    """The highest mean return of a row on ``target``."""
    columns = [pair for pair in results.columns if pair.target == target]
    cells = [results.cell(label, pair, "mean") for label in results.labels for pair in columns]
    return max((cell.mean for cell in cells if cell), default=0.0)


def choose_baseline(results: Results, kind: str | None) -> str | None:
    """The baseline for the ratio, or None to show the return. ``kind``: return, improvement (the ratio) or None.

    Without a kind, the first of `BASELINES` that has a value for every pair of coworld, if there is one. With
    improvement, the one with the most pairs; raises BadInput if no baseline has any.
    """
    if kind == "return":
        return None
    all_pairs = heatmap_values(results, None).keys()
    pairs = {baseline: heatmap_values(results, baseline).keys() for baseline in BASELINES}
    best = max(BASELINES, key=lambda baseline: len(pairs[baseline]))
    if kind == "improvement" and not pairs[best]:
        raise BadInput(
            f"--heatmap improvement: no run of {' or '.join(BASELINES)} has a task pair of coworld's runs and a return "
            f"that is not near 0; give --heatmap return"
        )
    return best if kind == "improvement" or pairs[best] == all_pairs else None


def heatmap_panels(results: Results, baseline: str | None) -> list[dict[TaskPair, float]]:
    """The values by suite of the targets, without suites that have only one."""
    values = heatmap_values(results, baseline)
    panels = [{pair: values[pair] for pair in values if pair.target.suite == suite} for suite in SUITES]
    return [panel for panel in panels if len(panel) > 1]


def draw_heatmap(results: Results, baseline: str | None, path: Path) -> None:
    """Rows are sources, columns are targets, and each suite of targets has its own panel and colour scale.

    A frame marks the best source of a target; hatched cells have no value. `heatmap_panels` must not be empty.
    """
    panels = heatmap_panels(results, baseline)
    shapes = [(len({pair.target for pair in panel}), len({pair.source for pair in panel})) for panel in panels]
    width, height = sum(grid_width(wide) + 3.2 for wide, _ in shapes), max(0.6 * high + 2.2 for _, high in shapes)
    ratios = [grid_width(wide) + 2 for wide, _ in shapes]
    figure, axes = plt.subplots(  # the title needs a width of 6 inches
        1, len(panels), figsize=(max(width, 6.0), max(height, 3.2)), squeeze=False, width_ratios=ratios
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        draw_panel(axis, panel, bool(baseline))
        axis.set_title(f"{SUITES[next(iter(panel)).target.suite].title} targets", fontsize=10)
    shown = f"mean return divided by {baseline}'s" if baseline else "mean return"
    gap = "no run, no baseline, or its return is near 0" if baseline else "no run"
    figure.suptitle(f"CoWorld: {shown}\n(framed: a target's best source; hatched: {gap})", fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def grid_width(targets: int) -> float:
    """Inches for a panel's columns, which are narrower if they are many."""
    return targets * (1.25 if targets <= 8 else 0.8)


def draw_panel(axis: Axes, values: dict[TaskPair, float], ratio: bool) -> None:
    sources, targets = (sorted({pair[i] for pair in values}, key=task_order) for i in (0, 1))
    grid = np.array([[values.get(TaskPair(s, t), np.nan) for t in targets] for s in sources])
    image = axis.imshow(grid, cmap="viridis", aspect="auto")
    share = 1 / (grid_width(len(targets)) + 2)  # of an inch
    bar = {"fraction": min(0.15, 0.7 * share), "pad": min(0.05, 0.3 * share)}
    axis.figure.colorbar(image, ax=axis, label="ratio" if ratio else "return", **bar)
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
