"""CoWorld and what it is compared with: for each ``method``, where it learns, its agents, and its schedule.

A schedule is Algorithm 1's phases rearranged, so that every method gives the target agent the same numbers of updates
and the sources the same numbers of steps. A new method is one more entry of `METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from agents.agent import Agent, SourceAgent, TargetAgent
from agents.baselines import FinetunedAgent, MultitaskSource, MultitaskTarget, OfflineAgent


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: ``kind`` names its loop in co_training.py, ``iterations`` its length."""

    kind: str
    iterations: int = 1
    round: int = 0
    domain: str = "target"  # whose agent an evaluation scores
    aligned: bool = False  # the source's updates see target data too: stage B (reward alignment)
    source: int = 0  # which of several sources it is about; CHOSEN: the one that the target follows


CHOSEN = -1


@dataclass(frozen=True)
class Domains:
    """What agents are built from: for each domain its action size, and the sizes of the states it sees, if it does."""

    config: SimpleNamespace
    device: torch.device
    actions: dict[str, int]
    states: dict[str, dict[str, int]]

    def agent(self, kind: type[Agent], name: str, **more: object) -> Agent:
        largest = max(self.actions.values())
        return kind(self.config, self.actions[name], largest, self.device, self.states.get(name), **more)

    def source_names(self) -> list[str]:
        return [name for name in self.actions if name != "target"]


@dataclass(frozen=True)
class Method:
    """How a run learns.

    agents: builds them, by domain: ``target``, and ``source`` or ``source_1``, ``source_2``, ...
    schedule: its phases, from those of Algorithm 1.
    online: the tasks whose simulators it learns in: ``sources``, ``source`` (one), ``target`` or none.
    dataset: whether it learns from the target's dataset.
    tied: whether the target's updates follow the sources.
    """

    agents: Callable[[Domains], dict[str, Agent]]
    schedule: Callable[[list[Phase]], list[Phase]] = list
    online: str = "source"
    dataset: bool = True
    tied: bool = False


# Agents


def coworld(domains: Domains) -> dict[str, Agent]:
    sources = {name: domains.agent(SourceAgent, name) for name in domains.source_names()}
    return {**sources, "target": domains.agent(TargetAgent, "target")}


def alone(domains: Domains) -> dict[str, Agent]:
    """DreamerV2 online in each domain."""
    return {name: domains.agent(SourceAgent, name) for name in domains.actions}


def offline(domains: Domains) -> dict[str, Agent]:
    return {"target": domains.agent(OfflineAgent, "target")}


def finetuned(domains: Domains) -> dict[str, Agent]:
    """Two agents of one shape, the larger domain's: the second takes over what the first has learned."""
    largest = max(domains.actions.values())
    kinds = {"source": SourceAgent, "target": FinetunedAgent}
    return {name: domains.agent(kind, name, actor_dim=largest) for name, kind in kinds.items()}


def multitask(domains: Domains) -> dict[str, Agent]:
    """Two actor-critics on one world model."""
    source = domains.agent(MultitaskSource, "source")
    shared = {"world": source.world, "model_opt": source.model_opt}
    return {"source": source, "target": domains.agent(MultitaskTarget, "target", **shared)}


# Schedules


def without_sources(phases: list[Phase]) -> list[Phase]:
    kinds = ("evaluate_random", "target_model", "evaluate", "target")
    return [phase for phase in phases if phase.kind in kinds]


def source_first(phases: list[Phase]) -> list[Phase]:
    """All of the source's phases, then all of the target's, with the agent handed over in between."""
    online = [replace(p, aligned=False) for p in phases if p.kind in ("prefill", "source_updates", "source")]
    return [phases[0], *online, Phase("hand_over"), *without_sources(phases[1:])]


def both_at_once(phases: list[Phase]) -> list[Phase]:
    """Every update of the source sees target data too."""
    return [replace(p, aligned=p.kind in ("source", "source_updates")) for p in phases]


def target_online(phases: list[Phase]) -> list[Phase]:
    """The target's phases as online ones, in its own simulator."""
    start = [p for p in phases if p.kind in ("evaluate_random", "prefill", "source_updates")]
    rounds = [p for p in phases if p.round and p.kind in ("evaluate", "target")]
    return start + [replace(p, kind="source") if p.kind == "target" else p for p in rounds]


METHODS = {
    "coworld": Method(coworld, online="sources", tied=True),
    "offline_dv2": Method(offline, without_sources, online=""),
    "dv2_finetune": Method(finetuned, source_first),
    "dv2_finetune_ewc": Method(finetuned, source_first),
    "multitask_dv2": Method(multitask, both_at_once),
    "online_dv2": Method(alone, target_online, online="target", dataset=False),
}
COLLECTION = Method(alone, online="source", dataset=False)  # collect.py: DreamerV2 for the sake of its episodes
