"""The tables' numbers: means over seeds, random and maximum scores, and scores normalised between the two."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

import max_scores
from tools import BadInput, nearest
from analysis.rows import RANDOM, Column, belongs, columns_of, label_order
from analysis.runs import RunResult, task_order
from wrappers.shared.tasks import SUITES, Task, parse_task


class Cell(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one seed) over ``seeds`` runs."""

    mean: float
    std: float | None
    seeds: int
    unfinished: int = 0

    @classmethod
    def of(cls, values: list[float], unfinished: int = 0) -> "Cell":
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values), unfinished)


def average(cells: list[Cell | None]) -> float | None:
    """Mean over columns; None where a row has none."""
    means = [cell.mean for cell in cells if cell is not None]
    return float(np.mean(means)) if means else None


@dataclass
class Results:
    """The runs of the tables, and the two scores between which a target's are normalised."""

    runs: list[RunResult]
    random: dict[Task, float] = field(default_factory=dict)
    maximum: dict[Task, float] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        return columns_of(self.runs)

    @property
    def labels(self) -> list[str]:
        return sorted({run.label for run in self.runs}, key=label_order)

    @property
    def suites(self) -> dict[str, list[Column]]:
        """The columns of each suite of targets that has some."""
        found = {suite: [c for c in self.columns if c.target.suite == suite] for suite in SUITES}
        return {suite: columns for suite, columns in found.items() if columns}

    def suite_labels(self, suite: str) -> list[str]:
        return sorted({run.label for run in self.runs if run.target.suite == suite}, key=label_order)

    def cell_runs(self, label: str, column: Column) -> list[RunResult]:
        return [run for run in self.runs if run.label == label and belongs(run, column)]

    def cell(self, label: str, column: Column, measure: str) -> Cell | None:
        """``measure`` is mean (the return) or success. None where there is no value."""
        if label == RANDOM:
            values = random_values(self.runs, column.target, measure)
            return Cell.of(values) if values else None
        runs = self.cell_runs(label, column)
        pairs = [(getattr(run.final, measure), run.finished) for run in runs]
        pairs = [(value, finished) for value, finished in pairs if value is not None]
        return Cell.of([v for v, _ in pairs], sum(not f for _, f in pairs)) if pairs else None

    def normalised(self, run: RunResult) -> float | None:
        """(score - random) / (max - random), or None where no run of the target scored the random policy."""
        random, most = self.random.get(run.target), self.maximum[run.target]
        return None if random is None else (run.final.mean - random) / (most - random)


def random_values(runs: list[RunResult], target: Task, measure: str) -> list[float]:
    """The random policy's scores on ``target``, one a seed: runs of one seed play the same random episodes."""
    by_seed = defaultdict(list)
    for run in runs:
        value = getattr(run.random, measure, None)
        if run.target == target and value is not None:
            by_seed[run.seed].append(value)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]


def given_max_scores(texts: list[str], targets: set[Task]) -> dict[Task, float]:
    """``--max_score``, a number for all targets or TASK=NUMBER. BadInput if it is neither or names another task."""
    given = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise BadInput(f"--max_score {text}: give a positive return, or TASK=RETURN")
        tasks = {parse_task(name)} if name else targets
        if not tasks <= targets:
            raise BadInput(f"--max_score {text}: no run has that target; {nearest(name, map(str, targets))}")
        given.update(dict.fromkeys(tasks, value))
    return given


def results_of(runs: list[RunResult], max_score: list[str]) -> Results:
    """Runs with the scores that normalise them; maxima as in collect.py. BadInput if one is not over random's."""
    results, targets = Results(runs), {run.target for run in runs}
    given = given_max_scores(sorted(max_score, key=lambda text: "=" in text), targets)
    for target in sorted(targets, key=task_order):
        results.maximum[target] = given.get(target, max_scores.of(target))
        random = random_values(runs, target, "mean")
        if random:
            results.random[target] = float(np.mean(random))
            if results.random[target] >= results.maximum[target]:
                raise BadInput(
                    f"the maximum of {target}, {results.maximum[target]:g}, is not over the random policy's "
                    f"{results.random[target]:.1f}: give a larger one as --max_score {target}=RETURN"
                )
    return results
