"""The domains that a run learns in online: their tasks, names and parts, and which of them the target follows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from training import collector as driver
from agents.agent import Metrics, SourceAgent
from tools import BadInput
from training.methods import Method
from replay.store import OnlineReplay
from wrappers import parse_task


@dataclass
class Source:
    """A domain with a simulator to learn in. ``role`` tells how its simulator is set up (see `environments`)."""

    name: str
    task: str
    role: str
    collector: driver.Collector
    replay: OnlineReplay
    agent: SourceAgent | None = None  # built when all domains are known


def named_tasks(config: SimpleNamespace, key: str) -> list[str]:
    """The canonical names of the tasks under ``key``, which commas part. BadInput names the flag too."""
    given = [task.strip() for task in getattr(config, key).split(",")]
    if not all(given):
        raise BadInput(f"--{key} {getattr(config, key)!r}: task {given.index('') + 1} is empty; remove its comma")
    if key == "target_task" and len(given) > 1:
        raise BadInput(f"--target_task {config.target_task}: the target is one task; give one")
    try:
        return [str(parse_task(task)) for task in given]
    except BadInput as error:
        raise BadInput(f"--{key}: {error}") from None


def online_tasks(config: SimpleNamespace, method: Method) -> dict[str, tuple[str, str]]:
    """Name -> (task, role) of each domain that ``method`` learns in online. BadInput if it takes fewer than given."""
    if method.online == "target":
        return {"target": (named_tasks(config, "target_task")[0], "target")}
    if not method.online:
        return {}
    if not config.source_task:
        raise BadInput("--source_task is missing (see --help)")
    tasks, role = named_tasks(config, "source_task"), "source" if method.dataset else "collect"
    if len(tasks) == 1:
        return {"source": (tasks[0], role)}
    if method.online == "source":
        raise BadInput(f"--source_task {config.source_task}: method {config.method} takes one; give one task")
    return {f"source_{i}": (task, role) for i, task in enumerate(tasks, 1)}


def source_seed(seed: int, index: int) -> int:
    """The seed of a source's episodes: the run's own for the first, and apart from it for others, also of one task."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index, 7]).generate_state(1)[0])


def open_source(
    name: str,
    task: tuple[str, str],
    envs: list[Any],
    finished: Callable[[str, dict[str, np.ndarray]], None],
    logdir: Path,
    config: SimpleNamespace,
    index: int,
) -> Source:
    """A source without its agent. ``finished`` is called with its name and each episode as it ends."""
    collector = driver.Collector(envs, lambda episode: finished(name, episode), source_seed(config.seed, index))
    replay = OnlineReplay(logdir / f"{name}_replay", capacity=config.replay_size)
    return Source(name, *task, collector, replay)


class Choices:
    """Which of several sources the target follows, and how often each has been followed.

    ``select: nearest`` leaves each update to the agent, which measures the distances; an online phase is for the source
    that won most of the target's updates since the last one. ``relative`` does the same with distances relative to what
    each source tells of the images, after a first phase in which the target follows all in turn: else the source that
    it happens to begin with stays the nearest, because it is the one that is followed. ``first`` is always the first;
    with ``round_robin`` the sources take turns, a turn being the target's updates up to an online phase and that phase.
    """

    SMOOTHING = 0.05  # of the distances that decide who learns online after sources were followed in turn

    def __init__(self, names: list[str], select: str):
        self.names, self.select = names, select
        self.won, self.lately, self.turn = [0] * len(names), [0] * len(names), 0
        self.smooth: list[float] = []

    def fixed(self) -> int | None:
        """The source that an update has to follow, or None if the nearest."""
        count = max(len(self.names), 1)
        if self.select == "relative" and self.turn == 0:
            return sum(self.lately) % count
        return {"first": 0, "round_robin": self.turn % count}.get(self.select)

    def count(self, metrics: Metrics) -> dict[str, float | str]:
        """Take note of an update; what `choices.csv` tells of it. Renames its metrics after the sources."""
        chosen = int(metrics.pop("chosen"))
        self.won[chosen] += 1
        self.lately[chosen] += 1
        distances = [float(metrics.pop(f"distance_{i}")) for i in range(1, len(self.names) + 1)]
        for i, (name, distance) in enumerate(zip(self.names, distances, strict=True)):
            metrics |= {f"distance_{name}": distance, f"follows_{name}": float(i == chosen)}
        pairs = zip(self.smooth or distances, distances, strict=True)
        self.smooth = [old + self.SMOOTHING * (new - old) for old, new in pairs]
        row = {f"distance_{name}": distance for name, distance in zip(self.names, distances, strict=True)}
        return {**row, "chosen": self.names[chosen]}

    def online(self) -> int:
        """The source that an online phase is for."""
        if self.select == "relative" and self.turn == 0 and self.smooth:
            return int(np.argmin(self.smooth))
        return int(np.argmax(self.lately)) if self.fixed() is None else self.fixed()

    def next_turn(self) -> None:
        """An online phase is over."""
        self.lately, self.turn = [0] * len(self.names), self.turn + 1

    def state_dict(self) -> dict[str, Any]:
        lists = {key: list(getattr(self, key)) for key in ("won", "lately", "smooth")}
        return {**lists, "turn": self.turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
