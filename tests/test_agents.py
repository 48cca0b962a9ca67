"""Source and target agents: which weights an update trains, and which it must not change."""

import copy
from itertools import pairwise

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

import models
from agents.agent import start_states
from agents.base import Metrics
from agents.coworld import SourceAgent, TargetAgent
from agents.optim import Optimizer
from senses import Senses

CPU = torch.device("cpu")


def batch(actions: int = 6, seed: int = 0, size: int = 32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, 8, size, size, 3), dtype=torch.uint8),
        "action": torch.rand(3, 8, actions) * 2 - 1,
        "reward": torch.rand(3, 8),
        "discount": torch.ones(3, 8),
    }


def agents(source_actions: int = 6, target_actions: int = 6, **flags: object) -> tuple[SourceAgent, TargetAgent]:
    config = tiny(size="32,32", eta_steps=100, **flags)
    largest = max(source_actions, target_actions)
    return SourceAgent(config, source_actions, largest, CPU), TargetAgent(config, target_actions, largest, CPU)


def update_target(target: TargetAgent, source: SourceAgent, data: dict[str, Tensor]) -> Metrics:
    """An update of ``target`` with the ties to ``source`` that its settings switch on."""
    config = target.config
    source_embed = source.embed(data) if config.state_alignment else None
    return target.update(data, source_embed, source.value_bound(data) if config.value_constraint != "off" else None)


def warm_up(target: TargetAgent, source: SourceAgent, data: dict[str, Tensor]) -> Metrics:
    return target.update_world_model(data, source.embed(data))[1]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(before[k], v)}


@pytest.mark.parametrize("flags", [{}, {"dyn_discrete": 0}, {"pred_discount": True}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("grad", ["dynamics", "reinforce", "both"])
def test_updates_are_finite_in_every_setting(flags: dict, grad: str):
    source, target = agents(actor_grad=grad, **flags)
    for metrics in (source.update(batch(), batch(seed=1)), update_target(target, source, batch())):
        assert all(torch.isfinite(torch.as_tensor(v)) for v in metrics.values())


@pytest.mark.parametrize("grad", ["dynamics", "reinforce"])
def test_either_gradient_trains_every_weight_of_the_actor(grad: str):
    source, _ = agents(actor_grad=grad, actor_entropy=0)
    before = weights(source.behavior.actor)
    source.update(batch())
    assert changed(before, source.behavior.actor) == set(before)


def test_updates_change_every_weight():
    source, _ = agents(kl_free=0)
    before, behavior = weights(source.world), weights(source.behavior)
    for seed in range(2):
        source.update(batch(seed=seed), batch(seed=9))
    assert changed(before, source.world) == set(before)
    learned = changed(behavior, source.behavior)
    assert {k for k in behavior if k.startswith(("actor.", "critic."))} <= learned


def test_a_target_update_does_not_change_the_source():
    source, target = agents()
    before = weights(source.world), weights(source.behavior)
    update_target(target, source, batch())
    assert not changed(before[0], source.world) and not changed(before[1], source.behavior)
    assert all(p.grad is None for p in [*source.world.parameters(), *source.behavior.parameters()])
    assert all(p.requires_grad for p in source.world.parameters())


def test_a_behavior_update_does_not_change_the_world_model():
    source, _ = agents()
    output = source.world.observe(batch())
    before = weights(source.world)
    source.update_behavior(output.post)
    assert not changed(before, source.world)
    assert all(p.grad is None for p in source.world.parameters())


def test_the_warm_up_trains_only_the_world_model():
    source, target = agents()
    before = weights(target.behavior)
    metrics = warm_up(target, source, batch())
    assert not changed(before, target.behavior)
    assert metrics["state_alignment"] > 0


def test_agents_share_no_weights_and_do_not_store_each_other():
    """Defect 7 of the release: each world model was a submodule of the other's."""
    source, target = agents()
    update_target(target, source, batch())
    source.update(batch(), batch(seed=1))
    for one, other in ((source, target), (target, source)):
        own = {id(p) for m in (one.world, one.behavior) for p in m.parameters()}
        assert not own & {id(p) for m in (other.world, other.behavior) for p in m.parameters()}
        assert not any(value is other or value is other.world for value in vars(one).values())
    assert source.world.state_dict().keys() == target.world.state_dict().keys()


def test_state_alignment_moves_the_target_encoder_towards_the_source():
    source, target = agents(model_lr=0.01, state_alignment_scale=1000)
    data = batch()
    first = warm_up(target, source, data)["state_alignment"]
    for _ in range(20):
        last = warm_up(target, source, data)["state_alignment"]
    assert last < 0.5 * first


def test_the_three_ties_can_be_switched_off():
    source, target = agents(state_alignment=False, value_constraint="off")
    metrics = update_target(target, source, batch())
    assert "state_alignment" not in metrics and "value_constraint" not in metrics
    assert "reward_alignment" not in source.update(batch())


def test_eta_depends_on_the_current_step():
    """Defect 2 of the release: eta read a copy of a counter, which never changed."""
    source, _ = agents()
    etas = [models.eta(step, source.config) for step in (0, 50, 100, 1000)]
    assert etas == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert source.update(batch(), batch(seed=1), etas[1])["eta"].item() == pytest.approx(0.55)
    assert models.eta(0, source.config.replace(eta_steps=0)) == pytest.approx(source.config.eta_end)


def test_the_reward_loss_with_reward_alignment_is_equation_5():
    """Eq. 5 computed from its parts. The posterior is deterministic, so both computations use the same states."""
    source, _ = agents(dyn_discrete=0, dyn_min_std=0.0, target_informed_factor=0.25)
    with torch.no_grad():
        source.world.rssm.post_out.bias[source.config.dyn_stoch :] = -100.0  # standard deviation 0
        source.world.rssm.post_out.weight[source.config.dyn_stoch :] = 0.0
        source.world.rssm.prior_out.bias.zero_()
    own, other = batch(), batch(seed=1)
    _, metrics, _ = source.world_model_loss(own, source.noise(own), other, source.noise(other), eta=0.6)
    with torch.no_grad():
        own_reward = source.world.reward(source.world.observe(own).feat)
        other_reward = source.world.reward(source.world.observe(other).feat)
    relabelled = 0.75 * other_reward + 0.25 * other["reward"]
    own_nll = (0.5 * (own_reward - own["reward"]) ** 2).mean()
    other_nll = (0.5 * (other_reward - relabelled) ** 2).mean()
    torch.testing.assert_close(metrics["reward_loss"], 0.6 * own_nll + 0.4 * other_nll)
    torch.testing.assert_close(metrics["reward_alignment"], other_nll)


def test_reward_alignment_on_target_images_trains_the_source_encoder():
    source, _ = agents()
    own, other = batch(), batch(seed=1)
    _, metrics, _ = source.world_model_loss(own, source.noise(own), other, source.noise(other), eta=0.0)
    metrics["reward_loss"].backward()
    assert source.world.encoder.layers[0].weight.grad.abs().sum() > 0
    assert source.world.rssm.cell.gates.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("higher", ["source", "target"])
def test_the_value_constraint_lowers_only_values_above_the_source_critics(higher: str):
    """The gradient of Eq. 6's alpha term with respect to the bias of the target critic's output."""
    source, target = agents()
    with torch.no_grad():
        for agent, value in ((source, 1.0 if higher == "source" else -1.0), (target, 0.0)):
            agent.behavior.critic.layers[-1].weight.zero_()
            agent.behavior.critic.layers[-1].bias.fill_(value)
    feat = torch.randn(4, 5, target.world.rssm.feat_size)
    value, source_value = target.behavior.critic(feat), source.frozen_critic(feat)
    models.value_constraint(value, models.value_bound(source_value, "minmax")).mean().backward()
    bias = target.behavior.critic.layers[-1].bias
    assert bias.grad.item() == pytest.approx(0.0 if higher == "source" else 1.0)
    assert all(p.grad is None for p in source.behavior.critic.parameters())


def test_returns_are_in_time_order():
    """Defect 1 of the release: returns were in reversed order. Here only the last step has a reward, 1."""
    source, _ = agents(discount_lambda=1.0, discount=0.5)
    computed = {}
    original = models.lambda_return

    def reward_at_the_end(reward: Tensor, next_value: Tensor, discount: Tensor, lambda_: float) -> Tensor:
        reward = torch.zeros_like(reward)
        reward[-1] = 1.0
        computed["returns"] = original(reward, torch.zeros_like(next_value), discount, lambda_)
        return computed["returns"]

    models.lambda_return = reward_at_the_end
    try:
        source.update(batch())
    finally:
        models.lambda_return = original
    assert computed["returns"][:, 0].tolist() == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("sizes", [(4, 5), (5, 4), (6, 4)])
def test_source_and_target_may_have_different_action_sizes(sizes: tuple[int, int]):
    """Defect 4 of the release: a source model for 4 actions was given the target's 5."""
    source, target = agents(*sizes)
    own, other = batch(sizes[0]), batch(sizes[1])
    source.update(own, other)
    update_target(target, source, other)
    for agent, actions in zip((source, target), sizes, strict=True):
        assert agent.world.rssm.action_in.in_features == max(sizes)
        image = batch()["image"][:2, 0].numpy()
        action, _ = agent.act({"image": image}, None, torch.ones(2).bool().numpy(), sample=True)
        assert action.shape == (2, actions) and abs(action).max() <= 1


def test_action_padding_does_not_change_the_entropy_of_the_policy():
    padded, plain = agents(4, 6)[0], agents(4, 4)[0]
    padded.behavior.actor.load_state_dict(plain.behavior.actor.state_dict())
    feat = torch.randn(5, plain.world.rssm.feat_size)
    torch.testing.assert_close(padded.behavior.actor(feat).entropy(), plain.behavior.actor(feat).entropy())


def test_act_continues_its_state_and_resets_it_when_an_episode_begins():
    source, _ = agents(dyn_discrete=0, dyn_min_std=0.0)
    with torch.no_grad():
        source.world.rssm.post_out.weight[source.config.dyn_stoch :] = 0.0
        source.world.rssm.post_out.bias[source.config.dyn_stoch :] = -100.0
    images = batch()["image"][0].numpy()
    first = torch.tensor([True]).numpy()
    action_0, state = source.act({"image": images[:1]}, None, first, sample=False)
    action_1, _ = source.act({"image": images[1:2]}, state, ~first, sample=False)
    again, _ = source.act({"image": images[:1]}, state, first, sample=False)
    assert (again == action_0).all() and (action_1 != action_0).any()
    with torch.no_grad():
        action = torch.stack([torch.zeros(6), torch.from_numpy(action_0[0])])[None]
        feat = source.world.observe({"image": torch.from_numpy(images[None, :2]), "action": action}).feat[0, 1]
        torch.testing.assert_close(torch.from_numpy(action_1[0]), source.behavior.actor(feat).mode)


def test_the_slow_critic_is_copied_every_slow_target_update_updates():
    source, _ = agents(slow_target_update=3)
    post = source.world.observe(batch()).post
    copies = []
    for _ in range(5):
        source.update_behavior(post)
        copies.append(source.behavior.slow_critic.layers[0].weight.clone())
    assert [torch.equal(a, b) for a, b in pairwise(copies)] == [True, True, False, True]


def test_weight_decay_shrinks_weights():
    """Defect 11 of the release: clipping exhausted the generator of parameters, so no weight decayed."""
    shrunk = []
    for decay in (0.0, 0.5):
        layer = nn.Linear(3, 3)
        nn.init.ones_(layer.weight)
        optimizer = Optimizer([layer], 0.1, tiny(weight_decay=decay))
        (0 * layer.weight.sum() + 0 * layer.bias.sum()).backward()
        optimizer.step()
        shrunk.append(layer.weight[0, 0].item())
    assert shrunk == pytest.approx([1.0, 1 - 0.1 * 0.5])


def test_gradients_are_clipped():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer([layer], 0.1, tiny(grad_clip=2.0))
    layer(torch.tensor([[50.0]])).sum().backward()
    assert optimizer.step().item() == pytest.approx(50.0)
    momentum = optimizer.adam.state[layer.weight]["exp_avg"].item()
    assert momentum == pytest.approx((1 - 0.9) * 2.0, rel=1e-4)


def test_restored_moments_have_the_memory_layout_of_their_weights():
    """The fused optimiser pairs their elements in memory order. Those of a checkpoint may have another layout."""
    source, _ = agents()
    source.update(batch())
    saved = copy.deepcopy(source.state_dict())
    for moments in saved["model_opt"]["state"].values():
        moments |= {key: moments[key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
    other, _ = agents()
    other.load_state_dict(saved)
    for agent in (source, other):
        torch.manual_seed(5)
        agent.update(batch())
    assert not changed(weights(source.world), other.world)


def test_imagination_can_start_from_a_subset_of_states():
    source, _ = agents(imag_starts=5)
    post = source.world.observe(batch()).post
    (few,), (same, again) = start_states([post], 5), start_states([post, post], 5)
    assert few["deter"].shape == (5, source.config.dyn_deter) and torch.equal(same["stoch"], again["stoch"])
    assert start_states([post])[0]["deter"].shape == (24, source.config.dyn_deter)
    source.update_behavior(post)


def state_agents() -> tuple[SourceAgent, TargetAgent, dict[str, Tensor]]:
    config = tiny(size="32,32", eta_steps=100, source_observation="state")
    source = SourceAgent(config, 4, 5, CPU, Senses(0, {"position": 3, "velocity": 2}))
    own = {**batch(4), "position": torch.randn(3, 8, 3), "velocity": torch.randn(3, 8, 2)}
    return source, TargetAgent(config, 5, 5, CPU), own


def test_a_source_on_states_co_trains_with_a_target_on_images():
    """Table 4. Both embeddings have one size, so the source's RSSM can use the target encoder's embeddings."""
    source, target, own = state_agents()
    other = batch(5, seed=1)
    assert source.world.encoder.embed == target.world.encoder.embed
    before = weights(target.world)
    metrics = source.update(own, other, 0.5, target.embed(other))
    assert metrics["reward_alignment"] > 0 and metrics["state_loss"] > 0
    assert not changed(before, target.world)
    before = weights(source.world)
    metrics = target.update(other, source.embed(own), source.value_bound(other))
    assert metrics["state_alignment"] > 0
    assert not changed(before, source.world)
    action, _ = source.act({"position": torch.zeros(1, 3).numpy(), "velocity": torch.zeros(1, 2).numpy()}, None,
                           torch.ones(1).bool().numpy(), sample=True)  # fmt: skip
    assert action.shape == (1, 4)
