"""The numbers of the tables: means over seeds, random and maximum returns, and scores normalised with them."""

import contextlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from analysis.rows import RANDOM, TaskPair, group_by, label_order, task_pairs
from analysis.runs import RunResult, task_order
from tools import BadInput, nearest
from wrappers import SUITES, Task, max_return, parse_task


class Cell(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one seed) over ``seeds`` runs."""

    mean: float
    std: float | None
    seeds: int

    @classmethod
    def of(cls, values: list[float]) -> "Cell":
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values))


def average(cells: list[Cell | None]) -> float | None:
    """Mean over the columns that have a value; None if none has."""
    means = [cell.mean for cell in cells if cell is not None]
    return float(np.mean(means)) if means else None


@dataclass
class Results:
    """The runs of the tables, which have their final labels, and the two returns that normalise a target's scores.

    Attributes:
        random: the random policy's return, of the targets that have one.
        maximum: the maximum return, of the targets for which it is known.
    """

    runs: list[RunResult]
    random: dict[Task, float] = field(default_factory=dict)
    maximum: dict[Task, float] = field(default_factory=dict)

    @property
    def targets(self) -> list[Task]:
        return sorted({run.target for run in self.runs}, key=task_order)

    @cached_property
    def columns(self) -> list[TaskPair]:
        return task_pairs(self.runs)

    @cached_property
    def rows(self) -> dict[tuple[str, Task], list[RunResult]]:
        """(label, target) -> the runs."""
        return group_by(self.runs, lambda run: (run.label, run.target))

    @cached_property
    def labels(self) -> list[str]:
        return sorted({run.label for run in self.runs}, key=label_order)

    @property
    def suites(self) -> dict[str, list[TaskPair]]:
        """The columns of each suite that a target belongs to."""
        found = {suite: [pair for pair in self.columns if pair.target.suite == suite] for suite in SUITES}
        return {suite: columns for suite, columns in found.items() if columns}

    def suite_labels(self, suite: str) -> list[str]:
        return sorted({run.label for run in self.runs if run.target.suite == suite}, key=label_order)

    def cell_runs(self, label: str, column: TaskPair) -> list[RunResult]:
        return [run for run in self.rows.get((label, column.target), []) if column.includes(run)]

    def cell(self, label: str, column: TaskPair, measure: str) -> Cell | None:
        """``measure`` is mean (the return) or success. None if there is no value."""
        if label == RANDOM:
            values = random_scores(self.runs, column.target, measure)
            return Cell.of(values) if values else None
        values = [getattr(run.final, measure) for run in self.cell_runs(label, column)]
        values = [value for value in values if value is not None]
        return Cell.of(values) if values else None

    def normalised(self, run: RunResult) -> float | None:
        """(score - random) / (max - random), or None if one of the two is not known."""
        random, maximum = self.random.get(run.target), self.maximum.get(run.target)
        return None if random is None or maximum is None else (run.final.mean - random) / (maximum - random)

    def notes(self) -> list[str]:
        """A line for each target without a maximum return."""
        return [
            f"{target}: not in the normalised scores, because its maximum return is not known; "
            f"give --max_score {target}=RETURN"
            for target in self.targets
            if target not in self.maximum
        ]


def random_scores(runs: list[RunResult], target: Task, measure: str) -> list[float]:
    """The random policy's scores on ``target``, one for each seed: runs with the same seed have the same episodes."""
    by_seed = defaultdict(list)
    for run in runs:
        value = getattr(run.random, measure, None)
        if run.target == target and value is not None:
            by_seed[run.seed].append(value)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]


def given_max_scores(texts: list[str], targets: list[Task]) -> dict[Task, float]:
    """The values of ``--max_score``: RETURN for all targets, or TASK=RETURN, which has priority.

    Raises BadInput if a text is neither, or if no run has that target.
    """
    given = {}
    for text in sorted(texts, key=lambda text: "=" in text):
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise BadInput(f"--max_score {text}: give a positive return, or TASK=RETURN")
        tasks = [parse_task(name)] if name else targets
        if not set(tasks) <= set(targets):
            raise BadInput(f"--max_score {text}: no run has that target; {nearest(name, map(str, targets))}")
        given.update(dict.fromkeys(tasks, value))
    return given


def compute_results(runs: list[RunResult], max_score: list[str]) -> Results:
    """The runs with the returns that normalise them. A maximum is that of ``--max_score``, else the suite's.

    Raises BadInput if a maximum is not larger than the random policy's return.
    """
    results = Results(runs)
    given = given_max_scores(max_score, results.targets)
    for target in results.targets:
        with contextlib.suppress(BadInput):  # not known
            results.maximum[target] = given[target] if target in given else max_return(target)
        random = random_scores(runs, target, "mean")
        if random:
            results.random[target] = float(np.mean(random))
            if results.random[target] >= results.maximum.get(target, math.inf):
                raise BadInput(
                    f"the maximum of {target}, {results.maximum[target]:g}, is not over the random policy's "
                    f"{results.random[target]:.1f}: give a larger one as --max_score {target}=RETURN"
                )
    return results
