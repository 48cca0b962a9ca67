"""Agents of every method, and an update of all of them as a run makes it, on random batches."""

import torch
from conftest import OFFLINE_METHODS, tiny

import config as settings
from agents.agent import Agent
from agents.base import BaseAgent, Batch, Metrics
from agents.baselines import FinetunedAgent
from agents.lompo import LOMPOAgent
from training.methods import METHODS, AgentBuilder
from training.selector import SourceSelector

CPU = torch.device("cpu")


def dreamer_v3() -> dict[str, object]:
    """The settings of the block `dreamerv3`, but for sizes, which are those of `debug`."""
    blocks = settings.read_blocks()
    return {key: value for key, value in blocks["dreamerv3"].items() if key not in blocks["debug"]}


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


def with_ends(batch: Batch, frames: int = 0) -> Batch:
    """The batch with the end of an episode, a termination, in the middle of every sequence.

    ``frames`` of a model-free agent's observations: the batch with transitions of one step.
    """
    if frames:
        observed = batch["image"][:, :frames]
        steps = torch.ones(len(observed), dtype=torch.int64, device=observed.device)
        return {**batch, "image": torch.cat([observed, batch["image"][:, -frames:]], 1), "steps": steps}
    middle, discount = batch["reward"].shape[1] // 2, batch["discount"].clone()
    is_first = torch.zeros_like(batch["reward"], dtype=torch.bool)
    is_first[:, middle], discount[:, middle - 1] = True, 0.0
    return {**batch, "discount": discount, "is_first": is_first}


def update_all(method: str, agents: dict[str, BaseAgent], ends: bool = False) -> Metrics:
    """Update every agent, with the ties of the method. Returns the target's metrics. ``ends``: see `with_ends`."""
    target, source = agents["target"], agents.get("source")
    batch = target.random_batch()
    if ends:
        batch = with_ends(batch, 0 if isinstance(target, Agent) else target.config.frame_stack)
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
