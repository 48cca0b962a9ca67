"""The critic's value estimates against the discounted returns of the same episodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

UNSEEN = 0.1  # the largest share of a return after the end of its episode at which an estimate is compared with it
MOST_UNSEEN = 0.5  # that share at the first step of an episode above which it is too short for any comparison
FEWEST = 3  # steps for a correlation


@dataclass
class ValuedEpisode:
    """An episode of T agent steps, evaluated or of a dataset, with the critic's estimates.

    Attributes:
        estimates: the critic's v(s_t) for t = 0 .. T - 1, (T,). The last state has no action and no estimate.
        rewards: (T + 1,); r_t is the reward on arrival in s_t, and r_0 is 0.
        terminated: whether the task ended the episode, and not a time limit.
        source_estimates: the source critic's values of the same states, (T,); None if it does not bound the target's.
    """

    estimates: np.ndarray
    rewards: np.ndarray
    terminated: bool
    source_estimates: np.ndarray | None = None

    def true_returns(self, gamma: float) -> np.ndarray:
        """G_t = sum over k = 0 .. T - t of gamma^k r_{t+k}, (T,)."""
        backwards = accumulate(self.rewards[::-1].tolist(), lambda later, reward: reward + gamma * later)
        return np.array(list(backwards))[::-1][:-1]

    def unseen(self, gamma: float) -> np.ndarray:
        """The share of a discounted sum of constant rewards, from t on, that comes after the last step, (T,)."""
        steps = len(self.estimates)
        return np.zeros(steps) if self.terminated else gamma ** (steps + 1.0 - np.arange(steps))

    def continued_returns(self, gamma: float) -> np.ndarray:
        """G_t if the mean reward of the episode's last tenth (one step or more) continued without end, (T,)."""
        if self.terminated or gamma == 1:  # without a discount, an infinite sum has no value
            return self.true_returns(gamma)
        last = self.rewards[-math.ceil(len(self.estimates) / 10) :].mean()
        return self.true_returns(gamma) + self.unseen(gamma) * last / (1 - gamma)

    def compared(self, gamma: float, limit: float = UNSEEN) -> np.ndarray:
        """The steps at which at most the share ``limit`` is unseen, and always the first step, (T,) bool."""
        return self.unseen(gamma) <= max(limit, self.unseen(gamma)[0])


def value_figures(episodes: Sequence[ValuedEpisode], gamma: float) -> dict[str, float]:
    """Bias and correlation of the estimates, over the compared steps of all episodes; returns are the continued ones.

    ``value_bias`` is the mean over episodes of the mean difference, estimate minus return; ``value_correlation`` is
    missing where `correlation` is None. Episodes of whose first return more than `MOST_UNSEEN` is unseen are left out;
    if there are no others, both are missing.
    """
    episodes = [episode for episode in episodes if episode.unseen(gamma)[0] <= MOST_UNSEEN]
    if not episodes:
        return {}
    at = [episode.compared(gamma) for episode in episodes]
    estimates = [episode.estimates[steps] for episode, steps in zip(episodes, at, strict=True)]
    returns = [episode.continued_returns(gamma)[steps] for episode, steps in zip(episodes, at, strict=True)]
    figures = {"value_bias": float(np.mean([(v - g).mean() for v, g in zip(estimates, returns, strict=True)]))}
    if (found := correlation(np.concatenate(estimates), np.concatenate(returns))) is not None:
        figures["value_correlation"] = found
    return figures


def correlation(estimates: np.ndarray, returns: np.ndarray) -> float | None:
    """Pearson's, (N,) each; None with fewer than `FEWEST` steps, or if all estimates or all returns are equal."""
    if len(estimates) < FEWEST or estimates.std() == 0 or returns.std() == 0:
        return None
    return float(np.corrcoef(estimates, returns)[0, 1])
