"""Datasets of an expert that learns from the simulator's states."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import command, tiny
from gymnasium.spaces import Box

import collect
from replay import OfflineDataset
from tools import BadInput
from training.state_expert import state_policy
from wrappers.shared.simulators import make_simulator, state_simulator

EXPERT = ["--quality", "expert", "--envs", 0, "--size", "32,32", "--time_limit", 20, "--prefill", 20]
EXPERT += ["--eval_every", 20, "--eval_episodes", 1, "--episodes", 2]


def collected(out: Path, task: str, *more: object) -> dict:
    collect.main([str(a) for a in ["--task", task, "--out", out, *EXPERT, *more]])
    return json.loads((out / "dataset.json").read_text())


def test_an_expert_learns_and_its_episodes_have_images(tmp_path: Path, capsys):
    described = collected(tmp_path / "a", "walker_walk", "--expert_steps", 45, "--max_score", 40)
    assert [e["steps"] for e in described["evaluations"]] == [20, 40]
    assert described["policy"] == "sac" and described["episodes"] == 2 and described["steps"] == 40
    best = max(evaluation["mean"] for evaluation in described["evaluations"])
    assert f"note: the expert's best evaluation, {best:.1f}, is below the 38.0 at which" in capsys.readouterr().err
    data = OfflineDataset(tmp_path / "a", size=32)
    batch = data.sample(1, 20, np.random.default_rng(0))
    assert batch["image"].shape == (1, 20, 32, 32, 3) and batch["image"].std() > 10 and batch["action"].std() > 0.1
    again = collected(tmp_path / "b", "walker_walk", "--expert_steps", 45, "--max_score", 40)
    assert again["returns"] == described["returns"] and again["evaluations"] == described["evaluations"]


def test_training_ends_when_the_expert_is_good_enough(tmp_path: Path, capsys):
    described = collected(tmp_path / "a", "cartpole_balance", "--expert_steps", 60, "--max_score", 1)
    assert [e["steps"] for e in described["evaluations"]] == [20]
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("task", ["walker_walk", "metaworld_door-close", "gym_Pusher-v5"])
def test_the_state_is_every_low_dimensional_entry_and_nothing_is_drawn(task: str, monkeypatch):
    config = tiny(size="32,32")
    state, env = state_simulator(config, task), make_simulator(config, task, "collect")
    drawn = []
    monkeypatch.setattr(
        type(env.unwrapped), "_draw", lambda self: drawn.append(self) or np.zeros((32, 32, 3), np.uint8)
    )
    vector, _ = state.reset(seed=3)
    assert not drawn
    observation, _ = env.reset(seed=3)
    entries = np.concatenate([observation[key] for key in sorted(observation) if key != "image"])
    np.testing.assert_array_equal(vector, entries)

    class Agent:
        def predict(self, states: np.ndarray) -> tuple[np.ndarray, None]:
            return states, None

    policy = state_policy(Agent(), state.unwrapped.observation_space)
    batch = {key: np.stack([value] * 2) for key, value in observation.items()}
    np.testing.assert_array_equal(policy(batch, None, np.array([True, True]))[0], [vector, vector])
    for simulator in (state, env):
        simulator.close()


class ImagesOnly(gymnasium.Env):
    observation_space, action_space = Box(0, 255, (8, 8, 3), np.uint8), Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str = "rgb_array"):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((8, 8, 3), np.uint8), 0.0, False, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def test_a_task_of_images_only_has_no_expert():
    if "ImagesOnly-v0" not in gymnasium.registry:
        gymnasium.register("ImagesOnly-v0", ImagesOnly)
    with pytest.raises(BadInput, match="gym_ImagesOnly-v0 observes images only"):
        state_simulator(tiny(size="32,32"), "gym_ImagesOnly-v0")


@pytest.mark.slow
def test_messages_of_other_packages_do_not_appear(tmp_path: Path):
    done = command("collect.py", "--task", "cartpole_balance", "--out", tmp_path / "a", *EXPERT, "--expert_steps", 30)
    assert done.returncode == 0, done.stderr
    assert "Gym has been" not in done.stderr and "UserWarning" not in done.stderr
