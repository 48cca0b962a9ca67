"""What the agent of each domain observes, and whether that fits the run's simulators, data and ties."""

from typing import Any

import gymnasium

from agents.base import BaseAgent
from config import Config
from replay import OfflineDataset
from replay.mapping import by_likeness, listed_names
from senses import Senses
from tools import CAMERA, BadInput
from training.methods import Method
from wrappers import Task


def simulator_senses(space: gymnasium.spaces.Dict, keys: str, option: str, task: Task, instead: str = "") -> Senses:
    """The senses of an agent with an image in a simulator with these observations, and the states ``keys``.

    Raises BadInput, with the ``option`` that gave them and perhaps what to give ``instead``, if one is not among the
    observations.
    """
    entries, state = {key: box for key, box in space.spaces.items() if key != "image"}, {}
    for key in listed_names(keys):
        if key not in entries:
            raise BadInput(
                f"--{option}: {task} observes no state {key!r}; there are: {by_likeness(key, entries)}{instead}"
            )
        state[key] = entries[key].shape[0]
    return Senses(space["image"].shape[-1], state)


def state_senses(space: gymnasium.spaces.Dict, task: Task) -> Senses:
    """The senses of an agent on all low-dimensional observations (Table 4). Raises BadInput if there are none."""
    found = Senses(0, {key: box.shape[0] for key, box in space.spaces.items() if key != "image"})
    if not found.state:
        raise BadInput(f"--source_observation state: {task} has images only; give image")
    return found


def online_senses(config: Config, name: str, space: gymnasium.spaces.Dict, task: Task) -> Senses:
    """The senses of the agent of an online domain: a source, or the target of a method that learns in it."""
    if config.source_observation == "state":
        return state_senses(space, task)
    if name == "target" or config.source_state_keys in ("", config.state_keys):
        instead = "" if name == "target" else "; give --source_state_keys, some of these or none"
        return simulator_senses(space, config.state_keys, "state_keys", task, instead)
    keys = "" if config.source_state_keys == "none" else config.source_state_keys
    return simulator_senses(space, keys, "source_state_keys", task)


def dataset_senses(dataset: OfflineDataset) -> Senses:
    return Senses(dataset.channels, dataset.states)


def cameras_of(senses: Senses) -> str:
    """The number of cameras as text."""
    count = senses.channels // CAMERA
    return "1 camera" if count == 1 else f"{count} cameras"


def check_target_simulator(senses: Senses, space: gymnasium.spaces.Dict, config: Config, task: Task) -> None:
    """Raises BadInput if the simulator that evaluates the target agent does not have what the agent observes."""
    simulated = simulator_senses(space, config.state_keys, "state_keys", task)
    if simulated.channels != senses.channels:
        raise BadInput(
            f"--offline_traindir {config.offline_traindir}: its images are of {cameras_of(senses)}, {task} is drawn by "
            f"{cameras_of(simulated)}; give as many: --image_key A,B for the data, {camera_flag(task)} A,B for the "
            f"simulator"
        )
    for key, size in senses.state.items():
        if size != simulated.state[key]:
            raise BadInput(
                f"--state_keys {key}: {size} numbers in {config.offline_traindir}, {simulated.state[key]} in {task}; "
                f"give that task's dataset"
            )


def camera_flag(task: Task) -> str:
    return f"--{task.suite}_camera"


def check_sources(
    config: Config, method: Method, senses: dict[str, Senses], tasks: dict[str, tuple[Task, str]]
) -> None:
    """Raises BadInput if a source cannot read what it needs of the target's data, or share weights with the target.

    ``senses`` by domain, ``tasks`` those of `domains.domain_tasks`.
    """
    target = senses.get("target")
    if not (method.uses_sources and method.dataset) or target is None:
        return
    sources = {name: found for name, found in senses.items() if name != "target"}
    ties = needed_ties(config, method, len(sources))
    for name, source in sources.items():
        task = tasks[name][0]
        if method.shares_weights and not (source.found_in(target) and target.found_in(source)):
            if source.channels == target.channels:
                raise BadInput(
                    f"method {config.method} shares weights between source and target, which need the same states: "
                    f"{described(source)} of {task}, {described(target)} of the target; give both the same --state_keys"
                )
            ties = {f"method {config.method}": "another --method", **ties}
        if not ties or not source.channels:
            continue
        if source.channels != target.channels:
            tie, instead = next(iter(ties.items()))
            raise BadInput(
                f"{task} is drawn by {cameras_of(source)}, the target's images are of {cameras_of(target)}, and {tie} "
                f"needs a source that reads them; give {camera_flag(task)} with as many cameras, or {instead}"
            )
        read = {tie: instead for tie, instead in ties.items() if tie not in ON_IMAGES}
        if read and not source.found_in(target):
            tie, instead = next(iter(read.items()))
            raise BadInput(
                f"the source {task} has the states {described(source)}, the target's data {described(target)}, and "
                f"{tie} needs a source that reads them; give --source_state_keys none, the same states, or {instead}"
            )


STATE_ALIGNMENT, SELECTION = "state alignment (Eq. 3)", "the choice among several sources"
ON_IMAGES = (STATE_ALIGNMENT, SELECTION)  # they need the source's encoder of images alone


def needed_ties(config: Config, method: Method, sources: int) -> dict[str, str]:
    """What of a run makes a source read the target's data, and the setting without it."""
    if not method.aligned_with_sources:
        return {}
    found = {}
    if config.state_alignment:
        found[STATE_ALIGNMENT] = "--state_alignment False"
    if config.reward_alignment:
        found["reward alignment (Eq. 5)"] = "--reward_alignment False"
    if config.value_constraint != "off" and config.constraint_latents == "source":
        found["the value constraint in the source's latents"] = "--constraint_latents target"
    if sources > 1:
        found[SELECTION] = "one --source_task"
    return found


def described(senses: Senses) -> str:
    """The states as text: names and sizes."""
    return ", ".join(f"{key} ({size})" for key, size in senses.state.items()) or "none"


def senses_notes(config: Config, method: Method, agents: dict[str, BaseAgent]) -> list[str]:
    """A line for each domain with several cameras or states; and what of the embeddings is aligned, if there are
    states."""
    found: dict[str, Any] = {name: agent.senses for name, agent in agents.items()}
    notes = []
    for name, senses in found.items():
        if senses.channels > CAMERA or (senses.channels and senses.state):
            states = f", states {described(senses)}" if senses.state else ""
            notes.append(f"{name}: observes the images of {cameras_of(senses)}{states}")
    target = found.pop("target", None)
    states = target and any(senses.state for senses in (target, *found.values()) if senses.channels)
    if method.aligned_with_sources and states and config.state_alignment:
        for name, source in found.items():
            both = target.state and source.same_state(target)
            what = "the image part and the part of the states" if both else "the image part alone"
            have = f"it has the states {described(source)}, the target {described(target)}"
            notes.append(f"state alignment with {name}: of {what} of the embeddings ({have})")
    return notes
