"""Meta-World: tasks, goals, seeds, success, orientation."""

import numpy as np
import pytest
from rollouts import assert_same, check_with_gymnasium, in_worker, rollout

from wrappers import Task, make_env, metaworld, parse_task
from wrappers.shared.backend import import_with_opengl

MujocoRenderer = import_with_opengl("gymnasium.envs.mujoco.mujoco_rendering").MujocoRenderer
ALL_V3_ENVIRONMENTS = import_with_opengl("metaworld.env_dict").ALL_V3_ENVIRONMENTS
ENV_POLICY_MAP = import_with_opengl("metaworld.policies").ENV_POLICY_MAP
TASKS = ("door-close", "button-press", "window-close", "handle-press", "drawer-close", "button-press-topdown")


def test_task_names_are_those_of_the_installed_package():
    assert sorted(f"{name}-v3" for name in metaworld.SUITE.tasks) == sorted(ALL_V3_ENVIRONMENTS)
    assert len(metaworld.SUITE.tasks) == 50


@pytest.mark.parametrize("spelling", ["metaworld_door-close", "metaworld_door_close", "door-close"])
def test_task_spellings(spelling):
    assert parse_task(spelling) == Task("metaworld", "door-close")
    assert str(parse_task(spelling)) == "metaworld_door-close"


@pytest.mark.parametrize("task", ["door-close", "button-press-topdown"])
def test_gymnasium_check(task):
    check_with_gymnasium(f"metaworld_{task}")


def test_the_seed_determines_the_episode_in_this_process_and_in_a_worker():
    here = rollout("metaworld_door-close", seed=3)
    assert here["image"].shape == (51, 64, 64, 3) and here["reward"].max() > 0
    assert_same(here, rollout("metaworld_door-close", seed=3))
    assert_same(here, in_worker(rollout, "metaworld_door-close", 3))


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_determines_the_goal_and_the_state_has_it(name):
    env = make_env(f"metaworld_{name}", size=8)
    goals = {}
    for seed in (0, 1, 0):
        observation, _ = env.reset(seed=seed)
        stepped = env.step(env.action_space.high)[0]
        target = env.unwrapped._env._target_pos
        np.testing.assert_allclose(observation["state"][-3:], target, atol=1e-6)
        np.testing.assert_allclose(stepped["state"][-3:], target, atol=1e-6)
        np.testing.assert_array_equal(goals.setdefault(seed, observation["state"]), observation["state"])
    assert np.abs(goals[0][-3:] - goals[1][-3:]).max() > 0.001
    after = env.reset()[0]["state"]  # a reset without a seed draws another goal
    assert np.abs(after[-3:] - goals[0][-3:]).max() > 0.001
    env.close()


@pytest.mark.filterwarnings("ignore:Constant")  # a warning of the scripted expert
@pytest.mark.parametrize("name", ["drawer-close", "button-press"])
def test_success_is_that_of_the_task_and_the_episode_continues(name):
    env = make_env(f"metaworld_{name}", size=8)
    env.unwrapped._draw = lambda: np.zeros((8, 8, 3), np.uint8)  # this test uses no image
    expert = ENV_POLICY_MAP[f"{name}-v3"]()
    env.reset(seed=2)
    success = []
    for _ in range(150):
        action = np.clip(expert.get_action(env.unwrapped._state), -1, 1)
        _, reward, terminated, truncated, info = env.step(action)
        success.append(info["success"])
        assert 0 <= reward <= 10 and not terminated and not truncated
    assert success[0] == 0.0 and max(success) == 1.0
    idle = [env.reset(seed=2)[1]["success"]] + [env.step(np.zeros(4))[4]["success"] for _ in range(50)]
    assert max(idle) == 0.0
    env.close()


def test_an_episode_may_be_longer_than_meta_worlds_500_steps():
    env = make_env("metaworld_door-close", size=8, time_limit=501)
    env.unwrapped._draw = lambda: np.zeros((8, 8, 3), np.uint8)
    env.reset(seed=0)
    truncated = [env.step(np.zeros(4))[3] for _ in range(501)]
    assert truncated == [False] * 500 + [True]
    env.close()


def drawn_by_gymnasium(seed):
    env = metaworld.load("door-close")
    env.seed(seed)
    env.reset()
    renderer = MujocoRenderer(env.model, env.data, width=64, height=64, camera_name="corner")
    return renderer.render("rgb_array").copy()


def test_the_default_orientation_is_that_of_the_old_renderer():
    theirs = in_worker(drawn_by_gymnasium, int(np.random.default_rng(5).integers(2**31)))
    for flip, expected in ((None, theirs[::-1]), (False, theirs)):
        env = make_env("metaworld_door-close", render="full", flip=flip)
        np.testing.assert_array_equal(env.reset(seed=5)[0]["image"], expected)
        description = env.get_wrapper_attr("description")
        assert description["flip"] is (flip is None) and description["camera"] == "corner"
        env.close()


def test_fast_images_are_similar_to_full_ones():
    images = [rollout("metaworld_door-close", 0, steps=0, render=render)["image"][0] for render in ("full", "fast")]
    difference = np.abs(images[0].astype(int) - images[1])
    assert 0 < difference.mean() < 25
