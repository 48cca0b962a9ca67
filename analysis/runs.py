"""Find run directories, and read their settings and scores."""

import csv
import math
import os
import re
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.run_settings import read_data_figures, read_settings
from tools import BadInput
from training.checkpoint import check_suites
from training.data_limits import DataLimits
from training.logger import read_scores, read_status
from training.methods import METHODS, Method, PhaseKind
from training.summary import offline_figures
from wrappers import SUITES, Task, parse_target, parse_task

SHORT_BLOCKS = {"demo", "quick", "debug"}  # of configs.yaml: their runs are too short to compare methods
# Folders in a run directory, not searched.
PARTS_OF_A_RUN = r"videos|pretrained|source(_\d+)?|(source(_\d+)?|target)_replay"
UNFINISHED_FOLDER = r"\..+\.partial"  # see `tools.directory_when_complete`


@dataclass(frozen=True)
class Score:
    """An evaluation, in the target's simulator, on held-out episodes, or both: a line of scores.csv."""

    round: int
    step: int
    target_updates: int
    mean: float | None  # return, over episodes; None without a simulator
    std: float | None
    success: float | None  # share of episodes; None if the suite has no success
    episodes: int
    offline: dict[str, float] = field(default_factory=dict)  # offline figures, by name


@dataclass(eq=False)
class RunResult:
    """The settings and the scores of a run directory.

    Attributes:
        settings: those of config.yaml; missing ones have today's default values. ``configs``: the blocks they came
            from, without `defaults`, as text.
        sources: its source tasks, sorted; empty if its method has no source.
        target: without a simulator, it has no suite.
        random: the score of the random policy.
        scores: the scores of the agent, in order.
        data_figures: (episodes, steps, sum of returns) of its dataset, None if config.yaml does not have them.
        limits: what its dataset ever returned, None if config.yaml does not say it.
        label: the table row of the run (see `rows.set_labels`).
        averaged: how many of the last evaluations its score is the mean of.
    """

    folder: Path
    settings: dict[str, Any]
    sources: tuple[Task, ...]
    target: Task
    random: Score | None
    scores: list[Score]
    data_figures: tuple[float, ...] | None = None
    limits: DataLimits | None = None
    label: str = ""
    averaged: int = 1

    @property
    def method(self) -> Method | None:
        """None if `METHODS` does not have it, for example a method of another version of the program."""
        return METHODS.get(self.settings["method"])

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def short(self) -> bool:
        """Whether it is a demo, quick or debug run."""
        return not SHORT_BLOCKS.isdisjoint(self.settings["configs"].split())

    @property
    def final(self) -> Score:
        """The mean of the last ``averaged`` evaluations, over all their episodes; the counters are the last one's.

        Without a simulator it is the last evaluation: offline figures are not averaged.
        """
        last = self.scores[-self.averaged :]
        if last[-1].mean is None:
            return last[-1]
        means, stds = ([getattr(score, key) for score in last] for key in ("mean", "std"))
        known = [score.success for score in last if score.success is not None]
        success = statistics.fmean(known) if known else None
        spread = math.sqrt(statistics.fmean(std**2 for std in stds) + statistics.pvariance(means))
        episodes = sum(score.episodes for score in last)
        return replace(last[-1], mean=statistics.fmean(means), std=spread, success=success, episodes=episodes)

    @property
    def finished(self) -> bool:
        """Whether the run has its last evaluation. The last round has two: one before it and one after it.

        A finished run that is made longer is not finished until it has the next one.
        """
        rounds = self.settings["rounds"]
        evaluated = sum(score.round == rounds for score in self.scores) >= (2 if rounds else 1)
        return evaluated and read_status(self.folder).get("finished", True)

    @property
    def last_evaluation(self) -> str:
        """The last evaluation of an unfinished run, in words."""
        if not self.scores:
            return "no evaluation of its agent yet"
        return f"last evaluation in round {self.final.round} of {self.settings['rounds']}, not the one at the end"


def run_folders(roots: list[Path]) -> list[Path]:
    """Every run directory under ``roots``, each once; links are followed.

    Raises BadInput if a root is not a folder, or if there is no run.
    """
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise BadInput(f"{root} is not a folder; give folders that contain run directories")
        for name, below, files in os.walk(root, followlinks=True):
            folder, real = Path(name), Path(name).resolve()
            if real in seen:  # a folder given twice, or circular links
                below.clear()
                continue
            seen.add(real)
            parts = PARTS_OF_A_RUN if "config.yaml" in files else r"(?!)"  # which matches nothing
            below[:] = sorted(b for b in below if not re.fullmatch(f"{parts}|{UNFINISHED_FOLDER}", b))
            if {"config.yaml", "scores.csv"} <= set(files):
                found.setdefault(real, folder)
    if not found:
        raise BadInput(
            f"no run under {', '.join(map(str, roots))}: none of the folders contains config.yaml and scores.csv"
        )
    return list(found.values())


def read_evaluations(folder: Path) -> list[tuple[str, Score]]:
    """(phase, score) of every evaluation on the target, in order. Raises BadInput if scores.csv is damaged."""
    path = folder / "scores.csv"
    try:
        if re.fullmatch(r"(step,.*\n)?", path.read_text()):
            return []  # empty, or only the header: the run has just begun
        rows = read_scores(folder)
        return [(row["phase"], parse_score(row)) for row in rows if row["domain"] == "target"]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {error}); correct or remove the line") from None


def parse_score(row: dict[str, str]) -> Score:
    """A line of scores.csv as numbers. Raises KeyError, TypeError or ValueError if it is damaged."""
    if None in row.values():
        raise ValueError("a line is cut short")
    counts = {key: int(row[key]) for key in ("round", "step", "target_updates")}
    counts["episodes"] = int(row["episodes"]) if row["mean"] else 0
    names = ("mean", "std", "success")
    figures, offline = {key: float(row[key]) if row[key] else None for key in names}, offline_figures(row)
    if not all(math.isfinite(value) for value in (*figures.values(), *offline.values()) if value is not None):
        raise ValueError("a score is not finite")
    return Score(**counts, **figures, offline=offline)


def read_run(folder: Path) -> RunResult | None:
    """The run in ``folder``, or None if it has no target task (a run of collect.py). Raises BadInput if damaged.

    A method that `METHODS` does not have is assumed to use its source tasks.
    """
    values = read_settings(folder)
    if not values["target_task"]:
        return None
    method = METHODS.get(values["method"])
    if method and not method.uses_sources:
        values["source_task"] = ""
    try:
        target = parse_target(values["target_task"])
        sources = tuple(sorted(map(parse_task, filter(None, values["source_task"].split(","))), key=task_order))
    except BadInput as error:
        check_suites(folder)
        raise BadInput(f"{folder / 'config.yaml'}: {error}") from None
    evaluations = read_evaluations(folder)
    check_simulator(folder, target, [score for _, score in evaluations])
    random = [score for phase, score in evaluations if phase == PhaseKind.EVALUATE_RANDOM]
    scores = [score for phase, score in evaluations if phase == PhaseKind.EVALUATE]
    figures, limits = read_data_figures(folder), DataLimits.find((folder / "config.yaml").read_text())
    return RunResult(folder, values, sources, target, random[0] if random else None, scores, figures, limits)


def check_simulator(folder: Path, target: Task, scores: list[Score]) -> None:
    """Raises BadInput if a target with a simulator has an evaluation without a return, or one without has returns."""
    if not target.suite and any(score.mean is not None for score in scores):
        check_suites(folder)
        parse_task(str(target))  # raises: its suite is of another program, or was removed
    if target.suite and any(score.mean is None for score in scores):
        raise BadInput(f"{folder / 'scores.csv'} is damaged: {target} has a simulator, but a line has no mean")


def read_runs(folders: list[Path]) -> tuple[list[RunResult], list[str]]:
    """(the runs that can be read, a line for each that is left out). Raises BadInput if none can be read."""
    runs, left_out, collections = [], [], 0
    for folder in folders:
        try:
            run = read_run(folder)
        except BadInput as error:
            left_out.append(f"left out {folder}: {' '.join(str(error).split())}")
            continue
        if run is None:
            collections += 1
        else:
            runs.append(run)
    if collections:
        left_out.append(f"left out {collections} without a target task (collections of data)")
    if not runs:
        raise BadInput(f"none of the {len(folders)} runs can be used; {left_out[0]}")
    return runs, left_out


def is_below(folder: Path, root: Path) -> bool:
    """Whether ``folder`` is ``root`` or in it, by the path that led to it or by its own."""
    return folder.is_relative_to(root) or folder.resolve().is_relative_to(root.resolve())


def leave_out_short_runs(runs: list[RunResult], roots: list[Path]) -> tuple[list[RunResult], list[str]]:
    """(runs without demo and debug runs, a line if there were any).

    Such a run stays if it is in one of ``roots``, the folders of the command line, that has no other kind of run: then
    it is meant.
    """
    below = {root: [run for run in runs if is_below(run.folder, root)] for root in roots}
    meant = {run for found in below.values() if all(run.short for run in found) for run in found}
    kept = [run for run in runs if not run.short or run in meant]
    if len(kept) == len(runs):
        return runs, []
    count = len(runs) - len(kept)
    what = f"{count} demo, quick or debug run{'s' * (count > 1)}, too short to compare methods"
    return kept, [f"left out {what}; give their own folder to include them"]


def task_order(task: Task) -> tuple[int, int, str]:
    """Sorts tasks by suite, then by their order in the suite, then by name; those without a simulator are last."""
    if not task.suite:
        return len(SUITES), 0, task.name
    listed = SUITES[task.suite].tasks
    place = listed.index(task.name) if task.name in listed else len(listed)
    return list(SUITES).index(task.suite), place, task.name
