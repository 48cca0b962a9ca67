"""The methods that CoWorld is compared with: the special parts of each, and whole runs."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DOTS, OFFLINE_METHODS, MethodRun, co_training, tiny
from test_agents import CPU, batch, changed, weights
from test_co_training import assert_same_results, scores, train
from torch import Tensor, nn
from updates import built

import co_training as program
import collect
import models
from agents.agent import Agent
from agents.baselines import ElasticWeights, mean_disagreement
from agents.coworld import TargetAgent
from tools import BadInput
from training.checkpoint import load_agent, load_checkpoint
from training.methods import METHODS, OFFLINE, ONLINE, PhaseKind

BASELINES = [name for name in METHODS if name != "coworld"]


def kinds_of_phases(method: str) -> list[str]:
    config = tiny(warmup_rounds=1, rounds=2)
    return [phase.kind for phase in METHODS[method].schedule(program.algorithm_1(config), config)]


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_has_coworlds_evaluations_and_only_the_phases_of_its_domains(method: str):
    kinds = kinds_of_phases(method)
    assert kinds.count("evaluate") == kinds_of_phases("coworld").count("evaluate")
    assert not set(OFFLINE if method == "online_dv2" else ONLINE if method in OFFLINE_METHODS else ()) & set(kinds)


def test_finetuning_transfers_the_agent_after_all_source_phases_and_before_all_target_phases():
    kinds = kinds_of_phases("dv2_finetune")
    at = kinds.index(PhaseKind.TRANSFER)
    assert set(kinds[:at]) == {"evaluate_random", "prefill", "pretrain_source", "train_source"}
    assert set(kinds[at + 1 :]) == {"warm_up_target", "evaluate", "train_target"}


def test_a_warm_start_transfers_the_agent_when_the_source_is_pretrained():
    kinds = kinds_of_phases("coworld_warm_start")
    at = kinds.index(PhaseKind.TRANSFER)
    assert kinds[:at] == ["evaluate_random", "prefill", "pretrain_source", "train_source"]
    assert kinds[:at] + kinds[at + 1 :] == kinds_of_phases("coworld")


def test_after_a_warm_start_the_source_critic_bounds_the_targets():
    """A copy has the same encoder, so the alignment starts at 0, and the same critic, so that both values are near."""
    agents = built("coworld_warm_start", 6, 6)
    source, target = agents["source"], agents["target"]
    source.update(batch(6))
    target.copy_from(source)
    data = batch(6, seed=1)
    embed = source.embed(data)
    _, metrics = target.update_world_model(data, embed)
    assert metrics["state_alignment"].item() == pytest.approx(0, abs=1e-6)
    post = target.infer_posterior(data)
    metrics = target.update_behavior(post, source.value_bound(data))
    assert 0 < metrics["constraint_active"].item() <= 1


# Offline DV2


def test_mean_disagreement_by_hand():
    """V-D4RL's meandis: a norm over all features, not a mean, so it does not shrink with their number."""
    one = torch.rand(6, 3)
    equal = torch.stack([one, one]).requires_grad_()
    mean_disagreement(equal).sum().backward()
    assert mean_disagreement(equal).tolist() == [0.0] * 6 and torch.isfinite(equal.grad).all()
    two = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[3.0, 6.0], [8.0, 4.0]]])  # (K = 2, 2, F = 2), means 3 and 4 away
    assert mean_disagreement(two).tolist() == [3.0, 4.0]
    members = torch.tensor([[[0.0]], [[0.0]], [[3.0]]])  # their mean is 1
    assert mean_disagreement(members).tolist() == [pytest.approx((1 + 1 + 2) / 3)]
    few = torch.rand(5, 1, 4)
    assert mean_disagreement(few.repeat(1, 1, 9)).item() == pytest.approx(3 * mean_disagreement(few).item())


@pytest.mark.parametrize("classes", [2, 32])
def test_the_penalty_of_sharp_disagreeing_members_is_of_order_one(classes: int):
    """Two members that are certain of different classes in one of 32 latents: each is sqrt(2) / 2 from their mean."""
    agent = built("offline_dv2", dyn_discrete=classes, dyn_stoch=32, ensemble=2)["target"]
    rssm = agent.world.rssm
    with torch.no_grad():
        rssm.prior_out.weight.zero_()
        rssm.prior_out.bias.zero_()
        logits = rssm.prior_out.bias.unflatten(-1, (32, classes))
        logits[0, 0, 0] = logits[1, 0, 1] = 50.0
    penalty = agent.world.disagreement(torch.randn(3, rssm.feat_size))
    torch.testing.assert_close(penalty, torch.full((3,), 2**0.5 / 2))


@pytest.mark.parametrize("discrete", [0, 4])
def test_the_disagreement_of_the_ensemble_is_subtracted_from_the_imagined_reward(discrete: int):
    agent = built("offline_dv2", dyn_discrete=discrete, ensemble=3, disagreement_scale=7.0)["target"]
    feat = torch.randn(2, 5, agent.world.rssm.feat_size)
    plain, penalty = agent.world.reward(feat), agent.world.disagreement(feat)
    assert penalty.shape == (2, 5) and (penalty > 0).all()
    torch.testing.assert_close(agent.imagined_reward(feat)[0], plain - 7.0 * penalty)
    make_members_equal(agent)
    torch.testing.assert_close(agent.imagined_reward(feat)[0], plain)


def make_members_equal(agent: Agent) -> None:
    """Copy the first member of the ensemble to the others."""
    with torch.no_grad():
        for layer in (agent.world.rssm.prior_hidden, agent.world.rssm.prior_out):
            for parameter in layer.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))


@pytest.mark.parametrize("discrete", [0, 4])
def test_an_imagined_step_uses_one_member_drawn_at_random(discrete: int):
    agent = built("offline_dv2", dyn_discrete=discrete, ensemble=3)["target"]
    rssm = agent.world.rssm
    state, action, noise = rssm.initial(5), torch.rand(5, 5), rssm.noise(5, 1)[:, 0]
    key = "logit" if discrete else "mean"
    steps = [rssm.imagine_step(state, action, noise, torch.tensor(k)) for k in range(3)]
    all_members = rssm.prior(steps[0]["deter"])[key]
    for member, step in zip(all_members, steps, strict=True):
        torch.testing.assert_close(step[key], member)
    drawn = torch.stack(rssm.draw_members(300))
    assert sorted(set(drawn.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("method", ["offline_dv2", "lompo"])
def test_each_step_of_an_imagined_trajectory_uses_the_member_drawn_for_it(method: str, monkeypatch: pytest.MonkeyPatch):
    agent = built(method, ensemble=3, imag_horizon=4)["target"]
    rssm, used = agent.world.rssm, []
    members = [torch.tensor(k) for k in (2, 0, 1, 2)]
    for model in (rssm, agent.frozen_world.rssm):
        weights_of = model.prior_weights
        monkeypatch.setattr(model, "draw_members", lambda steps: members[:steps])
        monkeypatch.setattr(model, "prior_weights", lambda k, of=weights_of: used.append(int(k)) or of(k))
    agent.update(batch(5))
    assert used == [2, 0, 1, 2]


@pytest.mark.parametrize("discrete", [0, 4])
def test_every_member_learns_from_the_kl_to_the_posterior(discrete: int):
    """The KL of the world model's loss is the mean of the members' own, balanced and with gradients to each."""
    agent = built("offline_dv2", dyn_discrete=discrete, kl_free=0, ensemble=3)["target"]
    data, rssm = batch(5), agent.world.rssm
    output = agent.world.observe(data, rssm.noise(3, 8))
    kls = []
    for k in range(3):
        prior = rssm.prior(output.post["deter"], torch.tensor(k))
        kls.append(models.balanced_kl(rssm, output.post, prior, balance=0.8, free_nats=0.0)[0])
    losses, _ = agent.world.losses(output, data, agent.config)
    torch.testing.assert_close(losses["kl"], torch.stack(kls).mean())
    before = weights(rssm.prior_hidden) | weights(rssm.prior_out)
    agent.update(data)
    after = weights(rssm.prior_hidden) | weights(rssm.prior_out)
    for name, parameter in after.items():
        assert all(not torch.equal(old, new) for old, new in zip(before[name], parameter, strict=True)), name


def test_an_ensemble_of_one_is_the_plain_model():
    torch.manual_seed(0)
    agent = built("offline_dv2", ensemble=2)["target"]
    make_members_equal(agent)
    plain = TargetAgent(agent.config, 5, 5, CPU)
    weights_of_one = {
        key: value[0] if key.startswith("rssm.prior") else value for key, value in agent.world.state_dict().items()
    }
    plain.world.load_state_dict(weights_of_one)
    noise = plain.world.rssm.noise(3, 8)
    ours, theirs = (a.world_model_loss(batch(5), noise)[0] for a in (agent, plain))
    torch.testing.assert_close(ours, theirs)


# DV2 Finetune


@pytest.mark.parametrize("sizes", [(4, 5), (6, 4)])
def test_the_target_becomes_a_copy_of_the_source_with_any_action_sizes(sizes: tuple[int, int]):
    agents = built("dv2_finetune", *sizes)
    source, target = agents["source"], agents["target"]
    source.update(batch(sizes[0]))
    target.copy_from(source)
    assert not changed(weights(source.world), target.world)
    assert not changed(weights(source.behavior), target.behavior)
    before = weights(source.world), weights(source.behavior), copy.deepcopy(source.model_opt.state_dict())
    assert "ewc_penalty" not in target.update(batch(sizes[1]))
    assert not changed(before[0], source.world) and not changed(before[1], source.behavior)
    assert before[2]["state"][0]["step"] == source.model_opt.state_dict()["state"][0]["step"]
    for agent, actions in zip((source, target), sizes, strict=True):
        image = batch()["image"][:2, 0].numpy()
        assert agent.act({"image": image}, None, torch.ones(2).bool().numpy(), sample=True)[0].shape == (2, actions)


def test_the_elastic_penalty_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    elastic = ElasticWeights([layer.weight.detach().clone()], [torch.tensor([[3.0, 0.5]])], scale=10.0)
    elastic.add_gradient([layer.weight])
    assert elastic.penalty([layer.weight]) == 0 and layer.weight.grad.abs().sum() == 0
    with torch.no_grad():
        layer.weight += torch.tensor([[0.1, -2.0]])
    assert elastic.penalty([layer.weight]).item() == pytest.approx(0.5 * 10 * (3 * 0.1**2 + 0.5 * 2.0**2))
    elastic.add_gradient([layer.weight])
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[10 * 3 * 0.1, 10 * 0.5 * -2.0]]))


def test_the_elastic_gradient_equals_finite_differences_of_the_penalty():
    weight, old, fisher = (torch.rand(3, 2, dtype=torch.float64, requires_grad=r) for r in (True, False, False))
    elastic = ElasticWeights([old], [fisher], scale=4.0)
    elastic.add_gradient([weight])
    step = 1e-6 * torch.ones_like(weight)
    for i in range(weight.numel()):
        one = torch.zeros_like(step).flatten()
        one[i] = 1e-6
        ahead, behind = (elastic.penalty([weight + s * one.view_as(weight)]) for s in (1, -1))
        assert ((ahead - behind) / 2e-6).item() == pytest.approx(weight.grad.flatten()[i].item(), rel=1e-4)


def test_the_elastic_penalty_keeps_important_weights_near_their_old_values():
    """Weights with a large Fisher information on source data move less if the penalty is strong."""
    moved = {}
    for scale in (0.0, 1e6):
        torch.manual_seed(0)
        agents = built("dv2_finetune_ewc", 6, 6, ewc_scale=scale, model_lr=1e-3, kl_free=0)
        source, target = agents["source"], agents["target"]
        source.update(batch())
        before = weights(source.world)
        target.copy_from(source)
        target.anchor_to(source, [batch(seed=1), batch(seed=2)])
        assert not changed(before, source.world) and all(p.grad is None for p in source.world.parameters())
        anchor = target.model_opt.anchor
        assert anchor.penalty(target.model_opt.parameters) == 0
        important = [f > f.max() / 10 for f in anchor.fisher]
        for seed in range(30):
            penalty = target.update(batch(seed=9 + seed))["ewc_penalty"]
        assert (penalty > 0) == (scale > 0)
        parts = zip(target.model_opt.parameters, anchor.weights, important, strict=True)
        moved[scale] = sum((p - old).abs()[m].sum().item() for p, old, m in parts)
    assert moved[1e6] < 0.5 * moved[0.0]


def single_sequences(data: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{key: value[i : i + 1] for key, value in b.items()} for b in data for i in range(len(b["action"]))]


def test_the_fisher_information_is_the_mean_squared_gradient_of_single_sequences():
    agents = built("dv2_finetune_ewc", 6, 6)
    source, target = agents["source"], agents["target"]
    data = [batch(seed=1), batch(seed=2)]
    torch.manual_seed(3)
    gradients = [source.gradients(sequence) for sequence in single_sequences(data)]
    torch.manual_seed(3)
    target.copy_from(source)
    target.anchor_to(source, iter(data))
    for name in ("model_opt", "actor_opt", "critic_opt"):
        by_sequence = [g[name] for g in gradients]
        expected = [torch.stack([g.square() for g in parts]).mean(0) for parts in zip(*by_sequence, strict=True)]
        torch.testing.assert_close(getattr(target, name).anchor.fisher, expected)


def test_the_fisher_information_does_not_shrink_with_the_batch():
    """The same twelve sequences as one batch and as twelve; the noise of the latents makes a difference of a few %."""
    sums = []
    for data in ([batch(seed=s) for s in range(4)], single_sequences([batch(seed=s) for s in range(4)])):
        torch.manual_seed(0)
        agents = built("dv2_finetune_ewc", 6, 6)
        agents["target"].copy_from(agents["source"])
        together = {key: torch.cat([b[key] for b in data]) for key in data[0]}
        agents["target"].anchor_to(agents["source"], [together] if len(data) == 4 else data)
        sums.append(sum(f.sum().item() for f in agents["target"].model_opt.anchor.fisher))
    assert sums[0] == pytest.approx(sums[1], rel=0.1)


# Multi-task DV2


def test_a_multitask_update_uses_the_batches_of_both_domains():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    assert source.world is target.world and source.model_opt is target.model_opt

    def gradient(own: Tensor, other: Tensor) -> Tensor:
        own_batch, other_batch = batch(4, seed=own), batch(5, seed=other)
        torch.manual_seed(0)
        inputs = own_batch, source.noise(own_batch), other_batch, source.noise(other_batch)
        loss, same = (agent.world_model_loss(*inputs)[0] for agent in (source, target))
        torch.testing.assert_close(loss, same)
        return torch.autograd.grad(loss, source.world.reward.layers[0].weight)[0]

    assert not torch.allclose(gradient(1, 2), gradient(1, 3))
    assert not torch.allclose(gradient(1, 2), gradient(3, 2))


def test_the_multitask_actor_critics_are_separate_and_share_the_world_model():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    before, world = weights(target.behavior), weights(source.world)
    source.update(batch(4), batch(5, seed=1))
    assert not changed(before, target.behavior) and changed(world, target.world)
    before, world = weights(source.behavior), weights(source.world)
    metrics = target.update(batch(5), batch(4, seed=1))
    assert not changed(before, source.behavior) and changed(world, source.world)
    assert "state_alignment" not in metrics and "value_constraint" not in metrics


# Whole runs


@pytest.mark.precision
@pytest.mark.parametrize("method", BASELINES)
def test_every_method_runs(method: str, method_run: Callable[[str], MethodRun]):
    run = method_run(method).logdir
    rows = [row for row in scores(run) if row["domain"] == "target"]
    assert (rows[0]["phase"], rows[0]["round"]) == ("evaluate_random", "0")
    assert [r["round"] for r in rows if r["phase"] == "evaluate"] == ["1", "2", "2"]
    agent, _ = load_agent(run, "target", CPU)
    saved = load_checkpoint(run / "checkpoint.pt")["agents"]["target"]
    assert not any(changed(saved[name], getattr(agent, name)) for name in agent.MODULES)


@pytest.mark.precision
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("method", "stop_at", "phase"), [("dv2_finetune_ewc", 97, "train_target"), ("curl", 27, "train_offline")]
)
def test_a_run_stops_and_resumes(
    method: str, stop_at: int, phase: str, method_run: Callable[[str], MethodRun], dots_dataset: Path, tmp_path: Path
):
    """Finetuning stops after the transfer. test_restored_agents.py restores the agents of every method."""
    with pytest.raises(SystemExit):
        train(dots_dataset, tmp_path, "--method", method, *DOTS, stop_at=stop_at)
    stopped = load_checkpoint(tmp_path / "checkpoint.pt")
    assert stopped["phases"][-1] == phase and stopped["progress"]["iteration"] > 0
    train(dots_dataset, tmp_path, "--method", method, *DOTS)
    assert_same_results(method_run(method).logdir, tmp_path)


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robodesk") / "push_green"
    blocks = ["--configs", "defaults", "robodesk", "debug", "--size", "32,32", "--envs", "0"]
    collect.main(["--task", "robodesk_push_green", "--out", str(folder), "--episodes", "2", *blocks])
    return folder


@pytest.mark.parametrize(
    "method",
    ["multitask_dv2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("coworld_warm_start", "dv2_finetune_ewc"))],
)
def test_methods_that_pad_actions_run_from_metaworld_to_robodesk(method: str, pushes: Path, tmp_path: Path):
    """From 4 actions to 5. Source and target share weights in these methods; `built` has such agents of all three."""
    tasks = ["--source_task", "metaworld_button-press", "--target_task", "robodesk_push_green"]
    flags = ["--method", method, *tasks, "--size", "32,32", "--envs", "0", "--rounds", "1", "--eval_episodes", "1"]
    program.main(co_training(pushes, tmp_path, *flags, blocks=("robodesk", "debug")))
    assert scores(tmp_path)[-1]["success"] == "0.0"


def test_bad_settings_of_a_method_raise_bad_input(dataset: Path, tmp_path: Path):
    for flags, message in (
        (("--method", "dv2_finetune", "--source_task", "walker_walk,cheetah_run"), "takes one"),
        (("--method", "multitask_dv2", "--source_observation", "state"), "need the same observations"),
        (("--method", "coworl"), "nearest: coworld"),
    ):
        with pytest.raises(BadInput, match=message):
            train(dataset, tmp_path, *flags)
