"""Offline figures during runs, for targets of which some run was evaluated several times."""

import math
import re
from pathlib import Path

from analysis.curves import CurveKey, curve_panels, draw_panels, mean_curve, seed_texts
from analysis.figures import save_figure
from analysis.rows import group_by
from analysis.runs import RunResult, task_order
from training.pictures import plt
from training.summary import offline_headings

COLUMNS = 3  # of panels
X = "target_updates"


def draw_offline_curves(runs: list[RunResult], folder: Path) -> list[str]:
    """A picture for each target: a panel a figure, against the target's updates. Returns the names of the files.

    Rows that were evaluated at one number of updates only are left out. Of more rows than a panel has curves, the
    first ones are shown.
    """
    names = []
    for target, own in sorted(group_by(runs, lambda run: run.target).items(), key=lambda item: task_order(item[0])):
        groups = group_by(own, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
        changing = {key: group for key, group in groups.items() if changes(group)}
        if changing:
            names.append(f"offline-{re.sub(r'[^A-Za-z0-9_-]+', '-', str(target))}.png")
            draw(changing, str(target), folder / names[-1])
    return names


def changes(runs: list[RunResult]) -> bool:
    """Whether each run has offline figures at two numbers of updates or more."""
    return all(len({score.target_updates for score in run.scores if score.offline}) > 1 for run in runs)


def draw(groups: dict[CurveKey, list[RunResult]], target: str, path: Path) -> None:
    headings = offline_headings(score.offline for runs in groups.values() for run in runs for score in run.scores)
    rows = math.ceil(len(headings) / COLUMNS)
    size = (3.4 * COLUMNS, 2.6 * rows + 0.6)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, sharex=True, layout="constrained")
    panel = curve_panels(groups)[0]
    seeds = seed_texts([panel], groups)
    for axis, (name, heading) in zip(axes.flat, headings.items(), strict=False):
        having = {
            key: [run for run in groups[key] if all(name in s.offline for s in run.scores)] for key in panel.curves
        }
        curves = {key: mean_curve(runs, X, name) for key, runs in having.items() if runs}
        draw_panels([axis], [panel._replace(curves={key: panel.curves[key] for key in curves})], curves, seeds)
        axis.set_title(heading, fontsize=10)
        axis.set_xlabel("updates of the target agent", fontsize=9)
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(headings) :]:
        axis.set_axis_off()
    figure.suptitle(f"{target}, held-out episodes: mean over seeds ± one standard deviation", fontsize=10)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False)
    save_figure(figure, path)
