"""The methods CoWorld is compared with: what makes each different, and that each runs from start to end."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_agents import CPU, batch, changed, weights
from test_co_training import assert_same_results, scores, train
from torch import Tensor, nn

import co_training as program
import collect
from agents.baselines import ElasticWeights, disagreement
from tools import BadInput
from training.checkpoint import load_agent, load_checkpoint
from training.methods import METHODS, AgentBuilder, PhaseKind

BASELINES = [name for name in METHODS if name != "coworld"]


def built(method: str, source: int = 4, target: int = 5, **flags: object) -> dict:
    config = tiny(size="32,32", method=method, eta_steps=100, **flags)
    names = {"target": target} if method in ("offline_dv2", "online_dv2") else {"source": source, "target": target}
    return METHODS[method].agents(AgentBuilder(config, CPU, names, {}))


def schedule(method: str) -> list[tuple[str, int]]:
    config = tiny(warmup_rounds=1, rounds=2)
    return [(phase.kind, phase.iterations) for phase in METHODS[method].schedule(program.algorithm_1(config))]


def count(method: str, *kinds: str) -> int:
    return sum(iterations for kind, iterations in schedule(method) if kind in kinds)


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_has_coworlds_numbers_of_updates(method: str):
    if method != "online_dv2":
        for kind in ("warm_up_target", "train_target", "evaluate"):
            assert count(method, kind) == count("coworld", kind)
    if method not in ("offline_dv2", "online_dv2"):
        assert count(method, "train_source", "prefill") == count("coworld", "train_source", "prefill")
    if method == "offline_dv2":
        assert count(method, "train_source", "prefill", "pretrain_source") == 0
    if method == "online_dv2":
        assert count(method, "train_target", "warm_up_target") == 0
        assert count(method, "train_source") == count("coworld", "train_target")


def test_finetuning_transfers_the_agent_after_all_source_phases_and_before_all_target_phases():
    kinds = [kind for kind, _ in schedule("dv2_finetune")]
    at = kinds.index(PhaseKind.TRANSFER)
    assert set(kinds[:at]) == {"evaluate_random", "prefill", "pretrain_source", "train_source"}
    assert set(kinds[at + 1 :]) == {"warm_up_target", "evaluate", "train_target"}


# Offline DV2


def test_disagreement_is_zero_for_identical_members_and_grows_with_their_distance():
    one = torch.rand(6, 3)
    assert disagreement(torch.stack([one, one, one])).tolist() == [0.0] * 6
    near, far = (disagreement(torch.stack([one, one + d])) for d in (0.1, 0.4))
    torch.testing.assert_close(near, torch.full((6,), 0.05**2))
    torch.testing.assert_close(far, torch.full((6,), 0.2**2))


@pytest.mark.parametrize("discrete", [0, 4])
def test_the_disagreement_of_the_ensemble_is_subtracted_from_the_imagined_reward(discrete: int):
    agent = built("offline_dv2", dyn_discrete=discrete, ensemble=3, disagreement_scale=7.0)["target"]
    feat = torch.randn(2, 5, agent.world.rssm.feat_size)
    plain, penalty = agent.world.reward(feat), agent.world.disagreement(feat)
    assert (penalty > 0).all()
    torch.testing.assert_close(agent.imagined_reward(feat), plain - 7.0 * penalty)
    for member in agent.world.ensemble[1:]:
        member.load_state_dict(agent.world.ensemble[0].state_dict())
    torch.testing.assert_close(agent.imagined_reward(feat), plain)


def test_the_ensemble_learns_the_dynamics_and_sends_no_gradient_to_the_world_model():
    agent = built("offline_dv2", model_lr=0.01, kl_free=0)["target"]
    before = weights(agent.world.ensemble)
    first = agent.update(batch(5), step=0)["ensemble_loss"]
    assert changed(before, agent.world.ensemble) == set(before)
    for _ in range(20):
        last = agent.update_world_model(batch(5), step=0)[1]["ensemble_loss"]
    assert last < first
    loss = agent.world.losses(agent.world.observe(batch(5)), batch(5), agent.config)[0]["ensemble"]
    others = [p for name, p in agent.world.named_parameters() if not name.startswith("ensemble.")]
    assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True))


def test_an_offline_agent_is_restored_with_its_ensemble():
    agent, other = (built("offline_dv2")["target"] for _ in range(2))
    agent.update(batch(5), step=0)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert not changed(weights(agent.world), other.world)
    feat = torch.randn(4, agent.world.rssm.feat_size)
    torch.testing.assert_close(other.imagined_reward(feat), agent.imagined_reward(feat))


# DV2 Finetune


@pytest.mark.parametrize("sizes", [(4, 5), (6, 4)])
def test_the_target_becomes_a_copy_of_the_source_whatever_their_actions(sizes: tuple[int, int]):
    agents = built("dv2_finetune", *sizes)
    source, target = agents["source"], agents["target"]
    source.update(batch(sizes[0]), step=0)
    target.copy_from(source)
    assert not changed(weights(source.world), target.world)
    assert not changed(weights(source.behavior), target.behavior)
    before = weights(source.world), weights(source.behavior), copy.deepcopy(source.model_opt.state_dict())
    assert "ewc_penalty" not in target.update(batch(sizes[1]), step=0)
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


def test_the_elastic_gradient_is_that_of_its_penalty():
    weight, old, fisher = (torch.rand(3, 2, dtype=torch.float64, requires_grad=r) for r in (True, False, False))
    elastic = ElasticWeights([old], [fisher], scale=4.0)
    elastic.add_gradient([weight])
    step = 1e-6 * torch.ones_like(weight)
    for i in range(weight.numel()):
        one = torch.zeros_like(step).flatten()
        one[i] = 1e-6
        ahead, behind = (elastic.penalty([weight + s * one.view_as(weight)]) for s in (1, -1))
        assert ((ahead - behind) / 2e-6).item() == pytest.approx(weight.grad.flatten()[i].item(), rel=1e-4)


def test_weights_that_matter_to_the_source_stay_near_their_old_values():
    """The Fisher information is the mean squared gradient on source data; a strong penalty keeps weights near."""
    moved = {}
    for scale in (0.0, 1e6):
        torch.manual_seed(0)
        agents = built("dv2_finetune_ewc", 6, 6, ewc_scale=scale, model_lr=1e-3, kl_free=0)
        source, target = agents["source"], agents["target"]
        source.update(batch(), step=0)
        before = weights(source.world)
        target.copy_from(source)
        target.anchor_to(source, [batch(seed=1), batch(seed=2)])
        assert not changed(before, source.world) and all(p.grad is None for p in source.world.parameters())
        anchor = target.model_opt.anchor
        assert anchor.penalty(target.model_opt.parameters) == 0
        important = [f > f.max() / 10 for f in anchor.fisher]
        for seed in range(30):
            penalty = target.update(batch(seed=9 + seed), step=0)["ewc_penalty"]
        assert (penalty > 0) == (scale > 0)
        parts = zip(target.model_opt.parameters, anchor.weights, important, strict=True)
        moved[scale] = sum((p - old).abs()[m].sum().item() for p, old, m in parts)
    assert moved[1e6] < 0.5 * moved[0.0]


def test_the_fisher_information_is_the_mean_squared_gradient():
    agents = built("dv2_finetune_ewc", 6, 6)
    source, target = agents["source"], agents["target"]
    data = [batch(seed=1), batch(seed=2)]
    torch.manual_seed(3)
    gradients = [source.gradients(b) for b in data]
    torch.manual_seed(3)
    target.copy_from(source)
    target.anchor_to(source, data)
    for name in ("model_opt", "actor_opt", "critic_opt"):
        expected = [(a.square() + b.square()) / 2 for a, b in zip(*(g[name] for g in gradients), strict=True)]
        torch.testing.assert_close(getattr(target, name).anchor.fisher, expected)


# Multi-task DV2


def test_an_update_of_the_multitask_model_uses_both_streams():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    assert source.world is target.world and source.model_opt is target.model_opt

    def gradient(own: Tensor, other: Tensor) -> Tensor:
        inputs = (batch(4, seed=own), batch(5, seed=other))
        torch.manual_seed(0)
        noise = source.world.rssm.noise(3, 8), source.world.rssm.noise(3, 8)
        loss = source.world_model_loss(*inputs, noise, torch.tensor(1.0))[0]
        same = target.world_model_loss(*inputs, noise, torch.tensor(1.0))[0]
        torch.testing.assert_close(loss, same)
        return torch.autograd.grad(loss, source.world.reward.layers[0].weight)[0]

    assert not torch.allclose(gradient(1, 2), gradient(1, 3))
    assert not torch.allclose(gradient(1, 2), gradient(3, 2))


def test_the_two_actor_critics_of_the_multitask_model_are_apart():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    before, world = weights(target.behavior), weights(source.world)
    source.update(batch(4), batch(5, seed=1), step=0)
    assert not changed(before, target.behavior) and changed(world, target.world)
    before, world = weights(source.behavior), weights(source.world)
    metrics = target.update(batch(5), batch(4, seed=1), step=0)
    assert not changed(before, source.behavior) and changed(world, source.world)
    assert "state_alignment" not in metrics and "value_constraint" not in metrics


# Whole runs


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_runs_and_resumes(method: str, dataset: Path, tmp_path: Path):
    flags = ("--method", method, "--envs", "0", "--size", "32,32")
    train(dataset, tmp_path / "whole", *flags)
    with pytest.raises(SystemExit):
        train(dataset, tmp_path / "parts", *flags, stop_at=40 if method != "offline_dv2" else 17)
    train(dataset, tmp_path / "parts", *flags)
    assert_same_results(tmp_path / "whole", tmp_path / "parts")
    rows = [row for row in scores(tmp_path / "whole") if row["domain"] == "target"]
    assert (rows[0]["phase"], rows[0]["round"]) == ("evaluate_random", "0")
    assert [r["round"] for r in rows if r["phase"] == "evaluate"] == ["1", "2", "2"]
    agent, _ = load_agent(tmp_path / "whole", "target", CPU)
    saved = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["agents"]["target"]["behavior"]
    assert not changed(saved, agent.behavior)


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robodesk") / "push_green"
    blocks = ["--configs", "defaults", "robodesk", "debug", "--size", "32,32", "--envs", "0"]
    collect.main(["--task", "robodesk_push_green", "--out", str(folder), "--episodes", "2", *blocks])
    return folder


@pytest.mark.parametrize("method", ["offline_dv2", "dv2_finetune_ewc", "multitask_dv2", "online_dv2"])
def test_every_method_runs_from_metaworld_to_robodesk(method: str, pushes: Path, tmp_path: Path):
    tasks = ["--source_task", "metaworld_button-press", "--target_task", "robodesk_push_green"]
    folders = ["--offline_traindir", str(pushes), "--logdir", str(tmp_path)]
    short = ["--size", "32,32", "--envs", "0", "--rounds", "1", "--video_every", "0"]
    program.main(["--method", method, *tasks, *folders, "--configs", "defaults", "robodesk", "debug", *short])
    assert scores(tmp_path)[-1]["success"] == "0.0"


def test_unsuitable_settings_of_a_method_are_refused(dataset: Path, tmp_path: Path):
    for flags, message in (
        (("--method", "dv2_finetune", "--source_task", "walker_walk,cheetah_run"), "takes one"),
        (("--method", "multitask_dv2", "--source_observation", "state"), "need the same observations"),
        (("--method", "coworl"), "nearest: coworld"),
    ):
        with pytest.raises(BadInput, match=message):
            train(dataset, tmp_path, *flags)
