"""How well-known datasets were recorded, for ``dataset.py describe``."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from replay.check import list_episodes
from replay.data_files import DataFile
from replay.description import FILENAME, read_description
from replay.episode import ACTION_ROUNDING, image_shape
from tools import BadInput, progress_bar, write_text

# dm_control with Dreamer's wrapper, whole rendering, 1000 simulator steps an episode.
DMC = {"action_repeat": 2, "flip": False}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {  # preset -> suite -> settings
    # The settings of the DrQ-v2 and DreamerV2 wrappers in V-D4RL's repository.
    "vd4rl": {"dmc": DMC},
    # Those of wrappers.py and co_configs.yaml in the release. mujoco-py's frames of Meta-World are upside down, which
    # for the camera `corner` is upright.
    "coworld_release": {
        "dmc": DMC,
        "metaworld": {"action_repeat": 1, "camera": "corner", "flip": True},
        "robodesk": {"action_repeat": 1, "camera": "top", "flip": False},
    },
}
CLIPPING = ("coworld_release",)  # its collector recorded actions before the simulator clipped them
ALL = {"time_limit": 500, "render": "full", "sparse_reward": False, "background": None}


def preset_description(preset: str, task: str, suite: str, files: list[DataFile]) -> dict[str, Any]:
    """The description of a dataset that was recorded as ``preset`` says.

    Args:
        preset: a name in `PRESETS`.
        task: full name of the task, "" if it is not known.
        suite: the task's suite, "" if it is not known.
        files: the dataset, of which one episode is read for the size of its images.

    Raises:
        BadInput: the preset needs a task or has none of this suite, or no episode is usable.
    """
    suites = PRESETS[preset]
    if not suite and len(suites) > 1:
        raise BadInput(f"--preset {preset} has datasets of {', '.join(suites)}: give the dataset's --task")
    suite = suite or next(iter(suites))
    if suite not in suites:
        raise BadInput(f"--preset {preset} has no {suite} tasks such as {task}; its suites: {', '.join(suites)}")
    settings = {**ALL, **suites[suite]}
    if suite == "dmc":
        settings["camera"] = 2 if "quadruped" in task else 0
    height, width, _ = image_shape(_first_episode(files))
    if height != width:
        raise BadInput(f"{files[0].path}: images of {height}x{width}; those of --preset {preset} are square")
    named = {"task": task} if task else {}
    return {**named, "suite": suite, "size": height, **settings, "preset": preset}


def clipping(files: list[DataFile]) -> tuple[dict[str, Any], str]:
    """Whether a dataset's actions have to be clipped to [-1, 1], for which all of them are read.

    Returns:
        The entries for ``dataset.json``, {} if all actions are in the range; and a line that says how many are not.

    Raises:
        BadInput: no episode is usable.
    """
    episodes, problems = list_episodes([file.unclipped() for file in files])
    counts, total, extremes = [], 0, [0.0, 0.0]
    with progress_bar(len(episodes), "reading actions", unit="episode", disable=None) as bar:
        for _, load in episodes:
            bar.update()
            try:
                action = np.asarray(load()["action"])[1:]
            except BadInput as error:
                problems.append(str(error))
                continue
            counts.append(int((np.abs(action) > 1 + ACTION_ROUNDING).sum()))
            total += action.size
            extremes = [min(extremes[0], float(action.min())), max(extremes[1], float(action.max()))]
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if not counts:
        raise BadInput(problems[0])
    if not sum(counts):
        return {}, f"all {total} action components are in [-1, 1]; none is clipped"
    affected = sum(count > 0 for count in counts)
    return {"clip_actions": True}, (
        f"{sum(counts)} of {total} action components ({sum(counts) / total:.1%}), in {affected} of {len(counts)} "
        f"episodes, are outside [-1, 1] (from {extremes[0]:.4g} to {extremes[1]:.4g}); they are clipped from now on"
    )


def _first_episode(files: list[DataFile]) -> dict:
    episodes, problems = list_episodes(files[:1])
    for _, load in episodes[:1]:
        return load()
    raise BadInput(problems[0])


def write_description(directory: Path, description: dict[str, Any]) -> Path:
    """Write ``dataset.json`` and return its path; one with the same contents stays.

    Raises:
        BadInput: there is another one, or it cannot be written.
    """
    path = (directory if directory.is_dir() else directory.parent) / FILENAME
    if path.exists():
        found = read_description(path.parent, nulls=True)
        differ = sorted(key for key in {*found, *description} if found.get(key) != description.get(key))
        if differ == ["clip_actions"]:
            raise BadInput(f'{path} is there already; add "clip_actions": true to it, or remove it and start again')
        if differ:
            raise BadInput(f"{path} says otherwise ({', '.join(differ[:6])}); remove it to describe the data anew")
        return path
    write_text(path, json.dumps(description, indent=2) + "\n")
    return path
