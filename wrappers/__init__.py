"""Simulators as gymnasium environments with pixel observations. A suite is one file in this folder.

A new suite is a module here that defines ``SUITE`` (see `Suite`), or a module elsewhere that calls `register`.
"""

from typing import Any

import gymnasium

from tools import BadInput, nearest
from wrappers.shared.base import source_file
from wrappers.shared.sparse import SparseReward
from wrappers.shared.suites import (
    SUITES,
    Suite,
    Task,
    all_tasks,
    discover,
    max_return,
    parse_target,
    parse_task,
    register,
)

__all__ = ["SUITES", "Suite", "Task", "all_tasks", "make_env", "max_return", "parse_target", "parse_task", "register"]

discover()


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} is {value!r}: give a whole number from {low} to {high}")


def _check_supported(task: Task, sparse_reward: bool, background: str | None) -> None:
    suite = SUITES[task.suite]
    if sparse_reward and not suite.has_success:
        titles = " or ".join(other.title for other in SUITES.values() if other.has_success)
        raise BadInput(f"sparse_reward: {task} defines no success; use it with {titles} tasks")
    if background is not None and not suite.has_sky:
        titles = " or ".join(other.title for other in SUITES.values() if other.has_sky)
        raise BadInput(f"background: {task} has no sky to replace; use it with {titles} tasks")


def _made(suite: Suite, name: str, description: dict[str, Any]) -> gymnasium.Env:
    """What ``make`` of a suite returns. Raises BadInput if it has no spaces."""
    env = suite.make(name, description)
    if not hasattr(env, "observation_space"):
        raise BadInput(
            f"suite {suite.name}: make returned {type(env).__name__} ({source_file(type(env))}) without spaces; "
            f"it must return a PixelEnv whose __init__ calls super().__init__(description, low=..., high=...)"
        )
    return env


def make_env(
    task: str | Task,
    *,
    size: int = 64,
    action_repeat: int | None = None,
    time_limit: int = 500,
    render: str = "fast",
    camera: str | int | None = None,
    flip: bool | None = None,
    sparse_reward: bool = False,
    background: str | None = None,
) -> gymnasium.Env:
    """The environment of ``task`` (see `parse_task` for the accepted names) with frames of one camera or several.

    Args:
        size: height and width of the frames, in pixels.
        action_repeat: simulator steps per agent step; None is the suite's default (DMC 2, others 1).
        time_limit: agent steps after which an episode is truncated.
        render: ``full`` (as the suite draws) or ``fast`` (no shadows, multisampling or reflections).
        camera: name or number; several are separated by commas; None or "" is the suite's default.
        flip: turn frames upside down; None is the suite's default, as in the paper's datasets.
        sparse_reward: 500 on an episode's first successful step, else 0 (suites that define success).
        background: folder of images, GIFs or videos that replace the sky (DMC).

    Returns:
        observations {"image": (size, size, 3 a camera) uint8, and the suite's low-dimensional entries, 1-D float32};
        actions (A,) float32 in [-1, 1]; ``env.get_wrapper_attr("description")`` is a dict of all the settings
        above with their final values. ``reset(seed=s)`` determines the whole episode, in any process.

    Raises:
        BadInput: an unknown task or camera, a setting out of range, no OpenGL library that works, or a suite whose
            environment is not complete.
    """
    task = parse_task(task)
    if render not in ("full", "fast"):
        raise BadInput(f"render is {render!r}; {nearest(str(render), ('full', 'fast'))}")
    _check_number("size", size, 8, 1024)
    _check_number("time_limit", time_limit, 1, 10**9)
    _check_supported(task, sparse_reward, background)
    suite = SUITES[task.suite]
    action_repeat = suite.settings.get("action_repeat", 1) if action_repeat is None else action_repeat
    _check_number("action_repeat", action_repeat, 1, 1000)
    description = {
        "task": str(task),
        "suite": task.suite,
        "size": size,
        "action_repeat": action_repeat,
        "time_limit": time_limit,
        "render": render,
        "camera": (suite.settings.get("camera") or None) if camera in (None, "") else camera,
        "flip": bool(suite.settings.get("flip", False) if flip is None else flip),
        "sparse_reward": bool(sparse_reward),
        "background": None if background is None else str(background),
    }
    env = _made(suite, task.name, description)
    if sparse_reward:
        env = SparseReward(env)
    return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(env), time_limit)
