"""The report's numbers as lines of CSV files."""

from typing import Any

from analysis.cells import Results, average
from analysis.improvement import Improvement
from analysis.interquartile import InterquartileMean
from analysis.rows import ABLATIONS, RANDOM, SETUPS, label_order
from analysis.runs import RunResult, task_order
from analysis.separation import LENGTHS


def run_order(run: RunResult) -> tuple:
    """Sorts runs as the tables do, then by seed."""
    return task_order(run.target), label_order(run.label), list(map(str, run.sources)), run.seed


def run_names(run: RunResult) -> dict[str, Any]:
    """The first columns of the lines of a run."""
    return {
        "row": run.label, "method": run.settings["method"], "sources": ",".join(map(str, run.sources)),
        "target": str(run.target), "seed": run.seed,
    }  # fmt: skip


def run_rows(runs: list[RunResult], results: Results) -> list[dict[str, Any]]:
    """The lines of cells.csv, one for each run, including runs without a score and runs that are not in the tables."""
    rows, in_tables = [], set(results.runs)
    for run in sorted(runs, key=run_order):
        final = run.final if run.scores else None
        columns = ("mean", "std", "success", "episodes", "round", "step", "target_updates")
        rows.append({
            **run_names(run), "finished": run.finished, "in_tables": run in in_tables,
            **{key: getattr(final, key, None) for key in columns},
            "random": getattr(run.random, "mean", None),
            "normalised": results.normalised(run) if run in in_tables else None,
            **{key: run.settings[key] for key in (*ABLATIONS, *SETUPS, *LENGTHS, "offline_traindir")},
            "folder": str(run.folder),
        })  # fmt: skip
    return rows


def curve_rows(runs: list[RunResult], results: Results) -> list[dict[str, Any]]:
    """The lines of curves.csv, one for each evaluation of the agent of each run, also of runs not in the tables."""
    columns = ("round", "step", "target_updates", "mean", "std", "success")
    in_tables = set(results.runs)
    return [
        {**run_names(run), **{key: getattr(score, key) for key in columns}, "in_tables": run in in_tables}
        for run in sorted(runs, key=run_order)
        for score in run.scores
    ]


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
