"""Finding runs in folders and reading what they say: their settings and their scores."""

import csv
import math
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import config as settings
import max_scores
from tools import BadInput
from training.visuals import read_scores
from wrappers.shared.tasks import SUITES, Task, parse_task

WITHOUT_SOURCE = ("offline_dv2", "online_dv2")  # methods that heed no source_task


@dataclass(frozen=True)
class Score:
    """An evaluation in the target's simulator: a line of scores.csv."""

    round: int
    step: int
    target_updates: int
    mean: float  # return, over episodes
    std: float
    success: float | None  # share of episodes; None where the suite has no success
    episodes: int


@dataclass(eq=False)
class RunResult:
    """What a run directory says: its settings (complete with the defaults of today) and its evaluations in order."""

    folder: Path
    settings: dict[str, Any]
    sources: tuple[Task, ...]  # none for methods without, several for multi-source runs
    target: Task
    random: Score | None  # of the random policy
    scores: list[Score]  # of the agent
    label: str = ""  # its row

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def final(self) -> Score:
        return self.scores[-1]

    @property
    def finished(self) -> bool:
        """Whether the last evaluation of Algorithm 1 is there: the last round has one before it and one after it."""
        rounds = self.settings["rounds"]
        return sum(score.round == rounds for score in self.scores) >= (2 if rounds else 1)

    @property
    def where_it_stands(self) -> str:
        if not self.scores:
            return "no evaluation of its agent yet"
        return f"last evaluation in round {self.final.round} of {self.settings['rounds']}, not the one at the end"


@cache
def defaults() -> dict[str, Any]:
    """The settings of a run that does not name them: runs written before a setting existed lack it."""
    return dict(settings.read_blocks()["defaults"])


def run_folders(roots: list[Path]) -> list[Path]:
    """Every folder under ``roots`` that holds a run, once, links followed. BadInput if a root is no folder."""
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise BadInput(f"{root} is not a folder; give folders that hold run directories")
        for name, below, files in os.walk(root, followlinks=True):
            folder, real = Path(name), Path(name).resolve()
            if real in seen:  # a folder given twice, or links in a circle
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(b for b in below if b != "videos" and not b.startswith("source_replay"))
            if {"config.yaml", "scores.csv"} <= set(files):
                found.setdefault(real, folder)
    if not found:
        raise BadInput(
            f"no run under {', '.join(map(str, roots))}: none of the folders holds config.yaml and scores.csv"
        )
    return list(found.values())


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's config.yaml. BadInput if it cannot be read or a value has the wrong type."""
    path = folder / "config.yaml"
    try:
        values = YAML().load(path.read_text())  # not the "safe" loader, to which `off` can be False
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {str(error)[:120]}") from None
    if not isinstance(values, dict) or "target_task" not in values:
        raise BadInput(f"{path} is damaged: it has no target_task")
    merged = {**defaults(), **values}
    for key, default in defaults().items():
        try:
            merged[key] = settings.convert(merged[key], default)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path} is damaged: {key}: {merged[key]!r} {error}") from None
    return merged


def read_evaluations(folder: Path) -> list[tuple[str, Score]]:
    """(phase, score) of every evaluation on the target, in order. BadInput if scores.csv is damaged."""
    path = folder / "scores.csv"
    try:
        if re.fullmatch(r"(step,.*\n)?", path.read_text()):
            return []  # nothing or the header alone: a run that has just begun
        rows = read_scores(folder)
        return [(row["phase"], parse_score(row)) for row in rows if row["domain"] == "target"]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {error}); mend or remove the line") from None


def parse_score(row: dict[str, str]) -> Score:
    """A line of scores.csv as numbers. KeyError, TypeError or ValueError if it is not one."""
    counts = {key: int(row[key]) for key in ("round", "step", "target_updates", "episodes")}
    success = float(row["success"]) if row["success"] else None
    score = Score(mean=float(row["mean"]), std=float(row["std"]), success=success, **counts)
    if not math.isfinite(score.mean + score.std + (success or 0.0)):
        raise ValueError("a score is not finite")
    return score


def read_run(folder: Path) -> RunResult | None:
    """The run in ``folder``; None if it has no target, as `collect.py`'s have not. BadInput if it is damaged."""
    values = read_settings(folder)
    if not values["target_task"]:
        return None
    if values["method"] in WITHOUT_SOURCE:
        values["source_task"] = ""
    try:
        target = parse_task(values["target_task"])
        sources = tuple(sorted(map(parse_task, filter(None, values["source_task"].split(","))), key=task_order))
    except BadInput as error:
        raise BadInput(f"{folder / 'config.yaml'}: {error}") from None
    evaluations = read_evaluations(folder)
    random = [score for phase, score in evaluations if phase == "evaluate_random"]
    scores = [score for phase, score in evaluations if phase == "evaluate"]
    return RunResult(folder, values, sources, target, random[0] if random else None, scores)


def read_runs(folders: list[Path]) -> tuple[list[RunResult], list[str]]:
    """(the runs that can be read, what was left out and why). BadInput if there is none."""
    runs, left_out, collections = [], [], 0
    for folder in folders:
        try:
            run = read_run(folder)
        except BadInput as error:
            left_out.append(f"left out {folder}: {' '.join(str(error).split())}")
            continue
        collections += run is None
        runs += [] if run is None else [run]
    if collections:
        left_out.append(f"left out, having no target task: {collections} (collections of data)")
    if not runs:
        raise BadInput(f"none of the {len(folders)} runs can be used; {left_out[0]}")
    return runs, left_out


def task_order(task: Task) -> tuple[int, int, str]:
    """Sorts tasks by suite, then as max_scores.yaml does, then by name."""
    known = list(max_scores.known()["tasks"])
    rank = known.index(str(task)) if str(task) in known else len(known)
    return list(SUITES).index(task.suite), rank, str(task)
