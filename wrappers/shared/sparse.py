"""Sparse reward (the paper's Table 5): 500 for the first success of an episode, 0 for every other step."""

import gymnasium
import numpy as np

SUCCESS_REWARD = 500.0


class SparseReward(gymnasium.Wrapper):
    """Replaces the rewards of a suite that defines success: 500 on an episode's first success, else 0.

    The episode continues after the success, with reward 0, until the time limit.
    """

    def reset(self, **settings):
        """Reset the environment."""
        self._succeeded = False
        return self.env.reset(**settings)

    def step(self, action: np.ndarray):
        """Step the environment with ``action`` (A,) and replace its reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        first = info["success"] > 0 and not self._succeeded
        self._succeeded |= first
        return observation, SUCCESS_REWARD if first else 0.0, terminated, truncated, info
