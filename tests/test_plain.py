"""Equal losses and gradients of the fast path and the plain reference in benchmarks/plain.py, of whole batches and
micro-batches, and of float32 and bfloat16."""

import pytest
import torch
from conftest import tiny
from test_agents import agents, batch, update_target
from torch import Tensor, nn
from updates import with_ends

import config as settings
from agents.agent import start_states
from agents.value_bound import ValueBound
from benchmarks import plain
from models import WorldModel, weighted_sum
from ops import one_hot


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("discrete", [0, 4])
@pytest.mark.parametrize(("size", "ends"), [(32, False), (64, False), (32, True)])
def test_model_losses_and_gradients_equal_those_of_the_plain_reference(discrete: int, size: int, ends: bool):
    """``ends``: two episodes in every sequence, the first of which terminates."""
    config = tiny(size=f"{size},{size}", dyn_discrete=discrete, kl_free=0.0, pred_discount=ends)
    torch.manual_seed(0)
    world, data = WorldModel(config, 6), batch(size=size)
    data = with_ends(data) if ends else data
    noise = world.rssm.noise(3, 8)
    fast, _ = world.losses(world.observe(data, noise), data, config)
    slow, _ = plain.model_losses(world, data, config, noise)
    torch.testing.assert_close(fast, slow)
    scales = dict.fromkeys(("image", "reward", "kl", *["discount"] * ends), 1.0)
    fast_grads, slow_grads = (gradients(world, weighted_sum(losses, scales)) for losses in (fast, slow))
    assert len(slow_grads) == len(list(world.parameters())) and all(g.abs().sum() > 0 for g in slow_grads.values())
    torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("discrete", "smallest", "ends"), [(0, 512, 0), (4, 512, 0), (4, 1, 0), (0, 512, 1), (4, 1, 1)]
)
def test_behavior_losses_and_gradients_equal_those_of_the_plain_reference(
    discrete: int, smallest: int, ends: int, monkeypatch: pytest.MonkeyPatch
):
    """``smallest`` 1: the heads' first layers add weight columns, as with large latents. ``ends``: as above."""
    monkeypatch.setattr(one_hot, "SMALLEST", smallest)
    source, target = agents(4, 6, dyn_discrete=discrete, pred_discount=bool(ends))
    torch.manual_seed(0)
    data = with_ends(batch()) if ends else batch()
    (start,) = start_states([target.infer_posterior(data)])
    weight = start.get("weight", 1.0)
    assert not ends or weight.tolist() == [1, 1, 1, 0, 1, 1, 1, 1] * 3
    noise = target.behavior.noise(target.world, 24, target.config.imag_horizon)
    critic = source.behavior.critic
    total, metrics, _ = target.behavior_loss(start, noise, ValueBound(critic))
    actor_loss, critic_loss = plain.behavior_losses(target, (start["stoch"], start["deter"]), noise, critic, weight)
    torch.testing.assert_close(metrics["actor_loss"], actor_loss)
    torch.testing.assert_close(metrics["critic_loss"], critic_loss)
    for module, slow in ((target.behavior.actor, actor_loss), (target.behavior.critic, critic_loss)):
        fast_grads, slow_grads = (gradients(module, loss) for loss in (total, slow))
        torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-3, atol=1e-6)
        assert all(g.abs().sum() > 0 for g in slow_grads.values())


def test_bfloat16_losses_are_close_to_those_in_float32():
    config = tiny(size="32,32", kl_free=0.0)
    torch.manual_seed(0)
    world, data = WorldModel(config, 6), batch()
    noise = world.rssm.noise(3, 8)
    exact, _ = world.losses(world.observe(data, noise), data, config)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = world.losses(world.observe(data, noise), data, config)
    assert all(loss.dtype == torch.float32 for loss in rounded.values())
    torch.testing.assert_close(rounded["image"], exact["image"], rtol=0.02, atol=0.0)
    torch.testing.assert_close(rounded["reward"], exact["reward"], rtol=0.1, atol=0.01)


def updated(ends: bool = False, **flags: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics of a source and a target update, and the optimisers' first moments, proportional to the gradients."""
    torch.manual_seed(0)
    source, target = agents(kl_free=0.0, pred_discount=ends, **flags)
    torch.manual_seed(1)
    data, other = batch(), batch(seed=1)
    data = with_ends(data) if ends else data  # the other batch of the source's update has one episode a sequence
    metrics = {f"source/{k}": v for k, v in source.update(data, other, 0.64).items()}
    metrics |= {f"target/{k}": v for k, v in update_target(target, source, other).items()}
    del metrics["target/source_value_correlation"]  # that of a batch is no mean over its parts
    moments = {}
    for name, agent in (("source", source), ("target", target)):
        for optimizer in ("model_opt", "actor_opt", "critic_opt"):
            states = getattr(agent, optimizer).adam.state.values()
            moments |= {f"{name} {optimizer} {i}": state["exp_avg"] for i, state in enumerate(states)}
    return metrics, moments


@pytest.mark.parametrize(("parts", "ends"), [(2, False), (3, False), (7, False), (2, True)])
@pytest.mark.parametrize("discrete", [0, 4])
def test_micro_batches_give_the_metrics_and_gradients_of_the_whole_batch(parts: int, ends: bool, discrete: int):
    """Without free nats: they clip the mean over a batch, so that term does depend on the split."""
    whole, in_parts = (updated(ends, dyn_discrete=discrete, grad_accum=count) for count in (1, parts))
    torch.testing.assert_close(in_parts, whole, rtol=1e-3, atol=1e-5)


def gradients_at_usual_values(precision: str, size: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and gradients of a target update without the step, with values near 1,480 and rewards near 7."""
    torch.manual_seed(0)
    blocks, names = settings.read_blocks(), "dyn_stoch dyn_discrete dyn_deter dyn_hidden units cnn_depth".split()
    sizes = {key: {**blocks["defaults"], **blocks[size]}[key] for key in names}
    source, target = agents(precision=precision, kl_free=0.0, discount=0.995, imag_horizon=10, **sizes)
    with torch.no_grad():
        target.world.reward.layers[-1].bias.fill_(7.0)
        for critic in (source.behavior.critic, target.behavior.critic, target.behavior.slow_critic):
            critic.layers[-1].bias.fill_(1480.0)
    torch.manual_seed(1)
    post = target.world.observe(batch()).latent
    (start,), noise = target.start_imagination(post)
    with target.autocast():
        behavior_loss, metrics, _ = target.behavior_loss(start, noise, source.value_bound(batch()))
        model_loss, more, _ = target.world_model_loss(batch(), target.noise(batch()), source.embed(batch()))
    (behavior_loss + model_loss).backward()
    grads = {}
    for name in target.OPTIMIZERS:
        parameters = getattr(target, name).parameters
        grads[name] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    return {**metrics, **more}, grads


@pytest.mark.parametrize("size", ["defaults", "small"])
def test_bfloat16_losses_and_gradients_are_near_float32_at_usual_values(size: str):
    """Nothing that bfloat16 rounds may be large: at 1,480 its numbers are 8 apart, and rewards are at most 10."""
    exact, rounded = gradients_at_usual_values("float32", size), gradients_at_usual_values("bfloat16", size)
    assert all(value.dtype == torch.float32 for value in rounded[0].values())
    for name in ("imagined_return", "value", "value_constraint", "imagined_reward"):
        torch.testing.assert_close(rounded[0][name], exact[0][name], rtol=0, atol=0.05)
    for name in ("image_loss", "reward_loss", "kl", "state_alignment", "critic_loss"):
        torch.testing.assert_close(rounded[0][name], exact[0][name], rtol=0.01, atol=0)
    for name, gradient in exact[1].items():
        assert torch.cosine_similarity(rounded[1][name], gradient, 0) > 0.999, name
        torch.testing.assert_close(rounded[1][name].norm(), gradient.norm(), rtol=0.02, atol=0)
