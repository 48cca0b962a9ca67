"""Probability of improvement of a method over another (Agarwal et al. 2021, arXiv 2108.13264)."""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.cells import Results
from analysis.comparison import LEVEL, common_tasks, group_scores, normalised_cells
from analysis.figures import save_figure
from analysis.markdown import markdown
from training.pictures import plt

RESAMPLES = 2000
REFERENCE = "coworld"  # the picture compares it with all others, or else the first row


class Improvement(NamedTuple):
    """P(first > second), averaged over tasks, and its 95% interval (None if a task has one seed only)."""

    probability: float
    low: float | None
    high: float | None
    tasks: int


def share_above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Share of pairs (one of each) in which the first is larger; ties count a half. (..., n), (..., m) -> (...).

    Mann and Whitney's U, divided by n m.
    """
    first, second = first[..., :, None], second[..., None, :]
    return ((first > second) + 0.5 * (first == second)).mean((-2, -1))


def probability_of_improvement(
    first: list[np.ndarray], second: list[np.ndarray], tasks: list[tuple[int, int]]
) -> Improvement:
    """Mean over tasks of `share_above`, with a stratified bootstrap interval that resamples the seeds of each group.

    first, second: groups of normalised scores, (seeds,) each. tasks: for each task, the indices of its two groups; a
    group may be in several tasks, and is then resampled once for all of them.
    """

    def statistic(*values: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([share_above(values[i], values[len(first) + j]) for i, j in tasks], 0)

    groups = [*first, *second]
    probability = float(statistic(*groups, axis=-1))
    if min(map(len, groups)) < 2:
        return Improvement(probability, None, None, len(tasks))
    low, high = stats.bootstrap(
        groups, statistic, n_resamples=RESAMPLES, vectorized=True, method="percentile", confidence_level=LEVEL,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Improvement(probability, float(low), float(high), len(tasks))


def improvements(results: Results) -> dict[tuple[str, str], Improvement]:
    """(row, other row) -> the probability that the first is better, on the tasks that both have.

    Rows are in the order of the tables, and each two are compared once; the reference is always the first.
    """
    cells, found = normalised_cells(results), {}
    labels = sorted(cells, key=lambda label: label != REFERENCE)
    for one, other in combinations(labels, 2):
        tasks = common_tasks(cells, [one, other])
        if tasks:
            first, second = (list(dict.fromkeys(groups)) for groups in zip(*tasks, strict=True))
            indices = [(first.index(a), second.index(b)) for a, b in tasks]
            scores = group_scores(results, first), group_scores(results, second)
            found[one, other] = probability_of_improvement(*scores, indices)
    return found


def against_reference(found: dict[tuple[str, str], Improvement]) -> tuple[str, dict[str, Improvement]]:
    """(reference, other row -> Improvement of the reference). The reference is the first row that was compared."""
    reference = next(iter(found))[0]
    return reference, {other: value for (one, other), value in found.items() if one == reference}


def improvement_section(found: dict[tuple[str, str], Improvement]) -> list[str]:
    """Heading, table and definition for the report; nothing if no rows were compared."""
    if not found:
        return []
    reference, others = against_reference(found)
    rows = []
    for other, value in others.items():
        interval = "needs 2 seeds a task" if value.low is None else f"{value.low:.2f} to {value.high:.2f}"
        rows.append([other, f"{value.probability:.2f}", interval, str(value.tasks)])
    return [
        "## Probability of improvement",
        markdown(["method Y", f"P({reference} > Y)", "95% interval", "tasks"], rows),
        f"The share of pairs of runs, one of {reference} and one of Y, in which {reference} has the higher normalised "
        "score (ties count a half), averaged over the tasks that both have. An interval that contains 0.5 shows no "
        f"difference. Stratified bootstrap over seeds ({RESAMPLES} times). All other pairs of methods: table.csv.",
    ]


def draw_improvement(found: dict[tuple[str, str], Improvement], path: Path) -> None:
    """The reference's probability of improvement over each other row, with its interval."""
    reference, others = against_reference(found)
    longest = max(map(len, others))
    interval = ", 95% interval" if any(value.low is not None for value in others.values()) else ""
    figure, axis = plt.subplots(figsize=(5 + 0.07 * longest, 1.4 + 0.32 * len(others)), layout="constrained")
    for row, value in enumerate(others.values()):
        if value.low is not None:
            axis.plot(
                [value.low, value.high], [row, row], color="tab:blue", linewidth=6, alpha=0.35, solid_capstyle="butt"
            )
        axis.plot(value.probability, row, color="tab:blue", marker="o")
    axis.axvline(0.5, color="gray", linestyle="--")
    axis.set_yticks(range(len(others)), list(others))
    axis.set(xlim=(-0.03, 1.03), ylim=(len(others) - 0.4, -0.6), xlabel=f"P({reference} > method){interval}")
    axis.set_title("Probability of improvement", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
