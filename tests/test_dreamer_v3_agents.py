"""Agents with the settings of the block `dreamerv3`: updates of every method, resuming, export, what is refused."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOTS, co_training, tiny
from test_bad_input import refused
from test_co_training import ONE_ROUND, assert_equal, assert_same_results, train
from test_onnx import needs_onnx
from torch import Tensor
from updates import built, dreamer_v3, transfer, update_all

import co_training as program
import config as settings
import export
import models
from agents.agent import Agent
from agents.coworld import SourceAgent, TargetAgent
from config import Config
from dreamer_v3.distributions import TwoHot
from dreamer_v3.losses import replay_returns
from dreamer_v3.rssm import EnsembleBlockRSSM
from policy import PixelPolicy, load_policy
from policy.onnx_program import largest_onnx_difference, to_onnx
from policy.program import describe, export_program, largest_difference, to_bytes
from senses import Senses
from tools import BadInput
from training.checkpoint import load_checkpoint
from training.methods import METHODS

CPU, META = torch.device("cpu"), torch.device("meta")
WITH_WORLD_MODEL = [name for name, method in METHODS.items() if method.world_model]
FAST = dict.fromkeys(("model_lr", "actor_lr", "value_lr"), 1e-3)
FAST |= {"lr_warmup": 1, "slow_target_update": 1}  # an update changes every number
SHORT = {"batch_size": 2, "batch_length": 3, "imag_horizon": 2, "imag_starts": 5}


def weights(agent: Agent) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in (("world", agent.world), ("behavior", agent.behavior))
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("method", WITH_WORLD_MODEL)
def test_every_method_with_a_world_model_updates_all_its_weights(method: str):
    torch.manual_seed(0)
    agents = built(method, **{**dreamer_v3(), **FAST})
    transfer(method, agents)
    before = weights(agents["target"])
    for _ in range(3):  # the first trains no layer below a zero last one, and the slow critic follows later
        metrics = update_all(method, agents, ends=True)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in metrics.values())
    same = [name for name, tensor in weights(agents["target"]).items() if torch.equal(tensor, before[name])]
    assert same == []
    if METHODS[method].dreamer_behavior:
        assert metrics["replay_critic_loss"] > 0 and metrics["return_range"] == 1
    if "ensemble" in METHODS[method].settings:
        assert isinstance(agents["target"].world.rssm, EnsembleBlockRSSM)


@pytest.mark.parametrize(("method", "parts"), [*((m, 1) for m in WITH_WORLD_MODEL), ("coworld", 2), ("offline_dv2", 2)])
def test_updates_read_nothing_from_the_device(method: str, parts: int):
    """See test_meta_device.py."""
    agents = built(method, device=META, **{**dreamer_v3(), **SHORT, "grad_accum": parts})
    transfer(method, agents)
    metrics = update_all(method, agents, ends=parts == 2)
    assert metrics and all(isinstance(value, Tensor) and value.device == META for value in metrics.values())


def pair(**flags: object) -> tuple[SourceAgent, TargetAgent]:
    torch.manual_seed(0)
    config = tiny(**{"size": "32,32", "eta_steps": 10, **dreamer_v3(), **flags})
    return SourceAgent(config, 4, 5, CPU), TargetAgent(config, 5, 5, CPU)


def disturb(agent: Agent) -> None:
    """Give the last layers of the two-hot heads numbers, so that values and rewards differ from zero."""
    with torch.no_grad():
        for head in (agent.world.reward, agent.behavior.critic, agent.behavior.slow_critic):
            head.layers[-1].weight.normal_(std=0.02)
            head.layers[-1].bias.copy_(-(torch.linspace(-12, 12, 255).square()))


def test_losses_of_micro_batches_are_those_of_the_whole_batch():
    found = []
    for parts in (1, 3):
        source, target = pair(grad_accum=parts, imag_starts=7)
        disturb(source), disturb(target)
        batch = target.random_batch()
        torch.manual_seed(1)
        found.append(target.update(batch, source.embed(batch), source.value_bound(batch)))
        found[-1]["ends"] = target.behavior.return_range.ends.clone()
        del found[-1]["source_value_correlation"]  # no mean over start states
    assert found[0]["value_constraint"] != 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_the_replay_loss_by_hand():
    """Its gradient is the critic's alone. Imagined returns replace the critic's values where they are known."""
    _, target = pair()
    disturb(target)
    batch, config, critic = target.random_batch(), target.config, target.behavior.critic
    with torch.no_grad():
        post = target.infer_posterior(batch)
        feat = target.world.rssm.feat(post)
        known = critic(feat).flatten()
        rows, imagined = torch.tensor([3, 17, 9]), torch.tensor([1.0, -2.0, 3.0])
        known[rows] = imagined
        arguments = batch["reward"], 0.997 * batch["discount"], known.view(feat.shape[:2]), None, 0.95
        returns, weight = replay_returns(*arguments)
    metrics = target.descend_replay_loss(post, rows, imagined)
    both = [TwoHot(critic.layers(feat), critic.bins).nll(to) for to in (returns, target.behavior.slow_critic(feat))]
    expected = (weight * (both[0] + both[1]))[:, :-1].mean()
    torch.testing.assert_close(metrics["replay_critic_loss"], expected.detach())
    gradients = torch.autograd.grad(config.replay_value_scale * expected, list(critic.parameters()))
    torch.testing.assert_close([p.grad for p in critic.parameters()], list(gradients))
    others = [*target.world.parameters(), *target.behavior.actor.parameters()]
    assert all(p.grad is None for p in others)


def test_the_actors_objective_does_not_depend_on_the_scale_of_rewards():
    """Returns of 100 times the size have the gradient of the actor that they had, beyond the entropy's."""
    found = []
    for scale in (10.0, 1000.0):
        _, target = pair(actor_entropy=0)
        behavior, config = target.behavior, target.config
        start = {k: v.flatten(0, 1) for k, v in target.infer_posterior(target.random_batch()).items()}
        torch.manual_seed(1)
        noise = behavior.noise(target.world, len(start["deter"]), config.imag_horizon)
        imagined = behavior.imagine(target.frozen_world, start, noise, dynamics=False)
        assert not imagined.feat.requires_grad and imagined.log_prob.requires_grad
        returns = scale * torch.sin(torch.arange(imagined.log_prob.numel()).float()).view_as(imagined.log_prob)
        for _ in range(3000):
            behavior.return_range.update(returns)
        advantage = (returns[1:] / behavior.return_range.scale).detach()
        loss = behavior.actor_loss(imagined, returns, returns, torch.ones_like(returns), config, advantage)
        found.append(torch.autograd.grad(loss, list(behavior.actor.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-7)


def test_alpha_is_in_units_of_the_range_of_returns():
    _, target = pair(value_constraint_scale=0.5)
    returns = target.behavior.return_range
    returns.ends.copy_(torch.tensor([-10.0, 30.0]))
    assert models.alpha(torch.ones(3), target.config, returns) == 20


def test_states_are_on_the_logarithmic_scale():
    config = tiny(size="32,32", **dreamer_v3())
    agent = TargetAgent(config, 5, 5, CPU, Senses(3, {"joints": 2}))
    batch = agent.random_batch()
    batch["joints"] = torch.full_like(batch["joints"], torch.e - 1) * torch.tensor([1.0, -1.0])
    assert torch.allclose(agent.world.observed(batch)[-1], torch.tensor([1.0, -1.0]))
    assert torch.isfinite(agent.update(batch)["state_loss"])


def test_an_update_in_bfloat16():
    source, target = pair(precision="bfloat16")
    batch = target.random_batch()
    metrics = target.update(batch, source.embed(batch), source.value_bound(batch))
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in metrics.values())
    norm = target.frozen_world.rssm.cell.after.weight
    assert norm.dtype == torch.float32 and target.frozen_world.rssm.cell.gates.weight.dtype == torch.bfloat16


def test_a_restored_agent_continues_bit_for_bit():
    _, target = pair()
    target.update(target.random_batch())
    saved = target.state_dict()
    _, other = pair()
    other.load_state_dict(torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, saved))
    batch = target.random_batch()
    for agent in (target, other):
        torch.manual_seed(2)
        agent.update(batch)
    assert_equal(target.state_dict(), other.state_dict(), "agent")


def config_of(*blocks: str, **flags: str) -> Config:
    values = settings.merge(settings.read_blocks(), list(blocks), {"precision": "float32", **flags})
    return Config(**values, configs=list(blocks))


@pytest.mark.parametrize("millions", [12, 25, 50, 100, 200])
def test_published_sizes(millions: int):
    """Millions of weights of a whole agent, without the slow critic, as published for 64 pixels."""
    with META:
        agent = SourceAgent(config_of("dmc", "dreamerv3", f"size{millions}m"), 6, 6, META)
    modules = agent.world, agent.behavior.actor, agent.behavior.critic
    count = sum(p.numel() for module in modules for p in module.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.2)


def test_small_after_dreamerv3():
    config = config_of("dmc", "dreamerv3", "small", batch_length="4", imag_horizon="3")
    assert (config.size, config.dyn_deter, config.heads, config.gru_blocks) == ([32, 32], 200, "twohot", 8)
    agent = TargetAgent(config, 6, 6, META)
    assert agent.update(agent.random_batch())["model_loss"].device == META
    assert config_of("dmc", "dreamerv3").discount == pytest.approx(1 - 1 / 333, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--method bc --optimizer laprop", "--optimizer has no effect with method bc"),
        ("--method drq_bc --heads twohot", "--heads has no effect with method drq_bc"),
        ("--method lompo --returns percentile", "--returns has no effect with method lompo"),
        ("--unimix 0.02", "--unimix has no effect without gru_blocks"),
        ("--agc 0.2", "--agc has no effect without optimizer laprop"),
        ("--optimizer laprop --grad_clip 10", "--grad_clip has no effect without optimizer adam"),
        ("--kl_loss separate --kl_balance 0.5", "--kl_balance has no effect without kl_loss balanced"),
        ("--symlog True", "--symlog has no effect without state_keys"),
        ("--state_standardize True", "--state_standardize has no effect without state_keys"),
        ("--returns percentile --value_constraint_relative True", "has no effect without returns raw"),
    ],
)
def test_settings_without_effect_are_refused(flags: str, reason: str, tmp_path: Path, capsys):
    arguments = co_training(tmp_path / "none", tmp_path / "run", *flags.split())
    assert reason in refused(program.main, arguments, capsys)


def test_the_block_is_refused_without_a_world_model(tmp_path: Path, capsys):
    blocks = ("dmc", "dreamerv3", "debug")
    arguments = co_training(tmp_path / "none", tmp_path / "run", "--method", "bc", blocks=blocks)
    assert "dreamerv3: method bc has no world model; remove it" in refused(program.main, arguments, capsys)


@pytest.mark.parametrize(
    ("blocks", "flags", "line"),
    [
        (("dmc", "size50m", "debug"), "", "--configs size50m: a size of dreamerv3, .*; name dreamerv3 first"),
        (("dmc", "size50m", "dreamerv3"), "", "--configs size50m: a size of dreamerv3"),
        (("dmc", "debug"), "--method bc", "--configs size50m: a size of dreamerv3"),
        (("dmc", "dreamerv3", "debug"), "--value_layers 0", "value_layers: '0' .* is not 1 or more"),
        (("dmc", "dreamerv3", "debug"), "--agc 0", "agc: '0' .* is not above 0"),
        (("dmc", "dreamerv3", "debug"), "--opt_eps 0", "opt_eps: '0' .* is not above 0"),
        (("dmc", "debug"), "--grad_clip 0", "grad_clip: '0' .* is not above 0"),
        (("dmc", "dreamerv3", "debug"), "--actor_min_std 2", "actor_min_std 2.0: with actor_dist bounded, 1 is the"),
    ],
)
def test_what_cannot_be_meant_is_refused(blocks: tuple, flags: str, line: str, tmp_path: Path, capsys):
    blocks = (*blocks, *["size50m"] * ("bc" in flags))
    arguments = co_training(tmp_path / "none", tmp_path / "run", *flags.split(), blocks=blocks)
    assert re.search(line, refused(program.main, arguments, capsys))


def test_without_a_discount_head_replayed_sequences_have_no_termination():
    """As imagined ones: the critic's two losses mean the same by the end of an episode."""
    for head, last in ((True, 0.0), (False, 1.0)):
        _, target = pair(pred_discount=head)
        batch = target.random_batch()
        batch["discount"][:, -1] = 0
        found = target.infer_posterior(batch)
        assert found["discount"][:, -1].eq(last).all() and ("weight" in found) == head


def test_sizes_must_be_multiples_of_the_blocks():
    with pytest.raises(
        BadInput, match="dyn_deter 20 is not a multiple of gru_blocks, 8; give gru_blocks 1, 2, 4, 5, 10"
    ):
        pair(dyn_deter=20)
    with pytest.raises(
        BadInput, match=r"cnn_depth 1: at 32 pixels .* 4 channels, .* gru_blocks, 8; give --cnn_depth 8"
    ):
        pair(cnn_depth=1)


def policy_of_different_actions() -> PixelPolicy:
    """The actions of a new actor are nearly the same in all states."""
    agent = pair()[1]
    with torch.no_grad():
        agent.behavior.actor.layers[-1].weight.mul_(100)
    return PixelPolicy(agent)


@pytest.mark.slow
def test_a_program_has_the_actions_of_load_policy():
    policy = policy_of_different_actions()
    file = to_bytes(export_program(policy), describe(policy))
    assert largest_difference(file, policy) <= export.TOLERANCE


@needs_onnx
@pytest.mark.slow
def test_an_onnx_model_has_the_actions_of_load_policy():
    policy, shape = policy_of_different_actions(), (40, 30, 3)
    file = to_onnx(export_program(policy, shape), describe(policy, shape))
    assert largest_onnx_difference(file, policy, shape) <= export.TOLERANCE
    with torch.no_grad():
        policy.agent.behavior.actor.layers[-1].bias.add_(0.1)
    assert largest_onnx_difference(file, policy, shape) > export.TOLERANCE


@pytest.mark.usefixtures("dots", "no_pictures")
def test_a_resumed_run_equals_an_uninterrupted_one(dots_dataset: Path, tmp_path: Path):
    """Stopped inside an episode of the source agent, after updates of it, and while the target learns."""

    def run(logdir: Path, stop_at: int | None = None) -> None:
        blocks = "dmc", "dreamerv3", "debug"
        train(dots_dataset, logdir, *DOTS, *ONE_ROUND, stop_at=stop_at, blocks=blocks)

    run(tmp_path / "whole")
    for step in (26 + 2 + 4, 26 + 2 + 5 + 11):
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path / "parts", step)
        assert stopped.value.code == 128 + signal.SIGTERM
        assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["progress"]["step"] == step
    run(tmp_path / "parts")
    assert_same_results(tmp_path / "whole", tmp_path / "parts")
    policies = [load_policy(tmp_path / name) for name in ("whole", "parts")]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    actions = [policy(images, sample=False) for policy in policies]
    assert actions[0].shape[0] == 2 and np.isfinite(actions[0]).all() and np.array_equal(*actions)
    assert np.isfinite(policies[0].value()).all()


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones():
    """As in test_compilation.py: of the world model, as on a GPU, and of actor and critic."""
    torch._dynamo.reset()
    _, target = pair(**SHORT, size="16,16", cnn_depth=8)
    disturb(target)
    data = target.random_batch()
    noise = target.noise(data)
    (start,), rollout = target.start_imagination(target.infer_posterior(data))
    for function, inputs, optimizers in (
        (target.world_model_loss, (data, noise), [target.model_opt]),
        (target.behavior_loss, (start, rollout), [target.actor_opt, target.critic_opt]),
    ):
        parameters = [p for optimizer in optimizers for p in optimizer.parameters]
        found = []
        for call in (function, torch.compile(function, dynamic=False, backend="aot_eager")):
            loss = call(*inputs)[0]
            found.append([loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()
