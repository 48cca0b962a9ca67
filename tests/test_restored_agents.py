"""Agents of every method continue bit for bit after a checkpoint, here without simulators.

The settings make every part of the state matter: the slow critic is copied in the first update only, and the noise of
model-free agents falls with every update.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_co_training import assert_equal
from updates import built, transfer, update_all

from agents.base import BaseAgent
from training.checkpoint import load_checkpoint, save_checkpoint
from training.methods import METHODS

Agents = dict[str, BaseAgent]
States = dict[str, dict]  # of agents, by domain
FLAGS = {"kl_free": 0, "slow_target_update": 4, "noise_steps": 8, "noise_start": 1.0, "noise_end": 0.1}


class Example(NamedTuple):
    """Agents of a method, saved after an update, and their state after two more without saving."""

    method: str
    saved: States
    continued: States

    def restored(self) -> Agents:
        agents = built(self.method, **FLAGS)
        for name, agent in agents.items():
            agent.load_state_dict(self.saved[name])
        return agents


def states(agents: Agents) -> States:
    return {name: agent.state_dict() for name, agent in agents.items()}


def written_and_read(agents: Agents, path: Path) -> States:
    config = dict(vars(agents["target"].config))
    save_checkpoint(path, {"config": config, "progress": {}, "agents": states(agents)})
    return load_checkpoint(path)["agents"]


def continued(method: str, agents: Agents) -> States:
    """The states after two updates, the same of equal agents."""
    torch.manual_seed(5)
    for _ in range(2):
        update_all(method, agents)
    return states(agents)


@pytest.fixture(scope="module", params=METHODS)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    method = request.param
    torch.manual_seed(0)
    agents = built(method, **FLAGS)
    transfer(method, agents)
    update_all(method, agents)
    saved = written_and_read(agents, tmp_path_factory.mktemp(method) / "checkpoint.pt")
    return Example(method, saved, continued(method, agents))


def test_restored_agents_continue_bit_for_bit(example: Example):
    assert_equal(continued(example.method, example.restored()), example.continued, example.method)


def same_weights(agents: Agents, expected: States) -> bool:
    return all(
        torch.equal(weight, expected[domain][part][key])
        for domain, agent in agents.items()
        for part, module in agent.model_dict().items()
        for key, weight in module.items()
    )


def test_without_the_moments_of_any_one_optimiser_the_weights_differ(example: Example):
    """So the test above notices an optimiser that is not saved or not restored."""
    for domain, agent in example.restored().items():
        for optimizer in agent.OPTIMIZERS:
            agents = example.restored()
            assert getattr(agents[domain], optimizer).adam.state, "it has no moments that could be lost"
            getattr(agents[domain], optimizer).adam.state.clear()
            continued(example.method, agents)
            assert not same_weights(agents, example.continued), f"{domain} {optimizer}"


@pytest.mark.parametrize("example", ["dv2_finetune_ewc"], indirect=True)
def test_without_the_anchor_of_any_one_optimiser_the_weights_differ(example: Example):
    target = example.restored()["target"]
    assert set(example.saved["target"]["anchors"]) == set(target.OPTIMIZERS)
    for optimizer in target.OPTIMIZERS:
        agents = example.restored()
        getattr(agents["target"], optimizer).anchor = None
        continued(example.method, agents)
        assert not same_weights(agents, example.continued), optimizer
