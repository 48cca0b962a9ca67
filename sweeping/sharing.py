"""Which runs of a sweep share the pretraining of their sources."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from config import Config, task_names
from training.checkpoint import CHECKPOINT
from training.domains import open_dataset
from training.methods import Method, online_tasks
from training.pretraining import PRETRAINED, compared_settings, pretraining_identity, pretraining_phases
from wrappers import simulated_task
from wrappers.shared.simulators import make_simulator


@dataclass(frozen=True)
class Member:
    """A run that could share its pretraining."""

    name: str
    folder: Path
    config: Config
    method: Method

    @property
    def begun(self) -> bool:
        """Whether it continues by itself: it has a checkpoint."""
        return (self.folder / CHECKPOINT).exists()

    @property
    def has_snapshot(self) -> bool:
        return (self.folder / PRETRAINED / CHECKPOINT).exists()


def choose_leaders(members: Sequence[Member], any_seed: bool = False) -> dict[str, str]:
    """Run -> the run that pretrains for it, for the runs of every group of two or more; a leader is its own.

    With ``any_seed``, runs that differ in their seed too share their pretraining.

    A run that has begun keeps its own pretraining. Of a group the leader is a run that is pretrained already, or has
    begun, or the first.
    """
    leaders: dict[str, str] = {}
    for group in groups(members, any_seed):
        ranked = sorted(group, key=lambda member: (not member.has_snapshot, not member.begun))  # stable
        leader, followers = ranked[0], [member for member in ranked[1:] if not member.begun]
        if followers:
            leaders |= {member.name: leader.name for member in (leader, *followers)}
    return leaders


def groups(members: Sequence[Member], any_seed: bool) -> list[list[Member]]:
    """The runs with one and the same pretraining. Simulators are made only to compare runs that may be equal."""
    alike: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        if member.method.uses_sources and pretraining_phases(member.config, member.method):
            settings = compared_settings(member.config, member.method) | ({"seed": 0} if any_seed else {})
            alike[json.dumps(settings, sort_keys=True)].append(member)
    found: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for settings, candidates in alike.items():
        for member in candidates if len(candidates) > 1 else ():
            found[settings, identity(member)].append(member)
    return [group for group in found.values() if len(group) > 1]


def identity(member: Member) -> str:
    """`pretraining_identity` but for the seed, computed once for each method and sizes: it is slow."""
    config, method = member.config.replace(seed=0), member.method
    action_dims, states = domain_sizes(config, method)
    key = compared_settings(config, method) | {"source_task": ""}
    shape = json.dumps([config.method, action_dims, states, key], sort_keys=True)
    if shape not in _identities:
        _identities[shape] = pretraining_identity(config, method, action_dims, states)
    return _identities[shape]


_identities: dict[str, str] = {}


def domain_sizes(config: Config, method: Method) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Action size of every domain, and sizes of the observations of sources on states, as `AgentBuilder` has them.

    The action size of a target without a simulator is that of its dataset.
    """
    tasks = {name: task for name, (task, _) in online_tasks(config, method).items()}
    tasks["target"] = task_names(config, "target_task")[0]
    sizes = {name: task_sizes(task) for name, task in tasks.items() if simulated_task(task)}
    if "target" not in sizes:
        sizes["target"] = open_dataset(config, method).action_dim, {}
    states = {name: state for name, (_, state) in sizes.items() if name != "target"}
    return {name: size for name, (size, _) in sizes.items()}, states if config.source_observation == "state" else {}


@cache
def task_sizes(task: str) -> tuple[int, dict[str, int]]:
    """Action size of a task, and the sizes of its low-dimensional observations."""
    env = make_simulator(_Defaults(), task, "source")
    try:
        spaces: dict[str, Any] = env.observation_space.spaces
        return env.action_space.shape[0], {key: s.shape[0] for key, s in spaces.items() if key != "image"}
    finally:
        env.close()


class _Defaults:
    """Settings of a small simulator; those of its suite have their default values."""

    size, time_limit, render, sparse_reward, background = (64, 64), 10, "fast", False, ""
