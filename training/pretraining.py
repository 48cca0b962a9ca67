"""Pretraining, the phases that train the sources alone, and runs that continue from the pretraining of another run.

When its pretraining ends, a run keeps a snapshot in ``RUN/pretrained``: a checkpoint with the source agents (weights,
optimisers), their domains (replay, running episodes, RNG of the batches), the counters and torch's RNG, and with the
episodes of the replay. A run with ``source_from`` continues from it; if the seeds are equal, with the results that its
own pretraining would give.

For this, pretraining depends on nothing but what `compared_settings`, the agents and the phases say: methods build the
source agents first, and `runs.open_trainer` seeds torch again once all agents are built.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from agents.base import BaseAgent
from config import Config, facts, merge, read_blocks, source_tasks
from replay.stored_episode import StoredEpisode
from tools import BadInput, directory_when_complete, write_atomically
from training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from training.device import restore_torch_rng
from training.methods import (
    ONLINE,
    SELECTED,
    Method,
    Phase,
    PhaseKind,
    find_method,
)
from training.trainer import Progress, Trainer
from training.used_settings import unused_settings, unused_suite_settings

PRETRAINED = "pretrained"  # the snapshot's folder in a run's directory
SAVED = "pretraining classes action_dims states domains selector rng".split()  # in a snapshot, beside what all have


class AlreadyPretrained(Exception):
    """The run has finished its pretraining, so there is nothing to do for ``--pretrain_only``."""


# What pretraining is


def source_phases(config: Config) -> list[Phase]:
    """Every source alone: random steps, updates without steps, online training."""
    phases = []
    for source in range(len(config.source_task.split(","))):
        phases += [
            Phase(PhaseKind.PREFILL, config.prefill, source=source),
            Phase(PhaseKind.PRETRAIN_SOURCE, config.pretrain, source=source),
            Phase(PhaseKind.TRAIN_SOURCE, config.pretrain_steps, source=source),
        ]
    return phases


def find_pretraining(method: Method, phases: Sequence[Phase]) -> range:
    """The indices of the pretraining in the phases of a run; empty if it has none.

    These are the phases of given sources that follow the random policy's evaluation, if none of them uses the target's
    data.
    """
    if not (method.uses_sources and method.dataset):
        return range(0)
    start = next((i for i, phase in enumerate(phases) if phase.kind != PhaseKind.EVALUATE_RANDOM), len(phases))
    leading = list(takewhile(lambda phase: phase.kind in ONLINE and phase.source != SELECTED, phases[start:]))
    alone = not any(phase.aligned or phase.world_model_share != 1 for phase in leading)
    return range(start, start + len(leading)) if alone else range(0)


def compared_settings(config: Config, method: Method) -> dict[str, Any]:
    """The settings that can influence pretraining, with full names of the source tasks."""
    tasks = source_tasks(config)
    unused = unused_settings(config, method).keys() | unused_suite_settings(tasks).keys()
    compared = {key for key in vars(config).keys() - unused if "sources" in facts(key).affects.split()}
    settings = {key: value for key, value in vars(config).items() if key in compared}
    if config.source_observation == "image" and config.source_state_keys in ("", "none"):  # only the target has states
        for key in ("source_state_keys", "state_layers", "state_embed", "state_scale", "state_standardize", "symlog"):
            settings.pop(key, None)
    return {**settings, "source_task": ",".join(map(str, tasks))}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first of the `compared_settings` in which two pretrainings differ, ``KEY OLD, not NEW``; "" if none does.

    Their seeds may differ, and ``precision`` auto is any.
    """
    for key in sorted((old.keys() | new.keys()) - {"seed"}):
        values = old.get(key, "none"), new.get(key, "none")  # of settings that have no effect
        if values[0] != values[1] and not (key == "precision" and "auto" in values):
            return f"{key} {values[0]}, not {values[1]}"
    return ""


def describe_phases(phases: Iterable[Phase]) -> list[list[Any]]:
    return [[str(phase.kind), phase.source, phase.iterations] for phase in phases]


def class_names(agents: Mapping[str, BaseAgent]) -> dict[str, str]:
    return {name: type(agent).__name__ for name, agent in agents.items()}


def shapes(weights: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, list[int]]:
    """The shape of every tensor of an agent's weights, `Agent.model_dict`: PART/NAME -> shape."""
    parts = ("world", "behavior")
    return {f"{part}/{name}": list(tensor.shape) for part in parts for name, tensor in weights[part].items()}


# The course of a run


def awaits_snapshot(config: Config, method: Method, phases: Sequence[Phase], progress: Progress) -> bool:
    """Whether a run has yet to continue from the snapshot of ``source_from``."""
    pretraining = find_pretraining(method, phases)
    return bool(config.source_from and pretraining and progress.phase <= pretraining.start and not progress.iteration)


def is_pretrained(trainer: Trainer) -> bool:
    """Whether a run is past its pretraining."""
    return trainer.progress.phase >= find_pretraining(trainer.method, trainer.phases).stop


def check_pretrain_only(config: Config, method: Method, phases: Sequence[Phase], progress: Progress) -> None:
    """Raises AlreadyPretrained if ``--pretrain_only`` has nothing left to do, BadInput if it has no effect."""
    if config.source_from:
        raise BadInput("--pretrain_only has no effect with --source_from; remove it")
    end, kept = find_pretraining(method, phases).stop, (Path(config.logdir).expanduser() / PRETRAINED).exists()
    if progress.phase > end or (progress.phase == end and (kept or progress.iteration)):
        raise AlreadyPretrained


def share_pretraining(trainer: Trainer) -> None:
    """Call before every phase. Continues from the snapshot of ``source_from``, or writes one when pretraining ends."""
    pretraining, progress = find_pretraining(trainer.method, trainer.phases), trainer.progress
    if not pretraining:
        return
    own = trainer.logdir / PRETRAINED
    if progress.phase < pretraining.stop:  # the run was made longer, or its checkpoint was removed
        shutil.rmtree(own, ignore_errors=True)
    if progress.phase == pretraining.start and awaits_snapshot(
        trainer.config, trainer.method, trainer.phases, progress
    ):
        continue_from_snapshot(trainer)
    if (progress.phase, progress.iteration) == (pretraining.stop, 0) and not own.exists():
        save_snapshot(trainer)


# The snapshot


def save_snapshot(trainer: Trainer) -> None:
    """Write the state of the sources to ``RUN/pretrained``, which appears when it is complete.

    Episodes are hard links, so that the run can delete its own when its replay evicts them.
    """
    for source in trainer.sources:
        source.discard_prefetched()
    state, names = trainer.state_dict(), [source.name for source in trainer.sources]
    kept = {key: state[key] for key in ("config", "progress", "action_dims", "states", "channels", "selector", "rng")}
    kept |= {key: {name: state[key][name] for name in names} for key in ("agents", "domains")}
    pretraining = find_pretraining(trainer.method, trainer.phases)
    kept["pretraining"] = describe_phases(trainer.phases[i] for i in pretraining)
    kept["classes"] = class_names({name: trainer.agents[name] for name in names})
    with directory_when_complete(trainer.logdir / PRETRAINED) as folder:
        for source in trainer.sources:
            link_files([episode.path for episode in source.store.stored], folder / source.store.directory.name)
        save_checkpoint(folder / CHECKPOINT, kept)


def continue_from_snapshot(trainer: Trainer) -> None:
    """Make the state of the sources that of the snapshot of ``source_from``, and save the run.

    A run that is killed before the end resumes before it, and repeats it.
    """
    config, sources = trainer.config, trainer.sources
    saved = read_snapshot(config, trainer.method, trainer.phases)
    check_networks(config, saved, trainer.agents)
    folder = Path(config.source_from).expanduser() / PRETRAINED
    for source in sources:
        own = source.store.directory
        link_files([folder / own.name / name for name in episode_names(saved, source.name)], own)
        source.agent.load_state_dict(saved["agents"][source.name])
        source.load_state_dict(saved["domains"][source.name])
    trainer.selector.load_state_dict(saved["selector"])
    if config.seed == saved["config"]["seed"]:  # else its targets have random numbers of their own
        restore_torch_rng(saved["rng"])
    for counter, value in saved["progress"].items():
        setattr(trainer.progress, counter, value)
    trainer.logger.restart_rates()
    trainer.save()
    with directory_when_complete(trainer.logdir / PRETRAINED) as own:  # so that others can use this run too
        link_files([folder / CHECKPOINT], own)
        for source in sources:
            link_files([episode.path for episode in source.store.stored], own / source.store.directory.name)
    seed, step = saved["config"]["seed"], trainer.progress.step
    print(f"continuing from the pretraining of {config.source_from}, seed {seed}, step {step}", file=sys.stderr)
    for source in sources:
        trainer.describe_replay(source)


def link_files(paths: Iterable[Path], folder: Path) -> None:
    """Hard links of files in ``folder``, or copies where the file system has no links."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            with path.open("rb") as file:
                write_atomically(folder / path.name, lambda copy, file=file: shutil.copyfileobj(file, copy))


def episode_names(saved: dict[str, Any], source: str) -> list[str]:
    """Names of the files of a source's replay in a checkpoint."""
    return [Path(name).name for name in saved["domains"][source]["replay"]["episodes"]]


def read_snapshot(config: Config, method: Method, phases: Sequence[Phase]) -> dict[str, Any]:
    """The checkpoint of the snapshot of ``source_from``, for a run with these settings, but the seed, and phases.

    ``precision`` auto is that of the snapshot.

    Raises:
        BadInput: there is no snapshot, it is damaged, or its settings or phases are others. Of networks' sizes see
            `check_networks`.
    """
    run, where = Path(config.source_from).expanduser(), f"--source_from {config.source_from}"
    if run.resolve() == Path(config.logdir).expanduser().resolve():
        raise BadInput(f"{where}: this is the run's own directory; give another run")
    if not (run / "config.yaml").exists():
        raise BadInput(f"{where}: there is no run; give a run's directory")
    if not (run / PRETRAINED / CHECKPOINT).exists():
        raise BadInput(
            f"{where}: it has no {PRETRAINED}/: its pretraining is not finished, its method has none, or the folder "
            f"was removed; give another run, or continue this one first"
        )
    instead = "give another --source_from, or none"
    saved = load_checkpoint(run / PRETRAINED / CHECKPOINT, advice=instead)
    try:
        if missing := set(SAVED) - saved.keys():
            raise BadInput(f"{min(missing)} is missing")
        old = compared_settings(*run_of(saved))
        for source in saved["agents"]:
            for name in episode_names(saved, source):
                StoredEpisode.open(run / PRETRAINED / f"{source}_replay" / name)
    except (BadInput, AttributeError, LookupError, TypeError) as error:
        raise BadInput(f"{where}: its pretraining is damaged ({error}); {instead}") from None
    if differ := difference(old, compared_settings(config, method)):
        raise BadInput(f"{where}: it was pretrained with {differ}; {instead}")
    wanted = describe_phases(phases[i] for i in find_pretraining(method, phases))
    if saved["pretraining"] != wanted:
        raise BadInput(f"{where}: it was pretrained in other phases than those of method {config.method}; {instead}")
    return saved


def check_networks(config: Config, saved: dict[str, Any], agents: Mapping[str, BaseAgent]) -> None:
    """Raises BadInput if the source agents of a snapshot have other classes or sizes than those of ``agents``."""
    where, instead = f"--source_from {config.source_from}", "give another --source_from, or none"
    for name, state in saved["agents"].items():
        own, other = type(agents[name]).__name__, saved["classes"][name]
        if own != other:
            raise BadInput(f"{where}: its {name} agent is a {other}, not a {own}; {instead}")
        old, new = shapes(state), shapes(agents[name].model_dict())
        differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if differ:
            raise BadInput(
                f"{where}: {differ[0]} of its {name} agent has shape {old.get(differ[0])}, not {new.get(differ[0])} "
                f"(the largest action size of all domains decides it); {instead}"
            )


def run_of(saved: dict[str, Any]) -> tuple[Config, Method]:
    """Settings and method of the run that wrote a checkpoint; settings that it did not have yet have their defaults."""
    config = Config(**{**merge(read_blocks(), [], {}), **saved["config"]})
    return config, find_method(config.method)
