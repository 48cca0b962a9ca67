"""The critic's value estimates against the true returns of evaluation episodes: tables and a picture."""

import math
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.episodes import EvaluatedRun
from tools import write_csv
from training.pictures import plt, save_figure
from training.values import correlation

PANEL_COLUMNS = 3  # of the picture
TEXT_BOX = {"facecolor": "white", "edgecolor": "0.7", "boxstyle": "round"}
ESTIMATE, SOURCE, TRUTH = "tab:orange", "tab:green", "tab:blue"
WIDTH = 80  # characters of a line of the table, as of a terminal
LONGEST_LABEL = 24
TABLE = (  # heading, column of values.csv, format, what it is
    ("score", "score", ".1f", "return of an episode, not discounted"),
    ("estimate", "estimate", ".2f", "the critic's value of the states at the compared steps"),
    ("return", "true_return", ".2f", "discounted return from these steps to the episode's last reward"),
    ("over", "difference", "+.2f", "estimate - return; above 0 the critic over-estimates"),
    ("+-", "difference_std", ".2f", "standard deviation of that over the episodes"),
    ("continued", "continued_return", ".2f", "return if the last rewards continued after the time limit"),
    ("over cont.", "continued_difference", "+.2f", "estimate - continued"),
    ("steps", "compared_steps", "d", "how many are compared, of all episodes"),
    ("unseen", "unseen", ".0%", "largest share of a return after the time limit (constant rewards)"),
    ("corr.", "correlation", ".2f", "correlation of estimate and continued return over these steps"),
    ("source", "source_estimate", ".2f", "the source critic's value of the same states (Eq. 6)"),
    ("corr. src", "source_correlation", ".2f", "its correlation with the continued return"),
)


def write_values(runs: list[EvaluatedRun], limit: float, out: Path) -> list[dict[str, Any]]:
    """Write values.csv, value_steps.csv and values.png. Returns the lines of values.csv."""
    rows = [value_row(run, limit) for run in runs]
    write_csv(out / "values.csv", rows)
    write_csv(out / "value_steps.csv", [row for run in runs for row in step_rows(run, limit)])
    values_picture(runs, limit, out / "values.png")
    return rows


def value_row(run: EvaluatedRun, limit: float) -> dict[str, Any]:
    """The run's line of values.csv: means over episodes of the means over each episode's compared steps.

    Correlations are with the continued returns, over the compared steps of all episodes.
    """
    gamma, compared, shares = run.gamma, [], []
    for episode in run.episodes:
        at = episode.compared(gamma, limit)
        parts = [episode.estimates, episode.true_returns(gamma), episode.continued_returns(gamma)]
        if run.bounded:
            parts.append(episode.source_estimates)
        compared.append([part[at] for part in parts])
        shares.append(episode.unseen(gamma)[at])
    means = np.array([[part.mean() for part in parts] for parts in compared])
    (estimate, true, continued, *source), differences = means.mean(0), means[:, 0] - means[:, 1]
    v, _, g, *v_source = (np.concatenate(part) for part in zip(*compared, strict=True))
    return {
        "run": run.label,
        "task": run.task,
        "discount": gamma,
        "episodes": len(run.episodes),
        "score": float(np.mean([e.rewards.sum() for e in run.episodes])),
        "compared_steps": sum(map(len, shares)),
        "unseen": float(np.concatenate(shares).max()),
        "estimate": float(estimate),
        "true_return": float(true),
        "difference": float(estimate - true),
        "difference_std": float(np.std(differences)),
        "continued_return": float(continued),
        "continued_difference": float(estimate - continued),
        "correlation": correlation(v, g),
        "source_estimate": float(source[0]) if source else None,
        "source_correlation": correlation(v_source[0], g) if source else None,
    }


def step_rows(run: EvaluatedRun, limit: float) -> list[dict[str, Any]]:
    """The run's lines of value_steps.csv, one for each step of each episode."""
    columns = ("step", "estimate", "source_estimate", "true_return", "continued_return", "unseen", "compared")
    rows = []
    for index, e in enumerate(run.episodes):
        returns, continued = e.true_returns(run.gamma), e.continued_returns(run.gamma)
        at = e.compared(run.gamma, limit).astype(int)
        source = e.source_estimates if run.bounded else [None] * len(at)
        parts = e.estimates, source, returns, continued, e.unseen(run.gamma), at
        for values in zip(range(len(at)), *parts, strict=True):
            rows.append({"run": run.label, "episode": index, **dict(zip(columns, values, strict=True))})
    return rows


def values_table(rows: list[dict[str, Any]]) -> str:
    """The lines of values.csv for a terminal: a column for each run, and what each line is. None is shown as `-`.

    Runs that do not fit into the width are in a further table. The cut name of a long one begins with dots.
    """
    names = [run if len(run) <= LONGEST_LABEL else f"...{run[3 - LONGEST_LABEL :]}" for run in (r["run"] for r in rows)]
    head, width = max(len(heading) for heading, *_ in TABLE), max(9, *map(len, names)) + 2
    each = max((WIDTH - head) // width, 1)
    blocks = []
    for start in range(0, len(rows), each):
        part = slice(start, start + each)
        lines = ["".join([" " * head, *(f"{name:>{width}}" for name in names[part])])]
        for heading, key, form, _ in TABLE:
            fields = ["-" if row[key] is None else format(row[key], form) for row in rows[part]]
            lines.append("".join([f"{heading:{head}}", *(f"{field:>{width}}" for field in fields)]))
        blocks.append("\n".join(lines))
    meanings = [f"{heading:{head}}  {text}" for heading, *_, text in TABLE]
    return "\n\n".join([*blocks, "\n".join(meanings)])


def short_episode_notes(rows: list[dict[str, Any]], limit: float) -> list[str]:
    """A line for each run in which more than the share ``limit`` is unseen even at a first step."""
    return [
        f"{row['run']}: its episodes are short for a discount of {row['discount']:g}: where the time limit ends an "
        f"episode, only its first step is compared, and up to {row['unseen']:.0%} of a return with constant rewards "
        f"comes after the limit"
        for row in rows
        if row["unseen"] > limit
    ]


def values_picture(runs: list[EvaluatedRun], limit: float, path: Path) -> None:
    """A panel for each run: estimates and true returns against the step, mean and deviation over episodes."""
    columns = min(PANEL_COLUMNS, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.8 * columns + 0.6, 3.4 * rows + 0.9),
        squeeze=False,
        sharey=len({run.task for run in runs}) == 1,  # returns of different tasks have different scales
        layout="constrained",
    )
    for axis, run in zip(axes.flat, runs, strict=False):
        values_panel(axis, run, limit)
        axis.tick_params(labelleft=True)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("discounted return")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns), fontsize=8)
    save_figure(figure, path)


def values_panel(axis: Axes, run: EvaluatedRun, limit: float) -> None:
    gamma, row, title = run.gamma, value_row(run, limit), run.label
    estimates = by_step([e.estimates for e in run.episodes])
    returns = by_step([e.true_returns(gamma) for e in run.episodes])
    continued = by_step([e.continued_returns(gamma) for e in run.episodes])
    steps = np.arange(len(estimates[0]))
    drawn = [(estimates, ESTIMATE, "critic's estimate"), (returns, TRUTH, "true return")]
    if run.bounded:
        drawn.append((by_step([e.source_estimates for e in run.episodes]), SOURCE, "source critic's estimate"))
    for (mean, std), colour, name in drawn:
        axis.plot(steps, mean, color=colour, label=name)
        axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    axis.plot(steps, continued[0], color=TRUTH, linestyle=":", label="true return, last rewards continued")
    last = max(np.flatnonzero(e.compared(gamma, limit))[-1] for e in run.episodes)
    if last < steps[-1]:
        axis.axvspan(last + 0.5, steps[-1] + 0.5, color="0.5", alpha=0.15, linewidth=0, label="not compared")
    axis.set(xlabel="agent step of the episode", xlim=(-0.5, steps[-1] + 0.5))
    if row["unseen"] > limit:  # an episode has no step that can be compared
        axis.text(0.5, 0.5, "too short to compare", transform=axis.transAxes, ha="center", fontsize=12, bbox=TEXT_BOX)
    else:
        title += f"\nestimate − true return: {row['difference']:+.2f}"
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)


def by_step(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation at each step, over the episodes that have the step, (T of the longest,) each."""
    padded = np.array([*zip_longest(*series, fillvalue=np.nan)])
    return np.nanmean(padded, 1), np.nanstd(padded, 1)
