"""Rows of their own for runs on different datasets, and for runs that stopped at different points."""

import math
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from analysis.rows import add_to_labels, group_by, label_setting
from analysis.runs import RunResult
from config import settings_with

LENGTHS = settings_with(lambda setting: setting.report == "length")  # they decide how long the target agent learns
NEAR = 0.02  # numbers of target updates nearer than this are one stopping point: `envs` changes them by a few


@dataclass(frozen=True)
class Dataset:
    """The dataset of a run: its folder, resolved, and (episodes, steps, sum of returns), or None if not known."""

    path: Path
    figures: tuple[float, ...] | None

    def is_same(self, other: "Dataset") -> bool:
        """Whether two runs, perhaps of two machines, learned from the same dataset.

        If both figures are known: the figures and the folders' names are equal. Else: the names of the folders and of
        their parents are equal.
        """
        if self.figures and other.figures:
            return (self.path.name, self.figures) == (other.path.name, other.figures)
        return self.path.parts[-2:] == other.path.parts[-2:]


def run_dataset(run: RunResult) -> Dataset | None:
    """The run's dataset, with the figures in its record. None if its method uses none."""
    folder = run.settings["offline_traindir"]
    if not folder or (run.method and not run.method.dataset):
        return None
    return Dataset(Path(folder).expanduser().resolve(), run.data_figures)


def separate_rows(runs: list[RunResult], by: list[str]) -> None:
    """Add what differs to labels, so that no row averages two datasets or two stopping points.

    A label gets: the dataset, if the runs of its target have several; ``rounds`` and ``target_iterations``, if the runs
    of its suite differ in them; the round of an unfinished run; and the number of target updates, if runs of its row
    still differ in it. Settings in ``by`` are in the labels already.
    """
    if "offline_traindir" not in by:
        label_datasets(runs)
    for key in LENGTHS:
        if key not in by:
            label_setting(runs, key, lambda run: run.target.suite)
    for run in runs:
        if not run.finished:
            run.label += f", unfinished (round {run.final.round} of {run.settings['rounds']})"
    label_updates(runs)


def label_updates(runs: list[RunResult]) -> None:
    """Add the number of target updates to the labels of the rows of a suite whose runs differ in it."""
    texts, others = {}, {}
    for row in group_by(runs, lambda run: run.label).values():
        for group in update_groups(row):
            others |= dict.fromkeys(group, f"{group[0].final.target_updates} target updates")
        for of_suite in group_by(row, lambda run: run.target.suite).values():
            if len({others[run] for run in of_suite}) > 1:
                texts |= {run: others[run] for run in of_suite}
    add_to_labels(texts, others)


def update_groups(row: list[RunResult]) -> list[list[RunResult]]:
    """The runs of a row by their number of target updates; numbers that are `NEAR` are one."""
    groups: list[list[RunResult]] = []
    for run in sorted(row, key=lambda run: run.final.target_updates):
        number = run.final.target_updates
        if groups and math.isclose(groups[-1][0].final.target_updates, number, rel_tol=NEAR):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


# Datasets


def label_datasets(runs: list[RunResult]) -> None:
    """Add the dataset's name to the labels of the runs whose target has several datasets.

    The runs of a target with one dataset get a name, ``expert`` for example, if another target of the suite uses it
    and it is in the dataset's path.
    """
    datasets = {run: data for run in runs if (data := run_dataset(run))}
    for suite_runs in group_by(datasets, lambda run: run.target.suite).values():
        targets = group_by(suite_runs, lambda run: run.target).values()
        groups = [dataset_groups({run: datasets[run] for run in target_runs}) for target_runs in targets]
        known = set()
        for several in groups:
            if len(several) > 1:
                names = dataset_names([datasets[group[0]] for group in several])
                known.update(names)
                for group, name in zip(several, names, strict=True):
                    add_to_all(group, f"data {name}")
        for one in groups:
            found = known & words_of(datasets[one[0][0]].path)
            if len(one) == 1 and found:
                add_to_all(one[0], f"data {max(found, key=len)}")


def add_to_all(runs: list[RunResult], text: str) -> None:
    for run in runs:
        run.label += f", {text}"


def dataset_groups(datasets: dict[RunResult, Dataset]) -> list[list[RunResult]]:
    """Groups of runs with the same dataset.

    A dataset without figures may fit several groups. Then it belongs to the one with the same path, or to none.
    """
    groups: list[list[RunResult]] = []
    for run in sorted(datasets, key=lambda run: (datasets[run].figures is None, str(datasets[run].path))):
        fitting = [group for group in groups if datasets[group[0]].is_same(datasets[run])]
        if len(fitting) > 1:
            fitting = [group for group in fitting if datasets[group[0]].path == datasets[run].path]
        if fitting:
            fitting[0].append(run)
        else:
            groups.append([run])
    return groups


def words_of(path: Path) -> set[str]:
    """Every sequence of words in a path. Of ``data/medium-replay``, for example medium, replay and medium-replay."""
    parts = re.split(r"([/_-])", str(path))  # words and separators in turn
    starts = range(0, len(parts), 2)
    return {"".join(parts[i : j + 1]) for i in starts for j in starts if i <= j}


def dataset_names(datasets: list[Dataset]) -> list[str]:
    """A different short name for each dataset: the words in which the paths differ, or the folders and figures."""
    paths = [str(data.path) for data in datasets]
    for separator in ("[/_-]", "/"):
        names = differing_parts(paths, separator)
        if all(names) and len(set(names)) == len(names):
            return names
    names = ["/".join(data.path.parts[-2:]) for data in datasets]
    for index, unit in enumerate(("episodes", "steps", "return")):
        if len(set(names)) < len(names):  # the same folder
            known = [f"{data.figures[index]:g} {unit}" if data.figures else f"{unit} not known" for data in datasets]
            names = [f"{name} ({text})" for name, text in zip(names, known, strict=True)]
    return names


def differing_parts(paths: list[str], separator: str) -> list[str]:
    """The paths without the parts with which all begin, and those with which all end."""
    parts = [re.split(f"({separator})", path) for path in paths]
    start, end = common_parts(parts), common_parts([part[::-1] for part in parts])
    return ["".join(part[start : len(part) - end]).strip("/_-") for part in parts]


def common_parts(lists: list[list[str]]) -> int:
    """The number of items with which all lists begin."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*lists, strict=False)))
