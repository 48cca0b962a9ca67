"""Which runs are in the tables, and whether they can be compared."""

from collections.abc import Iterable

from analysis.rows import group_by
from analysis.runs import RunResult
from tools import BadInput
from wrappers import SUITES

MAY_DIFFER = {  # settings in which the runs of a cell may differ
    *("seed", "logdir", "device", "compile", "envs", "eval_envs", "dataset_cache", "replay_size"),
    *("eval_every", "log_every", "video_every", "checkpoint_minutes"),
}
MUST_AGREE = (  # settings that all rows of a target must share, with those of the suites
    *("offline_traindir", "size", "time_limit", "render", "rounds", "target_iterations", "train_every"),
    "eval_episodes",
)


def choose_runs(runs: list[RunResult], unfinished: bool) -> tuple[list[RunResult], list[str]]:
    """(the runs for the tables, a line for each run that is not finished).

    With ``unfinished``, the tables also contain unfinished runs that have a score. Raises BadInput if no run is left,
    or if two have the same cell and seed.
    """
    lines = [f"{run.folder}: {run.last_evaluation}" for run in runs if not run.finished]
    chosen = [run for run in runs if run.finished or (unfinished and run.scores)]
    if not chosen:
        hint = "" if unfinished or not any(run.scores for run in runs) else "; --unfinished includes unfinished runs"
        raise BadInput(f"none of the {len(runs)} runs is finished ({lines[0]}){hint}")
    refuse_duplicates(chosen)
    return chosen, lines


def refuse_duplicates(runs: list[RunResult]) -> None:
    """Raises BadInput if two runs have the same cell and seed."""
    for group in group_by(runs, lambda run: (run.label, run.sources, run.target, run.seed)).values():
        if len(group) > 1:
            one, other = group[:2]
            differ = list(differences([one, other], one.settings.keys() - MAY_DIFFER))
            hint = f"add --by {' or --by '.join(differ[:5])} to separate them, or " if differ else ""
            raise BadInput(
                f"{one.folder} and {other.folder} have the same cell and seed ({one.label}, target {one.target}, seed "
                f"{one.seed}): {hint}move one of them away"
            )


def differences(runs: list[RunResult], keys: Iterable[str]) -> dict[str, list[str]]:
    """The settings among ``keys`` that are not the same in all runs, with their values."""
    values = {key: sorted({str(run.settings.get(key)) for run in runs}) for key in sorted(keys)}
    return {key: found for key, found in values.items() if len(found) > 1}


def condition_notes(runs: list[RunResult]) -> list[str]:
    """A note for each cell whose runs differ in more than their seed, and for each target whose rows do not agree."""
    notes = []
    for (label, target, _), group in group_by(runs, lambda run: (run.label, run.target, run.sources)).items():
        keys = {key for run in group for key in run.settings} - MAY_DIFFER
        notes += difference_lines(f"{label} on {target}", differences(group, keys))
    simulators = [f"{suite.name}_{key}" for suite in SUITES.values() for key in suite.settings]
    for target, group in group_by(runs, lambda run: run.target).items():
        notes += difference_lines(str(target), differences(group, [*MUST_AGREE, *simulators]))
    return notes


def difference_lines(place: str, found: dict[str, list[str]]) -> list[str]:
    return [f"{place}: runs differ in {key} ({', '.join(values)})" for key, values in found.items()]
