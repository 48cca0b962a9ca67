"""What a dataset ever returned, and how widely its actions vary: what a trained agent is compared with."""

import re
from dataclasses import dataclass

import numpy as np

from replay import SequenceStore
from training.values import ValuedEpisode

NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?)"
LINE = "# data: returns {:.6g} to {:.6g}, discounted {:.6g} to {:.6g}, rewards {:.6g} to {:.6g}, action spread {:.6g}\n"
PATTERN = re.escape(LINE.strip()).replace(r"\{:\.6g\}", NUMBER)


@dataclass(frozen=True)
class DataLimits:
    """Figures of all episodes of a dataset.

    Attributes:
        worst_return, best_return: the smallest and the largest return of an episode.
        low, high: the smallest and the largest discounted return from any step on, `continued_returns`.
        low_reward, high_reward: of a step.
        action_spread: root mean square distance, over steps and dimensions, of the actions to their mean: that of a
            policy that always takes the mean action.
    """

    worst_return: float
    best_return: float
    low: float
    high: float
    low_reward: float
    high_reward: float
    action_spread: float

    @property
    def scale(self) -> float:
        """The largest size of a discounted return."""
        return max(abs(self.low), abs(self.high))

    @property
    def reward_size(self) -> float:
        """The largest size of a reward."""
        return max(abs(self.low_reward), abs(self.high_reward))

    def line(self) -> str:
        """The line of config.yaml, for `find`."""
        return LINE.format(*vars(self).values())

    @classmethod
    def find(cls, text: str) -> "DataLimits | None":
        """Those of a run's config.yaml; None if it has no such line."""
        found = re.search(f"^{PATTERN}$", text, re.MULTILINE)
        return cls(*map(float, found.groups())) if found else None


def measure_limits(store: SequenceStore, gamma: float) -> DataLimits:
    """Read the rewards, discounts and actions of every episode."""
    worst, best, low, high, rewards = np.inf, -np.inf, np.inf, -np.inf, []
    count, total, squares = 0, np.zeros(store.action_dim), np.zeros(store.action_dim)
    for episode in store.stored:
        rows = {"reward": np.empty(episode.rows, np.float32), "discount": np.empty(episode.rows, np.float32)}
        rows["action"] = np.empty((episode.rows, store.action_dim), np.float32)
        episode.read_rows(0, rows)
        reward, actions = rows["reward"].astype(np.float64), rows["action"][1:].astype(np.float64)
        valued = ValuedEpisode(np.zeros(len(reward) - 1), reward, terminated=bool(rows["discount"][-1] == 0))
        returns = valued.continued_returns(gamma)
        worst, best = min(worst, reward.sum()), max(best, reward.sum())
        low, high = min(low, returns.min()), max(high, returns.max())
        rewards += [reward[1:].min(), reward[1:].max()]
        count, total, squares = count + len(actions), total + actions.sum(0), squares + np.square(actions).sum(0)
    spread = np.sqrt(np.maximum(squares / count - np.square(total / count), 0).mean())
    figures = (worst, best, low, high, min(rewards), max(rewards), spread)
    return DataLimits(*map(float, figures))
