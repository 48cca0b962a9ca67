"""The report's numbers as lines of CSV files."""

from typing import Any

from analysis.cells import Results, average
from analysis.improvement import Improvement
from analysis.interquartile import InterquartileMean
from analysis.rows import ABLATIONS, RANDOM, SETUPS, label_order
from analysis.runs import RunResult, task_order
from analysis.separation import LENGTHS
from analysis.verdicts import run_verdict
from training.logger import OFFLINE_COLUMNS, OFFLINE_PREFIX


def run_order(run: RunResult) -> tuple:
    """Sorts runs as the tables do, then by seed."""
    return task_order(run.target), label_order(run.label), list(map(str, run.sources)), run.seed


def run_names(run: RunResult) -> dict[str, Any]:
    """The first columns of the lines of a run."""
    return {
        "row": run.label, "method": run.settings["method"], "sources": ",".join(map(str, run.sources)),
        "target": str(run.target), "seed": run.seed,
    }  # fmt: skip


def run_rows(runs: list[RunResult], results: Results, in_tables: set[RunResult]) -> list[dict[str, Any]]:
    """The lines of cells.csv, one for each run, including runs without a score and runs that are not in the tables.

    If a run has offline figures, all lines have their columns.
    """
    rows, offline = [], offline_names(runs)
    for run in sorted(runs, key=run_order):
        final = run.final if run.scores else None
        columns = ("mean", "std", "success", "episodes", "round", "step", "target_updates")
        rows.append({
            **run_names(run), "finished": run.finished, "in_tables": run in in_tables,
            **{key: getattr(final, key, None) for key in columns},
            "random": getattr(run.random, "mean", None),
            "normalised": results.normalised(run) if run in results.runs else None,
            "verdict": run_verdict(run),
            **{f"{OFFLINE_PREFIX}{key}": final and final.offline.get(key) for key in offline},
            **{key: run.settings[key] for key in (*ABLATIONS, *SETUPS, *LENGTHS, "offline_traindir")},
            "folder": str(run.folder),
        })  # fmt: skip
    return rows


def curve_rows(runs: list[RunResult], in_tables: set[RunResult]) -> list[dict[str, Any]]:
    """The lines of curves.csv, one for each evaluation of the agent of each run, also of runs not in the tables."""
    columns, offline = ("round", "step", "target_updates", "mean", "std", "success"), offline_names(runs)
    rows = []
    for run in sorted(runs, key=run_order):
        for score in run.scores:
            figures = {f"{OFFLINE_PREFIX}{key}": score.offline.get(key) for key in offline}
            values = {key: getattr(score, key) for key in columns}
            rows.append({**run_names(run), **values, "in_tables": run in in_tables, **figures})
    return rows


def offline_names(runs: list[RunResult]) -> list[str]:
    """The offline figures that any evaluation of the runs has, in the order of scores.csv."""
    found = {name for run in runs for score in run.scores for name in score.offline}
    names = [column.removeprefix(OFFLINE_PREFIX) for column in OFFLINE_COLUMNS]
    return [name for name in names if name in found]


def table_rows(
    results: Results,
    means: dict[str, InterquartileMean],
    improvements: dict[tuple[str, str], Improvement],
) -> list[dict[str, Any]]:
    """The lines of table.csv: a line a cell of the tables, an average, an interquartile mean, or a pair of methods."""

    def row(measure: str, suite: str, label: str, column: object, mean: float, **more: float | None) -> dict[str, Any]:
        named = {"measure": measure, "suite": suite, "row": label, "column": str(column), "mean": mean}
        return named | {key: more.get(key) for key in ("std", "seeds", "low", "high", "tasks")}

    rows = []
    for suite, columns in results.suites.items():
        for measure, name in (("mean", "return"), ("success", "success")):
            for label in [RANDOM, *results.suite_labels(suite)]:
                cells = [results.cell(label, column, measure) for column in columns]
                for column, cell in zip(columns, cells, strict=True):
                    if cell:
                        rows.append(row(name, suite, label, column, cell.mean, std=cell.std, seeds=cell.seeds))
                if any(cells):
                    rows.append(row(name, suite, label, "average", average(cells)))
    for label, mean in means.items():
        bounds = {"low": mean.low, "high": mean.high, "tasks": mean.tasks}
        rows.append(row("iqm", "", label, "all", mean.iqm, seeds=mean.runs, **bounds))
    for (one, other), value in improvements.items():
        bounds = {"low": value.low, "high": value.high, "tasks": value.tasks}
        rows.append(row("improvement", "", one, other, value.probability, **bounds))
    return rows
