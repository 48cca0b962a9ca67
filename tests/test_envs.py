"""Environments in processes of their own: same results, overlap, crashes, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tools import BadInput
from wrappers import all_tasks, make_env, parse_task
from wrappers.shared.vector import ProcessEnv, WorkerCrash, make_envs

ROOT = Path(__file__).resolve().parent.parent


def alive(pid):
    """Whether the process runs; one that has ended but is not yet waited for does not count."""
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
        results.append((observation, info, steps, env.render()))
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
    again = envs[0].reset(seed=1)[0]["image"]  # one alone, with a step under way
    np.testing.assert_array_equal(again, first[0])
    unchanged = envs[1].render()
    np.testing.assert_array_equal(unchanged, stepped[1][0]["image"])
    with pytest.raises(RuntimeError, match="no step is under way"):
        envs[0].step_wait()
    envs[0].step_async(np.ones(6))
    with pytest.raises(RuntimeError, match="step is still under way"):
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


def test_forgotten_environment_ends_its_process():
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
child = os.fork()  # a process that inherits the pipes and outlives this one, as a data loader's might
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


def test_every_spelling_means_one_task():
    for task in all_tasks():
        for spelling in (task, str(task), task.name, task.name.upper().replace("-", "_")):
            assert parse_task(spelling) == task
