"""dm_control: task names, the six modified bodies, seeds, images."""

import imageio.v3
import numpy as np
import pytest
from rollouts import assert_same, check_with_gymnasium, in_worker, rollout, run_python

from tools import BadInput
from wrappers import Task, dmc, make_env, parse_task

TASKS = (
    *("walker_walk", "walker_downhill", "walker_uphill", "walker_nofoot"),
    *("cheetah_run", "cheetah_downhill", "cheetah_uphill", "cheetah_nopaw"),
)
WALKER_FLOOR, CHEETAH_GROUND = {"floor": (1000, 0.8, 0.2)}, {"ground": (1000, 0.8, 0.5)}
# name: (original, gravity, euler angles of the camera `side`, sizes of geoms), the paper's values
BODIES = {
    "walker_downhill": ("walker_walk", (2.54, 0, -9.47), (60, 0, 15), WALKER_FLOOR),
    "walker_uphill": ("walker_walk", (-2.54, 0, -9.47), (60, 0, -15), WALKER_FLOOR),
    "walker_nofoot": ("walker_walk", None, None, {**WALKER_FLOOR, "right_foot": (0.001, 0.001, 0)}),
    "cheetah_downhill": ("cheetah_run", (2.54, 0, -9.47), (90, 0, 15), CHEETAH_GROUND),
    "cheetah_uphill": ("cheetah_run", (-2.54, 0, -9.47), (90, 0, -15), CHEETAH_GROUND),
    "cheetah_nopaw": ("cheetah_run", None, None, {**CHEETAH_GROUND, "ffoot": (0.001, 0.001, 0)}),
}
# Fields that MuJoCo's compiler computes from a foot's size. One is its mass. The cheetah's model sets the total mass
# (`settotalmass`), so the other parts get the mass that the paw loses, and all fields computed from mass differ.
FROM_FOOT_SIZE = {
    *("geom_rbound", "geom_aabb", "bvh_aabb", "body_mass", "body_inertia", "body_subtreemass"),
    *("body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0", "cam_poscom0", "light_poscom0"),
    *("stat.meaninertia", "stat.meanmass", "stat.meansize"),
}


def model_of(name):
    return dmc.load(name).physics.model.ptr


def compiled(holder, prefix="", depth=2):
    """Every number of a compiled model, by name, nested structures (opt, vis, stat) included."""
    values = {}
    for name in (n for n in dir(holder) if not n.startswith("_")):
        value = getattr(holder, name)
        if isinstance(value, (int, float, bytes, np.ndarray)):
            values[prefix + name] = np.array(value)
        elif depth and not callable(value):
            values.update(compiled(value, f"{prefix}{name}.", depth - 1))
    return values


def quaternion(euler):
    """MuJoCo's quaternion of intrinsic x-y-z angles in degrees."""
    half = np.radians(np.array(euler)) / 2
    (a, b, c), (sa, sb, sc) = np.cos(half), np.sin(half)
    assert sb == 0 and b == 1  # the table turns about x and z only: q_x * q_z
    return np.array([a * c, sa * c, -sa * sc, a * sc])


@pytest.mark.parametrize("name", BODIES)
def test_modified_body_has_the_papers_numbers(name):
    _, gravity, euler, sizes = BODIES[name]
    model = model_of(name)
    np.testing.assert_allclose(model.opt.gravity, gravity or (0, 0, -9.81))
    if euler:
        np.testing.assert_allclose(model.camera("side").quat, quaternion(euler), atol=1e-12)
    for geom, size in sizes.items():
        np.testing.assert_array_equal(model.geom(geom).size, size)


@pytest.mark.parametrize("name", BODIES)
def test_modified_body_is_otherwise_the_original(name):
    original_name, gravity, euler, sizes = BODIES[name]
    model = model_of(name)
    original, modified = compiled(model_of(original_name)), compiled(model)
    assert original.keys() == modified.keys()
    assert len(original) > 400 and "vis.quality.shadowsize" in original and "opt.gravity" in original
    allowed = {"geom_size": [model.geom(geom).id for geom in sizes]}  # the rows of an array that may differ
    if gravity:
        allowed["opt.gravity"] = slice(None)
    if euler:
        allowed["cam_quat"] = allowed["cam_mat0"] = [model.camera("side").id]
    if len(sizes) == 2:
        allowed.update(dict.fromkeys(FROM_FOOT_SIZE, ...))
    for field, value in original.items():
        assert value.shape == modified[field].shape, field
        differs = np.array(value != modified[field])
        if field in allowed:
            differs[allowed[field]] = False
        assert not differs.any(), field


def test_walker_without_foot_weighs_less_only_at_the_foot():
    original, modified = model_of("walker_walk"), model_of("walker_nofoot")
    changed = np.flatnonzero(original.body_mass != modified.body_mass)
    assert [original.body(int(i)).name for i in changed] == ["right_foot"]


@pytest.mark.parametrize("name", BODIES)
def test_modified_body_keeps_the_reward(name):
    changed, original = dmc.load(name).task, dmc.load(BODIES[name][0]).task
    assert type(changed) is type(original)
    assert getattr(changed, "_move_speed", None) == getattr(original, "_move_speed", None)


def test_overlay_elements_must_exist_in_the_original():
    overlay = dmc.ElementTree.fromstring('<overlay><geom name="wing" size="1"/></overlay>')
    with pytest.raises(ValueError, match="0 counterparts"):
        dmc.apply_overlay(dmc.dm_control_suite().common.read_model("walker.xml"), overlay)


def test_task_names_are_those_of_the_installed_package_and_the_overlays():
    installed = {f"{domain}_{task}" for domain, task in dmc.dm_control_suite().ALL_TASKS}
    overlays = {path.stem for path in dmc.OVERLAYS.glob("*.xml")}
    assert overlays == set(BODIES)
    assert set(dmc.SUITE.tasks) == installed | overlays


@pytest.mark.parametrize("spelling", ["walker_walk", "walker-walk", "dmc_walker_walk", "dmc-walker-walk"])
def test_task_spellings(spelling):
    assert parse_task(spelling) == Task("dmc", "walker_walk")
    assert str(parse_task(spelling)) == "dmc_walker_walk"


def test_unknown_task_names_the_nearest():
    with pytest.raises(BadInput, match=r"unknown task 'walker_wlak'; nearest: .*walker_walk"):
        parse_task("walker_wlak")


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_check(task):
    check_with_gymnasium(task)


@pytest.mark.parametrize("task", ["lqr_lqr_2_1", "quadruped_run", "ball_in_cup_catch", "fish_swim", "finger_spin"])
def test_other_tasks_of_the_suite(task):
    env = make_env(task, size=32)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    first, _ = env.reset(seed=1)
    image = env.step(env.action_space.high)[0]["image"]
    assert image.shape == (32, 32, 3) and image.std() > 1
    np.testing.assert_array_equal(first["image"], env.reset(seed=1)[0]["image"])
    env.close()


def test_the_seed_determines_the_episode_in_this_process_and_in_a_worker():
    here = rollout("walker_downhill", seed=3)
    assert_same(here, rollout("walker_downhill", seed=3))
    assert_same(here, in_worker(rollout, "walker_downhill", 3))
    assert not np.array_equal(here["image"][0], rollout("walker_downhill", seed=4, steps=1)["image"][0])


def test_reset_without_seed_continues_the_rng():
    env = make_env("cheetah_run", size=16)
    env.reset(seed=5)
    second = env.reset()[0]["position"]
    env.reset(seed=5)
    env.step(env.action_space.high)
    np.testing.assert_array_equal(second, env.reset()[0]["position"])
    assert not np.array_equal(second, env.reset()[0]["position"])
    env.close()


def test_a_step_repeats_the_step_of_the_suite():
    env, original = make_env("walker_walk", size=16, action_repeat=3), dmc.load("walker_walk")
    env.reset(seed=0)
    original.reset()
    original.physics.set_state(env.unwrapped._env.physics.get_state())
    original.physics.forward()
    action = np.linspace(-1, 1, 6, dtype=np.float32)
    observation, reward, terminated, truncated, info = env.step(action)
    steps = [original.step(action) for _ in range(3)]
    assert reward == pytest.approx(sum(step.reward for step in steps), rel=1e-6)
    np.testing.assert_allclose(observation["velocity"], steps[-1].observation["velocity"], rtol=1e-4, atol=1e-4)
    assert not terminated and not truncated and info == {"discount": 1.0}
    env.close()


def test_truncated_at_the_time_limit_and_not_terminated():
    env = make_env("cheetah_run", size=16, time_limit=3)
    env.reset(seed=0)
    ends = [env.step(env.action_space.low)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


def test_several_environments_do_not_affect_each_other():
    envs = [make_env(task) for task in ("walker_walk", "cheetah_run", "walker_walk")]
    images = [env.reset(seed=1)[0]["image"] for env in envs]
    np.testing.assert_array_equal(images[0], images[2])
    envs[0].close()
    np.testing.assert_array_equal(images[2], envs[2].render())
    np.testing.assert_array_equal(images[1], envs[1].render())
    for env in envs:
        env.close()


def drawn_by_dm_control(state):
    physics = dmc.load("walker_walk").physics
    with physics.reset_context():
        physics.set_state(state)
    return physics.render(64, 64, camera_id="side")


def test_full_images_equal_those_of_dm_control_and_fast_ones_differ():
    images = {}
    for render in ("full", "fast"):
        env = make_env("walker_walk", render=render)
        images[render] = env.reset(seed=0)[0]["image"].astype(int)
        assert env.get_wrapper_attr("description")["render"] == render
        state = env.unwrapped._env.physics.get_state()
        env.close()
    np.testing.assert_array_equal(images["full"], in_worker(drawn_by_dm_control, state))
    difference = np.abs(images["full"] - images["fast"])
    assert 0 < difference.mean() < 12  # without shadow and reflection, otherwise the same scene


def test_description_and_settings():
    env = make_env("quadruped_run", size=100, flip=True, time_limit=7)
    flipped = env.reset(seed=0)[0]["image"]
    assert env.get_wrapper_attr("description") == {
        **{"task": "dmc_quadruped_run", "suite": "dmc", "size": 100, "action_repeat": 2, "time_limit": 7},
        **{"render": "fast", "camera": "y", "flip": True, "sparse_reward": False, "background": None},
    }
    env.close()
    upright = make_env("quadruped_run", size=100, camera=2)
    np.testing.assert_array_equal(upright.reset(seed=0)[0]["image"], flipped[::-1])
    upright.close()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"render": "fats"}, "render is 'fats'; nearest: fast"),
        ({"camera": "sid"}, "no camera 'sid'.*nearest: side"),
        ({"camera": 9}, "no camera 9"),
        ({"size": 0}, "size is 0"),
        ({"time_limit": 2.5}, "time_limit is 2.5"),
        ({"action_repeat": 0}, "action_repeat is 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(BadInput, match=message):
        make_env("walker_walk", **settings)


def test_video_as_a_background(tmp_path):
    shades = (20, 120, 220)
    frames = np.stack([np.full((48, 64, 3), shade, np.uint8) for shade in shades])
    imageio.v3.imwrite(tmp_path / "clip.mp4", frames, plugin="pyav", codec="libx264", fps=10)
    images = rollout("walker_walk", 0, steps=5, background=str(tmp_path))["image"]
    corner = images[:, 0, 0].astype(int)  # sky
    first = int(np.abs(corner[0, 0] - shades).argmin())
    expected = np.roll(shades, -first)[np.arange(6) % 3]
    assert np.abs(corner - expected[:, None]).max() <= 3  # the codec's loss
    for damaged in (b"", b"not a video", (tmp_path / "clip.mp4").read_bytes()[:700]):
        (tmp_path / "clip.mp4").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"clip.mp4: cannot be read as a video"):
            make_env("walker_walk", background=str(tmp_path))


def test_the_exit_with_open_environments_prints_nothing():
    code = "import mujoco; from wrappers import make_env\n"  # before a library is chosen, on purpose
    code += "envs = [make_env(t) for t in ('walker_walk', 'cheetah_run')]\n"
    code += "print(*[env.reset(seed=0)[0]['image'].shape for env in envs])"
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(64, 64, 3) (64, 64, 3)\n"
