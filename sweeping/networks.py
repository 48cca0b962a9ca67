"""The sizes of a run's networks before it begins: by its tasks' actions and observations, and its settings."""

import json
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict

from config import Config, target_task
from senses import Senses
from tools import CAMERA
from training.domain_senses import dataset_senses, online_senses
from training.domains import open_dataset
from training.methods import AgentBuilder, Method, online_tasks
from training.pretraining import class_names, compared_settings, shapes
from wrappers import Task
from wrappers.shared.simulators import camera_count, make_simulator

_networks: dict[str, str] = {}  # known results of `source_networks`


def source_networks(config: Config, method: Method) -> str:
    """Classes and shapes of the source agents as text: equal for two runs if one may have the other's source agents."""
    action_dims, senses = domain_sizes(config, method)
    settings = compared_settings(config, method) | {"seed": 0, "source_task": ""}
    observed = {name: [found.channels, list(found.state.items())] for name, found in senses.items()}
    key = json.dumps([config.method, action_dims, observed, settings], sort_keys=True)
    if key not in _networks:
        small, device = config.replace(precision="float32", compile="off"), torch.device("meta")
        with device:  # shapes without values, and no random numbers
            agents = method.agents(AgentBuilder(small, device, action_dims, senses))
        sources = {name: agent for name, agent in agents.items() if name != "target"}
        sizes = {name: shapes(agent.model_dict()) for name, agent in sources.items()}
        _networks[key] = json.dumps([class_names(sources), sizes], sort_keys=True)
    return _networks[key]


def domain_sizes(config: Config, method: Method) -> tuple[dict[str, int], dict[str, Senses]]:
    """Action size of every domain, and what is observed in it, as `AgentBuilder` has them.

    Those of a target without a simulator are those of its dataset. ``config`` is that of `resolve`.
    """
    tasks = {name: task for name, (task, _) in online_tasks(config, method).items()}
    tasks["target"] = target_task(config)
    action_dims, senses = {}, {}
    for name, task in tasks.items():
        if task.suite:
            action_dims[name], state = task_sizes(task)
            side, cameras = config.size[0], camera_count(config, task.suite)
            boxes = {key: Box(-np.inf, np.inf, (size,)) for key, size in state.items()}
            space = Dict({"image": Box(0, 255, (side, side, CAMERA * cameras), np.uint8), **boxes})
            senses[name] = online_senses(config.replace(**image_of(config, name)), name, space, task)
    if "target" not in action_dims:
        dataset = open_dataset(config, method)
        action_dims["target"], senses["target"] = dataset.action_dim, dataset_senses(dataset)
    return action_dims, senses


def image_of(config: Config, name: str) -> dict[str, str]:
    """The target has images, also if the source observes states alone."""
    return {"source_observation": "image"} if name == "target" else {}


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
