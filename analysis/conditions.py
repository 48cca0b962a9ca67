"""Whether runs can be compared: no two in one place, and notes where they differ in more than they should."""

from collections.abc import Iterable

from tools import BadInput
from analysis.rows import grouped
from analysis.runs import RunResult

OWN = {  # settings in which the runs of a cell may differ
    *("seed", "logdir", "device", "compile", "envs", "eval_envs", "dataset_cache", "replay_size"),
    *("eval_every", "log_every", "video_every", "checkpoint_minutes"),
}
CONDITIONS = (  # settings that have to agree for a target's rows to be comparable
    *("offline_traindir", "size", "time_limit", "dmc_action_repeat", "metaworld_action_repeat"),
    *("robodesk_action_repeat", "render", "rounds", "target_iterations", "train_every", "eval_episodes"),
)


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
