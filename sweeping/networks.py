"""The sizes of a run's networks before it begins: by its tasks' actions and observations, and its settings."""

import json
from functools import cache
from typing import Any

import torch

from config import Config, target_task
from training.domains import open_dataset
from training.methods import AgentBuilder, Method, online_tasks
from training.pretraining import class_names, compared_settings, shapes
from wrappers import Task
from wrappers.shared.simulators import make_simulator

_networks: dict[str, str] = {}  # known results of `source_networks`


def source_networks(config: Config, method: Method) -> str:
    """Classes and shapes of the source agents as text: equal for two runs if one may have the other's source agents."""
    action_dims, states = domain_sizes(config, method)
    settings = compared_settings(config, method) | {"seed": 0, "source_task": ""}
    key = json.dumps([config.method, action_dims, states, settings], sort_keys=True)
    if key not in _networks:
        small, device = config.replace(precision="float32", compile="off"), torch.device("meta")
        with device:  # shapes without values, and no random numbers
            agents = method.agents(AgentBuilder(small, device, action_dims, states))
        sources = {name: agent for name, agent in agents.items() if name != "target"}
        sizes = {name: shapes(agent.model_dict()) for name, agent in sources.items()}
        _networks[key] = json.dumps([class_names(sources), sizes], sort_keys=True)
    return _networks[key]


def domain_sizes(config: Config, method: Method) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Action size of every domain, and sizes of the observations of sources on states, as `AgentBuilder` has them.

    The action size of a target without a simulator is that of its dataset.
    """
    tasks = {name: task for name, (task, _) in online_tasks(config, method).items()}
    tasks["target"] = target_task(config)
    sizes = {name: task_sizes(task) for name, task in tasks.items() if task.suite}
    if "target" not in sizes:
        sizes["target"] = open_dataset(config, method).action_dim, {}
    states = {name: state for name, (_, state) in sizes.items() if name != "target"}
    return {name: size for name, (size, _) in sizes.items()}, states if config.source_observation == "state" else {}


@cache
def task_sizes(task: Task) -> tuple[int, dict[str, int]]:
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
