"""Whole losses and first gradients of a DreamerV3 agent against r2dreamer's."""

import math

import torch
from conftest import tiny
from torch import Tensor, nn
from updates import dreamer_v3

from agents.base import Batch
from agents.coworld import TargetAgent
from dreamer_v3.layers import RMSNorm
from models import RolloutNoise

SIZES = {
    "size": "16,16", "cnn_depth": 4, "dyn_stoch": 3, "dyn_discrete": 4, "dyn_deter": 16, "dyn_hidden": 12,
    "gru_blocks": 4, "units": 10, "batch_size": 3, "batch_length": 6, "imag_horizon": 4, "actor_entropy": 0.03,
    "discount": 1 - 1 / 333,
}  # fmt: skip
ACTIONS = 3


def numbers(*shape: int, seed: float = 0.0) -> Tensor:
    """Numbers in [0, 1) that look random and are the same on every machine."""
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ((steps.square() * 0.6180339887498949 + seed * 0.3819) % 1).float().reshape(shape)


def fill_weights(module: nn.Module, seed: float) -> None:
    """Weights of every layer of ``module``, in the order of its parameters."""
    with torch.no_grad():
        for layer in module.modules():
            for parameter in layer.parameters(recurse=False):
                seed += 1
                values = 2 * numbers(*parameter.shape, seed=seed) - 1
                fan_in = parameter.numel() // max(parameter.shape[0], parameter.shape[-1]) if parameter.dim() > 1 else 0
                if isinstance(layer, RMSNorm):
                    values = 1 + 0.3 * values
                elif len(parameter) == 255:  # two-hot: predictions of usual size
                    wide = parameter.dim() == 1
                    values = 0.3 * values - (torch.linspace(-12, 12, 255).square() if wide else 0)
                else:
                    values = values * (1.7 * fan_in**-0.5 if fan_in else 0.3)
                parameter.copy_(values)


def filled_agent(**flags: object) -> TargetAgent:
    agent = TargetAgent(tiny(**{**dreamer_v3(), **SIZES, **flags}), ACTIONS, ACTIONS, torch.device("cpu"))
    behavior = agent.behavior
    for i, module in enumerate((agent.world, behavior.actor, behavior.critic, behavior.slow_critic)):
        fill_weights(module, 100 * i)
    with torch.no_grad():  # a probability to continue and KLs of usual size
        agent.world.discount.layers[-1].bias.add_(2)
        for layer in (agent.world.rssm.post_out, agent.world.rssm.prior_layers.layers[-1]):
            layer.weight.mul_(3)
    return agent


def batch_of(agent: TargetAgent) -> Batch:
    """Three sequences: with a time limit after row 2, with terminations in rows 1 and 5, with one episode."""
    config = agent.config
    shape, size = (config.batch_size, config.batch_length), config.size[0]
    first, discount = torch.zeros(shape, dtype=torch.bool), torch.ones(shape)
    first[0, 3] = first[1, 2] = first[2, 0] = True
    discount[1, 1] = discount[1, 5] = 0
    return {
        "image": (256 * numbers(*shape, size, size, 3, seed=0.1)).to(torch.uint8),
        "action": 2 * numbers(*shape, ACTIONS, seed=0.2) - 1,
        "reward": 4 * numbers(*shape, seed=0.3) - 2,
        "discount": discount,
        "is_first": first,
    }


ENDS = torch.tensor([-1.0, 1.5])  # of the returns, so that S is 2.5


def noise_of(agent: TargetAgent) -> tuple[Tensor, RolloutNoise]:
    """The random numbers of the posteriors (B, T, S), and those of the rollouts."""
    config = agent.config
    batch, steps, horizon = config.batch_size, config.batch_length, config.imag_horizon
    starts = batch * steps
    rollout = numbers(starts, horizon, config.dyn_stoch, seed=0.6), numbers(starts, horizon, ACTIONS, seed=0.7)
    return numbers(batch, steps, config.dyn_stoch, seed=0.5), (*rollout, (None,) * horizon)


def result(agent: TargetAgent, batch, latents, rollout) -> tuple[dict[str, float], dict[str, float]]:
    """The losses of an update, and the norm of each weight's gradient. No weight is changed."""
    agent.noise = lambda _: latents
    agent.behavior.noise = lambda *_: rollout
    agent.behavior.return_range.ends.copy_(ENDS)
    for name in agent.OPTIMIZERS:
        getattr(agent, name).step = lambda: 0.0
    metrics = agent.update(batch)
    losses = {name[:-5]: value.item() for name, value in metrics.items() if name.endswith("_loss")}
    modules = {"world": agent.world, "actor": agent.behavior.actor, "critic": agent.behavior.critic}
    return losses, {
        f"{part}.{name}": parameter.grad.norm().item()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
