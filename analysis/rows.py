"""Where a run stands in the tables: rows are methods and their variants, columns are pairs of tasks."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from analysis.runs import RunResult, defaults, task_order
from wrappers.shared.tasks import Task

METHODS = ("offline_dv2", "dv2_finetune", "dv2_finetune_ewc", "multitask_dv2", "online_dv2", "coworld")  # rows' order
ABLATIONS = ("state_alignment", "reward_alignment", "value_constraint", "select")  # of coworld alone
SETUPS = ("source_observation", "sparse_reward", "background", "action_noise")  # of every method
RANDOM = "random policy"


class Column(NamedTuple):
    """A pair of tasks. ``source`` is None where no run with one source has this target."""

    source: Task | None
    target: Task

    def __str__(self) -> str:
        return f"{self.source.name} -> {self.target.name}" if self.source else self.target.name


def label_order(label: str) -> tuple[int, int, str]:
    """Sorts rows: the random policy, then methods in the order of `METHODS`, each before its variants."""
    method = label.split(",")[0]
    rank = -1 if label == RANDOM else METHODS.index(method) if method in METHODS else len(METHODS)
    return rank, label.count(","), label


def name_rows(runs: list[RunResult], by: list[str]) -> None:
    """Give every run its label: the method, the number of sources if several, ablations and setups that are not the
    default, and those of the settings ``by`` in which runs that would share a row differ."""
    for run in runs:
        several = [f"{len(run.sources)} sources"] * (len(run.sources) > 1)
        run.label = ", ".join([run.settings["method"], *several, *unusual(run)])
    for key in by:
        for group in grouped(runs, lambda run: (run.label, run.target.suite)).values():
            if len({str(run.settings.get(key)) for run in group}) > 1:
                for run in group:
                    run.label += f", {key} {run.settings.get(key)}"
    for group in grouped(runs, lambda run: (run.label, run.target)).values():
        if len({run.sources for run in group if len(run.sources) > 1}) > 1:  # two choices of as many sources
            for run in group:
                run.label += f" ({', '.join(task.name for task in run.sources)})"


def unusual(run: RunResult) -> list[str]:
    """The ablations and setups of a run, as they are named in its label."""
    keys = SETUPS
    if run.settings["method"] == "coworld":
        keys = (*(k for k in ABLATIONS if k != "select" or len(run.sources) > 1), *SETUPS)
    values = {key: run.settings[key] for key in keys if run.settings[key] != defaults()[key]}
    return [f"{key} {Path(value).name if key == 'background' else value}" for key, value in values.items()]


def grouped(runs: Iterable[RunResult], key: Callable[[RunResult], Any]) -> dict[Any, list[RunResult]]:
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def columns_of(runs: list[RunResult]) -> list[Column]:
    """The pairs of the runs with one source, and the targets that have none."""
    pairs = {Column(run.sources[0], run.target) for run in runs if len(run.sources) == 1}
    with_source = {pair.target for pair in pairs}
    alone = {Column(None, run.target) for run in runs if run.target not in with_source}
    return sorted(pairs | alone, key=lambda c: (task_order(c.target), task_order(c.source or c.target)))


def belongs(run: RunResult, column: Column) -> bool:
    """Runs with one source have one column; those with none or several every column of their target."""
    return run.target == column.target and (len(run.sources) != 1 or run.sources[0] == column.source)


def cell_name(run: RunResult) -> str:
    """What a run is on: a pair, or a target where it stands in every column of it."""
    return str(Column(run.sources[0] if len(run.sources) == 1 else None, run.target))
