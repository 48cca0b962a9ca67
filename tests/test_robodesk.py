"""RoboDesk: tasks, seeds, success, images, and side effects of its package."""

import numpy as np
import pytest
from rollouts import assert_same, check_with_gymnasium, in_worker, rollout, run_python

from wrappers import Task, make_env, parse_task, robodesk


@pytest.fixture(scope="module")
def blind_env():
    """An environment that draws black frames, for tests that use no image. They have it in turn: it compiles slowly."""
    env = make_env("robodesk_push_green", size=8)
    env.unwrapped._draw = lambda: np.zeros((8, 8, 3), np.uint8)
    yield env
    env.close()


@pytest.fixture
def env(blind_env):
    """`blind_env` with its first task, after a reset."""
    blind_env.unwrapped._desk.task = "push_green"
    blind_env.reset(seed=0)
    return blind_env


def test_task_names_are_those_of_the_installed_package():
    desk = robodesk.desk_class()("push_green", 8, ["top"], "fast")
    assert sorted(robodesk.SUITE.tasks) == sorted(desk.all_tasks)
    desk.close()


@pytest.mark.parametrize("spelling", ["push_green", "push-green", "robodesk_push_green"])
def test_task_spellings(spelling):
    assert parse_task(spelling) == Task("robodesk", "push_green")


@pytest.mark.parametrize("task", ["push_green", "upright_block_off_table"])
def test_gymnasium_check(task):
    check_with_gymnasium(f"robodesk_{task}")


def test_every_task_steps(env):
    for task in robodesk.SUITE.tasks:
        env.unwrapped._desk.task = task  # all tasks have one model, which is slow to compile
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step(env.action_space.high)
        assert 0 <= reward <= 1 and not terminated and not truncated
        assert info == {"discount": 1.0, "success": 0.0} and env.action_space.shape == (5,)


def test_the_seed_determines_the_episode_in_this_process_and_in_a_worker():
    here = rollout("robodesk_push_green", seed=3)
    assert_same(here, rollout("robodesk_push_green", seed=3))
    assert_same(here, in_worker(rollout, "robodesk_push_green", 3))
    other = rollout("robodesk_push_green", seed=4, steps=0)
    assert not np.array_equal(here["qpos_objects"][0], other["qpos_objects"][0])


def test_numpys_global_rng_is_neither_used_nor_changed(env):
    np.random.seed(1)
    expected = np.random.random(3)
    np.random.seed(1)
    drawn = []
    for _ in range(3):
        first = env.reset(seed=8)[0]["qpos_objects"]
        drawn.append(np.random.random())  # changes NumPy's state, which must not change the next reset
        env.step(env.action_space.high)
        np.testing.assert_array_equal(first, env.reset(seed=8)[0]["qpos_objects"])
    np.testing.assert_array_equal(drawn, expected)


def test_idle_episode_fails_at_the_time_limit(env):
    results = [env.step(np.zeros(5)) for _ in range(500)]
    assert [truncated for _, _, _, truncated, _ in results] == [False] * 499 + [True]
    assert not any(terminated for _, _, terminated, _, _ in results)
    assert {info["success"] for *_, info in results} == {0.0}


def test_a_pressed_button_is_a_success(env):
    desk = env.unwrapped._desk
    desk.physics.named.data.qpos["green_light"] = -0.006
    desk.physics.forward()
    assert desk.succeeded() == 1.0
    _, _, terminated, _, info = env.step(np.zeros(5))
    assert info["success"] == 1.0 and not terminated


def test_a_button_pressed_by_the_ball_is_a_success(env):
    data = env.unwrapped._desk.physics.named.data
    data.qpos["ball"][:3] = data.xpos["green_button"] + (0, 0, 0.06)  # it falls on the button
    env.unwrapped._desk.physics.forward()
    success = [env.step(np.zeros(5))[4]["success"] for _ in range(10)]
    assert success[0] == 0.0 and success[-1] == 1.0


def test_an_open_slide_or_drawer_is_a_success(env):
    for task, joint, opened in (("open_slide", "slide_joint", 0.58), ("open_drawer", "drawer_joint", -0.25)):
        env.unwrapped._desk.task = task
        env.reset(seed=0)
        env.unwrapped._desk.physics.named.data.qpos[joint] = opened
        _, reward, _, _, info = env.step(np.zeros(5))
        assert info["success"] == 1.0 and reward > 0.6


def drawn_by_robodesk(positions):
    """The frame of RoboDesk's own `render`, with the name that Pillow 10 removed."""
    import PIL.Image

    PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
    desk = robodesk.robodesk_package().RoboDesk("push_green")
    with desk.physics.reset_context():
        desk.physics.data.qpos[:] = positions
    return desk.render()


def test_full_images_equal_those_of_robodesk_and_fast_ones_differ():
    images = {}
    for render in ("full", "fast"):
        env = make_env("robodesk_push_green", render=render)
        images[render] = env.reset(seed=0)[0]["image"]
        positions = env.unwrapped._desk.physics.data.qpos.copy()
        assert env.get_wrapper_attr("description")["camera"] == "top"
        env.close()
    np.testing.assert_array_equal(images["full"], in_worker(drawn_by_robodesk, positions))
    difference = np.abs(images["full"].astype(int) - images["fast"])
    assert 1 < difference.mean() < 60


def test_other_sizes_show_the_same_scene():
    images = {}
    for size in (64, 32, 128):
        env = make_env("robodesk_push_green", size=size)
        images[size] = env.reset(seed=0)[0]["image"]
        assert images[size].shape == (size, size, 3)
        env.close()
    for size in (32, 128):
        side, pair = min(size, 64), (images[64], images[size])
        expected, found = (a.reshape(side, len(a) // side, side, len(a) // side, 3).mean((1, 3)) for a in pair)
        assert np.abs(expected - found).mean() < 8


def test_import_and_exit_print_nothing():
    code = "from wrappers import make_env\n"
    code += "env, other = make_env('push_green'), make_env('walker_walk')\n"
    code += "print(env.reset(seed=0)[0]['image'].shape)\n"
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(64, 64, 3)\n", "")
