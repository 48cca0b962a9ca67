"""Offline figures of runs: a table for each target, and how well they predict scores where a run has both."""

from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from analysis.csv_rows import run_names, run_order
from analysis.markdown import markdown
from analysis.rows import group_by, label_order, pair_of
from analysis.runs import RunResult, task_order
from training.summary import OFFLINE_TABLE, offline_headings

FEWEST = 3  # evaluations for a correlation


def figure_text(values: list[float]) -> str:
    """``mean +- deviation (seeds)`` of a figure; sample standard deviation."""
    if not values:
        return "-"
    spread = f" +- {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread} ({len(values)})"


def offline_section(runs: list[RunResult]) -> list[str]:
    """A table for each target with runs that have held-out episodes: the figures of the last evaluation."""
    runs = [run for run in runs if run.scores and run.final.offline]
    if not runs:
        return []
    parts = [
        "Offline figures of the last evaluation, on episodes of the dataset that were held out (definitions: "
        "docs/offline_evaluation.md). They are no returns: compare them within one target and dataset only."
    ]
    for target in sorted({run.target for run in runs}, key=task_order):
        own = [run for run in runs if run.target == target]
        simulator = "" if target.suite else " (no simulator)"
        parts += [f"## Offline figures: {target}{simulator}", target_table(own)]
    return parts


def target_table(runs: list[RunResult]) -> str:
    """A row for each label and source, a column for each figure."""
    columns = offline_headings(run.final.offline for run in runs)
    rows, groups = [], group_by(runs, lambda run: (run.label, pair_of(run)))
    several = len({pair.source for _, pair in groups if pair.source}) > 1
    for label, pair in sorted(groups, key=lambda key: (label_order(key[0]), str(key[1]))):
        name = f"{label} from {pair.source.name}" if several and pair.source else label
        found = [run.final.offline for run in groups[label, pair]]
        rows.append([name, *(figure_text([f[key] for f in found if key in f]) for key in columns)])
    return markdown(["method", *columns.values()], rows)


def correlations(runs: list[RunResult]) -> list[dict[str, Any]]:
    """A line for each run and figure: its correlation with the mean return over the run's evaluations.

    Only of runs with `FEWEST` or more evaluations that have both, and of figures that change between them. A run that
    was continued has two evaluations of the agent at its first end, which count once.
    """
    rows = []
    for run in sorted(runs, key=run_order):
        scores = {score.target_updates: score for score in run.scores}.values()
        for name in OFFLINE_TABLE:
            points = [(s.offline[name], s.mean) for s in scores if s.mean is not None and name in s.offline]
            x, y = np.array(points).reshape(-1, 2).T
            if len(points) >= FEWEST and np.ptp(x) > 0 and np.ptp(y) > 0:
                both = {"pearson": float(pearsonr(x, y)[0]), "spearman": float(spearmanr(x, y)[0])}
                rows.append({**run_names(run), "figure": name, "evaluations": len(points), **both})
    return rows


def correlation_section(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of `correlations` as a table: a row for each run."""
    if not rows:
        return []
    table, columns = [], offline_headings([{row["figure"] for row in rows}])
    for (label, sources, target, seed), own in group_by(
        rows, lambda row: (row["row"], row["sources"], row["target"], row["seed"])
    ).items():
        found = {row["figure"]: f"{row['pearson']:+.2f} / {row['spearman']:+.2f}" for row in own}
        where = f"{sources} -> {target}" if sources else target
        name = f"{label}, {where}, seed {seed}"
        table.append([name, str(own[0]["evaluations"]), *(found.get(key, "-") for key in columns)])
    return [
        "## Offline figures against scores",
        "Correlation of each offline figure with the mean return over the evaluations of one run: Pearson / Spearman. "
        "A loss, an error or a distance that predicts the score has a negative one. Both change with training, so a "
        "run of few evaluations that gets better can have high correlations by that alone.",
        markdown(["run", "evaluations", *columns.values()], table),
    ]
