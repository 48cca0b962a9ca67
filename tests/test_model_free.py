"""The model-free agents and LOMPO: their parts by hand, acting, and whole runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OTHER_PROGRAMS, tiny
from test_agents import batch, changed, weights
from test_co_training import scores, train
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform
from updates import with_ends

import analyse
import co_training as program
import export
from agents.curl import CURLAgent, bounded_gaussian, contrastive_loss, squashed_gaussian
from agents.lompo import ClippedNormal, LOMPOAgent, log_prob_deviation
from agents.model_free import BCAgent, conservative_gap, drq_bc_loss, noisy_action, nstep_return
from agents.pixel_networks import center_crop, gather_window, random_crop, random_shift, whole_image
from policy import load_policy
from replay import OfflineDataset
from tools import BadInput
from training.checkpoint import load_agent
from training.domains import fit_image_size
from training.methods import METHODS, AgentBuilder
from training.policies import agent_policy

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")


# Parts, by hand


def test_nstep_returns_by_hand():
    reward, discount = torch.tensor([[1.0, 10.0, 100.0]] * 2), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    total, factor = nstep_return(reward, discount, 0.5)
    assert total.tolist() == [1 + 5 + 25, 1 + 5]  # nothing after the end of the task, a discount of 0, counts
    assert factor.tolist() == [0.125, 0]


def test_returns_of_fewer_steps_by_hand():
    """After two of three steps the episode ends by a time limit; after one, the task ends."""
    reward, discount = (
        torch.tensor([[1.0, 10.0, 0.0], [1.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
    )
    total, factor = nstep_return(reward, discount, 0.5, torch.tensor([2, 1]))
    assert total.tolist() == [1 + 5, 1] and factor.tolist() == [0.25, 0]


def test_a_clipped_action_keeps_the_gradient_of_its_mean():
    mean = torch.tensor([0.0, 0.9, -1.0], requires_grad=True)
    action = noisy_action(mean, torch.tensor([0.5, 0.5, 0.1]), clip=0.3)
    action.sum().backward()
    torch.testing.assert_close(action.detach(), torch.tensor([0.3, 1 - 1e-6, -0.9]))
    assert mean.grad.tolist() == [1, 1, 1]
    assert noisy_action(torch.zeros(1), torch.tensor([0.5])).item() == 0.5


def test_the_drq_bc_loss_by_hand():
    q, action, data = torch.tensor([2.0, -6.0]), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.zeros(2, 2)
    loss, cloning = drq_bc_loss(q, action, data, 2.5)
    assert cloning.item() == 0.75
    assert loss.item() == pytest.approx(0.75 - 2.5 / 4 * -2)


def test_the_conservative_gap_by_hand():
    values = torch.log(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]))  # two critics, one state, two actions
    gap = conservative_gap(values, values[..., 1])
    torch.testing.assert_close(gap, torch.log(torch.tensor([4 / 3, 2.0])))


def test_windows_of_frames():
    frames = torch.arange(2 * 2 * 5 * 5 * 3).reshape(2, 2, 5, 5, 3)
    inside = gather_window(frames, torch.tensor([1, 2]), torch.tensor([0, 1]), 3)
    for n, (top, left) in enumerate(((1, 0), (2, 1))):
        for k, rgb in ((0, 0), (1, 2)):
            assert torch.equal(inside[n, 3 * k + rgb], frames[n, k, top : top + 3, left : left + 3, rgb])
    beyond = gather_window(frames, torch.tensor([-2, 1]), torch.tensor([1, -1]), 5)
    padded = nn.functional.pad(whole_image(frames).float(), (2, 2, 2, 2), mode="replicate")
    assert torch.equal(beyond[0].float(), padded[0, :, 0:5, 3:8])
    assert torch.equal(beyond[1].float(), padded[1, :, 3:8, 1:6])
    assert torch.equal(center_crop(frames, 3), whole_image(frames)[:, :, 1:4, 1:4])
    torch.manual_seed(0)
    shifted, cropped = random_shift(frames, 1), random_crop(frames, 3)
    assert shifted.shape == (2, 6, 5, 5) and cropped.shape == (2, 6, 3, 3)
    assert all(value in frames[n] for n in range(2) for value in cropped[n].flatten())


def test_random_shifts_reach_both_ends():
    frames = torch.arange(9).expand(1000, 1, 9, 9)[..., None].expand(-1, -1, -1, -1, 3)
    left = random_shift(frames, 2)[:, 0, 4, 4] - 4
    assert sorted(set(left.tolist())) == [-2, -1, 0, 1, 2]


# CURL


def test_the_contrastive_loss_by_hand():
    query, key = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]], requires_grad=True)
    bilinear = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    logits = [[2.0, 1.0], [0.0, 3.0]]  # q_i^T W k_j
    expected = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)]
    loss = contrastive_loss(query, key, bilinear)
    assert loss.item() == pytest.approx(np.mean(expected)) and not loss.requires_grad


def test_the_squashed_gaussian_has_torchs_log_probability():
    outputs, noise = 3 * torch.randn(200, 8, dtype=torch.float64), torch.randn(200, 4, dtype=torch.float64)
    action, log_prob = squashed_gaussian(outputs, noise)
    mean, log_std = bounded_gaussian(outputs)
    assert log_std.min() >= -10 and log_std.max() <= 2
    base = Independent(Normal(mean, log_std.exp()), 1)
    raw = mean + log_std.exp() * noise
    jacobian = TanhTransform().log_abs_det_jacobian(raw, raw.tanh()).sum(-1)
    torch.testing.assert_close(log_prob, base.log_prob(raw) - jacobian, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(action, raw.tanh(), rtol=0, atol=2e-6)


def test_curl_trains_its_encoder_by_critic_and_contrast_and_not_by_the_actor():
    agent = CURLAgent(tiny(method="curl", size="32,32"), 3, 3, CPU)
    before = {name: weights(getattr(agent, name)) for name in agent.MODULES}
    agent.update(agent.random_batch())
    assert all(changed(before[name], getattr(agent, name)) for name in agent.MODULES)
    encoder = weights(agent.encoder)
    agent.update_actor(agent.encoder(agent.view(agent.random_batch()["image"][:, :3])).detach())
    assert not changed(encoder, agent.encoder)
    slow = {name: weights(getattr(agent, name)) for name in ("slow_encoder", "slow_critic", "actor", "temperature")}
    agent.update(agent.random_batch())  # the second update leaves these as they are
    assert not any(changed(slow[name], getattr(agent, name)) for name in slow)


def test_curls_critic_and_actor_losses_by_hand(monkeypatch: pytest.MonkeyPatch):
    agent = CURLAgent(tiny(method="curl", size="32,32", transitions=3, nstep=2, discount=0.5), 2, 2, CPU)
    data = {**agent.random_batch(), "discount": torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])}
    for slow in (agent.slow_encoder, agent.slow_critic):
        with torch.no_grad():
            [p.add_(0.05 * torch.randn_like(p)) for p in slow.parameters()]
    noise = torch.randn(3, 2)
    monkeypatch.setattr(agent, "normal", lambda: noise)
    now, later = agent.view(data["image"][:, :3]), agent.view(data["image"][:, 2:])
    alpha, encoded = 0.1, agent.encoder(now)

    def policy(encoded: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = bounded_gaussian(agent.actor(encoded))
        raw = mean + log_std.exp() * noise
        log_prob = Normal(mean, log_std.exp()).log_prob(raw) - torch.log(1 - raw.tanh().square())
        return raw.tanh(), log_prob.sum(1)

    action, log_prob = policy(agent.encoder(later))
    value = torch.minimum(*agent.slow_critic(agent.slow_encoder(later), action)) - alpha * log_prob
    r, survived = data["reward"], torch.tensor([0.25, 0.0, 0.0])  # gamma^2 d_1 d_2
    target = r[:, 0] + 0.5 * torch.tensor([1.0, 1.0, 0.0]) * r[:, 1] + survived * value
    expected = sum((q - target.detach()).square().mean() for q in agent.critic(encoded, data["action"]))
    torch.testing.assert_close(agent.critic_loss(data, encoded, later)[0], expected)
    action, log_prob = policy(encoded)
    expected = (alpha * log_prob - torch.minimum(*agent.critic(encoded, action))).mean().item()
    metrics = agent.update_actor(encoded.detach())
    assert metrics["actor_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert metrics["actor_entropy"].item() == pytest.approx(-log_prob.mean().item(), rel=1e-4)


def test_the_temperature_rises_if_the_entropy_is_below_its_target():
    for bias, rises in ((-3.0, True), (0.67, False)):  # log std near -10 and -0.5
        agent = CURLAgent(tiny(method="curl", size="32,32", temperature_lr=0.1), 3, 3, CPU)
        with torch.no_grad():
            agent.actor.policy[-1].bias[3:] = bias
        before = agent.temperature.log.item()
        agent.update_actor(torch.randn(4, agent.encoder.outputs))
        assert (agent.temperature.log.item() > before) == rises


# LOMPO


def lompo(**flags: object) -> LOMPOAgent:
    return LOMPOAgent(tiny(method="lompo", size="32,32", ensemble=3, **flags), 5, 5, CPU)


@pytest.mark.parametrize("discrete", [0, 4])
def test_lompos_penalty_is_the_deviation_of_the_members_log_probabilities(discrete: int):
    log_prob = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    torch.testing.assert_close(log_prob_deviation(log_prob), torch.tensor([(8 / 3) ** 0.5, 0.0]))
    agent = lompo(dyn_discrete=discrete)
    rssm = agent.world.rssm
    state = rssm.imagine_step(rssm.initial(4), torch.rand(4, 5))
    by_member = []
    for k in range(3):
        dist = rssm.dist(rssm.prior(state["deter"], torch.tensor(k)))
        by_member.append(dist.log_prob(state["stoch"].view(4, *dist.event_shape)))
    torch.testing.assert_close(agent.deviation(state), torch.stack(by_member).std(0, correction=0))


def test_lompos_imagined_rewards_are_penalised_and_those_of_the_data_are_not():
    agent, data = lompo(transitions=8, imag_horizon=2, uncertainty_scale=5.0), batch(5)
    post = agent.infer_posterior(data)
    imagined, metrics = agent.imagined_transitions(post)
    predicted = agent.world.reward(imagined["next_feat"])
    assert (predicted - imagined["reward"]).mean().item() == pytest.approx(5 * metrics["disagreement"].item(), rel=1e-4)
    assert len(imagined["reward"]) == 8 and (imagined["discount"] == 1).all()
    torch.testing.assert_close(imagined["feat"][4:], imagined["next_feat"][:4])  # 4 start states, 2 steps
    own = agent.data_transitions(post, data)
    feat, found = agent.world.rssm.feat(post), 0
    for i in range(8):
        same = (feat[:, :-1] == own["feat"][i]).all(-1).nonzero()
        for b, t in same.tolist():
            found += 1
            torch.testing.assert_close(own["next_feat"][i], feat[b, t + 1])
            assert own["reward"][i] == data["reward"][b, t + 1]
            assert torch.equal(own["action"][i], data["action"][b, t + 1])
    assert found == 8


def test_lompos_transitions_stay_in_an_episode_and_none_is_imagined_from_its_end():
    """The means of Gaussian latents identify the rows that transitions came from."""
    agent, data = lompo(transitions=400, imag_horizon=2, pred_discount=True), with_ends(batch(5))
    post, world = agent.infer_posterior(data), agent.world
    feat, middle = world.rssm.feat(post), 4
    own, (imagined, _) = agent.data_transitions(post, data), agent.imagined_transitions(post)
    rows = [tuple((feat == found).all(-1).nonzero()[0].tolist()) for found in own["feat"]]
    assert set(rows) == {(b, t) for b in range(3) for t in range(7) if t != middle - 1}
    starts = {tuple((feat == found).all(-1).nonzero()[0].tolist()) for found in imagined["feat"][:200]}
    assert starts == {(b, t) for b in range(3) for t in range(8) if t != middle - 1}


def test_as_many_transitions_are_imagined_as_asked_for():
    agent, data = lompo(transitions=100, imag_horizon=2), batch(5)  # more than the batch has states
    assert len(agent.imagined_transitions(agent.infer_posterior(data))[0]["reward"]) == 100


def test_lompos_noise_is_clipped_to_the_bounds():
    policy = ClippedNormal(torch.tensor([1.0, -0.5]), 0.2)
    uniform = torch.tensor([0.5, 0.9, 0.1, 0.0, 1.0])[:, None]
    expected = Normal(policy.mode, 0.2).icdf(uniform.clamp(1e-6, 1 - 1e-6)).clamp(-1, 1)
    torch.testing.assert_close(policy.icdf(uniform), expected, rtol=0, atol=2e-3)  # float32 near 0 and 1
    assert policy.icdf(uniform)[:2, 0].tolist() == [1, 1]


def test_lompo_trains_actor_and_critics_on_a_fixed_world_model():
    agent, data = lompo(), batch(5)
    world, behavior = weights(agent.world), weights(agent.behavior)
    metrics = agent.update(data)
    assert not changed(world, agent.world)
    assert {name.split(".")[0] for name in changed(behavior, agent.behavior)} == {"actor", "critics", "slow_critics"}
    assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())


def test_lompos_critic_loss_by_hand():
    agent = lompo(discount=0.5)
    one = {"feat": torch.randn(3, agent.world.rssm.feat_size), "next_feat": torch.randn(3, agent.world.rssm.feat_size)}
    one |= {"action": torch.rand(3, 5), "reward": torch.rand(3), "discount": torch.tensor([1.0, 1.0, 0.0])}
    with torch.no_grad():
        agent.behavior.slow_critics[1][-1].bias.add_(1)
    b, mode = agent.behavior, agent.behavior.actor(one["next_feat"]).mode
    slow = torch.minimum(*(c(torch.cat([one["next_feat"], mode], -1))[:, 0] for c in b.slow_critics))
    target = one["reward"] + 0.5 * one["discount"] * slow
    q = [c(torch.cat([one["feat"], one["action"]], -1))[:, 0] for c in b.critics]
    expected = sum((value - target).square().mean() for value in q)
    torch.testing.assert_close(agent.critic_loss(one)[0], expected)


# Acting


@pytest.mark.parametrize("method", ["bc", "drq_bc", "cql", "curl"])
def test_acting_stacks_frames_and_repeats_the_first(method: str):
    agent = METHODS[method].agents(AgentBuilder(tiny(method=method, size="32,32"), CPU, {"target": 3}, {}))["target"]
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8)
    state, modes = None, []
    for t, image in enumerate(images):
        first = np.array([t == 0, t in (0, 2)])  # the second episode begins anew at step 2
        action, state = agent.act({"image": image}, state, first, sample=False)
        modes.append(action)
    assert torch.equal(state["image"][0], torch.from_numpy(images[1:4, 0]).float())
    assert torch.equal(state["image"][1], torch.from_numpy(images[[2, 2, 3], 1]).float())
    values, expected = agent.evaluate_episode(torch.from_numpy(images[:, 0]))
    np.testing.assert_allclose(np.stack(modes)[:, 0], expected, rtol=0, atol=1e-5)
    assert (values is None) == (method == "bc")
    if values is not None:
        torch.testing.assert_close(agent.state_value(state)[0], values[-1], rtol=1e-4, atol=1e-5)
    sampled, _ = agent.act({"image": images[0]}, None, np.ones(2, bool), sample=True)
    assert np.abs(sampled).max() <= 1 and not np.allclose(sampled, modes[0])


def test_an_episode_of_another_number_of_environments_begins_with_a_new_state():
    agent = BCAgent(tiny(method="bc", size="32,32"), 3, 3, CPU)
    image = np.zeros((1, 32, 32, 3), np.uint8)
    assert agent.act({"image": image}, None, np.ones(1, bool), False)[0].shape == (1, 3)


def test_the_noise_falls_with_the_updates():
    agent = BCAgent(tiny(method="bc", size="32,32", noise_steps=10), 3, 3, CPU)
    for updates, scale in ((0, 1.0), (5, 0.55), (10, 0.1), (1000, 0.1)):
        agent.updates = updates
        assert agent.noise_scale == pytest.approx(scale)


# Runs


def test_images_are_not_enlarged_for_model_free_agents(dataset: Path, tmp_path: Path):
    """The block of drq_bc asks for 84 pixels, the data has 64."""
    flags = ["--method", "drq_bc", "--target_task", "walker_downhill", "--offline_traindir", dataset]
    program.main(
        [str(a) for a in (*flags, "--rounds", 0, "--logdir", tmp_path, "--configs", "defaults", "dmc", "debug")]
    )
    assert load_agent(tmp_path, "target", CPU)[1].size == [64, 64]


def test_84_pixels_are_used_as_they_are(tmp_path: Path):
    folder = tmp_path / "data"
    shutil.copytree(OTHER_PROGRAMS / "vd4rl_84px_hdf5", folder)
    flags = ["--method", "bc", "--target_task", "my_walker", "--offline_traindir", folder, "--logdir", tmp_path / "run"]
    with pytest.raises(BadInput, match="one episode is too few to hold out"):
        program.main([str(a) for a in (*flags, "--configs", "defaults", "dmc", "debug")])
    assert OfflineDataset(folder, size=84).image_shape[:2] == (84, 84)
    assert fit_image_size(tiny(method="bc", offline_traindir=folder), METHODS["bc"]).size == [84, 84]


@pytest.mark.precision
@pytest.mark.parametrize("method", ["bc", "drq_bc", "cql", "curl", "lompo"])
def test_runs_without_a_simulator(method: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["--method", method, "--target_task", "my_robot", "--offline_traindir", dataset, "--logdir", tmp_path]
    program.main([str(a) for a in (*arguments, "--rounds", 1, "--configs", "defaults", "debug")])
    row = scores(tmp_path)[-1]
    assert float(row["offline_action_distance"]) > 0 and (row["offline_image_loss"] != "") == (method == "lompo")
    assert f"{method}, at the end" in capsys.readouterr().out


def test_settings_of_world_models_are_refused(dataset: Path, tmp_path: Path):
    for method, flag, value in (("drq_bc", "dyn_deter", 8), ("bc", "nstep", 2), ("cql", "bc_scale", 1)):
        with pytest.raises(BadInput, match=f"--{flag} has no effect with method {method}"):
            train(dataset, tmp_path, "--method", method, f"--{flag}", value)
    with pytest.raises(BadInput, match="--transitions has no effect with method coworld"):
        train(dataset, tmp_path, "--transitions", 8)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "precision"),
    [("bc", "bfloat16"), pytest.param("cql", "float32", marks=pytest.mark.slow), ("curl", "bfloat16")],
)
def test_the_policy_is_exported(method: str, precision: str, dataset: Path, tmp_path: Path):
    train(dataset, tmp_path / "run", "--method", method, "--rounds", "1", "--precision", precision)
    policy = load_policy(tmp_path / "run", sample=True, seed=7)
    torch.manual_seed(7)
    act, state, first = agent_policy(policy.agent, sample=True), None, np.ones(2, bool)
    for t, images in enumerate(np.random.default_rng(0).integers(0, 256, (6, 2, 32, 32, 3), dtype=np.uint8)):
        if t == 3:
            first[1] = True
            policy.reset([1])
        expected, state = act({"image": images}, state, first)
        np.testing.assert_array_equal(policy(images), expected)
        first = np.zeros(2, bool)
    with pytest.raises(ValueError, match="no world model that could imagine"):
        policy.imagine(np.zeros((2, 6)))
    if method == "bc":
        with pytest.raises(ValueError, match="no critic"):
            policy.value()
    else:
        assert policy.value().shape == (2,)
    export.main(["--logdir", str(tmp_path / "run"), "--out", str(tmp_path / "policy.pt2")])  # compares the actions
    assert (tmp_path / "policy.pt2").exists()


def test_a_method_without_a_critic_has_no_values_to_analyse(dataset: Path, tmp_path: Path):
    train(dataset, tmp_path, "--method", "bc", "--rounds", "1")
    with pytest.raises(BadInput, match="method bc has no critic"):
        analyse.main(["--logdir", str(tmp_path)])


@pytest.mark.parametrize("method", ["bc", "drq_bc", "cql", "curl"])
def test_an_update_in_bfloat16_is_near_that_in_float32(method: str):
    found = []
    for precision in ("float32", "bfloat16"):
        config = tiny(method=method, size="32,32", transitions=32, precision=precision)
        torch.manual_seed(0)
        agent = METHODS[method].agents(AgentBuilder(config, CPU, {"target": 3}, {}))["target"]
        data = agent.random_batch()
        torch.manual_seed(1)
        found.append({k: float(v) for k, v in agent.update(data).items() if k.endswith("loss")})
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.05, abs=0.02), name
