"""What batches are drawn from: lines on stderr for a domain's data, and the counts of its rows."""

from collections.abc import Iterable

import numpy as np

from config import Config
from replay import SequenceStore
from replay.endings import why
from replay.store import LARGE_STATE
from training.methods import Method


def data_notes(name: str, store: SequenceStore, config: Config, method: Method) -> list[str]:
    """How the short episodes of the domain ``name`` and the ends of its episodes are sampled (docs/datasets.md)."""
    notes = []
    short, rows = store.shorter_than(rows_needed(config, method))
    if short:
        needed = f"batch_length {config.batch_length}" if method.world_model else f"{config.nstep} steps (nstep)"
        joined = "are joined into sequences" if method.world_model else "give shorter returns"
        notes.append(
            f"note: {name}: {short} of {store.episodes} episodes ({rows} of {store.rows} rows) are shorter than "
            f"{needed} and {joined}, so that every row is used"
        )
    if store.sample_ends == "auto":
        chosen = "on" if store.samples_ends() else "off"
        notes.append(f"sample_ends: {chosen} for {name} ({why([episode.ending for episode in store.stored])})")
    return notes


def scale_notes(name: str, store: SequenceStore, keys: Iterable[str], config: Config) -> list[str]:
    """That a state has values far from the size near 1 that the networks expect, if one of ``keys`` has."""
    largest = {} if config.symlog or config.state_standardize else dict.fromkeys(keys, 0.0)
    for index in range(store.episodes if largest else 0):
        arrays = store.read(index, keys=tuple(largest))
        largest = {key: max(most, float(np.abs(arrays[key]).max())) for key, most in largest.items()}
    return [
        f"warning: {name}: state {key} has values up to {most:.4g}, which outweigh the images in the loss; give "
        f"--state_standardize True or --symlog True, or scale it to a size near 1 (docs/senses.md#sizes)"
        for key, most in largest.items()
        if most > LARGE_STATE
    ]


def termination_note(name: str, store: SequenceStore, config: Config) -> str | None:
    """That the agent does not learn where episodes terminate, if some do."""
    terminated = sum(episode.ending.terminated for episode in store.stored)
    if config.pred_discount or not terminated:
        return None
    return (
        f"note: {name}: {terminated} of {store.episodes} episodes end with discount 0; the agent learns where the task "
        f"ends only with --pred_discount True"
    )


def rows_needed(config: Config, method: Method) -> int:
    """Rows of the shortest episode that holds a sequence, or a transition of ``nstep`` steps."""
    return config.batch_length if method.world_model else config.nstep + 1


def row_counts(
    store: SequenceStore, config: Config, method: Method, held_out: SequenceStore | None = None
) -> dict[str, float]:
    """Points of the curves of a domain's rows; ``held_out`` are episodes that it does not sample."""
    return {
        "used_rows": store.rows,
        "unused_rows": held_out.rows if held_out else 0,
        "short_rows": store.shorter_than(rows_needed(config, method))[1],
    }
