"""Lines on stderr about a run's target, before the run begins."""

from config import Config, has_target_simulator, read_blocks, target_task
from replay import SequenceStore
from training.data_notes import data_notes, termination_note
from training.methods import Method
from wrappers import SUITES, Task


def target_notes(config: Config, method: Method, dataset: SequenceStore | None) -> list[str]:
    """A warning if the blocks do not fit the target, and notes on its episodes and on a missing simulator.

    ``config`` is resolved; ``dataset`` has the episodes that the target agent learns from.
    """
    found = [block_warning(config.configs, target_task(config))]
    if dataset and method.world_model:  # model-free agents use the stored discounts
        found.append(termination_note("target", dataset, config))
    if dataset:
        found += data_notes("target", dataset, config, method)
    notes = [note for note in found if note]
    if method.dataset and not has_target_simulator(config):
        notes.append(
            f"note: no simulator for {config.target_task}: no scores, but offline figures on {config.holdout:.0%} of "
            f"the episodes, which are not trained on (docs/offline_evaluation.md)"
        )
    return notes


def block_warning(names: list[str], target: Task) -> str | None:
    """A warning if the last suite's block of ``names``, blocks but `defaults`, does not fit the target, else None.

    Every suite's block fits a target without a simulator.
    """
    if not target.suite:
        return None
    blocks, suite = read_blocks(), target.suite
    suites = [name for name in names if name in SUITES and name in blocks]
    last = [name for name in names if name in suites or name == "release"][-1:]
    if suite not in blocks or last in ([suite], ["release"]):
        return None
    right = [name for name in names if name == suite or name not in suites]
    if suite not in right and "release" not in right:
        right.insert(0, suite)
    found = f"block {last[0]} is for other targets" if last else f"--configs has no block for {suite} targets"
    return f"warning: {target}: {found}: give --configs {' '.join(['defaults', *right])}"
