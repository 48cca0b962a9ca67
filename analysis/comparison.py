"""Normalised scores of several methods on the tasks that all of them have.

A task is a column of the tables here. A method with no source, or with several, has the same runs in every column of
its target; columns in which all the compared methods have the same runs count once.
"""

import numpy as np

from analysis.cells import Results
from analysis.rows import TaskPair
from analysis.runs import RunResult

LEVEL = 0.95  # of the intervals
RunGroup = tuple[RunResult, ...]  # the seeds of a cell


def normalised_cells(results: Results) -> dict[str, dict[TaskPair, RunGroup]]:
    """Row -> column -> the runs, without cells whose scores cannot be normalised."""
    targets = results.random.keys() & results.maximum.keys()
    known = [column for column in results.columns if column.target in targets]
    cells = {label: {c: tuple(results.cell_runs(label, c)) for c in known} for label in results.labels}
    return {label: {c: runs for c, runs in row.items() if runs} for label, row in cells.items()}


def common_tasks(cells: dict[str, dict[TaskPair, RunGroup]], labels: list[str]) -> list[tuple[RunGroup, ...]]:
    """The tasks that all ``labels`` have: for each, the runs of each label."""
    first, *others = (cells[label] for label in labels)
    shared = [column for column in first if all(column in other for other in others)]
    return list(dict.fromkeys(tuple(cells[label][column] for label in labels) for column in shared))


def comparable_labels(cells: dict[str, dict[TaskPair, RunGroup]]) -> list[str]:
    """The rows to compare on common tasks, in the order of the tables; empty if no two rows have a common task.

    Rows with more tasks are tried first. As many are taken as give the most cells (rows x common tasks), so a row with
    few runs is left out rather than all others reduced to its tasks.
    """
    order = sorted(cells, key=lambda label: -len(cells[label]))
    best, most = [], 0
    shared = set.union(set(), *map(set, cells.values()))
    for count, label in enumerate(order, start=1):
        shared = shared & cells[label].keys()
        if count > 1 and count * len(shared) >= max(most, 1):
            best, most = order[:count], count * len(shared)
    return [label for label in cells if label in best]


def group_scores(results: Results, groups: list[RunGroup]) -> list[np.ndarray]:
    """The normalised scores of each group, (seeds,) each."""
    return [np.array([results.normalised(run) for run in runs]) for runs in groups]
