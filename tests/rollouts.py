"""Short episodes of real simulators, for tests to compare; importable by a spawned worker process."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from wrappers import make_env


def rollout(task: str, seed: int, steps: int = 50, size: int = 64, **settings) -> dict[str, np.ndarray]:
    """An episode of seeded random actions: image (steps + 1, size, size, 3), reward (steps,) and the rest."""
    env = make_env(task, size=size, **settings)
    rng = np.random.default_rng(7)
    observation, info = env.reset(seed=seed)
    rows, rewards, success = [observation], [], [info.get("success", 0.0)]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        rows.append(observation)
        rewards.append(reward)
        success.append(info.get("success", 0.0))
    env.close()
    episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**episode, "reward": np.array(rewards), "success": np.array(success)}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Both episodes are equal bit for bit."""
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def in_worker(function: Callable, *arguments) -> Any:
    """The function's result, computed in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_python(code: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a new Python process that inherits no choice of an OpenGL library."""
    chosen = ("MUJOCO_GL", "COWORLD_GL_CHECKED", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "COWORLD_EGL_DEVICE_FOR")
    kept = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "-c", code]
    environment = {**kept, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def check_with_gymnasium(task: str) -> None:
    """Gymnasium's own checks of the environment, wrapped and bare."""
    env = make_env(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings: joint angles have no bounds, no registry entry
        check_env(env)
        check_env(env.unwrapped)
    env.close()
