"""Checkpoints: writing and reading them, whether a run may be resumed, and loading an agent from one.

A checkpoint has the settings, the counters, every agent (weights, optimisers), every domain (RNG of its batches, names
of the replay's episodes, running episodes), the selector's counts, torch's RNG and the logger's sums.
`Trainer.state_dict` puts them together.
"""

import re
import zipfile
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import torch

from agents.base import BaseAgent
from config import Config, facts, merge, named_tasks, read_blocks, settings_that_affect, source_tasks, target_task
from senses import Senses
from tools import CAMERA, BadInput, one_line, write_atomically
from training.methods import (
    COLLECTION,
    EVALUATIONS,
    ONLINE,
    SELECTED,
    AgentBuilder,
    Method,
    Phase,
    PhaseKind,
    find_method,
)
from training.resolve import aligned_steps
from training.used_settings import unused_settings, unused_suite_settings
from wrappers import SUITES, Task

CHECKPOINT = "checkpoint.pt"
BEFORE_ALIGNMENT = "before_alignment.pt"  # the agents before the first update of the target, for analyse.py
VERSION = 4  # of a checkpoint's contents


class DatasetIdentity(NamedTuple):
    """What tells two datasets apart: (episodes, steps, sum of returns), and `OfflineDataset.digest`."""

    figures: list[float]
    digest: str


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically. Raises BadInput if the disk is full."""
    try:
        write_atomically(path, lambda file: torch.save({"version": VERSION, **state}, file))
    except RuntimeError as error:  # torch's archive writer raises this in place of the disk's own error
        raise BadInput(
            f"{path} cannot be written ({one_line(error)}); free space, then the same command resumes"
        ) from None


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", advice: str = "remove it to start the run anew"
) -> dict[str, Any]:
    """The contents of a checkpoint; no code in it is executed.

    Raises BadInput if it is missing, damaged, or of another version; the message then ends with ``advice``.
    """
    if not path.exists():
        raise BadInput(f"no checkpoint at {path}; train first, or give the run's directory")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("its contents are damaged")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not {"config", "agents", "progress"} <= state.keys():
            raise ValueError("it is not a run's")
    except Exception as error:  # damage can surface as almost anything
        reason = one_line(error) or type(error).__name__
        raise BadInput(f"checkpoint {path} cannot be read ({reason}); {advice}") from None
    if (version := state.get("version")) != VERSION:
        raise BadInput(
            f"checkpoint {path} has format {version}, written by {written_by(path)}; this version reads format "
            f"{VERSION}: use the one that wrote it, or {advice}"
        )
    return state


def written_by(path: Path) -> str:
    """The version of this program that wrote a checkpoint, by the config.yaml of its run, for messages."""
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError, ValueError):
            if commit := re.search(r"^# commit (\S+)$", (folder / "config.yaml").read_text(), re.MULTILINE):
                return f"commit {commit[1]} of this program"
    return "another version of this program"


def check_suites(logdir: Path, domains: Container[str] | None = None) -> None:
    """Raises BadInput if the suite of one of a run's ``domains`` (None: of any) is not registered.

    config.yaml names the suites; of older runs, which do not have that line, nothing is known.
    """
    with suppress(OSError, ValueError):
        line = re.search(r"^# suites: (.+)$", (logdir / "config.yaml").read_text(), re.MULTILINE)
        for name, suite in (item.split(" ") for item in line[1].split(", ")) if line else ():
            if suite not in SUITES and (domains is None or name in domains):
                raise BadInput(
                    f"{logdir}: the task of its {name} is of suite {suite}, which is not registered: put the suite's "
                    f"file into wrappers/, or use the script that registers it (docs/extending.md)"
                )


def read_resumable(
    logdir: Path,
    config: Config,
    method: Method,
    schedule: Callable[[Config], Sequence[Phase]],
    dataset: DatasetIdentity | None,
) -> tuple[Config, dict[str, Any] | None]:
    """The settings and the checkpoint with which the run in ``logdir`` continues; None if there is no run.

    The checkpoint's progress is where the phases of ``config`` continue, see `resume_point`. If reward alignment has
    begun, the settings keep the run's ``eta_steps``. ``precision`` and ``threads``, if auto, become the run's, and so
    does ``source_from`` if it is not given.

    Args:
        schedule: makes the phases of settings.
        dataset: the identity of the data, see `check_same_dataset`.

    Raises:
        BadInput: the run has other settings or data, or finished phases that are not those of ``config``.
    """
    if not (logdir / CHECKPOINT).exists():
        return config, None
    check_suites(logdir)
    saved = load_checkpoint(logdir / CHECKPOINT)
    if "phases" not in saved:
        raise BadInput(f"{logdir} has the weights of an agent alone, which cannot be resumed; give another --logdir")
    run, phases = Config(**{**vars(config), **saved["config"]}), schedule(config)
    if config.precision == "auto":
        config = config.replace(precision=run.precision)
    if config.threads == "auto":
        config = config.replace(threads=run.threads)
    config = config.replace(source_from=resumed_source(logdir, saved["config"]["source_from"], config))
    compared = {key for key in saved["config"].keys() & vars(config).keys() if not facts(key).resumable}
    compared -= unused_settings(config, method).keys() | unused_suite_settings(named_tasks(config)).keys()
    if not saved["progress"]["aligned_steps"]:
        compared -= {"eta_steps"}
    elif config.eta_steps == aligned_steps(phases):
        config = config.replace(eta_steps=run.eta_steps)
    old, new = with_full_names(vars(run)), with_full_names(vars(config))
    for key in sorted(compared):
        if old[key] != new[key]:
            raise BadInput(
                f"{logdir} holds a run with {key} {old[key]}, not {new[key]}: "
                f"give the old value to resume it, or another --logdir"
            )
    saved["progress"] |= continued_progress(logdir, saved, run, config, schedule)
    check_same_dataset(logdir, saved, dataset, config.offline_traindir)
    return config, saved


def resumed_source(logdir: Path, old: str, config: Config) -> str:
    """The ``source_from`` of a run that had ``old``. Raises BadInput if another one is given."""
    new = config.source_from
    if not new or (old and Path(new).expanduser().resolve() == Path(old).expanduser().resolve()):
        return old
    if old:
        raise BadInput(
            f"{logdir} holds a run with source_from {old}, not {new}: give the old value to resume it, or another "
            f"--logdir"
        )
    raise BadInput(
        f"{logdir} holds a run that pretrains its sources itself: --source_from has no effect on it; remove it, or "
        f"give another --logdir"
    )


def check_same_dataset(logdir: Path, saved: dict[str, Any], dataset: DatasetIdentity | None, folder: str) -> None:
    """Raises BadInput if the data is not that of the checkpoint."""
    figures, digest = dataset or (None, None)
    differ = "" if saved["dataset"] == figures else f"episodes, steps and returns were {saved['dataset']}"
    if not differ and saved["dataset_digest"] != digest:
        differ = "episodes, steps and returns are equal, but not the images, actions or rewards, or their order"
    if differ:
        raise BadInput(
            f"{logdir} holds a run on other data than {folder} ({differ}): give the old --offline_traindir, or another "
            f"--logdir"
        )


def continued_progress(
    logdir: Path, saved: dict[str, Any], run: Config, config: Config, schedule: Callable[[Config], Sequence[Phase]]
) -> dict[str, int]:
    """The counters ``phase`` and ``iteration`` with which the phases of ``config`` continue those of ``run``.

    Raises BadInput, with the settings to give, if they cannot.
    """
    phases, phase, iteration = schedule(run), saved["progress"]["phase"], saved["progress"]["iteration"]
    if [str(p.kind) for p in phases[: len(saved["phases"])]] != saved["phases"]:
        raise BadInput(f"{logdir} holds a run of another version of this program; give another --logdir")

    def point(lengths: Config) -> tuple[int, int] | None:
        return resume_point(phases, schedule(lengths), phase, iteration, max(config.envs, 1))

    if found := point(config):
        return {"phase": found[0], "iteration": found[1]}
    lengths = settings_that_affect("length")
    changed = [key for key in lengths if getattr(run, key, None) != getattr(config, key, None)]
    running = f" and {iteration} iterations of {phases[phase].kind}" if iteration else ""
    given = " ".join(f"--{key} {getattr(config, key)}" for key in changed)
    texts = [length_to_give(key, run, config, lambda lengths: point(lengths) is not None) for key in changed]
    more = point(run.replace(rounds=run.rounds + 1))
    reason, longer = "", ""
    if config.rounds > run.rounds and not more:
        reason = f" (method {config.method} runs phases of every round before the finished ones)"
    if config.target_iterations > run.target_iterations and more:
        longer = " (or a larger --rounds, to train longer)"
    raise BadInput(
        f"{logdir} has finished {phase} phases{running}, which {given} would change{reason}: "
        f"give {' '.join(texts)}{longer}, or another --logdir"
    )


def length_to_give(key: str, run: Config, config: Config, resumes: Callable[[Config], bool]) -> str:
    """The values of a length that a run accepts, as text: ``--key 3``, or ``--key 3 or more``.

    It accepts its own value, and perhaps all larger ones, and smaller ones down to what is done.
    """

    def accepted(value: int) -> bool:
        try:
            return resumes(run.replace(**{key: value}))
        except BadInput:  # too short for any schedule
            return False

    own = getattr(run, key)
    low, high = min(getattr(config, key), own) - 1, own  # low raises BadInput, high is accepted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accepted(middle) else (middle, high)
    return f"--{key} {high}{' or more' if accepted(own + 1) else ''}"


def resume_point(
    old: Sequence[Phase], new: Sequence[Phase], phase: int, iteration: int, stride: int
) -> tuple[int, int] | None:
    """Where the phases ``new`` continue a run of the phases ``old``: (finished phases, iterations of the next one).

    None if a finished phase would be another one, or the running one shorter than what is done. The last training
    phase that is finished may have become longer. Evaluations after it are then repeated.

    Args:
        phase, iteration: finished phases of the run, and iterations of the running one.
        stride: iterations of an online phase are a multiple of it.
    """
    same = next((i for i in range(phase) if i >= len(new) or new[i] != old[i]), phase)
    if same == phase:
        if not iteration:
            return phase, 0
        fits = same < len(new) and same_but_length(old[same], new[same]) and iteration <= new[same].iterations
        return (phase, iteration) if fits else None
    trained_after = any(p.kind not in EVALUATIONS for p in old[same + 1 : phase])
    if same == len(new) or iteration or trained_after:
        return None
    if old[same].kind in EVALUATIONS:
        return same, 0
    if not same_but_length(old[same], new[same]) or old[same].iterations > new[same].iterations:
        return None
    if old[same].kind in ONLINE and old[same].source == SELECTED:
        return None  # the selector has begun its next round
    steps = stride if old[same].kind in ONLINE and old[same].kind != PhaseKind.PRETRAIN_SOURCE else 1
    return same, -(-old[same].iterations // steps) * steps


def same_but_length(one: Phase, other: Phase) -> bool:
    return replace(one, iterations=0) == replace(other, iterations=0)


def with_full_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the full names of their tasks, so that two names of one task are equal."""
    config = Config(**settings)
    sources = source_tasks(config) if config.source_task else []
    target = str(target_task(config)) if config.target_task else ""
    return {**settings, "source_task": ",".join(map(str, sources)), "target_task": target}


def model_state(agents: dict[str, BaseAgent]) -> dict[str, Any]:
    """What `load_agent` needs to rebuild the agents, without their weights."""
    return {
        "action_dims": {name: agent.action_dim for name, agent in agents.items()},
        "states": {name: agent.senses.state for name, agent in agents.items()},
        "channels": {name: agent.senses.channels for name, agent in agents.items()},
    }


def saved_senses(saved: dict[str, Any]) -> dict[str, Senses]:
    """What each agent of a checkpoint observes. One without ``channels`` has images of one camera, or states alone."""
    found = {}
    for name, state in saved["states"].items():
        found[name] = Senses(saved.get("channels", {}).get(name, 0 if state else CAMERA), state)
    return found


def load_agent(logdir: Path, domain: str, device: torch.device, file: str = CHECKPOINT) -> tuple[BaseAgent, Config]:
    """An agent of a run, with its weights alone, and the run's settings.

    ``domain`` is ``target``, ``source``, or ``source_1``, ... Raises BadInput if there is no such agent or checkpoint.
    """
    return build_agent(load_checkpoint(Path(logdir).expanduser() / file), logdir, domain, device)


def build_agent(saved: dict[str, Any], logdir: Path, domain: str, device: torch.device) -> tuple[BaseAgent, Config]:
    """`load_agent` from ``saved``, the checkpoint's contents."""
    if domain not in saved["agents"]:
        raise BadInput(f"{logdir} has no {domain} agent, only {', '.join(saved['agents'])}")
    config = Config(**{**merge(read_blocks(), [], {}), **saved["config"]})  # settings that it did not have yet
    method = find_method(config.method) if "target" in saved["action_dims"] else COLLECTION
    agent = method.agents(AgentBuilder(config, device, saved["action_dims"], saved_senses(saved)))[domain]
    agent.load_models(saved["agents"][domain])
    return agent, config


def check_fits(agent: BaseAgent, env: gymnasium.Env, task: Task) -> None:
    """Raises BadInput if the agent cannot play ``task``: another action size, or missing observations."""
    actions = env.action_space.shape[0]
    if actions != agent.action_dim:
        raise BadInput(f"{task} has {actions} actions, the agent {agent.action_dim}; choose another task or agent")
    spaces = env.observation_space.spaces
    if (channels := agent.senses.channels) and (drawn := spaces["image"].shape[-1]) != channels:
        raise BadInput(
            f"{task} is drawn by {drawn // CAMERA} camera(s), the agent observes {channels // CAMERA}; give the camera "
            f"setting of the agent's run, or choose another task or agent"
        )
    for key, size in agent.senses.state.items():
        if key not in spaces or spaces[key].shape != (size,):
            raise BadInput(
                f"{task} has no state {key!r} of {size} numbers, which the agent observes; choose another task or agent"
            )


def agent_role(config: Config, domain: str) -> str:
    """The role (see wrappers/shared/simulators.py) of the simulator that an agent's domain had in its run."""
    if domain == "target":
        return "target"
    return "source" if config.target_task else "collect"  # a run of collect.py has no target


def simulated_agent_task(logdir: Path, config: Config, domain: str) -> Task:
    """`agent_task`. Raises BadInput if the task in the run in ``logdir`` has no simulator, or not any more."""
    check_suites(logdir, (domain,))
    task = agent_task(config, domain)
    if not task.suite:
        raise BadInput(
            f"{logdir}: its target {task} has no simulator to evaluate it in; its offline figures are in scores.csv "
            f"(evaluate.py takes another --task, or --agent source)"
        )
    return task


def task_label(config: Config, domain: str) -> str:
    """`agent_task` as text, also if its suite is not registered: then the name as it was given."""
    try:
        return str(agent_task(config, domain))
    except BadInput:
        names = [config.target_task] if domain == "target" else config.source_task.split(",")
        return names[int(domain.partition("_")[2] or 1) - 1].strip()


def agent_task(config: Config, domain: str) -> Task:
    """The task of ``target``, ``source`` or ``source_1``, ``source_2``, ... in a run with these settings."""
    if domain == "target":
        return target_task(config)
    _, _, number = domain.partition("_")
    return source_tasks(config)[int(number or 1) - 1]
