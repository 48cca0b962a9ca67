"""The model-free agents against V-D4RL's code: the same weights, batch and random numbers give the same losses.

The constants were computed once, in float64, by running V-D4RL's `drqbc` folder (github.com/conglu1997/v-d4rl, commit
1ceaf22) with the numbers of `integers`; its random shifts were replaced by the integer crops that they stand for.
"""

import numpy as np
import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

from agents import model_free
from agents.base import BaseAgent
from agents.model_free import BCAgent, CQLAgent, DrQBCAgent
from agents.pixel_networks import gather_window

CPU = torch.device("cpu")
AGENTS = {"bc": BCAgent, "drq_bc": DrQBCAgent, "cql": CQLAgent}
REFERENCE = {  # method -> loss of the first and of the second update
    "drq_bc": {
        "critic_loss": (7.62032539, 3.95616311),
        "actor_loss": (2.99781513, 3.05645268),
        "cloning_loss": (0.497815131, 0.556452681),
        "value": (-0.788947535, -1.19372098),
        "actor_grad_norm": (17.0284616, 21.0071),
    },
    "cql": {
        "critic_loss": (78.9042863, 72.7172286),
        "temporal_difference": (7.62032539, 2.17031709),
        "conservative_gap": ((36.8443783 + 34.4395826) / 20, (35.6963502 + 34.8505613) / 20),
        "actor_loss": (1.94328685, 1.67137705),
        "value": (-0.788947535, -0.954265684),
        "actor_grad_norm": (10.1938722, 20.8835408),
    },
    "bc": {
        "actor_loss": (0.691216345, 0.678944337),
        "cloning_loss": (0.691216345, 0.678944337),
        "actor_grad_norm": (np.hypot(13.2944506, 1.99405189), np.hypot(19.043839, 2.24367159)),
    },
}
SUMS = {  # method -> sum of all weights after two updates, by network
    "drq_bc": {
        "encoder": -15.8658304, "actor": -5.43021142, "critic": -234.44803, "slow_critic": -68.0596814,
    },
    "cql": {
        "encoder": -15.8081711, "actor": -24.7960203, "critic": -219.071753, "slow_critic": -67.841874,
    },
    "bc": {"encoder": -15.8637799, "actor": -9.4530178},
}  # fmt: skip
EVALUATED = {  # method -> the action at the batch's first observation after two updates
    "drq_bc": [0.10852035, 0.988834179, -0.255960785],
    "cql": [-0.994894752, 0.999378884, 0.546635463],
    "bc": [-0.590346092, 0.970831284, 0.199310485],
}


def integers(count: int, stream: int) -> np.ndarray:
    n = np.arange(count, dtype=np.int64)
    return (7919 * n + 31 * n * n + 104729 * stream) % 10007


def numbers(shape: tuple[int, ...], stream: int) -> np.ndarray:
    """Numbers in [-1, 1)."""
    return (integers(int(np.prod(shape)), stream) / 10007 * 2 - 1).reshape(shape)


class Numbers:
    """In place of the random numbers of an agent: shifts, normal and uniform numbers, each kind with a counter."""

    def __init__(self, agent: BaseAgent, patch: pytest.MonkeyPatch):
        self.agent, self.used = agent, {"shift": 0, "normal": 0, "uniform": 0}
        patch.setattr(model_free, "random_shift", self.shift)
        patch.setattr(agent, "noise", self.normal)
        patch.setattr(torch, "rand", self.uniform)

    def next(self, kind: str) -> int:
        self.used[kind] += 1
        return self.used[kind] - 1

    def shift(self, frames: Tensor, pad: int) -> Tensor:
        at = (5 * np.arange(2 * len(frames)) + 3 * self.next("shift") + 1) % (2 * pad + 1) - pad
        left, top = torch.from_numpy(at.reshape(-1, 2)).unbind(1)
        return gather_window(frames, top, left, frames.shape[2])

    def normal(self, *shape: int) -> Tensor:
        return self.agent.noise_scale * torch.from_numpy(2 * numbers(shape, 300 + self.next("normal"))).float()

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.from_numpy((numbers(tuple(shape), 400 + self.next("uniform")) + 1) / 2).float()


def set_weights(module: nn.Module, stream: int) -> None:
    """The layers, in order, with the numbers of two streams each, for weights and biases."""
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.LayerNorm):
            continue
        shape = tuple(layer.weight.shape)
        weight = numbers(shape, stream)
        weight = 1 + 0.1 * weight if len(shape) == 1 else np.sqrt(6 / np.prod(shape[1:])) * weight
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(0.1 * numbers(tuple(layer.bias.shape), stream + 1)))
        stream += 2


def reference_agent(method: str) -> BaseAgent:
    """Of V-D4RL's sizes, but for 32 hidden units; its updates are those in the middle of a run."""
    config = tiny(
        method=method, size="84,84", feature_size=50, q_units=32, nstep=3, noise_steps=125_000, conservative_actions=10
    )
    agent = AGENTS[method](config, 3, 3, CPU)
    agent.updates = 100_000
    for name, stream in {"encoder": 0, "actor": 10, "critic": 30, "slow_critic": 60}.items():
        if hasattr(agent, name):
            set_weights(getattr(agent, name), stream)
    with torch.no_grad():  # so that some actions are clipped
        agent.actor.policy[-1].bias.copy_(torch.tensor([0.2, 1.8, -1.5]))
    return agent


def reference_batch() -> dict[str, Tensor]:
    images = [
        (integers(4 * 9 * 84 * 84, stream) % 256).astype(np.uint8).reshape(4, 3, 3, 84, 84).transpose(0, 1, 3, 4, 2)
        for stream in (200, 201)
    ]
    reward, discount = torch.zeros(4, 3), torch.ones(4, 3)
    reward[:, 0] = torch.from_numpy(0.5 + 0.5 * numbers((4,), 203))
    discount[2, 2] = 0
    action = torch.from_numpy(0.9 * numbers((4, 3), 202)).float()
    image = torch.from_numpy(np.concatenate(images, 1))
    return {"image": image, "action": action, "reward": reward, "discount": discount}


@pytest.mark.parametrize("method", AGENTS)
def test_two_updates_are_those_of_vd4rl(method: str, monkeypatch: pytest.MonkeyPatch):
    agent, batch = reference_agent(method), reference_batch()
    Numbers(agent, monkeypatch)
    for update in range(2):
        metrics = agent.update(batch)
        for name, expected in REFERENCE[method].items():
            limit = 1e-5 if update == 0 else 1e-4  # Adam enlarges the roundings of float32
            limit = 1e-3 if name.endswith("norm") else limit  # sums of many small gradients
            assert float(metrics[name]) == pytest.approx(expected[update], rel=limit), (name, update)
    for name, expected in SUMS[method].items():
        total = sum(p.double().sum().item() for p in getattr(agent, name).parameters())
        assert total == pytest.approx(expected, rel=1e-4), name
    images = batch["image"][:1, :3]
    state = {"image": torch.cat([images[:, :1], images[:, :2]], 1)}  # the next call appends the last frame
    action, _ = agent.act({"image": images[:, 2].numpy()}, state, np.zeros(1, bool), sample=False)
    assert action[0].tolist() == pytest.approx(EVALUATED[method], rel=1e-3)
