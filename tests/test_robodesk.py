"""RoboDesk: tasks, seeds, success, images, and side effects of its package."""

import numpy as np
import pytest
from rollouts import assert_same, check_with_gymnasium, in_worker, rollout, run_python

from wrappers import Task, make_env, parse_task, robodesk

TASKS = ("push_green", "open_slide", "open_drawer", "upright_block_off_table")


def blind_env(task, **settings):
    """An environment that draws black frames, for tests that use no image."""
    env = make_env(task, size=8, **settings)
    env.unwrapped._draw = lambda: np.zeros((8, 8, 3), np.uint8)
    return env


def test_task_names_are_those_of_the_installed_package():
    desk = robodesk.desk_class()("push_green", 8, "top", "fast")
    assert sorted(robodesk.SUITE.tasks) == sorted(desk.all_tasks)
    desk.close()


@pytest.mark.parametrize("spelling", ["push_green", "push-green", "robodesk_push_green"])
def test_task_spellings(spelling):
    assert parse_task(spelling) == Task("robodesk", "push_green")


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_check(task):
    check_with_gymnasium(f"robodesk_{task}")


def test_every_task_steps():
    env = blind_env("robodesk_push_green")
    for task in robodesk.SUITE.tasks:
        env.unwrapped._desk.task = task  # all tasks have one model, which is slow to compile
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step(env.action_space.high)
        assert 0 <= reward <= 1 and not terminated and not truncated
        assert info == {"discount": 1.0, "success": 0.0} and env.action_space.shape == (5,)
    env.close()


def test_the_seed_determines_the_episode_in_this_process_and_in_a_worker():
    here = rollout("robodesk_push_green", seed=3)
    assert_same(here, rollout("robodesk_push_green", seed=3))
    assert_same(here, in_worker(rollout, "robodesk_push_green", 3))
    other = rollout("robodesk_push_green", seed=4, steps=0)
    assert not np.array_equal(here["qpos_objects"][0], other["qpos_objects"][0])


def test_numpys_global_rng_is_neither_used_nor_changed():
    env = blind_env("robodesk_push_green")
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
    env.close()


def test_idle_episode_fails_at_the_time_limit():
    env = blind_env("robodesk_push_green")
    env.reset(seed=0)
    results = [env.step(np.zeros(5)) for _ in range(500)]
    assert [truncated for _, _, _, truncated, _ in results] == [False] * 499 + [True]
    assert not any(terminated for _, _, terminated, _, _ in results)
    assert {info["success"] for *_, info in results} == {0.0}
    env.close()


def test_a_pressed_button_is_a_success():
    env = blind_env("robodesk_push_green")
    env.reset(seed=0)
    desk = env.unwrapped._desk
    desk.physics.named.data.qpos["green_light"] = -0.006
    desk.physics.forward()
    assert desk.succeeded() == 1.0
    _, _, terminated, _, info = env.step(np.zeros(5))
    assert info["success"] == 1.0 and not terminated
    env.close()


def test_a_button_pressed_by_the_ball_is_a_success():
    env = blind_env("robodesk_push_green")
    env.reset(seed=0)
    data = env.unwrapped._desk.physics.named.data
    data.qpos["ball"][:3] = data.xpos["green_button"] + (0, 0, 0.06)  # it falls on the button
    env.unwrapped._desk.physics.forward()
    success = [env.step(np.zeros(5))[4]["success"] for _ in range(10)]
    assert success[0] == 0.0 and success[-1] == 1.0
    env.close()


def test_an_open_slide_or_drawer_is_a_success():
    for task, joint, opened in (("open_slide", "slide_joint", 0.58), ("open_drawer", "drawer_joint", -0.25)):
        env = blind_env(f"robodesk_{task}")
        env.reset(seed=0)
        env.unwrapped._desk.physics.named.data.qpos[joint] = opened
        _, reward, _, _, info = env.step(np.zeros(5))
        assert info["success"] == 1.0 and reward > 0.6
        env.close()


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


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes_show_the_same_scene(size):
    small = make_env("robodesk_push_green")
    other = make_env("robodesk_push_green", size=size)
    expected, image = small.reset(seed=0)[0]["image"], other.reset(seed=0)[0]["image"]
    assert image.shape == (size, size, 3)
    fewer = min(size, 64)
    blocks = [a.reshape(fewer, len(a) // fewer, fewer, len(a) // fewer, 3).mean((1, 3)) for a in (expected, image)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 8
    small.close()
    other.close()


def test_import_and_exit_print_nothing():
    code = "from wrappers import make_env\n"
    code += "env, other = make_env('push_green'), make_env('walker_walk')\n"
    code += "print(env.reset(seed=0)[0]['image'].shape)\n"
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(64, 64, 3)\n", "")
