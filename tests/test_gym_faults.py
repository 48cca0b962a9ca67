"""Gymnasium environments whose methods fail or return what they should not: one line each."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from tools import BadInput
from wrappers import make_env
from wrappers.shared.base import PixelEnv

pytestmark = pytest.mark.usefixtures("no_dataset_pictures")


class Faulty(gymnasium.Env):
    """Its step, reset and render return what they are given."""

    metadata: dict = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, reward: Any = 1.0, info: dict | None = None, **others: Any):
        self.render_mode, self.reward, self.info, self.others = render_mode, reward, info or {}, others
        self.action_space, self.observation_space = Box(-1, 1, (2,)), Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self.others.get("reset", (np.zeros(2, np.float32), {}))

    def step(self, action: np.ndarray):
        if error := self.others.get("error"):
            raise error
        return np.zeros(2, np.float32), self.reward, False, False, self.info

    def render(self):
        return self.others.get("frame", np.zeros((20, 30, 3), np.uint8))


@pytest.fixture
def make() -> Iterator[Callable[..., PixelEnv]]:
    def make(**faults: Any) -> PixelEnv:
        gymnasium.register("Faulty-v0", Faulty, max_episode_steps=3, kwargs=faults)
        return make_env("gym_Faulty-v0", size=8)

    yield make
    gymnasium.registry.pop("Faulty-v0", None)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"reward": np.nan}, "the reward of step.. is nan; it must be a finite number"),
        ({"reward": None}, "the reward of step.. is None; it must be a finite number"),
        ({"reward": np.ones(2)}, "step.. gave 2 rewards; it must give one number"),
        ({"info": {"success": "yes"}}, "success in info is 'yes'; it must be a finite number"),
        ({"info": {"is_success": 7}}, "success in info is 7; it must be from 0 to 1"),
        ({"info": {"success": np.array([])}}, "success in info is array.*; it must be a finite number"),
        ({"error": OSError("no\ncable")}, r"step.. failed: OSError: no \(test_gym_faults.py, line \d+\)"),
        ({"reset": np.zeros(2)}, r"reset.. returned ndarray; it must return \(observation, info\)"),
        ({"frame": np.zeros((20, 30, 4), np.uint8)}, r"render.. returned uint8 \(20, 30, 4\); it must return an array"),
    ],
)
def test_one_line(make: Callable, faults: dict, message: str):
    with pytest.raises(BadInput, match=f"^gym_Faulty-v0: {message}") as caught:
        env = make(**faults)
        env.reset(seed=0)
        env.step(np.zeros(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("success", "expected"), [(True, 1), (np.float64(0.5), 0.5), ([True, False], 0), (np.array([1]), 1)]
)
def test_success(make: Callable, success: Any, expected: float):
    env = make(info={"success": success})
    env.reset(seed=0)
    assert env.step(np.zeros(2))[4]["success"] == expected
