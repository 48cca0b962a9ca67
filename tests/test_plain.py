"""The fast world model against the plain one of benchmarks/plain.py: same losses, same gradients."""

import pytest
import torch
from conftest import tiny
from test_agents import batch

from benchmarks import plain
from models import WorldModel, weighted_sum


@pytest.mark.parametrize("discrete", [0, 4])
@pytest.mark.parametrize("size", [32, 64])
def test_losses_and_gradients_are_those_of_the_plain_program(discrete: int, size: int):
    config = tiny(size=f"{size},{size}", dyn_discrete=discrete, kl_free=0.0)
    torch.manual_seed(0)
    world, data = WorldModel(config, 6), batch(size=size)
    results = []
    for program in (
        lambda: world.losses(world.observe(data), data, config)[0],
        lambda: plain.losses(world, data, config),
    ):
        torch.manual_seed(1)
        losses = program()
        world.zero_grad()
        weighted_sum(losses, {"image": 1.0, "reward": 1.0, "kl": 1.0}).backward()
        results.append((losses, {name: p.grad.clone() for name, p in world.named_parameters()}))
    (fast, fast_grads), (slow, slow_grads) = results
    torch.testing.assert_close(fast, slow)
    assert all(grad.abs().sum() > 0 for grad in slow_grads.values())
    torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-3, atol=1e-4)


def test_bfloat16_losses_stay_near_those_in_float32():
    config = tiny(size="32,32", kl_free=0.0)
    torch.manual_seed(0)
    world, data = WorldModel(config, 6), batch()
    torch.manual_seed(1)
    exact, _ = world.losses(world.observe(data), data, config)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = world.losses(world.observe(data), data, config)
    assert all(loss.dtype == torch.float32 for loss in rounded.values())
    torch.testing.assert_close(rounded["image"], exact["image"], rtol=0.02, atol=0.0)
    torch.testing.assert_close(rounded["reward"], exact["reward"], rtol=0.1, atol=0.01)
