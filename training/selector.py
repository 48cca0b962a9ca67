"""Which of several sources the target follows (paper, appendix C)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.base import Batch, Metrics
from config import Config


@dataclass(frozen=True)
class Selection:
    """The source that one update of the target follows.

    Attributes:
        index: the source's place in the list of sources.
        embed: its embedding of the batch, (B, T, E); None if the update does not need it.
        distances: of several sources, the distance to each, (M,).
    """

    index: int
    embed: Tensor | None
    distances: list[float]

    def metrics(self, names: Sequence[str]) -> Metrics:
        """The distance to each source, and whether it was selected, as points of curves."""
        metrics: Metrics = {}
        for i, (name, distance) in enumerate(zip(names, self.distances, strict=True)):
            metrics |= {f"distance_{name}": distance, f"follows_{name}": float(i == self.index)}
        return metrics


class SourceSelector:
    """Selects the source of each target update and of each online phase, and counts the selections.

    The rules of ``select``:
        nearest: the source with the smallest alignment loss on the batch. An online phase trains the source that was
            selected most since the last one.
        relative: the same with each distance divided by the source's `models.information`. In the first round the
            sources take turns, because the alignment would make the first one selected the nearest for good.
        first: always the first source.
        round_robin: the sources take turns, a round each. A round is the target's updates up to an online phase, and
            that phase.

    Attributes:
        total_counts: how often each source was selected.
        recent_counts: the same in the present round.
        round: online phases finished.
    """

    SMOOTHING = 0.05  # of the mean distances that choose the online source after turns

    def __init__(self, config: Config, names: Sequence[str]):
        self.config, self.names = config, list(names)
        self.total_counts, self.recent_counts = [0] * len(names), [0] * len(names)
        self.round = 0
        self.mean_distances: list[float] = []

    def select(
        self,
        target: Agent,
        sources: Sequence[Agent],
        batch: Batch,
        source_batches: Sequence[Batch] | None = None,
    ) -> Selection:
        """Select the source for an update of ``target`` on ``batch``.

        A source on images embeds the target's images, and their states if it has the same. A source on low-dimensional
        states alone cannot; it embeds its own of ``source_batches``.
        """
        if len(sources) == 1 and not self.config.state_alignment:
            return Selection(0, None, [])
        batches = [batch] * len(sources) if source_batches is None else source_batches
        embeds = [
            source.embed(own, image_only=bool(source.senses.channels) and not source.senses.found_in(target.senses))
            for source, own in zip(sources, batches, strict=True)
        ]
        if len(sources) == 1:
            return Selection(0, embeds[0], [])
        distances = self.measure(target, embeds, batch).tolist()  # read from the device, once an update
        forced = self.forced_index()
        index = int(np.argmin(distances)) if forced is None else forced
        self._count(index, distances)
        return Selection(index, embeds[index], distances)

    def measure(self, target: Agent, embeds: list[Tensor], batch: Batch) -> Tensor:
        """The distance to each source, (M,): alignment losses, with ``relative`` divided by `models.information`."""
        distances = target.alignment_with(embeds, batch)
        if self.config.select == "relative":
            distances = distances / torch.stack([target.information(embed) for embed in embeds])
        return distances

    def forced_index(self) -> int | None:
        """The source that the rule prescribes, or None if the distances decide."""
        count = max(len(self.names), 1)
        if self.config.select == "relative" and self.round == 0:
            return sum(self.recent_counts) % count
        return {"first": 0, "round_robin": self.round % count}.get(self.config.select)

    def _count(self, index: int, distances: list[float]) -> None:
        self.total_counts[index] += 1
        self.recent_counts[index] += 1
        pairs = zip(self.mean_distances or distances, distances, strict=True)
        self.mean_distances = [old + self.SMOOTHING * (new - old) for old, new in pairs]

    def most_followed(self) -> int:
        """The source that most of the target's updates so far followed."""
        return int(np.argmax(self.total_counts))

    def online_source(self) -> int:
        """The source that an online phase trains."""
        if self.config.select == "relative" and self.round == 0 and self.mean_distances:
            return int(np.argmin(self.mean_distances))
        forced = self.forced_index()
        return int(np.argmax(self.recent_counts)) if forced is None else forced

    def end_round(self) -> None:
        """Call after an online phase."""
        self.recent_counts, self.round = [0] * len(self.names), self.round + 1

    def state_dict(self) -> dict[str, Any]:
        lists = {key: list(getattr(self, key)) for key in ("total_counts", "recent_counts", "mean_distances")}
        return {**lists, "round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
