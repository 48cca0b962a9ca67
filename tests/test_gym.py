"""Gymnasium environments: those of MuJoCo, pygame and gymnasium-robotics, and one outside the repository."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import processes
import pytest
from conftest import ROOT
from rollouts import check_with_gymnasium, rollout, run_python

import co_training
import collect
from analysis.runs import read_run
from replay import OnlineReplay
from tools import BadInput, resize_images
from training.collector import Collector
from training.evaluator import evaluate
from training.logger import read_scores
from wrappers import Task, make_env, max_return, parse_task
from wrappers.shared.vector import SyncEnv, make_envs

pytestmark = pytest.mark.usefixtures("no_pictures")

OUTSIDE = '''
"""A dot that an agent moves to the right; registered on import, as packages do."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class DotEnv(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None, success="is_success"):
        self.render_mode, self.success = render_mode, success
        self.action_space = Box(np.array([[-5.0, -1.0]]), np.array([[3.0, 1.0]]), dtype=np.float64)
        self.observation_space = Dict(
            {"dot": Dict({"x": Box(-1, 1, ()), "y": Box(-1, 1, ())}), "camera": Box(0, 255, (8, 8, 3), np.uint8),
             "reward": Box(-9, 9, (2,)), "kind": Discrete(3)}
        )

    def _observed(self):
        x, y = self.dot.astype(np.float32)
        camera = np.zeros((8, 8, 3), np.uint8)
        return {"dot": {"x": x, "y": y}, "camera": camera, "reward": np.full(2, 7, np.float32), "kind": 1}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot = self.np_random.uniform(-0.5, 0.5, 2)
        return self._observed(), {}

    def step(self, action):
        assert action in self.action_space
        self.action = action
        self.dot = np.clip(self.dot + 0.05 * action[0], -1, 1)
        ended = bool(self.dot[0] >= 1)
        return self._observed(), 1.0, ended, False, {self.success: ended} if self.success else {}

    def render(self):
        frame = np.zeros((72, 96), np.uint8)
        row, column = ((self.dot[::-1] + 1) / 2 * (60, 84)).astype(int)
        frame[row : row + 12, column : column + 12] = 255
        return frame


class Integers(DotEnv):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.action_space = Box(-1, 1, (2,), np.int64)


class Unbounded(DotEnv):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.action_space = Box(np.array([-1.0, -np.inf]), np.array([1.0, 1.0]))


class Text(DotEnv):
    metadata = {"render_modes": ["ansi"]}


class NoMode(DotEnv):
    def __init__(self):
        super().__init__()


class Floats(DotEnv):
    def render(self):
        return super().render() / 255


class Nothing(DotEnv):
    def render(self):
        return None


class Broken(DotEnv):
    def __init__(self, render_mode=None):
        raise FileNotFoundError("no file scene.xml")


class ImagesOnly(DotEnv):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.observation_space = self.observation_space["camera"]

    def _observed(self):
        return super()._observed()["camera"]


class Seldom(DotEnv):
    def step(self, action):
        *result, info = super().step(action)
        return *result, {"success": np.True_} if info["is_success"] else {}


for kind in (Seldom, Integers, Unbounded, Text, NoMode, Floats, Nothing, Broken, ImagesOnly):
    gymnasium.register(f"{kind.__name__}-v0", kind)
gymnasium.register("MyEnv-v0", DotEnv, max_episode_steps=9)
gymnasium.register("space/Silent-v2", DotEnv, kwargs={"success": None})
'''
OUTSIDE_TASK = "gym_dot_package:MyEnv-v0"
TINY = ["--size", "16,16", "--configs", "defaults", "debug"]


@pytest.fixture(scope="module", autouse=True)
def dot_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder outside the repository, on the path, with a module that registers environments."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "dot_package.py").write_text(OUTSIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        before = dict(gymnasium.registry)
        yield folder
        sys.modules.pop("dot_package", None)
        gymnasium.registry.clear()
        gymnasium.registry.update(before)


@pytest.mark.parametrize("spelling", ["gym_Pusher-v5", "gym_pusher_v5", "GYM_PUSHER-V5", Task("gym", "Pusher-v5")])
def test_spellings(spelling):
    assert parse_task(spelling) == Task("gym", "Pusher-v5")


def test_a_name_with_a_module_is_kept_and_its_module_not_imported():
    assert str(parse_task("gym_no.such:space/X-v0")) == "gym_no.such:space/X-v0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym_Pushr-v5", r"unknown task 'gym_Pushr-v5'; nearest: gym_Pusher-v5, .* gym_PACKAGE:Pushr-v5$"),
        ("Pusher-v5", r"unknown task 'Pusher-v5'; give gym_Pusher-v5$"),
        ("gym_a b:X-v0", "write it as gym_MODULE:ID"),
        ("gym_no_such_module:X-v0", "no_such_module cannot be imported .*; install it or add its folder to PYTHONPATH"),
        ("gym_dot_package:MyEnv-v1", "dot_package registers no MyEnv-v1; nearest: gym_dot_package:MyEnv-v0"),
        ("gym_json:X-v0", "module json registers no X-v0; nor any other"),
        ("gym_CartPole-v1", "has Discrete actions; give an environment with a Box action space"),
        ("gym_Pusher-v2", "gym_Pusher-v2 cannot be made: "),
        ("gym_dot_package:Integers-v0", "actions of type int64"),
        ("gym_dot_package:Unbounded-v0", "actions without finite bounds"),
        ("gym_dot_package:Text-v0", r"no render mode rgb_array \(ansi\)"),
        ("gym_dot_package:NoMode-v0", "cannot be made: it takes no render_mode"),
        ("gym_dot_package:Floats-v0", r"render\(\) returned float64 \(72, 96\); it must return"),
        ("gym_dot_package:Nothing-v0", r"render\(\) returned NoneType; it must return"),
        ("gym_dot_package:Broken-v0", "cannot be made: FileNotFoundError: no file scene.xml"),
    ],
)
def test_what_cannot_be_used_has_one_line(name: str, message: str):
    with pytest.raises(BadInput, match=message) as error:
        make_env(name)
    assert "\n" not in str(error.value)


def test_settings_without_effect_and_an_unknown_maximum():
    for settings, message in (
        ({"camera": "top"}, "camera"),
        ({"background": "x"}, "sky"),
        ({"sparse_reward": True}, "no success"),
    ):
        with pytest.raises(BadInput, match=message):
            make_env("gym_Pendulum-v1", **settings)
    with pytest.raises(BadInput, match="maximum return of gym_Pendulum-v1 is not known: give --max_score"):
        max_return(parse_task("gym_Pendulum-v1"))


@pytest.mark.parametrize(
    ("task", "actions", "entries"),
    [
        ("gym_Reacher-v5", 2, {"observation": (10,)}),
        ("gym_Pendulum-v1", 1, {"observation": (3,)}),
        (
            "gym_gymnasium_robotics:FetchReach-v4",
            4,
            {"observation": (10,), "achieved_goal": (3,), "desired_goal": (3,)},
        ),
        (OUTSIDE_TASK, 2, {"dot.x": (1,), "dot.y": (1,), "observed_reward": (2,)}),
    ],
)
def test_spaces_and_episodes_that_the_seed_determines_in_any_process(task: str, actions: int, entries: dict):
    env = make_env(task, size=24)
    assert env.action_space.shape == (actions,) and env.action_space.low.min() == -1 == -env.action_space.high.max()
    assert {key: space.shape for key, space in env.observation_space.items()} == {"image": (24, 24, 3), **entries}
    env.close()
    (there,) = make_envs(task, 1, size=24)
    here = make_env(task, size=24)
    for seed in (3, 4, 3):
        first = here.reset(seed=seed)
        np.testing.assert_equal(there.reset(seed=seed), first)
        for action in np.random.default_rng(seed).uniform(-1, 1, (4, actions)):
            result = here.step(action)
            assert result[0] in here.observation_space
            np.testing.assert_equal(there.step(action), result)
        assert not np.array_equal(result[0]["image"], first[0]["image"])
    there.close(), here.close()


def test_gymnasiums_own_checks():
    check_with_gymnasium("gym_Pendulum-v1")


def test_rewards_are_summed_over_repeats_and_actions_rescaled():
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 7)).astype(np.float32)
    env = make_env("gym_Pusher-v5", size=32, action_repeat=3, render="full")
    images = [env.reset(seed=0)[0]["image"]]
    results = [env.step(action) for action in actions]
    images += [result[0]["image"] for result in results]
    env.close()
    plain = gymnasium.make("Pusher-v5", render_mode="rgb_array")
    plain.reset(seed=0), plain.render()  # Pusher's camera stays where its first frame placed it
    plain.reset(seed=int(np.random.default_rng(0).integers(2**31)))
    frames = [plain.render()]
    for action, (observation, reward, *_) in zip(actions, results, strict=True):
        steps = [plain.step(2 * action) for _ in range(3)]  # its actions are in [-2, 2]
        assert reward == pytest.approx(sum(step[1] for step in steps), rel=1e-5)
        np.testing.assert_allclose(observation["observation"], steps[-1][0], rtol=1e-4, atol=1e-5)
        frames.append(plain.render())
    plain.close()
    np.testing.assert_array_equal(np.stack(images), resize_images(np.stack(frames), 32))


def test_fast_frames_lack_shadows_and_nothing_else_changes():
    fast, full = (rollout("gym_HalfCheetah-v5", 0, 3, render=render) for render in ("fast", "full"))
    assert not np.array_equal(fast["image"], full["image"])
    assert abs(fast["image"].astype(int) - full["image"]).mean() < 40
    for key in ("observation", "reward"):
        np.testing.assert_array_equal(fast[key], full[key])


def test_several_simulators_in_one_process_draw_as_each_alone():
    """gymnasium's MuJoCo renderer does not make its OpenGL context the current one itself."""
    tasks = ["gym_Reacher-v5", "walker_walk", "gym_Pusher-v5"]
    alone = {task: rollout(task, 0, 2, size=32)["image"] for task in tasks}
    envs = {task: make_env(task, size=32) for task in tasks}
    rngs = {task: np.random.default_rng(7) for task in tasks}
    frames = {task: [env.reset(seed=0)[0]["image"]] for task, env in envs.items()}
    for _ in range(2):
        for task, env in envs.items():
            frames[task].append(env.step(rngs[task].uniform(-1, 1, env.action_space.shape))[0]["image"])
    for task in tasks:
        np.testing.assert_array_equal(np.stack(frames[task]), alone[task], err_msg=task)
        envs[task].close()


def episode(task: str, action: float, **settings) -> list[tuple]:
    """The results of all steps of an episode of one action."""
    env, results = make_env(task, size=8, **settings), []
    env.reset(seed=0)
    while not results or not (results[-1][2] or results[-1][3]):
        results.append(env.step(np.full(env.action_space.shape, action)))
    return results


def test_termination_is_not_truncation():
    """At most 9 simulator steps; with full speed to the right (3 a step) the dot arrives after fewer."""
    right, left = episode(OUTSIDE_TASK, 1.0, action_repeat=2), episode(OUTSIDE_TASK, -1.0, action_repeat=2)
    assert (right[-1][2], right[-1][3], right[-1][4]) == (True, False, {"discount": 0.0, "success": 1.0})
    assert (left[-1][2], left[-1][3], left[-1][4]) == (False, True, {"discount": 1.0, "success": 0.0})
    assert [result[1] for result in left] == [2, 2, 2, 2, 1]  # the last repeat would be the tenth
    ours = episode(OUTSIDE_TASK, -1.0, time_limit=3)
    assert len(ours) == 3 and ours[-1][2:4] == (False, True) and ours[-1][4]["discount"] == 1.0


def test_success_is_absent_where_the_environment_gives_none():
    assert "success" not in episode("gym_dot_package:space/Silent-v2", 1.0)[-1][4]
    assert "success" in episode("gym_gymnasium_robotics:FetchReach-v4", 1.0, time_limit=1)[-1][4]


def test_success_that_is_reported_only_when_it_happens(tmp_path: Path):
    env = SyncEnv(make_env("gym_dot_package:Seldom-v0", size=16, time_limit=6))
    right = evaluate(lambda observation, state, first: (np.ones((1, 2)), None), [env], 12, seed=0)
    assert len(right.successes) == 12 and 0 < right.success < 1
    left = evaluate(lambda observation, state, first: (-np.ones((1, 2)), None), [env], 2, seed=0)
    assert left.success is None
    episodes = []
    collector = Collector([env], episodes.append, seed=0)
    while len(episodes) < 12:
        collector.step(lambda observation, state, first: (np.ones((1, 2), np.float32), None))
    episodes.sort(key=lambda episode: "success" not in episode)
    assert "success" in episodes[0] and "success" not in episodes[-1]
    replay = OnlineReplay(tmp_path, capacity=100)
    for episode in episodes:
        replay.add_episode(episode)
    with np.load(replay.stored[-1].path) as arrays:
        np.testing.assert_array_equal(arrays["success"], np.zeros(len(arrays["reward"])))


def test_simulators_left_open_print_nothing_at_exit():
    code = "from wrappers import make_env\n"
    code += "envs = [make_env(task, size=16) for task in ('gym_Reacher-v5', 'walker_walk', 'gym_Reacher-v5')]"
    done = run_python(code, ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_grey_frames_have_three_equal_channels():
    image = make_env(OUTSIDE_TASK, size=72).reset(seed=0)[0]["image"]
    assert image.shape == (72, 72, 3) and image.max() == 255
    assert (image == image[..., :1]).all()


@pytest.fixture(scope="module")
def dots_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dots"
    collect.main(["--task", OUTSIDE_TASK, "--out", str(folder), "--episodes", "3", *TINY])
    return folder


def test_a_collected_dataset_says_how_it_was_recorded(dots_data: Path):
    description = json.loads((dots_data / "dataset.json").read_text())
    assert [description[key] for key in ("task", "suite", "action_repeat", "size")] == [OUTSIDE_TASK, "gym", 1, 16]
    with np.load(sorted(dots_data.glob("*.npz"))[0]) as arrays:
        assert arrays["image"].shape[1:] == (16, 16, 3) and arrays["dot.x"].shape[1:] == (1,)
        assert arrays["success"][0] == 0 and len(arrays["success"]) == len(arrays["image"]) <= 10


@pytest.mark.parametrize(
    ("source", "more"),
    [
        (OUTSIDE_TASK, ["--source_observation", "state"]),
        ("gym_Reacher-v5", ["--envs", "0", "--gym_action_repeat", "1"]),
    ],
)
def test_co_training(
    source: str,
    more: list,
    dots_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    tasks = ["--source_task", source, "--target_task", OUTSIDE_TASK, "--offline_traindir", str(dots_data)]
    short = ["--rounds", "1", "--warmup_steps", "0", "--video_every", "0", "--eval_episodes", "1"]
    co_training.main([*tasks, *more, *short, *TINY])
    (logdir,) = (tmp_path / "runs").iterdir()
    name = source.replace(":", "_")
    assert logdir.name.startswith(f"{name}-to-gym_dot_package_MyEnv-v0-debug-data=dots")
    last = read_scores(logdir)[-1]
    assert np.isfinite(float(last["mean"])) and 0 <= float(last["success"]) <= 1
    run = read_run(logdir)
    assert str(run.target) == OUTSIDE_TASK and [str(task) for task in run.sources] == [source]
    with np.load(next((logdir / "source_replay").glob("*.npz"))) as arrays:
        assert arrays["image"].shape[1:] == (16, 16, 3)


def test_a_source_on_states_that_has_only_images(dots_data: Path, tmp_path: Path):
    source = ["--source_task", "gym_dot_package:ImagesOnly-v0", "--source_observation", "state", "--envs", "0"]
    target = ["--target_task", OUTSIDE_TASK, "--offline_traindir", str(dots_data), "--logdir", str(tmp_path / "run")]
    with pytest.raises(BadInput, match="--source_observation state: gym_dot_package:ImagesOnly-v0 has images only"):
        co_training.main([*source, *target, *TINY])


def test_an_error_in_a_worker_process_is_one_line(tmp_path: Path, dot_package: Path):
    task = "gym_dot_package:Unbounded-v0"
    arguments, errors = ["--task", task, "--out", tmp_path / "out", "--envs", 2, *TINY], tmp_path / "errors.txt"
    process = processes.start(processes.run_command, "collect", arguments, errors=errors, PYTHONPATH=str(dot_package))
    process.join(60)
    assert process.exitcode == 2 and errors.read_text().startswith(f"error: {task} has actions without finite bounds")
    assert len(errors.read_text().splitlines()) == 1 and not (tmp_path / "out").exists()
