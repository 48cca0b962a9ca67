"""Simulators under a run's settings, and whether a dataset was recorded in the same way."""

import sys
from types import SimpleNamespace
from typing import Any

import gymnasium

from training import collector as driver
from tools import BadInput
from replay.store import OfflineDataset
from wrappers import make_env, parse_task
from wrappers.shared.vector import make_envs


def environment_settings(config: SimpleNamespace, task: str, domain: str) -> dict[str, Any]:
    """Arguments of `make_env` for ``task`` as the ``source``, the ``target``, or the task to ``collect``."""
    suite = parse_task(task).suite
    settings = {
        "size": config.size[0],
        "action_repeat": getattr(config, f"{suite}_action_repeat"),
        "time_limit": config.time_limit,
        "render": config.render,
    }
    if suite == "metaworld":
        settings |= {"camera": config.metaworld_camera, "flip": config.metaworld_flip}
    if domain in ("source", "collect"):
        settings["sparse_reward"] = config.sparse_reward
    if domain in ("target", "collect"):
        settings["background"] = config.background or None
    return settings


def environment(config: SimpleNamespace, task: str, domain: str) -> gymnasium.Env:
    """The simulator of ``task`` in this process, under the run's settings."""
    return make_env(task, **environment_settings(config, task, domain))


def collection_envs(config: SimpleNamespace, task: str, domain: str) -> list[Any]:
    """``envs`` simulators for a `driver.Collector`, each in its own process; with 0, one in this process."""
    if config.envs == 0:
        return [driver.InProcess(environment(config, task, domain))]
    return make_envs(task, config.envs, **environment_settings(config, task, domain))


def evaluation_envs(config: SimpleNamespace, task: str, domain: str, episodes: int) -> list[Any]:
    """``eval_envs`` simulators for `driver.evaluate`, each in its own process; a single one is in this process."""
    count = min(config.eval_envs, episodes)
    if count <= 1:
        return [driver.InProcess(environment(config, task, domain))]
    return make_envs(task, count, **environment_settings(config, task, domain))


def check_drawn_alike(dataset: OfflineDataset, simulator: dict[str, Any]) -> None:
    """BadInput if the dataset was recorded otherwise than the evaluation's simulator; a note where it does not say."""
    recorded = dataset.description
    suite = simulator["suite"]
    flags = {"action_repeat": f"--{suite}_action_repeat", "render": "--render"}
    if suite == "metaworld":
        flags |= {"camera": "--metaworld_camera", "flip": "--metaworld_flip"}
    for key, flag in flags.items():
        if recorded.get(key) is not None and recorded[key] != simulator[key]:
            raise BadInput(
                f"{dataset.directory} was recorded with {key} {recorded[key]}, evaluation would use {simulator[key]}: "
                f"give {flag} {recorded[key]}"
            )
    if "background" in recorded and bool(recorded["background"]) != bool(simulator.get("background")):
        given = recorded["background"] or "''"
        raise BadInput(
            f"{dataset.directory} was recorded with background {given}, evaluation would use "
            f"{simulator.get('background') or 'none'}: give --background {given}"
        )
    silent = [key for key in flags if recorded.get(key) is None]
    if silent:
        values = ", ".join(f"{key} {simulator[key]} ({flags[key]})" for key in silent)
        print(f"note: {dataset.directory} does not say how it was recorded; evaluation uses {values}", file=sys.stderr)
    if recorded.get("task", simulator["task"]) != simulator["task"]:
        print(f"note: {dataset.directory} holds {recorded['task']}, the target is {simulator['task']}", file=sys.stderr)
