"""How well-known datasets were recorded, for ``dataset.py describe``."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from replay.action_rows import KEY
from replay.check import list_episodes
from replay.data_files import DataFile
from replay.description import FILENAME, read_description
from replay.episode import ACTION_ROUNDING, camera_shapes
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
ADDED = {KEY, "clip_actions"}  # of data whose description lacks them
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
    height, width, _ = camera_shapes(_first_episode(files))[0]
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
    if not counts:
        raise BadInput(problems[0])
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if not sum(counts):
        return {}, f"all {total} action components are in [-1, 1]; none is clipped"
    affected = sum(count > 0 for count in counts)
    return {"clip_actions": True}, (
        f"{sum(counts)} of {total} action components ({sum(counts) / total:.1%}), in {affected} of {len(counts)} "
        f"episodes, are outside [-1, 1] (from {extremes[0]:.4g} to {extremes[1]:.4g}); they are clipped from now on"
    )


def describe_dataset(
    directory: Path, files: list[DataFile], preset: str, task: str, suite: str, *, action_at: str, clip_actions: bool
) -> tuple[Path, dict[str, Any]]:
    """Write into ``dataset.json`` what is given: a preset, a task, ``action_at`` ("auto": not given), the clipping.

    An existing file gets what it lacks of a task, ``action_at`` and the clipping. Returns its path, and what it then
    says. Prints how many actions are clipped.

    Raises:
        BadInput: nothing is given, or the clipping has no effect; see also `preset_description`, `write_description`.
    """
    if preset:
        description = preset_description(preset, task, suite, files)
    elif task or action_at != "auto" or clip_actions:
        description = {"task": task, "suite": suite} if task else {}
    else:
        raise BadInput("describe: nothing to write; give --preset, --task, --action_at or --clip_actions")
    if action_at != "auto":
        description |= {"action_at": action_at}
    if clip_actions or preset in CLIPPING:
        entries, line = clipping(files)
        if clip_actions and not entries:
            raise BadInput(f"--clip_actions has no effect on {directory}: {line}; remove it")
        description |= entries
        print(line)
    path = write_description(directory, description, add=not preset)
    return path, read_description(path.parent, nulls=True)


def _first_episode(files: list[DataFile]) -> dict:
    episodes, problems = list_episodes(files[:1])
    for _, load in episodes[:1]:
        return load()
    raise BadInput(problems[0])


def write_description(directory: Path, description: dict[str, Any], *, add: bool = False) -> Path:
    """Write ``dataset.json`` and return its path; one that says the same stays.

    With ``add``, one that lacks names of ``description`` gets them. Those of `ADDED` are added in any case.

    Raises:
        BadInput: there is one that says otherwise, or it cannot be written.
    """
    path = (directory if directory.is_dir() else directory.parent) / FILENAME
    if path.exists():
        found = read_description(path.parent, nulls=True)
        names = found.keys() & description.keys()
        if not add and found.keys() - ADDED:
            names |= (found.keys() ^ description.keys()) - ADDED
        differ = sorted(key for key in names if found.get(key) != description.get(key))
        if differ:
            raise BadInput(f"{path} says otherwise ({', '.join(differ[:6])}); remove it to describe the data anew")
        if found.keys() >= description.keys():
            return path
        description = found | description
    write_text(path, json.dumps(description, indent=2) + "\n")
    return path
