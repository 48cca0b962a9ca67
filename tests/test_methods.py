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
import tools
from agents.baselines import ElasticWeights, disagreement
from tools import BadInput
from training.methods import METHODS, Domains
from training.trained import load_agent

BASELINES = [name for name in METHODS if name != "coworld"]


def built(method: str, source: int = 4, target: int = 5, **flags: object) -> dict:
    config = tiny(size="32,32", method=method, eta_steps=100, **flags)
    names = {"target": target} if method in ("offline_dv2", "online_dv2") else {"source": source, "target": target}
    return METHODS[method].agents(Domains(config, CPU, names, {}))


def schedule(method: str) -> list[tuple[str, int]]:
    config = tiny(warmup_rounds=1, rounds=2)
    return [(phase.kind, phase.iterations) for phase in METHODS[method].schedule(program.algorithm_1(config))]


def count(method: str, *kinds: str) -> int:
    return sum(iterations for kind, iterations in schedule(method) if kind in kinds)


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_has_coworlds_numbers_of_updates(method: str):
    if method != "online_dv2":
        for kind in ("target_model", "target", "evaluate"):
            assert count(method, kind) == count("coworld", kind)
    if method not in ("offline_dv2", "online_dv2"):
        assert count(method, "source", "prefill") == count("coworld", "source", "prefill")
    if method == "offline_dv2":
        assert count(method, "source", "prefill", "source_updates") == 0
    if method == "online_dv2":
        assert count(method, "target", "target_model") == 0
        assert count(method, "source") == count("coworld", "target")


def test_finetuning_hands_over_between_all_of_the_source_and_all_of_the_target():
    kinds = [kind for kind, _ in schedule("dv2_finetune")]
    at = kinds.index("hand_over")
    assert set(kinds[:at]) == {"evaluate_random", "prefill", "source_updates", "source"}
    assert set(kinds[at + 1 :]) == {"target_model", "evaluate", "target"}


# Offline DV2


def test_disagreement_is_zero_for_identical_members_and_grows_with_their_distance():
    one = torch.rand(6, 3)
    assert disagreement(torch.stack([one, one, one])).tolist() == [0.0] * 6
    near, far = (disagreement(torch.stack([one, one + d])) for d in (0.1, 0.4))
    torch.testing.assert_close(near, torch.full((6,), 0.05**2))
    torch.testing.assert_close(far, torch.full((6,), 0.2**2))


@pytest.mark.parametrize("discrete", [0, 4])
def test_what_the_ensemble_disagrees_on_is_taken_off_the_imagined_reward(discrete: int):
    agent = built("offline_dv2", dyn_discrete=discrete, ensemble=3, disagreement_scale=7.0)["target"]
    feat = torch.randn(2, 5, agent.world.rssm.feat_size)
    plain = agent.world.reward(feat)
    penalised = agent._imagined_reward(feat)
    assert (agent.penalty(feat) > 0).all()
    torch.testing.assert_close(penalised, plain - 7.0 * agent.penalty(feat))
    for member in agent.ensemble[1:]:
        member.load_state_dict(agent.ensemble[0].state_dict())
    torch.testing.assert_close(agent._imagined_reward(feat), plain)


def test_the_ensemble_learns_the_dynamics_and_leaves_the_world_model_alone():
    agent = built("offline_dv2", model_lr=0.01, kl_free=0)["target"]
    before = weights(agent.ensemble)
    first = agent.update(batch(5))["ensemble_loss"]
    assert changed(before, agent.ensemble) == set(before)
    for _ in range(20):
        last = agent.update_model(batch(5))["ensemble_loss"]
    assert last < first
    seen = agent.world.observe(batch(5))
    loss = agent._more_losses(seen)["ensemble"]
    assert all(g is None for g in torch.autograd.grad(loss, list(agent.world.parameters()), allow_unused=True))


def test_an_offline_agent_is_restored_with_its_ensemble():
    agent, other = (built("offline_dv2")["target"] for _ in range(2))
    agent.update(batch(5))
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert not changed(weights(agent.ensemble), other.ensemble)
    feat = torch.randn(4, agent.world.rssm.feat_size)
    torch.testing.assert_close(other.penalty(feat), agent.penalty(feat))


# DV2 Finetune


@pytest.mark.parametrize("sizes", [(4, 5), (6, 4)])
def test_the_target_takes_over_the_source_agent_whatever_their_actions(sizes: tuple[int, int]):
    agents = built("dv2_finetune", *sizes)
    source, target = agents["source"], agents["target"]
    source.update(batch(sizes[0]), step=0)
    target.take_over(source, [])
    assert not changed(weights(source.world), target.world)
    assert not changed(weights(source.behaviour), target.behaviour)
    before = weights(source.world), weights(source.behaviour), copy.deepcopy(source.model_opt.state_dict())
    assert "ewc_penalty" not in target.update(batch(sizes[1]))
    assert not changed(before[0], source.world) and not changed(before[1], source.behaviour)
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


def test_weights_that_mattered_to_the_source_are_held():
    """The Fisher information is the mean squared gradient on source data; a strong penalty keeps weights near."""
    moved = {}
    for scale in (0.0, 1e6):
        torch.manual_seed(0)
        agents = built("dv2_finetune_ewc", 6, 6, ewc_scale=scale, model_lr=1e-3, kl_free=0)
        source, target = agents["source"], agents["target"]
        source.update(batch(), step=0)
        before = weights(source.world)
        target.take_over(source, [batch(seed=1), batch(seed=2)])
        assert not changed(before, source.world) and all(p.grad is None for p in source.world.parameters())
        anchor = target.model_opt.anchor
        assert anchor.penalty(target.model_opt.parameters) == 0
        mattering = [f > f.max() / 10 for f in anchor.fisher]
        for seed in range(30):
            penalty = target.update(batch(seed=9 + seed))["ewc_penalty"]
        assert (penalty > 0) == (scale > 0)
        parts = zip(target.model_opt.parameters, anchor.weights, mattering, strict=True)
        moved[scale] = sum((p - old).abs()[m].sum().item() for p, old, m in parts)
    assert moved[1e6] < 0.5 * moved[0.0]


def test_the_fisher_information_is_the_mean_squared_gradient():
    agents = built("dv2_finetune_ewc", 6, 6)
    source, target = agents["source"], agents["target"]
    data = [batch(seed=1), batch(seed=2)]
    torch.manual_seed(3)
    gradients = [source.gradients(b) for b in data]
    torch.manual_seed(3)
    target.take_over(source, data)
    for name in ("model_opt", "actor_opt", "critic_opt"):
        expected = [(a.square() + b.square()) / 2 for a, b in zip(*(g[name] for g in gradients), strict=True)]
        torch.testing.assert_close(getattr(target, name).anchor.fisher, expected)


# Multi-task DV2


def test_one_update_of_the_multitask_model_sees_both_streams():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    assert source.world is target.world and source.model_opt is target.model_opt

    def gradient(own: Tensor, other: Tensor) -> Tensor:
        inputs = (batch(4, seed=own), batch(5, seed=other))
        torch.manual_seed(0)
        noise = source._noise(*inputs)
        loss = source._model_loss(*inputs, noise, torch.tensor(1.0))[0]
        same = target._model_loss(inputs, noise)[0]
        torch.testing.assert_close(loss, same)
        return torch.autograd.grad(loss, source.world.reward.layers[0].weight)[0]

    assert not torch.allclose(gradient(1, 2), gradient(1, 3))
    assert not torch.allclose(gradient(1, 2), gradient(3, 2))


def test_the_two_actor_critics_of_the_multitask_model_are_apart():
    agents = built("multitask_dv2")
    source, target = agents["source"], agents["target"]
    held, world = weights(target.behaviour), weights(source.world)
    source.update(batch(4), batch(5, seed=1), step=0)
    assert not changed(held, target.behaviour) and changed(world, target.world)
    held, world = weights(source.behaviour), weights(source.world)
    metrics = target.update(batch(5), [], [batch(4, seed=1)])
    assert not changed(held, source.behaviour) and changed(world, source.world)
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
    saved = tools.load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["agents"]["target"]["behaviour"]
    assert not changed(saved, agent.behaviour)


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


def test_methods_say_what_they_cannot_take(dataset: Path, tmp_path: Path):
    for flags, message in (
        (("--method", "dv2_finetune", "--source_task", "walker_walk,cheetah_run"), "takes one"),
        (("--method", "multitask_dv2", "--source_observation", "state"), "see alike"),
        (("--method", "coworl"), "is not one of coworld"),
    ):
        with pytest.raises(BadInput, match=message):
            train(dataset, tmp_path, *flags)
