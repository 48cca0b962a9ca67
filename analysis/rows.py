"""The rows and columns of the tables. A row is a method or a variant of one, a column is a pair of tasks."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analysis.run_settings import defaults
from analysis.runs import RunResult, task_order
from config import settings_with
from tools import BadInput, nearest
from training.methods import METHODS
from wrappers import Task

ABLATIONS = settings_with(lambda setting: setting.report == "ablation")  # of methods aligned with sources
SETUPS = settings_with(lambda setting: setting.report == "setup")  # of every method
RANDOM = "random policy"
Item = TypeVar("Item")


class TaskPair(NamedTuple):
    """A source and a target task. ``source`` is None if no run with exactly one source has this target."""

    source: Task | None
    target: Task

    def __str__(self) -> str:
        return f"{self.source.name} -> {self.target.name}" if self.source else self.target.name

    def includes(self, run: RunResult) -> bool:
        """Whether the run is in this column. A run with no source, or with several, is in all columns of its target."""
        return run.target == self.target and (len(run.sources) != 1 or run.sources[0] == self.source)


def pair_of(run: RunResult) -> TaskPair:
    """The run's pair; its source is None if the run has no source or several."""
    return TaskPair(run.sources[0] if len(run.sources) == 1 else None, run.target)


def task_pairs(runs: list[RunResult]) -> list[TaskPair]:
    """The columns: the pairs of the runs with one source, and the targets that no such run has."""
    pairs = {pair_of(run) for run in runs}
    with_source = {pair.target for pair in pairs if pair.source}
    columns = [pair for pair in pairs if pair.source or pair.target not in with_source]
    return sorted(columns, key=lambda pair: (task_order(pair.target), task_order(pair.source or pair.target)))


def group_by(runs: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Lists of the items, mostly runs, that have the same key."""
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def label_order(label: str) -> tuple[int, int, str]:
    """Sorts rows: the random policy, then methods in the order of `METHODS`, each before its variants."""
    methods, method = list(METHODS), label.split(",")[0]
    rank = -1 if label == RANDOM else methods.index(method) if method in methods else len(methods)
    return rank, label.count(","), label


def set_labels(runs: list[RunResult], by: list[str]) -> None:
    """Give every run its label. Runs with the same label are in one row.

    A label is the method, the number of sources if there are several, the ablations and setups that are not the
    default, and the settings ``by`` if runs of one row differ in them. Raises BadInput if no run has such a setting.
    """
    known = {key for run in runs for key in run.settings}
    for key in by:
        if key not in known:
            raise BadInput(f"--by {key}: no run has such a setting; {nearest(key, known)}")
    for run in runs:
        several = [f"{len(run.sources)} sources"] * (len(run.sources) > 1)
        run.label = ", ".join([run.settings["method"], *several, *changed_settings(run)])
    for key in by:
        label_setting(runs, key, lambda run: (run.label, run.target.suite))
    for group in group_by(runs, lambda run: (run.label, run.target)).values():
        if len({run.sources for run in group if len(run.sources) > 1}) > 1:  # equally many sources, but not the same
            for run in group:
                run.label += f" ({', '.join(task.name for task in run.sources)})"


def label_setting(runs: list[RunResult], key: str, group: Callable[[RunResult], Any]) -> None:
    """Add ``key value`` to the labels of the groups of runs that differ in a setting; see `add_to_labels`."""
    texts = {}
    for members in group_by(runs, group).values():
        if len({str(run.settings.get(key)) for run in members}) > 1:
            texts |= {run: f"{key} {run.settings.get(key)}" for run in members}
    add_to_labels(texts, {run: f"{key} {run.settings.get(key)}" for run in runs})


def add_to_labels(texts: dict[RunResult, str], others: dict[RunResult, str]) -> None:
    """Add a text to the label of each of the runs ``texts``, which need it, for example because rows of their suite
    differ in it, and to those of ``others`` that have the same label and would have the same text.

    So runs with equal settings have equal names, in whatever suite they are.
    """
    needed = {(run.label, text) for run, text in texts.items()}
    for run, text in {**others, **texts}.items():
        if run in texts or (run.label, text) in needed:
            run.label += f", {text}"


def name_rows(runs: list[RunResult], names: list[str]) -> None:
    """Replace the settings in the labels of rows: ``METHOD, SETTINGS`` becomes ``METHOD, NAME``.

    names: texts ``SETTINGS=NAME``; SETTINGS is all that follows the method in a label. Raises BadInput if a text has
    another form, if no row has these settings, or if another row has that name already.
    """
    for text in names:
        settings, _, name = text.rpartition("=")
        if not settings or not name:
            raise BadInput(f"--name {text}: give SETTINGS=NAME, for example 'value_constraint off=no value constraint'")
        labels = {run.label for run in runs}
        named = [run for run in runs if run.label.partition(", ")[2] == settings]
        if not named:
            known = {label.partition(", ")[2] for label in labels} - {""}
            hint = f"; {nearest(settings, known, 1)}" if known else ""
            raise BadInput(f"--name {text}: no row has these settings after its method{hint}")
        for run in named:
            run.label = f"{run.label.partition(', ')[0]}, {name}"
            if run.label in labels:
                raise BadInput(f"--name {text}: another row is called {run.label!r} already")


def changed_settings(run: RunResult) -> list[str]:
    """``key value`` of the run's ablations and setups that are not the default."""
    keys = SETUPS
    if run.method and run.method.aligned_with_sources:
        keys = [*(key for key in ABLATIONS if key != "select" or len(run.sources) > 1), *SETUPS]
    values = {key: run.settings[key] for key in keys if run.settings[key] != defaults()[key]}
    return [f"{key} {Path(value).name if key == 'background' else value}" for key, value in values.items()]
