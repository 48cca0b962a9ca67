"""Lines on stderr about a run's target, before the run begins."""

import numpy as np

from config import Config, has_target_simulator, read_blocks, target_task
from replay import OfflineDataset
from training.data_limits import DataLimits
from training.data_notes import data_notes, scale_notes, termination_note
from training.methods import Method
from wrappers import SUITES, Task

LARGE, SMALL = 1000.0, 0.01  # sizes of the largest reward beyond which there is a note


def target_notes(
    config: Config, method: Method, dataset: OfflineDataset | None, limits: DataLimits | None
) -> list[str]:
    """Warnings if the blocks do not fit the target, or the data its description, and notes on what is unusual.

    ``config`` is resolved; ``dataset`` has the episodes that the target agent learns from, ``limits`` are its.
    """
    found = [block_warning(config.configs, target_task(config))]
    if dataset:
        found.append((note := dataset.action_rows_note()) and f"warning: {note}")
    if dataset and method.critic:
        found.append(reward_note(limits))
    if dataset and method.world_model:  # model-free agents use the stored discounts
        found.append(termination_note("target", dataset, config))
    if dataset:
        found += data_notes("target", dataset, config, method) + scale_notes("target", dataset, dataset.states, config)
    notes = [note for note in found if note]
    if method.dataset and not has_target_simulator(config):
        notes.append(
            f"note: no simulator for {config.target_task}: no scores, but offline figures on {config.holdout:.0%} of "
            f"the episodes, which are not trained on (docs/offline_evaluation.md)"
        )
    return notes


def reward_note(limits: DataLimits) -> str | None:
    """That rewards are much larger or smaller than 1, or all equal, if they are, and what to do."""
    size, rewards = limits.reward_size, f"rewards are from {limits.low_reward:.4g} to {limits.high_reward:.4g} a step"
    if limits.low_reward == limits.high_reward:
        return f"note: all {rewards}: nothing can be learned from them; check --reward_key"
    if SMALL <= size <= LARGE:
        return None
    factor = 10.0 ** -round(np.log10(size))
    harm = "too large for reward head and critic to learn" if size > LARGE else "lost beside the actor's entropy"
    return (
        f"warning: {rewards}: {harm}, which are tuned for a size near 1. Multiply all rewards by {factor:g} in the "
        f"files (docs/datasets.md#rewards); the source's should have a like size"
    )


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
