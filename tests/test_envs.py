"""The registry of suites, settings, and environments in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rollouts import run_python

from tools import BadInput, WorkerCrash
from wrappers import SUITES, Suite, Task, all_tasks, make_env, max_return, parse_task, register
from wrappers.shared.simulators import (
    check_recorded_alike,
    check_trained_alike,
    collection_envs,
    env_settings,
    evaluation_envs,
)
from wrappers.shared.vector import ProcessEnv, SyncEnv, make_envs

ROOT = Path(__file__).resolve().parent.parent


def alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=6):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


def test_same_episode_as_in_this_process():
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 6))
    here, there = make_env("walker_walk", size=32), ProcessEnv("walker_walk", size=32)
    assert there.action_space == here.action_space and there.observation_space == here.observation_space
    assert there.get_wrapper_attr("description") == here.get_wrapper_attr("description")
    results = []
    for env in (here, there):
        observation, info = env.reset(seed=4)
        steps = [env.step(action) for action in actions]
        results.append((observation, info, steps))
        env.close()
    np.testing.assert_equal(results[0], results[1])


def test_several_with_their_own_seeds_and_steps_that_overlap():
    envs = make_envs("cheetah_run", 2, size=16)
    first = [env.reset(seed=seed)[0]["image"] for env, seed in zip(envs, (1, 2), strict=True)]
    for env in envs:
        env.step_async(np.ones(6))
    stepped = [env.step_wait() for env in envs]
    assert not np.array_equal(*first) and stepped[0][1] != stepped[1][1]
    envs[0].step_async(np.ones(6))
    again = envs[0].reset(seed=1)[0]["image"]  # one alone, with a pending step
    np.testing.assert_array_equal(again, first[0])
    with pytest.raises(RuntimeError, match="no step is pending; pending: nothing"):
        envs[0].step_wait()
    envs[0].step_async(np.ones(6))
    with pytest.raises(RuntimeError, match="step is still pending"):
        envs[0].step_async(np.ones(6))
    pids = [env.pid for env in envs]
    for env in envs:
        env.close()
        env.close()
    assert not any(map(alive, pids))
    with pytest.raises(RuntimeError, match="closed"):
        envs[0].reset()


def test_bad_settings_are_bad_input_here_too():
    env = ProcessEnv("cheetah_run", camera="sid")
    with pytest.raises(BadInput, match="no camera 'sid'"):
        env.reset()
    assert not alive(env.pid)


def test_crash_is_reported_with_its_traceback():
    env = ProcessEnv("cheetah_run", size=16)
    env.reset(seed=0)
    with pytest.raises(WorkerCrash, match=r"(?s)dmc_cheetah_run.*Traceback.*could not be broadcast"):
        env.step(np.zeros(5))
    assert not alive(env.pid)


@pytest.mark.parametrize("waiting", [True, False])
def test_killed_worker_is_reported(waiting):
    env = ProcessEnv("cheetah_run", size=16)
    env.reset(seed=0)
    if waiting:
        env.step_async(np.zeros(6))
    os.kill(env.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrash, match="dmc_cheetah_run was killed by SIGKILL"):
        env.step_wait() if waiting else [env.step(np.zeros(6)) for _ in range(2)]


def test_unreferenced_environment_ends_its_process():
    env = ProcessEnv("cheetah_run", size=16)
    env.reset(seed=0)
    pid = env.pid
    del env
    assert wait_until_gone([pid]) == []


RUN = """
import os, signal, sys, time
import numpy as np
from wrappers.shared.vector import make_envs
envs = make_envs("cheetah_run", 2, size=16)
child = os.fork()  # a process that inherits the pipes and ends after this one, as a data loader's may
if child == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(15)
    os._exit(0)
print(*[env.pid for env in envs], child, flush=True)
for env in envs:
    env.reset(seed=0)
while True:
    for env in envs:
        env.step(np.zeros(6))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans(how):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    *workers, child = map(int, run.stdout.readline().split())
    assert all(map(alive, workers))
    time.sleep(0.3)
    (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)  # Ctrl-C goes to the whole group
    run.wait(timeout=20)
    left = wait_until_gone(workers)
    if alive(child):
        os.kill(child, signal.SIGKILL)
    errors = run.communicate()[1]
    assert left == []
    assert "Traceback" not in errors
    assert errors.count("interrupted") == (how == signal.SIGINT)  # the parent's one line, no worker's


def test_worker_holds_no_learner():
    env = ProcessEnv("cheetah_run", size=16)
    env.reset(seed=0)
    assert "torch" not in Path(f"/proc/{env.pid}/maps").read_text()
    env.close()


def test_sync_env_has_the_interface_of_process_env():
    sync, plain = SyncEnv(make_env("cheetah_run", size=16)), make_env("cheetah_run", size=16)
    sync.reset_async(seed=3)
    np.testing.assert_equal(sync.reset_wait(), plain.reset(seed=3))
    sync.step_async(np.ones(6))
    np.testing.assert_equal(sync.step_wait(), plain.step(np.ones(6)))
    sync.close()
    plain.close()


DOTS = '''
"""A suite that needs no simulator: an agent moves a dot to the middle."""

import numpy as np

from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.suites import Suite


class DotEnv(PixelEnv):
    def __init__(self, name, description):
        self._dot = np.zeros(2)
        super().__init__(description, -np.ones(2), np.ones(2))

    def _reset_simulator(self, seed):
        self._dot = np.random.default_rng(seed).uniform(-1, 1, 2)

    def _step_simulator(self, action):
        self._dot = np.clip(self._dot + 0.1 * action, -1, 1)
        return SimulatorStep(-np.abs(self._dot).sum(), success=float(np.abs(self._dot).max() < 0.1))

    def _draw(self):
        size = self.description["size"]
        image = np.zeros((size, size, 3), np.uint8)
        row, column = ((self._dot + 1) / 2 * (size - 1)).astype(int)
        image[row, column] = 255
        return image

    def _low_dimensional(self):
        return {"dot": self._dot}


SUITE = Suite(
    name="dots",
    title="Dots",
    tasks=("move-middle", "move_corner"),
    make=DotEnv,
    settings={"action_repeat": 3, "flip": True},
    has_success=True,
    max_returns={"move-middle": 40},
    uses_mujoco=False,
)
'''


@pytest.fixture
def dots(tmp_path, monkeypatch):
    """A suite registered by a module outside the repository."""
    (tmp_path / "dots.py").write_text(DOTS)
    monkeypatch.syspath_prepend(tmp_path)
    suite = __import__("dots").SUITE
    register(suite)
    yield suite
    del SUITES["dots"], sys.modules["dots"]


def test_registered_suite_has_tasks_settings_and_a_maximum(dots):
    task = Task("dots", "move-middle")
    assert parse_task("dots_move_middle") == parse_task("move-middle") == task and task in all_tasks()
    with pytest.raises(BadInput, match=r"unknown task 'move_midle'; nearest: move-middle"):
        parse_task("move_midle")
    with pytest.raises(BadInput, match="unknown task 'dots_gone'"):
        parse_task(Task("dots", "gone"))
    assert max_return(task) == 40
    with pytest.raises(BadInput, match="maximum return of dots_move_corner is not known: give --max_score"):
        max_return(Task("dots", "move_corner"))
    assert dots.setting_help("flip") == "turn the frames upside down, Dots"
    env = make_env("move-middle", size=16)
    description = env.get_wrapper_attr("description")
    assert (description["action_repeat"], description["flip"], description["camera"]) == (3, True, None)


def test_registered_suite_runs_the_same_in_worker_processes(dots):
    here, there = make_env("move-middle", size=16), make_envs("move-middle", 2, size=16)
    for env in there:
        np.testing.assert_equal(env.reset(seed=5), here.reset(seed=5))
        np.testing.assert_equal(env.step(np.ones(2)), here.step(np.ones(2)))
        assert "success" in env.step(np.ones(2))[4]
        env.close()


def test_file_in_wrappers_is_a_suite(tmp_path):
    shutil.copytree(ROOT / "wrappers", tmp_path / "wrappers")
    shutil.copy(ROOT / "tools.py", tmp_path)
    (tmp_path / "wrappers" / "dots.py").write_text(DOTS)
    code = "from wrappers import SUITES, make_env; from wrappers.shared.vector import ProcessEnv\n"
    code += "for make in (make_env, ProcessEnv): print(make('move-middle').reset(seed=0)[0]['dot'])\n"
    code += "print(*SUITES)"
    done = run_python(code, tmp_path)
    assert done.stderr == ""
    here, there, suites = done.stdout.splitlines()
    assert here == there and suites == "dmc metaworld robodesk dots gym"


def test_suite_of_the_script_itself_cannot_run_in_workers(dots, monkeypatch):
    monkeypatch.setattr(dots.make, "__module__", "__main__")
    with pytest.raises(BadInput, match=r"suite dots: .* defined in the script itself.*top level of a module"):
        ProcessEnv("move-middle")


def test_invalid_suites():
    def suite(name, **values):
        return Suite(name=name, title="", tasks=(), make=lambda name, description: None, **values)

    with pytest.raises(BadInput, match="already a suite of that name"):
        register(suite("dmc"))
    with pytest.raises(BadInput, match="letters, digits"):
        register(suite("two words"))
    with pytest.raises(BadInput, match="unknown setting 'flipped'; nearest: flip"):
        register(suite("new", settings={"flipped": True}))


def test_order_and_maxima_of_the_papers_suites():
    assert list(SUITES)[:3] == ["dmc", "metaworld", "robodesk"]
    expected = {
        "walker_walk": 1000,
        "walker_uphill": 774,
        "door-open": 5000,
        "door-close": 3967,
        "lift_ball": 500,
        "open_slide": 202,
    }
    assert {name: max_return(parse_task(name)) for name in expected} == expected


def test_import_needs_no_simulator():
    code = "import sys, wrappers.shared.simulators\n"
    code += "print({'mujoco', 'dm_control', 'metaworld', 'robodesk', 'gym', 'torch'} & set(sys.modules))"
    assert run_python(code).stdout == "set()\n"


def settings(**values):
    common = {"size": [16, 16], "time_limit": 9, "render": "fast", "envs": 0, "eval_envs": 1}
    return SimpleNamespace(**common, sparse_reward=False, background="", **values)


def test_settings_of_a_suite_become_arguments(dots):
    config = settings(metaworld_action_repeat=2, metaworld_camera="corner2", metaworld_flip=False)
    common = {"size": 16, "time_limit": 9, "render": "fast"}
    assert env_settings(config, "door-close", "source") == {
        **common, "action_repeat": 2, "camera": "corner2", "flip": False, "sparse_reward": False
    }  # fmt: skip
    assert env_settings(config, "move-middle", "target") == {
        **common, "action_repeat": 3, "flip": True, "background": None
    }  # fmt: skip
    assert env_settings(config, "walker_walk", "collect") == {
        **common, "action_repeat": 2, "camera": "", "sparse_reward": False, "background": None
    }  # fmt: skip


def test_number_and_kind_of_simulators(dots):
    for envs, eval_envs, episodes, expected in ((0, 1, 5, (1, 1)), (2, 3, 2, (2, 2)), (1, 4, 1, (1, 1))):
        config = settings(dots_action_repeat=1)
        config.envs, config.eval_envs = envs, eval_envs
        made = (
            collection_envs(config, "move-middle", "source"),
            evaluation_envs(config, "move-middle", "source", episodes),
        )
        assert tuple(map(len, made)) == expected
        assert isinstance(made[0][0], SyncEnv if envs == 0 else ProcessEnv)
        assert isinstance(made[1][0], SyncEnv if expected[1] == 1 else ProcessEnv)
        assert all(env.get_wrapper_attr("description")["action_repeat"] == 1 for envs in made for env in envs)
        for env in [*made[0], *made[1]]:
            env.close()


def test_dataset_must_have_been_recorded_alike(dots, tmp_path, capsys):
    simulator = make_env("move-middle", size=16).get_wrapper_attr("description")
    check_recorded_alike(tmp_path, simulator, simulator)
    assert capsys.readouterr().err == ""
    for key, flag in {"action_repeat": "--dots_action_repeat", "flip": "--dots_flip", "render": "--render"}.items():
        with pytest.raises(BadInput, match=f"recorded with {key} other, .* give {flag} other"):
            check_recorded_alike(tmp_path, {**simulator, key: "other"}, simulator)
    with pytest.raises(BadInput, match="background clips, evaluation would use none: give --background clips"):
        check_recorded_alike(tmp_path, {**simulator, "background": "clips"}, simulator)
    with pytest.raises(BadInput, match="background none, evaluation would use clips: give --background ''"):
        check_recorded_alike(tmp_path, simulator, {**simulator, "background": "clips"})
    with pytest.raises(BadInput, match=r"episodes of dots_move_corner, the target is dots_move-middle.*--other_task"):
        check_recorded_alike(tmp_path, {"task": "dots_move_corner"}, simulator)
    check_recorded_alike(tmp_path, {"task": "dots_move_corner"}, simulator, other_task=True)
    notes = capsys.readouterr().err
    assert "evaluation uses action_repeat 3 (--dots_action_repeat), flip True (--dots_flip)" in notes
    assert f"{tmp_path} has episodes of dots_move_corner, the target is dots_move-middle" in notes
    assert "background" not in notes
    del simulator["background"]
    check_recorded_alike(tmp_path, simulator, {**simulator, "background": "clips"})
    assert "evaluation uses background clips (--background)" in capsys.readouterr().err


def test_smaller_images_than_the_simulators_give_a_warning(tmp_path, capsys):
    simulator = make_env("walker_walk", size=64).get_wrapper_attr("description")
    for size in (64, 84):
        check_recorded_alike(tmp_path, {**simulator, "size": size}, simulator)
    assert capsys.readouterr().err == ""
    check_recorded_alike(tmp_path, {**simulator, "size": 32}, simulator)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and line.endswith("give --size 32,32")


def test_agent_must_have_been_trained_alike(dots, tmp_path):
    check_trained_alike(tmp_path, settings(), "source", settings(dots_flip=True), "move-middle")
    with pytest.raises(BadInput, match="trained with dots_flip False: give --dots_flip False"):
        check_trained_alike(tmp_path, settings(dots_flip=False), "source", settings(), "move-middle")
    full = settings()
    full.render = "full"
    with pytest.raises(BadInput, match=rf"--checkpoint {tmp_path}: .* trained with render full: give --render full"):
        check_trained_alike(tmp_path, full, "source", settings(), "move-middle")
    behind, plain = settings(), settings()
    behind.background = "clips"
    check_trained_alike(tmp_path, behind, "source", plain, "walker_walk")  # a source has no background
    for role in ("target", "collect"):
        check_trained_alike(tmp_path, behind, role, behind, "walker_walk")
        with pytest.raises(BadInput, match="trained with background clips: give --background clips"):
            check_trained_alike(tmp_path, behind, role, plain, "walker_walk")
    with pytest.raises(BadInput, match="trained with background none: give --background ''"):
        check_trained_alike(tmp_path, behind, "source", behind, "walker_walk")


def test_every_spelling_means_one_task():
    for task in all_tasks():
        for spelling in (task, str(task), task.name, task.name.upper().replace("-", "_")):
            assert parse_task(spelling) == task
