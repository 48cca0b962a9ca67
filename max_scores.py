"""The most a DreamerV2 agent is known to reach on a task: max_scores.yaml."""

from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from wrappers.shared.tasks import Task

MAX_SCORES = Path(__file__).with_name("max_scores.yaml")


@cache
def known() -> dict[str, dict[str, float]]:
    """Returns by task, under ``tasks``, and by suite for tasks that are not named, under ``suites``."""
    return YAML(typ="safe").load(MAX_SCORES.read_text())


def of(task: Task) -> float:
    """The maximum return of an episode of ``task``."""
    return known()["tasks"].get(str(task), known()["suites"][task.suite])
