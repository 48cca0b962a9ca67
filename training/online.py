"""The phases of a DreamerV2 agent that learns in a simulator. co_training.py and collect.py use them."""

import math
from collections.abc import Callable

from agents.base import Batch
from tools import multiples_crossed
from training.domains import OnlineDomain
from training.methods import Phase, PhaseKind
from training.policies import agent_policy
from training.trainer import Trainer

Update = Callable[[Trainer, OnlineDomain], None]


def update_source(trainer: Trainer, source: OnlineDomain, target_batch: Batch | None = None) -> None:
    """One update of the agent of ``source``; with ``target_batch``, its reward loss is Eq. 5's."""
    metrics = source.agent.update(source.next_batch(), target_batch, step=trainer.progress.aligned_steps)
    trainer.logger.add(source.name, metrics)
    count_update(trainer, source)


def update_source_behavior(trainer: Trainer, source: OnlineDomain) -> None:
    """One update of the actor and critic of ``source``, on its world model as it is."""
    post = source.agent.infer_posterior(source.next_batch())
    trainer.logger.add(source.name, source.agent.update_behavior(post))
    count_update(trainer, source)


def count_update(trainer: Trainer, source: OnlineDomain) -> None:
    if source is trainer.target:
        trainer.progress.target_updates += 1
    else:
        trainer.progress.source_updates += 1


def update_agent(trainer: Trainer, source: OnlineDomain, phase: Phase, update: Update) -> None:
    """Call ``update``, or train the behavior alone: `Phase.world_model_share` of all updates train the world model."""
    done, share = trainer.progress.source_updates, phase.world_model_share
    trains_world_model = math.ceil((done + 1) * share) > math.ceil(done * share)
    (update if trains_world_model else update_source_behavior)(trainer, source)


def prefill(trainer: Trainer, phase: Phase) -> None:
    """Random steps in the simulator, for the first batches."""
    source = trainer.source(phase)
    stride = len(source.collector)
    for _ in trainer.steps(phase, stride):
        source.collector.step()
        trainer.progress.source_steps += stride


def pretrain_source(trainer: Trainer, phase: Phase, update: Update = update_source) -> None:
    """Updates of the agent without steps in its simulator."""
    source = trainer.source(phase)
    for _ in trainer.steps(phase):
        update_agent(trainer, source, phase, update)


def train_source(trainer: Trainer, phase: Phase, update: Update = update_source) -> None:
    """Step the simulators; while they run, call ``update`` once every ``train_every`` agent steps."""
    source, progress = trainer.source(phase), trainer.progress
    policy, stride = source.policy, len(source.collector)
    for _ in trainer.steps(phase, stride):
        source.collector.start(policy)
        progress.source_steps += stride
        progress.aligned_steps += stride * phase.aligned
        for _ in range(multiples_crossed(progress.source_steps, stride, trainer.config.train_every)):
            update_agent(trainer, source, phase, update)
        source.collector.finish()


def evaluate_random(trainer: Trainer, phase: Phase) -> None:
    """The score of random actions, for comparison."""
    trainer.evaluate(None, phase)


def evaluate(trainer: Trainer, phase: Phase) -> None:
    """The score of the agent, acting with the mode of its policy."""
    trainer.evaluate(agent_policy(trainer.domains[phase.domain].agent, sample=False), phase)


ONLINE_LOOPS = {
    PhaseKind.PREFILL: prefill,
    PhaseKind.PRETRAIN_SOURCE: pretrain_source,
    PhaseKind.TRAIN_SOURCE: train_source,
    PhaseKind.EVALUATE_RANDOM: evaluate_random,
    PhaseKind.EVALUATE: evaluate,
}
