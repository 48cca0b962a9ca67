"""Agents of every method, and an update of all of them as a run makes it, on random batches."""

import torch
from conftest import OFFLINE_METHODS, tiny

from agents.agent import Agent
from agents.base import BaseAgent, Metrics
from agents.baselines import FinetunedAgent
from agents.lompo import LOMPOAgent
from training.methods import METHODS, AgentBuilder
from training.selector import SourceSelector

CPU = torch.device("cpu")


def built(
    method: str, source: int = 4, target: int = 5, device: torch.device = CPU, **flags: object
) -> dict[str, BaseAgent]:
    """The agents of a method, with ``source`` and ``target`` actions."""
    config = tiny(**{"size": "32,32", "method": method, "eta_steps": 100, **flags})
    names = {"target": target} if method in (*OFFLINE_METHODS, "online_dv2") else {"source": source, "target": target}
    return METHODS[method].agents(AgentBuilder(config, device, names, {}))


def transfer(method: str, agents: dict[str, BaseAgent]) -> None:
    """What the phase TRANSFER does, for methods that have one."""
    target = agents["target"]
    if isinstance(target, FinetunedAgent):
        target.copy_from(agents["source"])
    if METHODS[method].elastic_weights:
        target.anchor_to(agents["source"], [agents["source"].random_batch()])


def update_all(method: str, agents: dict[str, BaseAgent]) -> Metrics:
    """Update every agent, with the ties of the method. Returns the target's metrics."""
    target, source = agents["target"], agents.get("source")
    batch = target.random_batch()
    if source is not None:
        source.update(source.random_batch(), batch, *[] if METHODS[method].shared_world_model else [0.5])
    if isinstance(target, LOMPOAgent):  # its update leaves the world model as it is
        _, metrics = target.update_world_model(batch)
        return {**metrics, **target.update(batch)}
    if not isinstance(target, Agent):
        return target.update(batch)
    if METHODS[method].aligned_with_sources:
        selection = SourceSelector(target.config, ["source"]).select(target, [source], batch)
        return target.update(batch, selection.embed, source.value_bound(batch))
    if METHODS[method].shared_world_model:
        return target.update(batch, source.random_batch())
    return target.update(batch)
