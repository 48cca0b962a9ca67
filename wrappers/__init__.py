"""Every simulator of the paper as a gymnasium environment: `make_env`, by task name."""

import importlib

import gymnasium

from tools import BadInput, nearest
from wrappers.shared.sparse import SparseReward
from wrappers.shared.tasks import Task, all_tasks, parse_task

__all__ = ["Task", "all_tasks", "make_env", "parse_task"]


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} is {value!r}: give a whole number from {low} to {high}")


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
    """The environment of ``task`` (see `parse_task` for the spellings), seen through its camera.

    Args:
        size: height and width of the frames, in pixels.
        action_repeat: simulator steps to each agent step; None is the suite's own (DMC 2, others 1).
        time_limit: agent steps after which an episode is truncated.
        render: ``full`` (as the suite draws) or ``fast`` (no shadows, multisampling or reflections).
        camera: name or number; None is the suite's own.
        flip: turn frames upside down; None is what the paper's datasets of that suite hold.
        sparse_reward: 500 on an episode's first successful step and 0 else (suites that define success).
        background: folder of images, GIFs or videos to show in place of the sky (DMC).

    Returns:
        observations {"image": (size, size, 3) uint8, and the suite's low-dimensional entries, 1-D float32};
        actions (A,) float32 in [-1, 1]; ``env.get_wrapper_attr("description")`` is a dict of all the settings
        above, resolved. ``reset(seed=s)`` determines the whole episode, in any process.

    Raises:
        BadInput: an unknown task or camera, a setting out of range, or no way to draw on this machine.
    """
    task = parse_task(task)
    if render not in ("full", "fast"):
        raise BadInput(f"render is {render!r}; {nearest(str(render), ('full', 'fast'))}")
    _check_number("size", size, 8, 1024)
    _check_number("time_limit", time_limit, 1, 10**9)
    if sparse_reward and task.suite == "dmc":
        raise BadInput(f"sparse_reward: {task} defines no success; use it with Meta-World or RoboDesk tasks")
    if background is not None and task.suite != "dmc":
        raise BadInput(f"background: {task} has no sky to replace; use it with DMC tasks")
    # Imported here: a simulator takes seconds to import, and needs an OpenGL library chosen first.
    suite = importlib.import_module(f"wrappers.{task.suite}")
    action_repeat = suite.ACTION_REPEAT if action_repeat is None else action_repeat
    _check_number("action_repeat", action_repeat, 1, 1000)
    description = {
        "task": str(task),
        "suite": task.suite,
        "size": size,
        "action_repeat": action_repeat,
        "time_limit": time_limit,
        "render": render,
        "camera": camera,
        "flip": suite.FLIP if flip is None else bool(flip),
        "sparse_reward": bool(sparse_reward),
        "background": None if background is None else str(background),
    }
    env = suite.make(task.name, description)
    if sparse_reward:
        env = SparseReward(env)
    return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(env), time_limit)
