"""Which runs are in the tables, and whether they can be compared."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from analysis.rows import group_by, pair_of
from analysis.runs import RunResult
from config import Config, facts
from tools import BadInput
from training.used_settings import unused_settings, unused_suite_settings

MANY = 8  # settings in a line of the notes; of more, it has only the names


def compared_settings(run: RunResult) -> dict[str, str]:
    """The settings that must be equal in runs that are compared with ``run``, with their values.

    A method of another version of the program is assumed to use all settings.
    """
    keys = {key for key in run.settings if facts(key).affects_results and not facts(key).report}
    if run.method:
        keys -= unused_settings(Config(**run.settings), run.method).keys()
    keys -= unused_suite_settings([run.target, *run.sources]).keys()
    settings = dict(run.settings)
    if settings["eta_steps"] == stage_b_steps(settings):
        settings["eta_steps"] = 0  # as given: computed from lengths, which are compared or named by the rows
    return {key: str(settings[key]) for key in keys}


def stage_b_steps(settings: dict[str, Any]) -> int:
    """Source agent steps with reward alignment in Algorithm 1, which ``eta_steps`` is if it is not given."""
    rounds = max(settings["rounds"] - 1, 0)
    return settings["warmup_rounds"] * settings["warmup_steps"] + rounds * settings["source_iterations"]


def choose_runs(runs: list[RunResult], unfinished: bool) -> tuple[list[RunResult], list[str]]:
    """(the runs for the tables, a line for each run that is not finished).

    With ``unfinished``, the tables also contain unfinished runs that have a score. Raises BadInput if no run is left.
    """
    lines = [f"{run.folder}: {run.last_evaluation}" for run in runs if not run.finished]
    chosen = [run for run in runs if run.finished or (unfinished and run.scores)]
    if not chosen:
        hint = "" if unfinished or not any(run.scores for run in runs) else "; --unfinished includes unfinished runs"
        raise BadInput(f"none of the {len(runs)} runs is finished ({lines[0]}){hint}")
    return chosen, lines


def refuse_duplicates(runs: list[RunResult]) -> None:
    """Raises BadInput if two runs have the same cell and seed."""
    for group in group_by(runs, lambda run: (run.label, run.sources, run.target, run.seed)).values():
        if len(group) > 1:
            one, other = group[:2]
            differ = separating_settings(one, other)
            hint = f"add --by {' or --by '.join(differ[:3])} to separate them, or " if differ else ""
            raise BadInput(
                f"{one.folder} and {other.folder} have the same cell and seed ({one.label}, target {one.target}, seed "
                f"{one.seed}): {hint}move one of them away"
            )


def separating_settings(one: RunResult, other: RunResult) -> list[str]:
    """The compared settings in which two runs differ; before them ``configs``, if their blocks differ."""
    values, others = compared_settings(one), compared_settings(other)
    differ = sorted(key for key in values.keys() | others.keys() if values.get(key) != others.get(key))
    blocks = differ and one.settings["configs"] != other.settings["configs"]
    return [*["configs"] * bool(blocks), *differ]


def condition_notes(runs: list[RunResult], by: list[str]) -> list[str]:
    """A line for each difference between the seeds of a cell, and for each between the rows of a target.

    Differences in the settings ``by`` are named by the rows. Targets with the same difference share a line.
    """
    notes, targets = [], {}
    cells = group_by(runs, lambda run: (run.label, pair_of(run), run.sources))
    for (label, pair, _), group in cells.items():
        seeds = {f"seed {run.seed}": [run] for run in group}
        notes += [f"{label}, {pair}: seeds differ: {text}" for text in differences(seeds, by)]
    for target, group in group_by(runs, lambda run: run.target).items():
        for text in differences(row_groups(group), by):
            targets.setdefault(text, []).append(str(target))
    return [*notes, *(f"{', '.join(names)}: rows differ: {text}" for text, names in targets.items())]


def row_groups(runs: list[RunResult]) -> dict[str, list[RunResult]]:
    """The runs of a target by row; by row and pair of tasks if a row has several pairs."""
    groups = {}
    for label, row in group_by(runs, lambda run: run.label).items():
        pairs = group_by(row, pair_of)
        groups |= {label if len(pairs) == 1 else f"{label}, {pair}": group for pair, group in pairs.items()}
    return groups


def differences(groups: dict[str, list[RunResult]], by: Iterable[str]) -> list[str]:
    """How the named groups differ in compared settings: ``units 16, act ELU in NAME; units 32, act Tanh in NAME``.

    Settings that divide the groups in the same way are in one line, without their values if they are many. A group
    without a setting is not compared in it.
    """
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # setting -> value -> names
    for name, runs in groups.items():
        compared = [compared_settings(run) for run in runs]
        for key in sorted({key for settings in compared for key in settings} - set(by)):
            found = sorted({settings[key] for settings in compared if key in settings})
            values[key]["/".join(found)].append(name)
    divisions = defaultdict(list)  # the names with each value -> settings
    for key, names in values.items():
        if len(names) > 1:
            divisions[tuple(sorted(map(tuple, names.values()), key=len))].append(key)
    return [division_text(division, keys, values) for division, keys in divisions.items()]


def division_text(division: tuple[tuple[str, ...], ...], keys: list[str], values: dict) -> str:
    """A line of `differences`. The largest part is last: "the others" if it has more than two names."""
    parts = [" and ".join(names) for names in division]
    parts[-1] = "the others" if len(division[-1]) > 2 else parts[-1]
    if len(keys) > MANY:
        return f"{len(keys)} settings ({', '.join(keys)}) between {'; '.join(parts)}"
    texts = []
    for names, part in zip(division, parts, strict=True):
        own = [next(value for value, found in values[key].items() if tuple(found) == names) for key in keys]
        texts.append(f"{', '.join(f'{key} {value}' for key, value in zip(keys, own, strict=True))} in {part}")
    return "; ".join(texts)
