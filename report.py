r"""The paper's tables and figures from run directories: returns, success rates, normalised scores, curves, a heat map.

python report.py runs --out report

Every folder under the given ones that holds config.yaml and scores.csv is a run. Runs that differ in their seed alone
share a cell of the tables.
"""

import argparse
import csv
import io
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from scipy import stats

import config as settings
from errors import BadInput, Parser, exit_on_bad_input, nearest
from formats.npz import write_atomically
from pictures import read_scores, save_figure
from wrappers.tasks import SUITES, Task, parse_task

METHODS = ("offline_dv2", "dv2_finetune", "dv2_finetune_ewc", "multitask_dv2", "online_dv2", "coworld")  # rows' order
BASELINES = ("offline_dv2", "dv2_finetune")  # what the heat map's improvement may be over
ABLATIONS = ("state_alignment", "reward_alignment", "value_constraint", "select")  # of coworld alone
SETUPS = ("source_observation", "sparse_reward", "background", "action_noise")  # of every method
OWN = {  # settings in which the runs of a cell may differ
    *("seed", "logdir", "device", "envs", "dataset_cache", "replay_size", "configs"),
    *("eval_every", "log_every", "video_every", "checkpoint_minutes"),
}
CONDITIONS = (  # settings that have to agree for a target's rows to be comparable
    *("offline_traindir", "size", "time_limit", "dmc_action_repeat", "metaworld_action_repeat"),
    *("robodesk_action_repeat", "render", "rounds", "target_iterations", "train_every", "eval_episodes"),
)
SUITE_NAMES = {"dmc": "DeepMind Control", "metaworld": "Meta-World", "robodesk": "RoboDesk"}
RANDOM = "random policy"
MAX_SCORES = Path(__file__).with_name("max_scores.yaml")
RESAMPLES = 10_000
AXES = {"step": "iterations (source agent steps + target iterations)", "target_updates": "updates of the target agent"}


# Runs


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
    sources: tuple[Task, ...]  # none for offline_dv2 and online_dv2, several for multi-source runs
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
    return {"method": "coworld", "select": "nearest", **settings.read_blocks()["defaults"]}


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


# Rows and columns


class Column(NamedTuple):
    """A pair of tasks. ``source`` is None where no run with one source has this target."""

    source: Task | None
    target: Task

    def __str__(self) -> str:
        return f"{self.source.name} -> {self.target.name}" if self.source else self.target.name


@cache
def max_scores() -> dict[str, dict[str, float]]:
    return YAML(typ="safe").load(MAX_SCORES.read_text())


def task_order(task: Task) -> tuple[int, int, str]:
    """Sorts tasks by suite, then as max_scores.yaml does, which is the paper's order."""
    known = list(max_scores()["tasks"])
    rank = known.index(str(task)) if str(task) in known else len(known)
    return list(SUITES).index(task.suite), rank, str(task)


def label_order(label: str) -> tuple[int, int, str]:
    """Sorts rows: the random policy, the baselines in the paper's order, coworld, then its variants."""
    method = label.split(",")[0]
    rank = -1 if label == RANDOM else METHODS.index(method) if method in METHODS else len(METHODS)
    return rank, label.count(","), label


def name_rows(runs: list[RunResult], by: list[str]) -> None:
    """Give every run its label: the method, the number of sources if several, ablations and setups that are not the
    default, and those of the settings ``by`` in which runs that would share a row differ."""
    for run in runs:
        run.label = ", ".join([run.settings["method"], *several_sources(run), *unusual(run)])
    for key in by:
        for group in grouped(runs, lambda run: (run.label, run.target.suite)).values():
            if len({str(run.settings.get(key)) for run in group}) > 1:
                for run in group:
                    run.label += f", {key} {run.settings.get(key)}"
    for group in grouped(runs, lambda run: (run.label, run.target)).values():
        if len({run.sources for run in group if len(run.sources) > 1}) > 1:  # two choices of as many sources
            for run in group:
                run.label += f" ({', '.join(task.name for task in run.sources)})"


def several_sources(run: RunResult) -> list[str]:
    return [f"{len(run.sources)} sources"] if len(run.sources) > 1 else []


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


def refuse_duplicates(runs: list[RunResult]) -> None:
    """BadInput if two runs have the same place in the tables and the same seed."""
    for group in grouped(runs, lambda run: (run.label, run.sources, run.target, run.seed)).values():
        if len(group) > 1:
            one, other = group[:2]
            differ = list(differences([one, other], one.settings.keys() - OWN))
            hint = f"add --by {' or --by '.join(differ[:5])} to tell them apart, or " if differ else ""
            raise BadInput(
                f"{one.folder} and {other.folder} are one cell and seed ({one.label}, target {one.target}, seed "
                f"{one.seed}): {hint}move one of them away"
            )


def differences(runs: list[RunResult], keys: Iterable[str]) -> dict[str, list[str]]:
    """The settings among ``keys`` that are not the same in all runs, with their values."""
    values = {key: sorted({str(run.settings.get(key)) for run in runs}) for key in sorted(keys)}
    return {key: found for key, found in values.items() if len(found) > 1}


def unlike(runs: list[RunResult]) -> list[str]:
    """A note for each cell whose runs differ in more than their seed, and each target whose rows are no fair match."""
    notes = []
    for (label, target, _), group in grouped(runs, lambda run: (run.label, run.target, run.sources)).items():
        keys = {key for run in group for key in run.settings} - OWN
        notes += [f"{label} on {target}: {text}" for text in described(differences(group, keys))]
    for target, group in grouped(runs, lambda run: run.target).items():
        notes += [f"{target}: {text}" for text in described(differences(group, CONDITIONS))]
    return notes


def described(found: dict[str, list[str]]) -> list[str]:
    return [f"runs differ in {key} ({', '.join(values)})" for key, values in found.items()]


# Numbers


class Cell(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one seed) over ``seeds`` runs."""

    mean: float
    std: float | None
    seeds: int
    unfinished: int = 0

    @classmethod
    def of(cls, values: list[float], unfinished: int = 0) -> "Cell":
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values), unfinished)


class Interval(NamedTuple):
    """An interquartile mean with its 95% interval (None where a task has one seed only)."""

    iqm: float
    low: float | None
    high: float | None
    tasks: int
    runs: int


@dataclass
class Results:
    """The runs of the tables, and the two scores between which a target's are normalised."""

    runs: list[RunResult]
    random: dict[Task, float] = field(default_factory=dict)
    maximum: dict[Task, float] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        return columns_of(self.runs)

    @property
    def labels(self) -> list[str]:
        return sorted({run.label for run in self.runs}, key=label_order)

    def cell_runs(self, label: str, column: Column) -> list[RunResult]:
        return [run for run in self.runs if run.label == label and belongs(run, column)]

    def cell(self, label: str, column: Column, measure: str) -> Cell | None:
        """``measure`` is mean (the return) or success. None where there is no value."""
        if label == RANDOM:
            values = random_values(self.runs, column.target, measure)
            return Cell.of(values) if values else None
        runs = self.cell_runs(label, column)
        pairs = [(getattr(run.final, measure), run.finished) for run in runs]
        pairs = [(value, finished) for value, finished in pairs if value is not None]
        return Cell.of([v for v, _ in pairs], sum(not f for _, f in pairs)) if pairs else None

    def normalised(self, run: RunResult) -> float | None:
        """(score - random) / (max - random), or None where no run of the target scored the random policy."""
        random, most = self.random.get(run.target), self.maximum[run.target]
        return None if random is None else (run.final.mean - random) / (most - random)


def random_values(runs: list[RunResult], target: Task, measure: str) -> list[float]:
    """The random policy's scores on ``target``, one a seed: runs of one seed play the same random episodes."""
    by_seed = defaultdict(list)
    for run in runs:
        value = getattr(run.random, measure, None)
        if run.target == target and value is not None:
            by_seed[run.seed].append(value)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]


def given_max_scores(texts: list[str], targets: set[Task]) -> dict[Task, float]:
    """``--max_score``, a number for all targets or TASK=NUMBER. BadInput if it is neither or names another task."""
    given = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise BadInput(f"--max_score {text}: give a positive return, or TASK=RETURN")
        tasks = {parse_task(name)} if name else targets
        if not tasks <= targets:
            raise BadInput(f"--max_score {text}: no run has that target; {nearest(name, map(str, targets))}")
        given.update(dict.fromkeys(tasks, value))
    return given


def results_of(runs: list[RunResult], max_score: list[str]) -> Results:
    """Runs with the scores that normalise them; maxima as in collect.py. BadInput if one is not over random's."""
    results, targets = Results(runs), {run.target for run in runs}
    given = given_max_scores(sorted(max_score, key=lambda text: "=" in text), targets)
    for target in sorted(targets, key=task_order):
        known = max_scores()["tasks"].get(str(target), max_scores()["suites"][target.suite])
        results.maximum[target] = given.get(target, known)
        random = random_values(runs, target, "mean")
        if random:
            results.random[target] = float(np.mean(random))
            if results.random[target] >= results.maximum[target]:
                raise BadInput(
                    f"the maximum of {target}, {results.maximum[target]:g}, is not over the random policy's "
                    f"{results.random[target]:.1f}: give a larger one as --max_score {target}=RETURN"
                )
    return results


def interquartile_mean(samples: list[np.ndarray]) -> Interval:
    """IQM of all values (Agarwal et al. 2021, arXiv 2108.13264) with a stratified bootstrap interval.

    samples: for each task the normalised scores of its seeds. scipy resamples each sample by itself, so that every
    task keeps its number of seeds in every resample: the tasks are a fixed choice, only the seeds are chance, and
    pooling them first would count the distance between tasks as noise.
    """

    def statistic(*values: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(values, axis=axis), 0.25, axis=axis)

    iqm, count = float(statistic(*samples, axis=0)), sum(map(len, samples))
    if min(map(len, samples)) < 2:  # one seed says nothing about the spread over seeds
        return Interval(iqm, None, None, len(samples), count)
    low, high = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=1000, vectorized=True, method="percentile",
        confidence_level=0.95, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(iqm, float(low), float(high), len(samples), count)


def interquartile_means(results: Results) -> dict[str, Interval]:
    """For each row, over all its tasks. A run counts once, also where it stands in several columns."""
    means = {}
    for label in results.labels:
        runs = [run for run in results.runs if run.label == label and run.target in results.random]
        tasks = grouped(runs, lambda run: (run.sources, run.target)).values()
        if tasks:
            means[label] = interquartile_mean([np.array([results.normalised(run) for run in task]) for task in tasks])
    return means


# Text


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def cell_text(cell: Cell | None, percent: bool = False) -> str:
    """``mean +- deviation (seeds)``, the deviation with as many digits as the mean; ``percent`` for shares."""
    if cell is None:
        return "-"
    scale = 100 if percent else 1
    digits = 0 if percent or abs(cell.mean) >= 100 else 1
    spread = "" if cell.std is None else f" +- {scale * cell.std:.{digits}f}"
    unfinished = f", {cell.unfinished} unfinished" if cell.unfinished else ""
    return f"{scale * cell.mean:.{digits}f}{spread} ({cell.seeds}{unfinished})"


def average(cells: list[Cell | None]) -> float | None:
    """Mean over columns; None where a row has none."""
    means = [cell.mean for cell in cells if cell is not None]
    return float(np.mean(means)) if means else None


def average_text(cells: list[Cell | None], percent: bool) -> str:
    mean, filled = average(cells), sum(cell is not None for cell in cells)
    if mean is None:
        return "-"
    text = f"{100 * mean:.0f}" if percent else number(mean)
    return text if filled == len(cells) else f"{text} ({filled} of {len(cells)} tasks)"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is left-aligned and the others right-aligned, padded to be read as plain text too."""
    table = [[text.replace("|", "/") for text in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        first, *others = (f"{text:{'<' if i == 0 else '>'}{widths[i]}}" for i, text in enumerate(row))
        return f"| {' | '.join([first, *others])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(table[0]), f"| {' | '.join(rule)} |", *map(line, table[1:])])


def suite_columns(results: Results) -> dict[str, list[Column]]:
    found = {suite: [c for c in results.columns if c.target.suite == suite] for suite in SUITES}
    return {suite: columns for suite, columns in found.items() if columns}


def suite_labels(results: Results, suite: str) -> list[str]:
    return [
        label for label in results.labels if any(r.label == label and r.target.suite == suite for r in results.runs)
    ]


def suite_table(results: Results, suite: str, columns: list[Column], measure: str) -> str | None:
    """Rows by method, columns by pair, and the average; None where the suite has no such measure."""
    percent, rows = measure == "success", []
    for label in [RANDOM, *suite_labels(results, suite)]:
        cells = [results.cell(label, column, measure) for column in columns]
        if any(cells) or label != RANDOM:
            rows.append([label, *(cell_text(cell, percent) for cell in cells), average_text(cells, percent)])
    if all(text == "-" for row in rows for text in row[1:]):
        return None
    return markdown(["method", *map(str, columns), "average"], rows)


def score_sections(results: Results) -> list[str]:
    lines = [
        "Mean +- sample standard deviation over seeds of the last evaluation's mean, and the number of seeds. Methods "
        "with no source or several stand in every column of their target. Averages are over columns."
    ]
    for suite, columns in suite_columns(results).items():
        returns, success = (suite_table(results, suite, columns, measure) for measure in ("mean", "success"))
        lines += [f"## {SUITE_NAMES[suite]}: return", returns]
        if success:
            lines += [f"## {SUITE_NAMES[suite]}: success rate, %", success]
    return lines


def normalised_section(results: Results, means: dict[str, Interval]) -> list[str]:
    if not means:
        return []
    rows = []
    for label, mean in means.items():
        interval = "needs 2 seeds a task" if mean.low is None else f"{mean.low:.3f} to {mean.high:.3f}"
        rows.append([label, f"{mean.iqm:.3f}", interval, str(mean.tasks), str(mean.runs)])
    scale = [
        [str(t), number(results.random[t]) if t in results.random else "-", f"{results.maximum[t]:g}"]
        for t in results.maximum
    ]
    return [
        "## Normalised score: interquartile mean over all tasks and seeds",
        markdown(["method", "IQM", "95% interval", "tasks", "runs"], rows),
        "Normalised as (score - random) / (max - random), with the values below: random is the runs' own evaluation of "
        "the random policy, max is --max_score or max_scores.yaml. The interval is a percentile bootstrap that draws "
        f"seeds anew within each task ({RESAMPLES} times, seeded). A task is a pair, or a target for methods with no "
        "source or several. Rows with other tasks do not compare.",
        markdown(["target", "random", "max"], scale),
    ]


def missing_cells(results: Results) -> list[str]:
    """A line for each row with columns that have no run, and for each cell with fewer seeds than the fullest one."""
    lines, cells = [], grouped(results.runs, lambda run: (run.label, cell_name(run)))
    for suite, columns in suite_columns(results).items():
        for label in suite_labels(results, suite):
            gaps = [str(column) for column in columns if not results.cell_runs(label, column)]
            if gaps:
                lines.append(f"{label}: no run for {', '.join(gaps)}")
    most = max(map(len, cells.values()))
    for (label, name), runs in sorted(cells.items(), key=lambda item: (label_order(item[0][0]), item[0][1])):
        if len(runs) < most:
            seeds = ", ".join(map(str, sorted(run.seed for run in runs)))
            lines.append(f"{label}, {name}: {len(runs)} of {most} seeds (has {seeds})")
    return lines


def cell_name(run: RunResult) -> str:
    """What a run is on: a pair, or a target where it stands in every column of it."""
    return str(Column(run.sources[0] if len(run.sources) == 1 else None, run.target))


def bullets(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []


def csv_text(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def run_rows(runs: list[RunResult], results: Results) -> list[dict[str, Any]]:
    """cells.csv: a line a run, those without a score and those not in the tables too."""
    rows = []
    for run in sorted(
        runs, key=lambda r: (task_order(r.target), label_order(r.label), list(map(str, r.sources)), r.seed)
    ):
        final = run.final if run.scores else None
        last = {k: getattr(final, k, None) for k in ("mean", "std", "success", "episodes", "round", "step")}
        rows.append({
            "row": run.label, "method": run.settings["method"], "sources": ",".join(map(str, run.sources)),
            "target": str(run.target), "seed": run.seed, "finished": run.finished, "in_tables": run in results.runs,
            **last, "target_updates": getattr(final, "target_updates", None),
            "random": getattr(run.random, "mean", None),
            "normalised": results.normalised(run) if run in results.runs else None,
            **{key: run.settings[key] for key in (*ABLATIONS, *SETUPS)}, "folder": str(run.folder),
        })  # fmt: skip
    return rows


def table_rows(results: Results, means: dict[str, Interval]) -> list[dict[str, Any]]:
    """table.csv: a line a cell of the tables, their averages and interquartile means among them."""

    def row(measure: str, suite: str, label: str, column: object, mean: float, **more: float | None) -> dict[str, Any]:
        named = {"measure": measure, "suite": suite, "row": label, "column": str(column), "mean": mean}
        return named | {key: more.get(key) for key in ("std", "seeds", "low", "high")}

    rows = []
    for suite, columns in suite_columns(results).items():
        for measure, name in (("mean", "return"), ("success", "success")):
            for label in [RANDOM, *suite_labels(results, suite)]:
                cells = [results.cell(label, column, measure) for column in columns]
                for column, cell in zip(columns, cells, strict=True):
                    if cell:
                        rows.append(row(name, suite, label, column, cell.mean, std=cell.std, seeds=cell.seeds))
                if any(cells):
                    rows.append(row(name, suite, label, "average", average(cells)))
    for label, mean in means.items():
        rows.append(row("iqm", "", label, "all", mean.iqm, seeds=mean.runs, low=mean.low, high=mean.high))
    return rows


# Pictures


def mean_curve(runs: list[RunResult], x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where, mean, deviation over seeds) of the evaluations, (P,) each.

    Seeds that were evaluated elsewhere are interpolated, never past their ends; where one is alone, deviation is 0.
    """
    curves = [{getattr(score, x): score.mean for score in run.scores} for run in runs]
    curves = [dict(sorted(curve.items())) for curve in curves]
    where = np.array(sorted({point for curve in curves for point in curve}), float)
    values = np.array([np.interp(where, [*c.keys()], [*c.values()], left=np.nan, right=np.nan) for c in curves])
    count = (~np.isnan(values)).sum(0)
    mean = np.nanmean(values, 0)
    squares = np.nansum((values - mean) ** 2, 0)
    return where, mean, np.sqrt(squares / np.maximum(count - 1, 1))


def draw_curves(results: Results, target: Task, x: str, path: Path) -> None:
    """Return against ``x``: a line for each row and source, its band the deviation over seeds; random dashed."""
    runs = [run for run in results.runs if run.target == target]
    groups = grouped(runs, lambda run: (run.label, run.sources if len(run.sources) == 1 else ()))
    several = len({sources for _, sources in groups if sources}) > 1
    crowded = len(groups) > 4
    figure, axis = plt.subplots(figsize=(9.6 if crowded else 7.2, 4.2))
    colours = plt.get_cmap("tab10" if len(groups) <= 10 else "tab20").colors
    for i, key in enumerate(sorted(groups, key=lambda k: (label_order(k[0]), list(map(task_order, k[1]))))):
        where, mean, std = mean_curve(groups[key], x)
        source = f" from {key[1][0].name}" if several and key[1] else ""
        name = f"{key[0]}{source} ({len(groups[key])} seed{'s' * (len(groups[key]) > 1)})"
        marker = "o" if i < len(colours) else "s"
        colour = colours[i % len(colours)]
        axis.plot(where, mean, marker=marker, markersize=4, color=colour, label=name)
        axis.fill_between(where, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    if target in results.random:
        axis.axhline(results.random[target], color="gray", linestyle="--", label=RANDOM)
    axis.set(title=f"{target}: mean over seeds, band ± one standard deviation", xlabel=AXES[x], ylabel="episode return")
    if all(score.mean >= 0 for run in runs for score in run.scores):
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if crowded else {"loc": "best"}
    axis.legend(fontsize=8, **place)
    figure.tight_layout()
    save_figure(figure, path)


def heat_cells(results: Results, baseline: str | None) -> dict[Column, float]:
    """Plain coworld with one source: mean return, or its ratio to ``baseline``'s where that is above 0."""
    values = {}
    for column in results.columns:
        cell = results.cell("coworld", column, "mean") if column.source else None
        base = results.cell(baseline, column, "mean") if baseline else None
        if cell and not baseline:
            values[column] = cell.mean
        elif cell and base and base.mean > 0:
            values[column] = cell.mean / base.mean
    return values


def heat_baseline(results: Results, kind: str | None) -> str | None:
    """The baseline whose improvement the heat map shows; None for the return.

    Without a wish it is the first of `BASELINES` that stands beside every cell of coworld. BadInput if improvement is
    asked for and neither has a run in any of them.
    """
    if kind == "return":
        return None
    everywhere = heat_cells(results, None).keys()
    filled = {baseline: heat_cells(results, baseline).keys() for baseline in BASELINES}
    best = max(BASELINES, key=lambda baseline: len(filled[baseline]))
    if kind == "improvement" and not filled[best]:
        raise BadInput(f"--heatmap improvement: no run of {' or '.join(BASELINES)} beside coworld's; give return")
    return best if kind == "improvement" or filled[best] == everywhere else None


def draw_heatmap(results: Results, baseline: str | None, path: Path) -> None:
    """The paper's Fig. 3: rows sources, columns targets, a panel for each suite of targets, whose returns have one
    scale. A frame marks the best source of a target; hatched cells have no run."""
    values = heat_cells(results, baseline)
    panels = [list(filter(lambda c: c.target.suite == suite, values)) for suite in SUITES]
    panels = [panel for panel in panels if panel]
    shapes = [(len({c.target for c in panel}), len({c.source for c in panel})) for panel in panels]
    size = (sum(1.25 * wide + 3.2 for wide, _ in shapes), max(max(0.6 * high + 2.2 for _, high in shapes), 3.2))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, width_ratios=[1.25 * wide + 2 for wide, _ in shapes]
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        draw_panel(axis, {column: values[column] for column in panel}, bool(baseline))
        axis.set_title(f"{SUITE_NAMES[panel[0].target.suite]} targets", fontsize=10)
    shown = f"mean return divided by {baseline}'s" if baseline else "mean return"
    gap = "no run or no baseline" if baseline else "no run"
    figure.suptitle(f"CoWorld: {shown}\n(framed: a target's best source; hatched: {gap})", fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def draw_panel(axis: Axes, values: dict[Column, float], ratio: bool) -> None:
    sources, targets = (sorted({c[i] for c in values}, key=task_order) for i in (0, 1))
    grid = np.array([[values.get(Column(s, t), np.nan) for t in targets] for s in sources])
    image = axis.imshow(grid, cmap="viridis", aspect="auto")
    axis.figure.colorbar(image, ax=axis, label="ratio" if ratio else "return")
    low, high = np.nanmin(grid), np.nanmax(grid)
    for (row, column), value in np.ndenumerate(grid):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(value):
            axis.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="lightgray", hatch="///", linewidth=0))
            continue
        colour = "black" if value > (low + high) / 2 else "white"
        axis.text(column, row, f"{value:.2f}" if ratio else number(value), ha="center", va="center", color=colour)
        if value == np.nanmax(grid[:, column]) and np.isfinite(grid[:, column]).sum() > 1:
            inside = (corner[0] + 0.03, corner[1] + 0.04)
            axis.add_patch(Rectangle(inside, 0.94, 0.92, fill=False, edgecolor="red", linewidth=2.5, zorder=3))
    axis.set_xticks(range(len(targets)), [task.name for task in targets], rotation=30, ha="right")
    axis.set_yticks(range(len(sources)), [task.name for task in sources])
    axis.set(xlabel="target", ylabel="source")


# The command


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders that hold run directories, anywhere")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--unfinished", action="store_true", help="also runs without the evaluation at their end")
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="a setting whose values make rows of their own, where they differ; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_score", action="append", default=[], metavar="[TASK=]RETURN",
        help="return that is 1 when normalised; may be repeated (default: max_scores.yaml's)",
    )  # fmt: skip
    parser.add_argument("--x", choices=AXES, default="step", help="what the curves are drawn against (default: step)")
    parser.add_argument(
        "--heatmap", choices=("return", "improvement"),
        help="show coworld's return, or its ratio to that of offline_dv2 or dv2_finetune, whichever stands beside more "
        "of it (default: improvement if one stands beside all of it, else return)",
    )  # fmt: skip
    return parser


def choose_runs(runs: list[RunResult], unfinished: bool) -> tuple[list[RunResult], list[str]]:
    """(the runs for the tables, a line for each that is not finished). BadInput if none is left or two are one."""
    lines = [f"{run.folder}: {run.where_it_stands}" for run in runs if not run.finished]
    chosen = [run for run in runs if run.finished or (unfinished and run.scores)]
    if not chosen:
        hint = "" if unfinished or not any(run.scores for run in runs) else "; --unfinished takes them as they are"
        raise BadInput(f"none of the {len(runs)} runs is finished ({lines[0]}){hint}")
    refuse_duplicates(chosen)
    return chosen, lines


def check_by(by: list[str], runs: list[RunResult]) -> None:
    known = {key for run in runs for key in run.settings}
    for key in by:
        if key not in known:
            raise BadInput(f"--by {key}: no run has such a setting; {nearest(key, known)}")


def draw(results: Results, own: argparse.Namespace) -> list[str]:
    """Write the pictures. Returns their names."""
    names = []
    for target in results.maximum:
        names.append(f"curves-{re.sub(r'[^a-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, own.x, own.out / names[-1])
    if heat_cells(results, None):
        draw_heatmap(results, heat_baseline(results, own.heatmap), own.out / "heatmap.png")
        names.append("heatmap.png")
    return names


def save_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> None:
    own = command().parse_args(arguments)
    runs, left_out = read_runs(run_folders(own.runs))
    for line in left_out:
        print(f"warning: {line}", file=sys.stderr)
    check_by(own.by, runs)
    name_rows(runs, own.by)
    chosen, unfinished = choose_runs(runs, own.unfinished)
    results = results_of(chosen, own.max_score)
    heat_baseline(results, own.heatmap)  # refuses before anything is written
    means = interquartile_means(results)
    try:
        own.out.mkdir(parents=True, exist_ok=True)
        pictures = draw(results, own)
        taken = "in the tables, marked" if own.unfinished else "not in the tables; --unfinished takes them"
        sections = [
            f"# Report on {len(chosen)} run{'s' * (len(chosen) > 1)}",
            *score_sections(results),
            *normalised_section(results, means),
            *bullets("Missing", missing_cells(results)),
            *bullets(f"Not finished ({taken})", unfinished),
            *bullets("Notes", [*left_out, *unlike(chosen)]),
        ]
        text = "\n\n".join(sections) + "\n"
        save_text(own.out / "table.md", text + "\n" + "\n".join(f"![{p}]({p})" for p in pictures) + "\n")
        save_text(own.out / "cells.csv", csv_text(run_rows(runs, results)))
        save_text(own.out / "table.csv", csv_text(table_rows(results, means)))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadInput(f"--out {own.out} cannot be written: {error.strerror}; choose another") from None
    print(text)
    print("written:", *(own.out / name for name in ("table.md", "cells.csv", "table.csv", *pictures)))


if __name__ == "__main__":
    exit_on_bad_input(main)
