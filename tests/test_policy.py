"""policy.load_policy: the actions, values and predictions of a run's agents, for images one by one or in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

from agents.agent import Agent
from agents.coworld import SourceAgent, TargetAgent
from config import Config
from policy import PixelPolicy, load_policy
from senses import Senses
from tools import BadInput, resize_images
from training.checkpoint import CHECKPOINT, model_state, save_checkpoint
from training.policies import agent_policy

CPU = torch.device("cpu")
BOUNDS = {"low": [-5.0, 0.0, -1.0], "high": [3.0, 10.0, 1.0]}
ACTIONS = 3


def save_run(logdir: Path, data: dict[str, Any] | None = None, state: bool = False, **flags: object) -> Config:
    """A checkpoint of untrained agents whose actions depend on the image more than those of a new agent do."""
    flags = {"size": "32,32", "source_task": "walker_walk", "target_task": "my_robot", **flags}
    config = tiny(source_observation="state" if state else "image", **flags)
    torch.manual_seed(0)
    senses = Senses(0, {"joints": 4}) if state else Senses()
    agents: dict[str, Agent] = {
        "source": SourceAgent(config, 2, ACTIONS, CPU, senses),
        "target": TargetAgent(config, ACTIONS, ACTIONS, CPU),
    }
    with torch.no_grad():
        for agent in agents.values():
            for parameter in agent.behavior.actor.parameters():
                parameter.mul_(2.0)
    weights = {name: agent.model_dict() for name, agent in agents.items()}
    about = {"config": dict(vars(config)), "progress": {}, **model_state(agents), "agents": weights}
    save_checkpoint(logdir / CHECKPOINT, about if data is None else {**about, "data": data})
    return config


def frames(steps: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (steps, *shape), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Actions in [-1, 1], and a Gaussian latent: a categorical one may be the same for two images."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, dyn_discrete=0)
    return folder


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Actions in units of its own."""
    folder = tmp_path_factory.mktemp("mapped")
    save_run(folder, {"action_map": BOUNDS, "image_shape": (96, 72, 3)}, dyn_discrete=0)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("discrete", [0, 4])
def test_actions_are_those_of_an_evaluation_with_the_same_random_numbers(
    tmp_path: Path, discrete: int, sample: bool, precision: str
):
    save_run(tmp_path, dyn_discrete=discrete, precision=precision)
    policy = load_policy(tmp_path, sample=sample, seed=7)
    assert policy.agent.config.precision == precision
    torch.manual_seed(7)
    act, state, first = agent_policy(policy.agent, sample), None, np.ones(2, bool)
    actions = []
    for t, images in enumerate(frames(12, 2, 32, 32, 3)):
        if t == 6:  # another episode of the second one begins
            first[1] = True
            policy.reset([1])
        expected, state = act({"image": images}, state, first)
        actions.append(policy(images))
        np.testing.assert_array_equal(actions[-1], expected)
        first = np.zeros(2, bool)
    assert np.std(actions, 0).min() > 1e-3 and np.abs(actions).max() <= 1


@pytest.mark.parametrize("discrete", [0, 4])
def test_a_policy_computes_in_the_precision_of_its_run_or_in_the_one_asked_for(tmp_path: Path, discrete: int):
    """Actions, values and predictions; float32 and bfloat16 differ, by less than the roundings of a few layers."""
    save_run(tmp_path, dyn_discrete=discrete, precision="bfloat16")
    image, actions = frames(1, 32, 32, 3)[0], np.zeros((3, ACTIONS))
    results = []
    for precision in (None, "bfloat16", "float32"):
        policy = load_policy(tmp_path, precision=precision)
        action, (images, rewards) = policy(image), policy.imagine(actions)
        assert action.dtype == rewards.dtype == np.float32 and images.dtype == np.uint8
        results.append(np.concatenate([action, [policy.value()], rewards[:1]]))
    own, same, other = results
    np.testing.assert_array_equal(own, same)
    assert (own != other).any()
    np.testing.assert_allclose(own, other, rtol=0, atol=0.05)
    with pytest.raises(BadInput, match="precision 'float16' is not float32 or bfloat16"):
        load_policy(tmp_path, precision="float16")


def test_random_numbers_of_the_program_are_not_used(run: Path):
    images, policy = frames(3, 32, 32, 3), load_policy(run, sample=True, seed=1)
    before = torch.get_rng_state()
    first = [policy(image) for image in images]
    policy.imagine(np.zeros((2, ACTIONS)))
    assert torch.equal(before, torch.get_rng_state())
    policy.reset(seed=1)
    np.testing.assert_array_equal(first, [policy(image) for image in images])
    policy.reset(seed=2)
    assert not np.array_equal(first, [policy(image) for image in images])
    policy.reset(seed=1)
    assert not np.array_equal(first[0], policy(images[0], sample=False))


def test_images_of_other_sizes_and_grey_ones(run: Path):
    colour, grey = frames(1, 96, 72, 3)[0], frames(1, 96, 72)[0]
    first = load_policy(run)(resize_images(colour[None], 32)[0])
    assert first.shape == (ACTIONS,) and first.dtype == np.float32
    np.testing.assert_array_equal(load_policy(run)(colour), first)
    np.testing.assert_array_equal(load_policy(run)(colour[None]), first[None])
    repeated = load_policy(run)(np.stack([grey] * 3, -1))
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(load_policy(run)(image), repeated)
    np.testing.assert_array_equal(load_policy(run)(grey[None, ..., None]), repeated[None])
    assert not np.array_equal(first, repeated)


def test_a_batch_is_as_many_episodes(run: Path):
    """With equal noise: a batch's random numbers are others than those of single images."""
    policy = load_policy(run)
    policy.agent.world.rssm.noise = lambda n, steps, generator=None: torch.full((n, steps, 4), 0.5)
    images = frames(4, 3, 32, 32, 3)
    batch = np.stack([policy(image) for image in images])
    for row in range(3):
        policy.reset()
        single = [policy(image) for image in images[:, row]]
        np.testing.assert_allclose(batch[:, row], single, atol=1e-5)


def test_actions_are_in_the_units_of_the_dataset(run: Path, mapped: Path):
    low, high = (np.array(BOUNDS[key]) for key in ("low", "high"))
    image = frames(1, 96, 72, 3)[0]
    model, own = load_policy(run)(image), load_policy(mapped)(image)
    np.testing.assert_allclose(own, low + (model + 1) / 2 * (high - low), rtol=1e-5, atol=1e-5)
    assert load_policy(mapped).image_shape == (96, 72, 3) and load_policy(run).image_shape == (32, 32, 3)
    assert load_policy(mapped, "source")(image).shape == (2,)  # has no map


def test_value_is_the_critic_at_the_current_state(run: Path):
    policy = load_policy(run)
    policy(frames(1, 32, 32, 3)[0])
    critic, feat = policy.agent.behavior.critic, policy.agent.world.rssm.feat(policy._state)
    assert policy.value() == critic(feat).item() and isinstance(policy.value(), float)
    policy.reset()
    policy(frames(2, 32, 32, 3))
    assert policy.value().shape == (2,) and policy.value()[0] != policy.value()[1]


def test_imagination_equals_the_open_loop_prediction(run: Path, mapped: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same noise, by way of the pictures that training draws."""
    low, high = (np.array(BOUNDS[key]) for key in ("low", "high"))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, ACTIONS)).astype(np.float32)
    actions[0] = 0
    images = frames(6, 32, 32, 3)
    for logdir, own in ((run, actions), (mapped, low + (actions + 1) / 2 * (high - low))):
        policy = load_policy(logdir)
        world = policy.agent.world
        monkeypatch.setattr(world.rssm, "noise", lambda n, steps, generator=None: torch.full((n, steps, 4), 0.5))
        batch = {"image": torch.from_numpy(images)[None], "action": torch.from_numpy(actions)[None]}
        expected = world.open_loop(batch, 1)[0, 1:]
        policy(images[0])
        predicted, rewards = policy.imagine(own[1:])
        assert predicted.dtype == np.uint8 and rewards.shape == (5,) and len(np.unique(rewards)) == 5
        assert np.abs(predicted.astype(int) - expected.numpy()).max() <= (0 if own is actions else 1)


def test_imagination_changes_nothing_and_depends_on_its_seed(run: Path):
    images, actions = frames(2, 32, 32, 3), np.random.default_rng(0).uniform(-1, 1, (3, 5, ACTIONS))
    plain, other = load_policy(run), load_policy(run)
    np.testing.assert_array_equal(plain(images[0]), other(images[0]))
    one = other.imagine(actions[1])
    several = other.imagine(actions)  # three futures of one image
    assert several[0].shape == (3, 5, 32, 32, 3) and several[1].shape == (3, 5)
    assert np.array_equal(one[1], other.imagine(actions[1])[1])
    assert not np.array_equal(one[1], other.imagine(actions[1], seed=1)[1])
    assert not np.array_equal(several[1][0], several[1][1])
    np.testing.assert_array_equal(plain(images[1]), other(images[1]))
    other.reset()
    other(frames(3, 32, 32, 3))
    assert other.imagine(actions)[0].shape == (3, 5, 32, 32, 3)


IMAGE = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda policy: policy(IMAGE.astype(np.float32)), "images are float32; give uint8"),
        (lambda policy: policy(IMAGE.transpose(2, 0, 1)), r"images have shape \(3, 32, 32\); give"),
        (lambda policy: policy(IMAGE[:0]), r"shape \(0, 32, 3\)"),
        (lambda policy: policy(np.stack([IMAGE] * 3)), r"3 images, but 2 episodes are running; call reset\(\) first"),
        (lambda policy: policy.reset([2]), r"reset of \[2\]: give a mask of 2 rows, or indices below 2"),
        (lambda policy: policy.reset([True]), "give a mask of 2 rows"),
        (lambda policy: policy.reset(0.5), "give a mask of 2 rows"),
        (lambda policy: (policy.reset([1]), policy.value()), r"no image since the last reset for rows \[1\]"),
        (lambda policy: (policy.reset(), policy.value()), "no image since the last reset; call"),
        (lambda policy: (policy.reset(), policy.imagine(np.zeros((2, 3)))), "no image since the last reset; call"),
        (lambda policy: policy.imagine(np.zeros((2, 3))), r"actions have shape \(2, 3\); give \(2, H, 3\)"),
        (lambda policy: policy.imagine(np.zeros((2, 4, 2))), r"shape \(2, 4, 2\); give \(2, H, 3\)"),
        (lambda policy: policy.imagine(np.full((2, 1, 3), 4.0)), r"action 4 at \(0, 0, 0\) is outside \[-5, 3\]"),
        (lambda policy: policy.imagine(np.full((2, 1, 3), np.nan)), "action nan at"),
    ],
)
def test_wrong_arguments(mapped: Path, call: Any, message: str):
    policy = load_policy(mapped)
    policy(np.stack([IMAGE] * 2))
    with pytest.raises(ValueError, match=message):
        call(policy)


def test_runs_that_have_no_such_policy(tmp_path: Path, run: Path):
    save_run(tmp_path, state=True)
    with pytest.raises(BadInput, match=r"source agent observes low-dimensional states \(joints\), not images"):
        load_policy(tmp_path, "source")
    assert load_policy(tmp_path)(IMAGE).shape == (ACTIONS,)
    with pytest.raises(BadInput, match="has no sorce agent, only source, target"):
        load_policy(run, "sorce")
    with pytest.raises(BadInput, match="no checkpoint at"):
        load_policy(tmp_path / "missing")


def test_diverged_weights(run: Path):
    policy = load_policy(run)
    with torch.no_grad():
        next(policy.agent.behavior.actor.parameters()).fill_(torch.nan)
    with pytest.raises(BadInput, match="not finite"):
        PixelPolicy(policy.agent)(IMAGE)


def test_a_reset_of_no_episode_changes_nothing(run: Path):
    policy, other = load_policy(run), load_policy(run)
    for step in range(3):
        images = np.stack([IMAGE + step] * 2)
        policy.reset([]) if step else None
        assert np.array_equal(policy(images), other(images))
