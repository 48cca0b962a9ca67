"""Several cameras and states beside the image: networks, losses, ties and copies, without data or simulators."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import tiny
from gymnasium.spaces import Box, Dict
from test_plain import gradients
from torch import Tensor
from updates import transfer, update_all, with_ends

import models
from agents.base import BaseAgent
from agents.coworld import SourceAgent, TargetAgent
from benchmarks import plain
from dreamer_v3.distributions import symlog
from models import WorldModel, weighted_sum
from senses import JointEncoder, Senses, StateNormalizer, embedded_parts
from tools import BadInput
from training.domain_senses import check_sources, check_target_simulator, senses_notes
from training.methods import METHODS, AgentBuilder
from training.selector import SourceSelector
from wrappers import Task

CPU, META = torch.device("cpu"), torch.device("meta")
JOINTS = {"qpos": 3, "gripper": 1}
BOTH = Senses(6, JOINTS)  # two cameras and two states
FAST = ["coworld", "offline_dv2", "dv2_finetune_ewc", "lompo"]
OTHERS = [name for name, method in METHODS.items() if method.world_model and name not in FAST]
SMALL = {"size": "32,32", "state_embed": 7, "state_layers": 2, "eta_steps": 100}


def built(method: str, source: Senses, target: Senses, device: torch.device = CPU, **flags: object) -> dict:
    """The agents of a method whose domains have these senses."""
    config = tiny(**{**SMALL, "method": method, **flags})
    senses = {"source": source, "target": target} if METHODS[method].uses_sources else {"target": target}
    actions = {name: 4 + (name == "target") for name in senses}
    return METHODS[method].agents(AgentBuilder(config, device, actions, senses))


@pytest.mark.parametrize(("discrete", "ends"), [(0, False), (4, True)])
def test_losses_and_gradients_equal_those_of_the_plain_reference(discrete: int, ends: bool):
    """Eq. 3 with a source that has the same senses, so that both parts of the embeddings are aligned."""
    torch.manual_seed(0)
    agents = built("coworld", BOTH, BOTH, dyn_discrete=discrete, kl_free=0.0, pred_discount=ends)
    source, target = agents["source"], agents["target"]
    data = with_ends(target.random_batch()) if ends else target.random_batch()
    noise = target.noise(data)
    total, metrics, _ = target.world_model_loss(data, noise, source.embed(data))
    slow, _ = plain.model_losses(target.world, data, target.config, noise, source.world)
    names = {name: name if name == "state_alignment" else f"{name}_loss" for name in slow if name != "kl"}
    torch.testing.assert_close(
        {name: metrics[key] for name, key in names.items()}, {name: slow[name] for name in names}
    )
    assert slow["state"] > 0 and slow["state_alignment"] > 0
    scales = {**target.scales, "state_alignment": target.config.state_alignment_scale}
    fast_grads, slow_grads = (gradients(target.world, loss) for loss in (total, weighted_sum(slow, scales)))
    assert len(slow_grads) == len(list(target.world.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in slow_grads.values())
    torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-3, atol=1e-4)


def test_without_states_and_with_one_camera_nothing_changes():
    """The networks and their names are those of an image alone, so that older checkpoints fit."""
    torch.manual_seed(0)
    world = WorldModel(tiny(size="32,32"), 6)
    assert type(world.encoder).__name__ == "ConvEncoder" and world.encoder.layers[0].in_channels == 3
    assert not [name for name in world.state_dict() if "state" in name]
    assert world.loss_scales(tiny()).keys() == {"image", "reward", "kl"}
    assert Senses().keys == ("image",) and Senses(0, JOINTS).keys == ("qpos", "gripper")


@pytest.mark.parametrize("source", [Senses(6), Senses(6, {"other": 3}), Senses(6, {"gripper": 1, "qpos": 3})])
def test_without_the_same_states_only_the_images_are_aligned(source: Senses):
    """With no states, others, or the same in another order: the loss is that of the image parts."""
    torch.manual_seed(0)
    agents = built("coworld", source, BOTH)
    target, data = agents["target"], agents["target"].random_batch()
    selection = SourceSelector(target.config, ["source"]).select(target, [agents["source"]], data)
    size = target.world.encoder.image.embed
    assert selection.embed.shape[-1] == size == target.embed(data, image_only=True).shape[-1]
    expected = models.state_alignment(selection.embed, target.embed(data)[..., :size])
    torch.testing.assert_close(target.alignment_loss(selection.embed, target.embed(data)), expected)
    before = [weight.clone() for weight in target.world.encoder.state.parameters()]
    metrics = target.update(data, selection.embed, agents["source"].value_bound(data))
    torch.testing.assert_close(metrics["state_alignment"], expected)
    assert any((a != b).any() for a, b in zip(before, target.world.encoder.state.parameters(), strict=True))


def test_the_states_change_what_an_agent_does():
    torch.manual_seed(0)
    agent = built("coworld", BOTH, BOTH)["target"]
    with torch.no_grad():
        for parameter in [*agent.behavior.actor.parameters(), *agent.world.encoder.parameters()]:
            parameter.mul_(2.0)
    image = np.zeros((1, 32, 32, 6), np.uint8)

    def act(**changes: float) -> np.ndarray:
        states = {key: np.full((1, size), changes.get(key, 0.0), np.float32) for key, size in JOINTS.items()}
        torch.manual_seed(1)
        return agent.act({"image": image, **states, "reward": np.zeros(1)}, None, np.ones(1, bool), sample=False)[0]

    assert np.abs(act(qpos=5.0) - act()).max() > 1e-4 and np.abs(act(gripper=5.0) - act()).max() > 1e-4
    np.testing.assert_array_equal(act(), act())


@pytest.mark.parametrize("logarithmic", [False, True])
def test_states_are_standardised_by_the_data(logarithmic: bool):
    rng = np.random.default_rng(0)
    lengths = (40, 25)
    episodes = [
        {"qpos": rng.normal([0.5, -40, 3], [0.01, 20, 0], (n, 3)).astype(np.float32), "gripper": np.ones((n, 1))}
        for n in lengths
    ]
    scale = StateNormalizer(BOTH, tiny(state_standardize=True, symlog=logarithmic))
    rows = torch.cat([torch.as_tensor(e["qpos"]) for e in episodes])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    seen = symlog(rows) if logarithmic else rows
    torch.testing.assert_close(scale(rows), seen.clamp(-10, 10), msg="before `fit` nothing is known")
    scale.fit([])
    scale.fit(episodes)
    found = scale(rows)
    assert scale.rows == sum(lengths) and found.abs().max() < 10
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0)[:2], torch.ones(2), atol=1e-3, rtol=0)
    assert found[:, 2:].abs().max() < 1e-3, "numbers that never change"
    assert torch.equal(scale(rows + 1e6).max(0).values, torch.full((4,), 10.0))
    scale.fit([{key: value + 7 for key, value in episodes[0].items()}])
    assert torch.equal(scale(rows), found), "measured once"
    other = StateNormalizer(BOTH, tiny(state_standardize=True, symlog=logarithmic))
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other(rows), found)
    assert (
        not StateNormalizer(BOTH, tiny()).state_dict()
        and not StateNormalizer(Senses(), tiny(state_standardize=True)).state_dict()
    )


def test_both_networks_of_states_see_standardised_ones():
    """The encoder's input and the decoder's target; a copy has the scale of the agent that its weights learned with."""
    agents = built("coworld_warm_start", BOTH, BOTH, state_standardize=True)
    source, target = agents["source"], agents["target"]
    episode = {key: np.random.default_rng(0).normal(5, 3, (99, size)) for key, size in JOINTS.items()}
    source.world.state_normalizer.fit([episode])
    batch = source.random_batch()
    shifted = batch | {key: 3 * batch[key] + 5 for key in JOINTS}
    assert source.world.observed(shifted)[-1].abs().max() < source.world.observed(batch)[-1].abs().max() + 4
    torch.testing.assert_close(
        source.world.observed(shifted)[-1], torch.cat([batch[k] for k in JOINTS], -1), atol=0.8, rtol=0.3
    )
    losses = source.world.observation_losses(source.world.observe(shifted).feat, shifted)
    assert losses["state"] < 10 < losses["state"] * 9, "that of numbers of size 1"
    target.copy_from(source)
    assert torch.equal(target.world.observed(shifted)[-1], source.world.observed(shifted)[-1])


def test_open_loop_predictions_have_both_cameras():
    world = WorldModel(tiny(**SMALL), 6, BOTH)
    batch = {"image": torch.randint(0, 256, (2, 8, 32, 32, 6), dtype=torch.uint8), "action": torch.randn(2, 8, 6)}
    batch |= {key: torch.randn(2, 8, size) for key, size in JOINTS.items()}
    predicted = world.open_loop(batch, context=3)
    assert (predicted.shape, predicted.dtype) == (batch["image"].shape, torch.uint8)
    batch = {**batch, "qpos": batch["qpos"].clone()}
    batch["qpos"][:, 3:] = 9.0  # after the context they are not read
    torch.manual_seed(0)
    one = world.open_loop(batch, context=3)
    batch["qpos"][:, 3:] = -9.0
    torch.manual_seed(0)
    assert torch.equal(world.open_loop(batch, context=3), one)


def moments(agent: BaseAgent) -> list[Tensor]:
    optimizers = [getattr(agent, name) for name in agent.OPTIMIZERS]
    return [state["exp_avg"] for optimizer in optimizers for state in optimizer.adam.state.values()]


@pytest.mark.parametrize("discrete", [0, 4])
def test_micro_batches_give_the_gradients_of_the_whole_batch(discrete: int):
    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        agents = built("coworld", BOTH, BOTH, grad_accum=parts, dyn_discrete=discrete, kl_free=0.0)
        torch.manual_seed(1)
        update_all("coworld", agents)
        found.append([*moments(agents["source"]), *moments(agents["target"])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_bfloat16_losses_are_close_to_those_in_float32():
    torch.manual_seed(0)
    config = tiny(**SMALL, kl_free=0.0)
    world, data = WorldModel(config, 5, BOTH), built("coworld", BOTH, BOTH)["target"].random_batch()
    noise = world.rssm.noise(*data["action"].shape[:2])
    exact, _ = world.losses(world.observe(data, noise), data, config)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = world.losses(world.observe(data, noise), data, config)
    assert all(loss.dtype == torch.float32 for loss in rounded.values())
    torch.testing.assert_close(rounded["state"], exact["state"], rtol=0.02, atol=0.0)


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones():
    """Those of the source and the target, with the ties, as they are compiled on a GPU."""
    torch.manual_seed(0)
    agents = built("coworld", BOTH, BOTH, size="16,16", kl_free=0.0)
    source, target = agents["source"], agents["target"]
    own, data = ({k: v[:, :3] for k, v in agent.random_batch().items()} for agent in (source, target))
    noise, other_noise, eta = source.noise(own), target.noise(data), torch.tensor(0.5)
    for agent, inputs in (
        (source, (own, noise, data, other_noise, eta)),
        (target, (data, other_noise, source.embed(data))),
    ):
        found, function = [], agent.world_model_loss
        for call in (function, torch.compile(function, dynamic=False, backend="aot_eager")):
            loss = call(*inputs)[0]
            gradients_of = torch.autograd.grad(loss, agent.model_opt.parameters, allow_unused=True)
            found.append([loss.detach(), *(g for g in gradients_of if g is not None)])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", FAST + [pytest.param(m, marks=pytest.mark.slow) for m in OTHERS])
def test_every_method_updates_and_reads_nothing_from_the_device(method: str):
    """On the meta device, as in test_meta_device.py; copies and EWC too."""
    short = {"batch_size": 2, "batch_length": 3, "imag_horizon": 2}
    agents = built(method, BOTH, BOTH, META, **short)
    transfer(method, agents)
    metrics = update_all(method, agents)
    assert all(isinstance(value, Tensor) and value.device == META for value in metrics.values())
    assert "state_loss" in metrics and "image_loss" in metrics


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.world_model])
def test_model_free_agents_take_several_cameras(method: str):
    short = {"batch_size": 2, "batch_length": 3, "imag_horizon": 2}
    agents = built(method, Senses(6), Senses(6), META, **short)
    assert agents["target"].encoder.layers[0].in_channels == 6 * agents["target"].config.frame_stack
    update_all(method, agents)


def test_a_copy_is_equal_and_ewc_anchors_the_states_networks():
    torch.manual_seed(0)
    agents = built("dv2_finetune_ewc", BOTH, BOTH)
    agents["source"].update(agents["source"].random_batch())
    transfer("dv2_finetune_ewc", agents)
    source, target = (agents[name].world.state_dict() for name in ("source", "target"))
    assert all(torch.equal(source[key], target[key]) for key in source) and isinstance(
        agents["target"].world.encoder, JointEncoder
    )
    metrics = agents["target"].update(agents["target"].random_batch())
    assert metrics["ewc_penalty"] > 0 and metrics["state_loss"] > 0


def test_the_distance_of_the_selector_adds_both_parts():
    torch.manual_seed(0)
    config = tiny(**SMALL, select="relative")
    sources, target = [SourceAgent(config, 4, 5, CPU, BOTH) for _ in range(2)], TargetAgent(config, 5, 5, CPU, BOTH)
    data = target.random_batch()
    embeds, selector = [source.embed(data) for source in sources], SourceSelector(config, ["a", "b"])
    for embed, distance in zip(embeds, selector.measure(target, embeds, data), strict=True):
        pairs = zip(*(embedded_parts(target.world.encoder, e) for e in (embed, target.embed(data))), strict=True)
        parts = [(models.state_alignment(*pair), models.information(pair[0])) for pair in pairs]
        torch.testing.assert_close(distance, sum(p for p, _ in parts) / sum(i for _, i in parts))


OTHER, NONE = Senses(6, {"other": 3}), Senses(6)
ONE_CAMERA = Senses(3, JOINTS)


@pytest.mark.parametrize(
    ("method", "source", "flags", "message"),
    [
        ("coworld", BOTH, {}, ""),
        ("coworld", NONE, {"constraint_latents": "source"}, ""),
        ("coworld", OTHER, {"reward_alignment": False}, ""),
        ("coworld", Senses(0, {"x": 2}), {}, ""),  # a source on states alone reads none of the target's data
        ("coworld", OTHER, {}, "the states other .3., the target's data qpos .3., gripper .1., and reward alignment"),
        ("coworld", OTHER, {"reward_alignment": False, "constraint_latents": "source"}, "--constraint_latents target"),
        ("coworld", ONE_CAMERA, {}, "by 1 camera, the target's images are of 2 cameras, and state alignment .Eq. 3. "
         "needs a source that reads them; give --dmc_camera with as many cameras, or --state_alignment False"),
        ("coworld", ONE_CAMERA, {"state_alignment": False}, "and reward alignment"),
        ("coworld", ONE_CAMERA, {"state_alignment": False, "reward_alignment": False}, ""),
        ("dv2_finetune", BOTH, {}, ""),
        ("dv2_finetune", NONE, {}, "shares weights between source and target, which need the same states"),
        ("multitask_dv2", ONE_CAMERA, {}, "give --dmc_camera with as many cameras, or another --method"),
        ("offline_dv2", ONE_CAMERA, {}, ""),
    ],
)  # fmt: skip
def test_which_senses_of_source_and_target_fit_together(method: str, source: Senses, flags: dict, message: str):
    config, tasks = tiny(method=method, **flags), {"source": (Task("dmc", "walker_walk"), "source")}
    senses = {"source": source, "target": BOTH}
    if not message:
        check_sources(config, METHODS[method], senses, tasks)
        return
    with pytest.raises(BadInput, match=message) as error:
        check_sources(config, METHODS[method], senses, tasks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("senses", "message"),
    [
        (BOTH, ""),
        (Senses(3, JOINTS), "its images are of 1 camera, dmc_walker_walk is drawn by 2 cameras; give as many"),
        (
            Senses(6, {"qpos": 4}),
            "--state_keys qpos: 4 numbers in data, 3 in dmc_walker_walk; give that task's dataset",
        ),
        (Senses(6, {"qpso": 4}), "dmc_walker_walk observes no state 'qpso'; there are: qpos, gripper"),
    ],
)
def test_the_targets_simulator_has_what_the_agent_observes(senses: Senses, message: str):
    boxes = {key: Box(-1, 1, (size,)) for key, size in JOINTS.items()}
    space = Dict({"image": Box(0, 255, (32, 32, 6), np.uint8), **boxes})
    config = tiny(state_keys=",".join(senses.state), offline_traindir="data")
    with pytest.raises(BadInput, match=message) if message else nullcontext():
        check_target_simulator(senses, space, config, Task("dmc", "walker_walk"))


def test_notes_say_what_is_observed_and_aligned():
    notes = []
    for source in (BOTH, NONE):
        agents = built("coworld", source, BOTH)
        notes.append("\n".join(senses_notes(agents["target"].config, METHODS["coworld"], agents)))
    assert "target: observes the images of 2 cameras, states qpos (3), gripper (1)" in notes[0]
    assert "state alignment with source: of the image part and the part of the states" in notes[0]
    assert "state alignment with source: of the image part alone" in notes[1]
    plain_agents = built("coworld", Senses(), Senses())
    assert senses_notes(plain_agents["target"].config, METHODS["coworld"], plain_agents) == []
