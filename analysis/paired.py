"""Differences of rows to one row, the reference, paired by seed: runs with one seed have the same data held out."""

from typing import Any

import numpy as np
from scipy.stats import t as student

from analysis.markdown import markdown
from analysis.rows import group_by, label_order, task_pairs
from analysis.runs import RunResult
from tools import BadInput, nearest
from training.summary import OFFLINE_TABLE

LEVEL = 0.95  # of the intervals
RETURN = {"return": "return"}  # the measure that is no offline figure


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean of N >= 2 differences, and the ends of Student's 95% interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student.ppf((1 + LEVEL) / 2, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def measures(run: RunResult) -> dict[str, float]:
    """The run's score and the offline figures of its last evaluation; of a figure that it lacks, nothing."""
    values = {name: run.final.offline.get(name) for name in OFFLINE_TABLE} | {"return": run.final.mean}
    return {name: value for name, value in values.items() if value is not None}


def paired_differences(runs: list[RunResult], reference: str) -> list[dict[str, Any]]:
    """A line for each pair of tasks, row and measure with two seeds or more in common with the row ``reference``.

    Raises BadInput if there is no such row.
    """
    lines, labels = [], {run.label for run in runs}
    if reference not in labels:
        raise BadInput(f"--reference {reference}: no row is called so; {nearest(reference, labels)}")
    for pair in task_pairs(runs):
        rows = group_by(filter(pair.includes, runs), lambda run: run.label)
        base = {run.seed: measures(run) for run in rows.pop(reference, [])}
        for label in sorted(rows, key=label_order):
            own = {run.seed: measures(run) for run in rows[label]}
            for name in (*RETURN, *OFFLINE_TABLE):
                seeds = [seed for seed in sorted(own) if name in own[seed] and name in base.get(seed, {})]
                if len(seeds) > 1:
                    mean, low, high = interval([own[seed][name] - base[seed][name] for seed in seeds])
                    bounds = {"mean": mean, "low": low, "high": high, "seeds": len(seeds)}
                    lines.append({"pair": str(pair), "row": label, "reference": reference, "measure": name, **bounds})
    return lines


def paired_section(lines: list[dict[str, Any]]) -> list[str]:
    """The lines of `paired_differences` as a table for each pair of tasks."""
    if not lines:
        return []
    parts = [
        f"## Differences to {lines[0]['reference']}, paired by seed",
        "Mean difference, its 95% interval (Student's t over seeds), and the number of seeds. The interval says "
        "nothing about other sources or datasets. One in twenty intervals does not contain the true difference.",
    ]
    for pair, own in group_by(lines, lambda line: line["pair"]).items():
        found = {line["measure"] for line in own}
        columns = {name: heading for name, heading in (RETURN | OFFLINE_TABLE).items() if name in found}
        table = []
        for label, cells in group_by(own, lambda line: line["row"]).items():
            texts = {
                c["measure"]: f"{c['mean']:+.3g} ({c['low']:+.3g} to {c['high']:+.3g}; {c['seeds']})" for c in cells
            }
            table.append([label, *(texts.get(name, "-") for name in columns)])
        parts += [f"### {pair}", markdown(["method", *columns.values()], table)]
    return parts
