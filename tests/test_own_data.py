"""Everything with an environment of one's own: record, train without a simulator, kill, resume, export, act."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from test_co_training import assert_same_results

import co_training as program
import export
from policy import load_policy
from training.checkpoint import load_checkpoint
from training.trainer import Trainer

MODULE = '''
"""A cart that is to reach a mark, in images of 96 x 72 pixels, with actions in [-5, 3]; it fails at the ends."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Cart(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None, slope=0.0):
        self.render_mode, self.slope = render_mode, slope
        self.action_space, self.observation_space = Box(-5, 3, (2,)), Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.places = self.np_random.uniform(-0.8, 0.8, 2)
        return self.places.astype(np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.places[0] += 0.05 * action[0] + self.slope
        distance = float(abs(np.subtract(*self.places)))
        failed = bool(abs(self.places[0]) > 1)
        return self.places.astype(np.float32), 1 - distance, failed, False, {"success": distance < 0.1}

    def render(self):
        image = np.full((96, 72, 3), 20, np.uint8)
        for row, place, colour in zip((30, 60), self.places, ((240, 60, 40), (40, 220, 60)), strict=True):
            column = int((np.clip(place, -1, 1) + 1) * 30)
            image[row : row + 10, column : column + 12] = colour
        return image


gymnasium.register("Cart-v0", Cart, max_episode_steps=20)
gymnasium.register("Slope-v0", Cart, max_episode_steps=20, kwargs={"slope": 0.02})
'''
RECORD = """
    import sys
    import cart_package, gymnasium, numpy as np
    env = gymnasium.make("Slope-v0", render_mode="rgb_array")
    env.action_space.seed(0)
    for number in range(6):
        env.reset(seed=number)
        rows, done = [(env.render(), np.zeros(2), 0.0, False)], False
        while not done:
            action = env.action_space.sample()
            _, reward, ended, cut, _ = env.step(action)
            rows.append((env.render(), action, reward, ended))
            done = ended or cut
        rgb, act, rew, end = map(np.array, zip(*rows))
        np.savez(f"{sys.argv[1]}/{number}.npz", rgb=rgb, act=act.astype(np.float32), rew=rew, end=end)
"""
DRIVE = """
    import sys
    import torch, gymnasium, cart_package
    from robot import Controller
    assert not {"policy", "agents", "networks"} & sys.modules.keys()
    controller, env = Controller(sys.argv[1]), gymnasium.make("Slope-v0", render_mode="rgb_array")
    frames, actions, done = [], [], False
    env.reset(seed=50)
    while not done:
        frames.append(torch.from_numpy(env.render()))
        actions.append(controller.act(frames[-1]))
        _, _, ended, cut, _ = env.step(actions[-1].numpy())
        done = ended or cut
    torch.save([torch.stack(frames), torch.stack(actions)], sys.argv[2])
"""
NAMES = "--image_key rgb --action_key act --reward_key rew --done_key end --action_range -5,3".split()


def run_outside(folder: Path, script: str, *arguments: object) -> None:
    """Run a script that sees ``folder`` and installed packages, but not this repository."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(script)}"
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    subprocess.run(command, cwd=folder, check=True, timeout=120)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "cart_package.py").write_text(MODULE)
    (folder / "data").mkdir()
    run_outside(folder, RECORD, folder / "data")
    return folder


def arguments(outside: Path, logdir: Path) -> list[str]:
    tasks = ["--source_task", "gym_cart_package:Cart-v0", "--target_task", "my_cart"]
    folders = ["--offline_traindir", str(outside / "data"), "--logdir", str(logdir)]
    blocks = ["--configs", "defaults", "debug", "--checkpoint_minutes", "0.001", "--precision", "float32"]
    return ["co_training.py", *tasks, *folders, *NAMES, *blocks]


def visible(outside: Path, patch: pytest.MonkeyPatch) -> None:
    """The package of the environment can be imported here and in the processes of simulators."""
    patch.syspath_prepend(outside)
    patch.setenv("PYTHONPATH", str(outside))


@pytest.fixture(scope="module")
def finished(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("runs") / "whole"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        visible(outside, patch)
        program.main(arguments(outside, logdir)[1:])
    assert "my_cart, offline figures" in out.getvalue()
    errors = err.getvalue()
    assert "images of 96x72 are resized to 64x64" in errors
    assert re.search(r"[1-6] of [456] episodes end with discount 0; .* --pred_discount True", errors)
    return logdir


def test_a_stopped_run_resumes_bit_for_bit(outside: Path, finished: Path, tmp_path: Path, monkeypatch):
    """Within an episode. In this process, which is faster than the next test."""
    visible(outside, monkeypatch)
    step, count = load_checkpoint(finished / "checkpoint.pt")["progress"]["step"] // 2, Trainer._count

    def stop_there(trainer: Trainer, stride: int) -> None:
        count(trainer, stride)
        if trainer.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_count", stop_there)
    with pytest.raises(SystemExit):
        program.main(arguments(outside, tmp_path)[1:])
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] == step
    monkeypatch.setattr(Trainer, "_count", count)
    program.main(arguments(outside, tmp_path)[1:])
    assert_same_results(finished, tmp_path)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(outside: Path, finished: Path, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, *arguments(outside, tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(outside)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() < 0, "killed before its end"
    resumed = command(*arguments(outside, tmp_path), PYTHONPATH=str(outside))
    assert resumed.returncode == 0 and "resuming" in resumed.stderr, resumed.stderr
    assert_same_results(finished, tmp_path)


@pytest.mark.slow
def test_the_exported_program_acts_as_the_policy_does(outside: Path, finished: Path, tmp_path: Path):
    page = (ROOT / "docs" / "deployment.md").read_text()
    (outside / "robot.py").write_text(re.search(r"`robot.py`:\n\n```python\n(.*?)```", page, re.DOTALL).group(1))
    export.main(["--logdir", str(finished), "--out", str(tmp_path / "policy.pt2")])
    run_outside(outside, DRIVE, tmp_path / "policy.pt2", tmp_path / "episode.pt")
    frames, actions = torch.load(tmp_path / "episode.pt")
    policy = load_policy(finished)
    assert frames.shape[1:] == (96, 72, 3) and actions.min() >= -5 and actions.max() <= 3
    assert np.allclose([policy(frame.numpy()) for frame in frames], actions, rtol=0, atol=1e-5)
