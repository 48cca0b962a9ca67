"""How well-known datasets were recorded, for ``dataset.py describe``."""

import json
from pathlib import Path
from typing import Any

from replay.action_rows import KEY
from replay.check import list_episodes
from replay.data_files import DataFile
from replay.description import FILENAME, read_description
from replay.episode import image_shape
from tools import BadInput, write_text

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


def describe_dataset(
    directory: Path, files: list[DataFile], preset: str, task: str, suite: str, action_at: str
) -> tuple[Path, dict[str, Any]]:
    """Write into ``dataset.json`` what is given of a preset, a task and ``action_at``; "" and "auto" are not given.

    An existing file gets a task or an ``action_at`` that it lacks. Returns its path, and what it then says.

    Raises:
        BadInput: nothing is given; see also `preset_description` and `write_description`.
    """
    if preset:
        description = preset_description(preset, task, suite, files)
    elif task or action_at != "auto":
        description = {"task": task, "suite": suite} if task else {}
    else:
        raise BadInput("describe: nothing to write; give --preset, --task or --action_at")
    if action_at != "auto":
        description |= {"action_at": action_at}
    path = write_description(directory, description, add=not preset)
    return path, read_description(path.parent, nulls=True)


def _first_episode(files: list[DataFile]) -> dict:
    episodes, problems = list_episodes(files[:1])
    for _, load in episodes[:1]:
        return load()
    raise BadInput(problems[0])


def write_description(directory: Path, description: dict[str, Any], *, add: bool = False) -> Path:
    """Write ``dataset.json`` and return its path; one that says the same stays.

    With ``add``, one that lacks names of ``description`` gets them. ``action_at`` is added in any case.

    Raises:
        BadInput: there is one that says otherwise, or it cannot be written.
    """
    path = (directory if directory.is_dir() else directory.parent) / FILENAME
    if path.exists():
        found = read_description(path.parent, nulls=True)
        names = found.keys() & description.keys()
        if not add and found.keys() - {KEY}:
            names |= (found.keys() ^ description.keys()) - {KEY}
        differ = sorted(key for key in names if found.get(key) != description.get(key))
        if differ:
            raise BadInput(f"{path} says otherwise ({', '.join(differ[:6])}); remove it to describe the data anew")
        if found.keys() >= description.keys():
            return path
        description = found | description
    write_text(path, json.dumps(description, indent=2) + "\n")
    return path
