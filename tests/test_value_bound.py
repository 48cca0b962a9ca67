"""Eq. 6 in the source's own latents (`constraint_latents: source`)."""

import pytest
import torch
from conftest import tiny
from test_agents import agents, batch, changed, weights
from test_plain import gradients
from torch import Tensor

import models
from agents.coworld import SourceAgent
from agents.value_bound import ValueBound
from benchmarks import plain
from networks import pad_action
from tools import BadInput
from training.methods import find_method
from training.resolve import check_against_each_other


def bound_of(source: SourceAgent, data: dict[str, Tensor], seed: int = 0) -> ValueBound:
    torch.manual_seed(seed)
    return source.value_bound(data)


@pytest.mark.parametrize("discrete", [0, 4])
@pytest.mark.parametrize("actions", [(4, 6), (6, 4)])
def test_losses_and_gradients_equal_those_of_two_plain_models(discrete: int, actions: tuple[int, int]):
    """Posterior of the target's batch, rollout with the target's actions, value: each by the plain source model."""
    source, target = agents(*actions, dyn_discrete=discrete, constraint_latents="source")
    config, data = target.config, batch(actions[1])
    bound = bound_of(source, data)
    torch.manual_seed(0)
    padded = {**data, "action": pad_action(data["action"], 6)}
    _, latents = plain.model_losses(source.world, padded, config, source.noise(data))
    source_start = tuple(torch.stack(parts, 1).flatten(0, 1).detach() for parts in zip(*latents, strict=True))
    (start, own), noise = target.start_imagination(target.infer_posterior(data), bound.post)
    torch.testing.assert_close((own["stoch"], own["deter"]), source_start, rtol=1e-5, atol=1e-5)
    source_noise = bound.noise(24, config.imag_horizon)
    total, metrics, _ = target.behavior_loss(start, noise, bound, [own], source_noise)
    rolled = source.world, source_start, source_noise
    states = start["stoch"], start["deter"]
    actor_loss, critic_loss = plain.behavior_losses(target, states, noise, source.behavior.critic, source=rolled)
    torch.testing.assert_close(metrics["actor_loss"], actor_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["critic_loss"], critic_loss, rtol=1e-5, atol=1e-5)
    critic = target.behavior.critic
    torch.testing.assert_close(gradients(critic, total), gradients(critic, critic_loss), rtol=1e-4, atol=1e-5)


def test_an_update_trains_the_target_alone_and_takes_the_sources_values():
    source, target = agents(constraint_latents="source", imag_starts=5, grad_accum=2)
    data = batch()
    with torch.no_grad():
        source.behavior.critic.layers[-1].weight.zero_()
        source.behavior.critic.layers[-1].bias.fill_(7.0)
    before = weights(source.world), weights(source.behavior.critic)
    metrics = target.update(data, source.embed(data), bound_of(source, data))
    assert metrics["source_value"].item() == pytest.approx(7.0)
    assert metrics["constraint_active"] == 0 and metrics["source_value_correlation"] == 0
    assert not changed(before[0], source.world) and not changed(before[1], source.behavior.critic)


def test_the_sources_states_are_those_of_the_targets_starts():
    """With some of the states as starts, the same ones are drawn from both models."""
    source, target = agents(constraint_latents="source", imag_starts=5)
    data = batch()
    bound, post = bound_of(source, data), target.infer_posterior(data)
    (start, own), _ = target.start_imagination(post, bound.post)
    for state, theirs in zip(start["deter"], own["deter"], strict=True):
        (index,) = (post["deter"].flatten(0, 1) == state).all(-1).nonzero()[:, 0]
        assert torch.equal(bound.post["deter"].flatten(0, 1)[index], theirs)


def test_a_copy_of_the_source_has_the_same_values_in_both_latents():
    """With equal models and random numbers the source's rollout is the target's own."""
    source, target = agents(constraint_latents="source")
    target.world.load_state_dict(source.world.state_dict())
    data = batch()
    bound = bound_of(source, data)
    torch.manual_seed(0)
    (start, own), noise = target.start_imagination(target.infer_posterior(data), bound.post)
    trajectory = target.behavior.imagine(target.frozen_world, start, noise)
    visited = trajectory.feat[:-1]
    values = bound.values(visited, trajectory, own, noise[0][:, :-1])
    torch.testing.assert_close(values, source.frozen_critic(visited), rtol=1e-4, atol=1e-5)


def test_the_embedding_for_state_alignment_may_be_used_again():
    source, _ = agents(constraint_latents="source")
    data = batch()
    once = bound_of(source, data)
    torch.manual_seed(0)
    again = source.value_bound(data, source.embed(data))
    assert torch.equal(once.post["stoch"], again.post["stoch"])


def test_loaded_cast_weights_are_brought_up_to_date():
    """In bfloat16 the frozen model has weights of its own, which loading a checkpoint does not change."""
    source, other = (SourceAgent(tiny(precision="bfloat16", constraint_latents="source", size="32,32"), 4, 4,
                                 torch.device("cpu")) for _ in range(2))  # fmt: skip
    other.load_state_dict(source.state_dict())
    found = [bound_of(agent, batch(4)).world.rssm.cell.gates.weight for agent in (source, other)]
    assert torch.equal(*found) and found[0].dtype == torch.bfloat16


def test_a_source_on_states_is_refused():
    config = tiny(method="coworld", source_observation="state", constraint_latents="source")
    with pytest.raises(BadInput, match=r"--constraint_latents source: .* give target"):
        check_against_each_other(config, find_method("coworld"))


def test_the_correlation_is_that_of_numpy():
    behavior = models.ActorCritic(tiny(), feat=3, action_dim=2)
    feat, source_value = torch.randn(4, 5, 3), torch.randn(4, 5)
    value = behavior.critic(feat)
    _, metrics = behavior.critic_loss(
        behavior.critic.prediction(feat), value, torch.ones(4, 5), source_value, "minmax", 1.0
    )
    expected = torch.corrcoef(torch.stack([value.flatten(), source_value.flatten()]))[0, 1]
    assert metrics["source_value_correlation"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["source_value"].item() == pytest.approx(source_value.mean().item())
