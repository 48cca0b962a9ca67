"""Simulators of a run: settings to `make_env` arguments, and checks against recorded data and trained agents.

``config`` is an object with the settings of configs.yaml as attributes.
A ``role`` is the domain that a simulator serves: ``source``, ``target``, or ``collect`` (collect.py's task).
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium

from tools import BadInput
from wrappers import SUITES, make_env, parse_task
from wrappers.shared.cameras import split_cameras
from wrappers.shared.vector import ProcessEnv, SyncEnv, make_envs

BACKGROUND_ROLES = ("target", "collect")


def suite_settings(config: Any, suite: str) -> dict[str, Any]:
    """Values of the suite's settings (`Suite.settings`) in ``config``, or their defaults if it does not have them."""
    return {key: getattr(config, f"{suite}_{key}", value) for key, value in SUITES[suite].settings.items()}


def env_settings(config: Any, task: str, role: str) -> dict[str, Any]:
    """Arguments of `make_env` for ``task`` in ``role``. Raises BadInput if there is no such task."""
    settings = {"size": config.size[0], "time_limit": config.time_limit, "render": config.render}
    settings |= suite_settings(config, parse_task(task).suite)
    if role in ("source", "collect"):
        settings["sparse_reward"] = config.sparse_reward
    if role in BACKGROUND_ROLES:
        settings["background"] = config.background or None
    return settings


def camera_count(config: Any, suite: str) -> int:
    """The cameras of the simulators of ``suite``."""
    return len(split_cameras(suite_settings(config, suite).get("camera")))


def make_simulator(config: Any, task: str, role: str) -> gymnasium.Env:
    """The simulator of ``task`` in this process. Raises BadInput as `make_env` does."""
    return make_env(task, **env_settings(config, task, role))


def state_simulator(config: Any, task: str) -> gymnasium.Env:
    """collect.py's simulator, in this process, with its low-dimensional entries as one vector (S,) float32.

    Raises BadInput if ``task`` observes images only.
    """
    env = make_simulator(config, task, "collect")
    env.unwrapped.leave_out_images()
    if not env.observation_space.spaces:
        raise BadInput(f"{task} observes images only, an expert needs low-dimensional states; give a --checkpoint")
    return gymnasium.wrappers.FlattenObservation(env)


def _envs(config: Any, task: str, role: str, processes: int) -> list[ProcessEnv] | list[SyncEnv]:
    if processes == 0:
        return [SyncEnv(make_simulator(config, task, role))]
    return make_envs(task, processes, **env_settings(config, task, role))


def collection_envs(config: Any, task: str, role: str) -> list[ProcessEnv] | list[SyncEnv]:
    """``config.envs`` simulators, each in its own process; if it is 0, one in this process."""
    return _envs(config, task, role, config.envs)


def evaluation_envs(config: Any, task: str, role: str, episodes: int) -> list[ProcessEnv] | list[SyncEnv]:
    """``config.eval_envs`` simulators, each in its own process, but at most one per episode; one is in this process."""
    count = min(config.eval_envs, episodes)
    return _envs(config, task, role, count if count > 1 else 0)


def _flags(suite: str) -> dict[str, str]:
    """The flag by setting, for the settings that change what an agent observes or how long it acts."""
    return {key: f"--{suite}_{key}" for key in SUITES[suite].settings} | {"render": "--render"}


def check_same_task(directory: Path, recorded: object, task: str, other_task: bool) -> None:
    """Check that a dataset is one of ``task``.

    recorded: the task in the dataset's description, by any of its names; None if it has none.
    other_task: accept another one, with a note.

    Raises BadInput if it is another one, or if ``other_task`` is given without need.
    """
    with suppress(BadInput):
        recorded = str(parse_task(recorded)) if isinstance(recorded, str) else recorded
    differ = f"{directory} has episodes of {recorded}, the target is {task}"
    if recorded in (None, task):
        if other_task:
            has = f"has episodes of {task}, the target" if recorded else "does not name another task"
            raise BadInput(f"--other_task True has no effect: {directory} {has}; remove it")
    elif not other_task:
        raise BadInput(
            f"{differ}, so evaluations would be of a task that it does not show: give --target_task {recorded}, or "
            f"another --offline_traindir (to train in spite of this: --other_task True)"
        )
    else:
        print(f"note: {differ}", file=sys.stderr)


def check_recorded_alike(
    directory: Path, recorded: dict[str, Any], simulator: dict[str, Any], *, other_task: bool = False
) -> None:
    """Check that a dataset was recorded with the settings of the simulator that evaluates on its task.

    directory: the dataset's folder, for messages.
    recorded: the dataset's description, which may lack any key. For the ones it lacks, a note is printed.
        ``background`` None is a dataset without one. Of two backgrounds the folders are not compared.
    simulator: the description of the simulator.
    other_task: see `check_same_task`.

    A warning is printed if the images are smaller than the simulator's.
    Raises BadInput if the task or a setting differs; the message names the flag to give.
    """
    check_same_task(directory, recorded.get("task"), simulator["task"], other_task)
    flags = _flags(simulator["suite"])
    for key, flag in flags.items():
        numbered = key == "camera" and isinstance(recorded.get(key), int)  # which camera that is, is not known here
        if recorded.get(key) is not None and not numbered and recorded[key] != simulator[key]:
            raise BadInput(
                f"{directory} was recorded with {key} {recorded[key]}, evaluation would use {simulator[key]}: "
                f"give {flag} {recorded[key]}"
            )
    size, simulated = recorded.get("size"), simulator.get("size")
    if isinstance(size, int) and isinstance(simulated, int) and size < simulated:
        print(
            f"warning: {directory} has images of {size} pixels, the agent's have {simulated}: those of the data are "
            f"enlarged, those of evaluations are sharp: give --size {size},{size}",
            file=sys.stderr,
        )
    background = simulator.get("background")
    if "background" in recorded and bool(recorded["background"]) != bool(background):
        raise BadInput(
            f"{directory} was recorded with background {recorded['background'] or 'none'}, evaluation would use "
            f"{background or 'none'}: give --background {recorded['background'] or repr('')}"
        )
    own = {key for key, value in SUITES[simulator["suite"]].settings.items() if value == ""}  # the suite's own choice
    missing = {k: f"{simulator[k]} ({flag})" for k, flag in flags.items() if recorded.get(k) is None and k not in own}
    if background and "background" not in recorded:
        missing["background"] = f"{background} (--background)"
    if missing:
        values = ", ".join(f"{key} {value}" for key, value in missing.items())
        print(f"note: {directory} does not say how it was recorded; evaluation uses {values}", file=sys.stderr)


def check_trained_alike(checkpoint_dir: Path, trained_config: Any, trained_role: str, config: Any, task: str) -> None:
    """Check that the agent of a checkpoint was trained with the simulator settings that ``config`` has for ``task``.

    trained_role: the role of the agent's simulator in its run. The task's role is ``collect``.

    Raises BadInput if a setting differs; the message names the flag to give.
    """
    suite = parse_task(task).suite
    trained, current = (
        {"render": c.render} | {f"{suite}_{key}": value for key, value in suite_settings(c, suite).items()}
        for c in (trained_config, config)
    )
    for key, was in trained.items():
        if was != current[key]:
            raise BadInput(f"--checkpoint {checkpoint_dir}: its agent was trained with {key} {was}: give --{key} {was}")
    behind = trained_config.background if trained_role in BACKGROUND_ROLES else ""
    if SUITES[suite].has_sky and bool(behind) != bool(config.background):
        raise BadInput(
            f"--checkpoint {checkpoint_dir}: its agent was trained with background {behind or 'none'}: "
            f"give --background {behind or repr('')}"
        )
