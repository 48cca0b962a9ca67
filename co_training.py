r"""CoWorld: co-train an online agent in a source simulator and an offline agent on a target dataset (Algorithm 1).

python co_training.py --source_task walker_walk --target_task walker_downhill --offline_traindir DIR \
    --configs defaults dmc

Offline phases train the target agent, online phases the source agent. Three ties connect the two:
    stage A, state alignment (Eq. 3): the target's world model uses the source encoder's embedding of its images;
    stage B, reward alignment (Eq. 4, 5): the source's world model uses target batches with relabelled rewards;
    stage C, min-max value constraint (Eq. 6): the target's critic uses the source's critic.
`algorithm_1` lists the phases, `LOOPS` has the loop of each. A and B are in agents/coworld.py, C in agents/agent.py.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, exit_on_bad_input, multiples_crossed  # isort: skip

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from torch import nn

import config as settings
from agents.base import Batch
from config import Config, evaluates_in_simulator, settings_with
from training import online
from training.checkpoint import BEFORE_ALIGNMENT
from training.domains import OnlineDomain, domain_tasks
from training.methods import (
    SELECTED,
    Method,
    Phase,
    PhaseKind,
    check_blocks,
    find_method,
)
from training.pretraining import (
    PRETRAINED,
    AlreadyPretrained,
    find_pretraining,
    is_pretrained,
    source_phases,
)
from training.resolve import resolve
from training.runs import open_trainer, run_to_completion
from training.summary import summary
from training.target_notes import target_notes
from training.trainer import Trainer
from training.used_settings import unused_settings, unused_suite_settings


def algorithm_1(config: Config) -> list[Phase]:
    """Every source alone, then warm-up, then rounds of an offline and an online phase, with evaluations in between."""
    phases = [Phase(PhaseKind.EVALUATE_RANDOM), *source_phases(config)]
    online_phase = Phase(PhaseKind.TRAIN_SOURCE, aligned=config.reward_alignment, source=SELECTED)
    for _ in range(config.warmup_rounds):
        phases.append(Phase(PhaseKind.WARM_UP_TARGET, config.warmup_updates))
        phases.append(replace(online_phase, iterations=config.warmup_steps))
    for r in range(1, config.rounds + 1):
        phases.append(Phase(PhaseKind.EVALUATE, round=r))
        phases.append(Phase(PhaseKind.TRAIN_TARGET, config.target_iterations, round=r))
        if r < config.rounds:
            phases.append(replace(online_phase, iterations=config.source_iterations, round=r))
    return [*phases, Phase(PhaseKind.EVALUATE, round=config.rounds)]


# Online phases: the source agent


def pretrain_source(trainer: Trainer, phase: Phase) -> None:
    """Updates of the source agent without steps in its simulator."""
    online.pretrain_source(trainer, phase, lambda trainer, source: update_source(trainer, source, phase))


def train_source(trainer: Trainer, phase: Phase) -> None:
    """Step the source simulator and update the source agent: Eq. 2 (with Eq. 4, 5 if aligned), then Eq. 7 and 11."""
    online.train_source(trainer, phase, lambda trainer, source: update_source(trainer, source, phase))


def update_source(trainer: Trainer, source: OnlineDomain, phase: Phase) -> None:
    online.update_source(trainer, source, target_batch(trainer, source) if phase.aligned else None)


def target_batch(trainer: Trainer, source: OnlineDomain) -> Batch:
    """A batch of target data for reward alignment.

    A source on low-dimensional states cannot encode images, so it gets the target encoder's embedding.
    """
    batch = trainer.target.next_batch()
    return {**batch, "embed": trainer.target.agent.embed(batch)} if source.agent.state else batch


# Offline phases: the target agent


def warm_up_target(trainer: Trainer, phase: Phase) -> None:
    """Update the target's world model alone (Eq. 3), once an iteration."""
    for _ in trainer.steps(phase):
        update_target(trainer, phase, behavior=False)


def train_target(trainer: Trainer, phase: Phase) -> None:
    """Update the target agent on the dataset, once every ``train_every`` iterations."""
    for _ in trainer.steps(phase):
        trainer.progress.target_iterations += 1
        if multiples_crossed(trainer.progress.target_iterations, 1, trainer.config.train_every):
            update_target(trainer, phase)


def update_target(trainer: Trainer, phase: Phase, behavior: bool = True) -> None:
    """One update of the target's world model (Eq. 3), then of its critic (Eq. 6) and actor (Eq. 7) if ``behavior``."""
    target, progress = trainer.target, trainer.progress
    batch, peer, source_critic = target.next_batch(), None, None
    if trainer.method.aligned_with_sources:
        peer, source_critic = select_source(trainer, phase, batch)
    elif trainer.method.shared_world_model:  # Multi-task DV2
        peer = trainer.sources[0].next_batch()
    post, metrics = target.agent.update_world_model(batch, peer, step=progress.aligned_steps)
    if behavior:
        metrics |= target.agent.update_behavior(post, source_critic)
    progress.target_updates += 1
    trainer.logger.add(target.name, metrics)


def select_source(trainer: Trainer, phase: Phase, batch: Batch) -> tuple[Batch | None, nn.Module | None]:
    """Select the source of an update: its embedding of the batch, for stage A, and its critic, for stage C.

    Each is None if its tie is switched off.
    """
    if trainer.progress.target_updates == 0:
        trainer.save_models(BEFORE_ALIGNMENT)  # analyse.py compares embeddings before and after
    agents, source_batches = [source.agent for source in trainer.sources], None
    if any(agent.state for agent in agents):
        source_batches = [source.next_batch() for source in trainer.sources]
    selection = trainer.selector.select(trainer.target.agent, agents, batch, source_batches)
    trainer.log_selection(selection, phase)
    peer = {"source_embed": selection.embed} if trainer.config.state_alignment else None
    constrained = trainer.config.value_constraint != "off"
    return peer, agents[selection.index].frozen_critic if constrained else None


# Baselines


def train_offline(trainer: Trainer, phase: Phase) -> None:
    """Update an agent that learns from the dataset by an update of its own: the model-free baselines, LOMPO."""
    target, progress = trainer.target, trainer.progress
    for _ in trainer.steps(phase):
        progress.target_iterations += 1
        if multiples_crossed(progress.target_iterations, 1, trainer.config.train_every):
            trainer.logger.add(target.name, target.agent.update(target.next_batch(), step=progress.target_updates))
            progress.target_updates += 1


def transfer_source_to_target(trainer: Trainer, phase: Phase) -> None:
    """Finetuning, warm start: the target agent becomes a copy of the source agent. EWC stores what it needs."""
    source, target = trainer.sources[0], trainer.target.agent
    target.copy_from(source.agent)
    if trainer.method.elastic_weights:
        target.anchor_to(source.agent, (source.next_batch() for _ in range(trainer.config.ewc_batches)))


LOOPS = {
    **online.ONLINE_LOOPS,  # PREFILL, EVALUATE_RANDOM, EVALUATE
    PhaseKind.PRETRAIN_SOURCE: pretrain_source,
    PhaseKind.TRAIN_SOURCE: train_source,
    PhaseKind.WARM_UP_TARGET: warm_up_target,
    PhaseKind.TRAIN_TARGET: train_target,
    PhaseKind.TRAIN_OFFLINE: train_offline,
    PhaseKind.TRANSFER: transfer_source_to_target,
}


# The command


OF_COLLECT = dict.fromkeys(
    settings_with(lambda setting: "co_training" not in setting.commands.split()), "in co_training.py"
)


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument(
        "--pretrain_only",
        action="store_true",
        help="stop when the sources are pretrained; the same command without it continues, and runs with --source_from "
        "may begin there",
    )
    return parser


def check_given(config: Config, method: Method, given: list[str]) -> None:
    """Raises BadInput if a setting that ``method`` needs is not given, or one of ``given``, the flags, has no effect.

    A source task without effect gives a note only, so that one command can be repeated with several methods.
    """
    needed = [
        ("source_task", method.uses_sources),
        ("target_task", not method.dataset),
        ("offline_traindir", method.dataset),
    ]
    for key in (key for key, is_needed in needed if is_needed):
        if not getattr(config, key):
            raise BadInput(f"--{key} is missing (see --help)")
    check_blocks(config.configs, config.method)
    if config.source_task and not method.uses_sources:
        print(f"note: {config.method} has no source; --source_task {config.source_task} is not used", file=sys.stderr)
    tasks = [task for task, _ in domain_tasks(config, method).values()]
    unused = unused_settings(config, method, f"with method {config.method}") | unused_suite_settings(tasks)
    if not find_pretraining(method, method.schedule(algorithm_1(config), config)):
        none = f"with method {config.method}, which does not train its sources alone"
        unused |= dict.fromkeys(("source_from", "pretrain_only"), none)
    settings.refuse_without_effect(given, OF_COLLECT | unused)
    if "holdout" in given and config.holdout == 0 and not evaluates_in_simulator(method, config):
        raise BadInput("--holdout 0: without a simulator of the target, held-out episodes are needed; give 0.1")


def main(arguments: list[str] | None = None) -> None:
    config, args = settings.parse(command(), arguments)
    method = find_method(config.method)
    check_given(config, method, [*args.given, *["pretrain_only"] * args.pretrain_only])

    def schedule(config: Config) -> list[Phase]:
        return method.schedule(algorithm_1(config), config)

    config, _ = resolve(config, method, schedule)
    if args.pretrain_only:
        pretrain(config, method, schedule)
        return
    with open_trainer(config, method, schedule) as trainer:
        for note in target_notes(config, method, trainer.target.store if method.dataset else None):
            print(note, file=sys.stderr)
        run_to_completion(trainer, LOOPS)
        print(summary(trainer))


def pretrain(config: Config, method: Method, schedule: Callable[[Config], list[Phase]]) -> None:
    """``--pretrain_only``: train the sources alone, and say how to go on."""
    done = "already pretrained"
    with suppress(AlreadyPretrained), open_trainer(config, method, schedule, pretrain_only=True) as trainer:
        run_to_completion(trainer, LOOPS, until=is_pretrained)
        done = "pretrained"
    print(
        f"{config.logdir}: sources {done}; the same command without --pretrain_only continues the run, and "
        f"--source_from {config.logdir} begins other runs from {PRETRAINED}/"
    )


if __name__ == "__main__":
    exit_on_bad_input(main)
