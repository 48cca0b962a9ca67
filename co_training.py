r"""CoWorld: co-train an online agent in a source simulator and an offline agent on a target dataset (Algorithm 1).

python co_training.py --source_task walker_walk --target_task walker_downhill --offline_traindir DIR \
    --configs defaults dmc

Offline phases train the target agent, online phases the source agent. Three ties connect the two:
    stage A, state alignment (Eq. 3): the target's world model uses the source encoder's embedding of its images;
    stage B, reward alignment (Eq. 4, 5): the source's world model uses target batches with relabelled rewards;
    stage C, min-max value constraint (Eq. 6): the target's critic uses the source's critic.
`algorithm_1` lists the phases, `LOOPS` has the loop of each. A and B are in agents/coworld.py, C in
agents/agent.py; the equations of all three are in models.py.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import exit_on_bad_input, multiples_crossed  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

import config as settings
import models
from agents.base import Batch, Metrics
from agents.coworld import SourceAgent
from config import Config
from training.checkpoint import BEFORE_ALIGNMENT
from training.domain_senses import senses_notes
from training.domains import OnlineDomain
from training.given import check_given
from training.methods import SELECTED, Method, Phase, PhaseKind, find_method
from training.policies import agent_policy
from training.pretraining import PRETRAINED, AlreadyPretrained, is_pretrained, source_phases
from training.resolve import resolve
from training.runs import open_trainer, run_to_completion
from training.summary import summary
from training.target_notes import target_notes
from training.trainer import Trainer


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


# Evaluations


def evaluate_random(trainer: Trainer, phase: Phase) -> None:
    """The score of random actions, for comparison."""
    trainer.evaluate(None, phase)


def evaluate(trainer: Trainer, phase: Phase) -> None:
    """The score of the agent, acting with the mode of its policy."""
    trainer.evaluate(agent_policy(trainer.domains[phase.domain].agent, sample=False), phase)


# Online phases: the source agent


def prefill(trainer: Trainer, phase: Phase) -> None:
    """Random steps in the simulator, for the first batches."""
    source = trainer.source(phase)
    stride = len(source.collector)
    for _ in trainer.steps(phase, stride):
        source.collector.step()
        trainer.progress.source_steps += stride


def pretrain_source(trainer: Trainer, phase: Phase) -> None:
    """Updates of the source agent without steps in its simulator."""
    source = trainer.source(phase)
    for _ in trainer.steps(phase):
        update_source(trainer, source, phase)


def train_source(trainer: Trainer, phase: Phase) -> None:
    """Step the source's simulators; while they run, update the source agent once every ``train_every`` agent steps."""
    source, progress = trainer.source(phase), trainer.progress
    policy, stride = source.policy, len(source.collector)
    for _ in trainer.steps(phase, stride):
        source.collector.start(policy)
        progress.source_steps += stride
        progress.aligned_steps += stride * phase.aligned
        for _ in range(multiples_crossed(progress.source_steps, stride, trainer.config.train_every)):
            update_source(trainer, source, phase)
        source.collector.finish()


def update_source(trainer: Trainer, source: OnlineDomain, phase: Phase) -> None:
    """One update of the source: world model (Eq. 2; if aligned Eq. 4, 5 too), critic (Eq. 11) and actor (Eq. 7)."""
    progress = trainer.progress
    if trainer.method.shared_world_model:
        metrics = update_multitask_source(trainer, source, phase)
    elif phase.aligned:
        target_batch, target_embed = trainer.target.next_batch(), None
        if not source.agent.senses.channels:  # on states alone it cannot encode images: the target's encoder does
            target_embed = trainer.target.agent.embed(target_batch)
        eta = models.eta(progress.aligned_steps, trainer.config)
        metrics = source.agent.update(source.next_batch(), target_batch, eta, target_embed)
    else:
        metrics = source.agent.update(source.next_batch())
    if source is trainer.target:  # `online_dv2` learns in the target's simulator
        progress.target_updates += 1
    else:
        progress.source_updates += 1
    trainer.logger.add(source.name, metrics)


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
    target, batch, config, bound = trainer.target, trainer.target.next_batch(), trainer.config, None
    if trainer.method.aligned_with_sources:
        source, source_embed = select_source(trainer, phase, batch)
        if behavior and config.value_constraint != "off":
            bound = source.value_bound(batch, source_embed)
        measured = trainer.logger.lacks(target.name, "alignment_gradient_share")  # once a point of the curve
        aligned_embed = source_embed if config.state_alignment else None
        post, metrics = target.agent.update_world_model(batch, aligned_embed, measured)
    elif trainer.method.shared_world_model:
        post, metrics = target.agent.update_world_model(batch, trainer.sources[0].next_batch())
    else:
        post, metrics = target.agent.update_world_model(batch)
    if behavior:
        metrics |= target.agent.update_behavior(post, bound)
    trainer.progress.target_updates += 1
    trainer.logger.add(target.name, metrics)


def select_source(trainer: Trainer, phase: Phase, batch: Batch) -> tuple[SourceAgent, Tensor | None]:
    """Select the source of an update, and its embedding of the batch, for stage A; None if nothing needs it."""
    if trainer.progress.target_updates == 0:
        trainer.save_models(BEFORE_ALIGNMENT)  # analyse.py compares embeddings before and after
    agents, source_batches = [source.agent for source in trainer.sources], None
    if not all(agent.senses.channels for agent in agents):
        source_batches = [source.next_batch() for source in trainer.sources]
    selection = trainer.selector.select(trainer.target.agent, agents, batch, source_batches)
    trainer.log_selection(selection, phase)
    return agents[selection.index], selection.embed


# Baselines


def train_offline(trainer: Trainer, phase: Phase) -> None:
    """Update an agent that learns from the dataset by an update of its own: the model-free baselines, LOMPO."""
    target, progress = trainer.target, trainer.progress
    for _ in trainer.steps(phase):
        progress.target_iterations += 1
        if multiples_crossed(progress.target_iterations, 1, trainer.config.train_every):
            trainer.logger.add(target.name, target.agent.update(target.next_batch()))
            progress.target_updates += 1


def update_multitask_source(trainer: Trainer, source: OnlineDomain, phase: Phase) -> Metrics:
    """Multi-task DV2: `Phase.world_model_share` of the source's updates train the one world model, on both domains.

    The others train the source's actor and critic alone, on the world model as it is.
    """
    done, share = trainer.progress.source_updates, phase.world_model_share
    if math.ceil((done + 1) * share) > math.ceil(done * share):
        target_batch = trainer.target.next_batch()
        return source.agent.update(source.next_batch(), target_batch)
    return source.agent.update_behavior(source.agent.infer_posterior(source.next_batch()))


def transfer_source_to_target(trainer: Trainer, phase: Phase) -> None:
    """Finetuning, warm start: the target agent becomes a copy of the source agent. EWC stores what it needs."""
    source, target = trainer.sources[0], trainer.target.agent
    target.copy_from(source.agent)
    if trainer.method.elastic_weights:
        target.anchor_to(source.agent, (source.next_batch() for _ in range(trainer.config.ewc_batches)))


LOOPS = {
    PhaseKind.EVALUATE_RANDOM: evaluate_random,
    PhaseKind.EVALUATE: evaluate,
    PhaseKind.PREFILL: prefill,
    PhaseKind.PRETRAIN_SOURCE: pretrain_source,
    PhaseKind.TRAIN_SOURCE: train_source,
    PhaseKind.WARM_UP_TARGET: warm_up_target,
    PhaseKind.TRAIN_TARGET: train_target,
    PhaseKind.TRAIN_OFFLINE: train_offline,
    PhaseKind.TRANSFER: transfer_source_to_target,
}


# The command


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument(
        "--pretrain_only",
        action="store_true",
        help="stop when the sources are pretrained; the same command without it continues, and runs with --source_from "
        "may begin there",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    config, args = settings.parse(command(), arguments)
    method = find_method(config.method)

    def schedule(config: Config) -> list[Phase]:
        return method.schedule(algorithm_1(config), config)

    check_given(config, method, schedule, [*args.given, *["pretrain_only"] * args.pretrain_only])
    config, _ = resolve(config, method, schedule)
    if args.pretrain_only:
        pretrain(config, method, schedule)
        return
    with open_trainer(config, method, schedule) as trainer:
        for note in senses_notes(config, method, trainer.agents):
            print(note, file=sys.stderr)
        for note in target_notes(config, method, trainer.target.store if method.dataset else None, trainer.limits):
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
