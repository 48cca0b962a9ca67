"""Differences of rows to one row, the reference, paired by seed.

Runs with one seed, one dataset and one `holdout` hold out the same episodes.
"""

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


def common_measures(run: RunResult, other: RunResult) -> dict[str, tuple[float, float]]:
    """The measures that two runs of a seed both have; offline figures only of the same held-out episodes."""
    own, others = measures(run), measures(other)
    held_out = [(one.settings.get("holdout"), one.data_figures) for one in (run, other)]
    names = own.keys() & others.keys() if held_out[0] == held_out[1] else RETURN.keys() & own.keys() & others.keys()
    return {name: (own[name], others[name]) for name in names}


def unpaired_notes(runs: list[RunResult], lines: list[dict[str, Any]], reference: str) -> list[str]:
    """A line for each row and pair of tasks without a difference to the row ``reference``."""
    found = {(line["pair"], line["row"]) for line in lines}
    return [
        f"--reference: {label} ({pair}) has fewer than two seeds in common with {reference}, so no difference is shown"
        for pair in task_pairs(runs)
        for label in sorted({run.label for run in runs if pair.includes(run)} - {reference}, key=label_order)
        if (str(pair), label) not in found
    ]


def paired_differences(runs: list[RunResult], reference: str) -> list[dict[str, Any]]:
    """A line for each pair of tasks, row and measure with two seeds or more in common with the row ``reference``.

    Raises BadInput if there is no such row.
    """
    lines, labels = [], {run.label for run in runs}
    if reference not in labels:
        raise BadInput(f"--reference {reference}: no row is called so; {nearest(reference, labels)}")
    for pair in task_pairs(runs):
        rows = group_by(filter(pair.includes, runs), lambda run: run.label)
        base = {run.seed: run for run in rows.pop(reference, [])}
        for label in sorted(rows, key=label_order):
            both = [common_measures(run, base[run.seed]) for run in rows[label] if run.seed in base]
            for name in (*RETURN, *OFFLINE_TABLE):
                seeds = [found[name] for found in both if name in found]
                if len(seeds) > 1:
                    mean, low, high = interval([own - other for own, other in seeds])
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
