"""Where episodes end, and whether their ends matter to a task, which decides what ``sample_ends: auto`` is."""

from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MOST = 0.5  # share of all reward in the last rows from which the ends matter


class Ending(NamedTuple):
    """The end of one episode: whether its last row has discount 0, and sums of absolute rewards."""

    terminated: bool
    last_reward: float  # of the last row
    total_reward: float  # of all rows

    @classmethod
    def of(cls, reward: np.ndarray, discount: np.ndarray) -> "Ending":
        """The end of an episode with these rewards and discounts, (N,)."""
        absolute = np.abs(reward, dtype=np.float64)
        return cls(bool(discount[-1] == 0), float(absolute[-1]), float(absolute.sum()))


def ends_matter(endings: Collection[Ending]) -> bool:
    """Whether an episode terminates, or half of the reward (absolute) is in the last rows of the episodes."""
    return any(ending.terminated for ending in endings) or reward_share(endings) >= MOST


def reward_share(endings: Collection[Ending]) -> float:
    """The share of the episodes' absolute reward that is in their last rows; 0 without any reward."""
    total = sum(ending.total_reward for ending in endings)
    return sum(ending.last_reward for ending in endings) / total if total else 0.0


def why(endings: Collection[Ending]) -> str:
    """The reason for the answer of `ends_matter`, for notes."""
    terminated = sum(ending.terminated for ending in endings)
    if terminated:
        return f"{terminated} of {len(endings)} episodes terminate"
    return f"no episode terminates, and {reward_share(endings):.0%} of the reward is in last rows"


def episode_slices(ends: np.ndarray) -> list[slice]:
    """The rows of each episode of flat arrays, from booleans (N,) that are true in the last row of an episode.

    The last episode may go on to the end without one.
    """
    borders = (np.flatnonzero(ends) + 1).tolist()
    return _between(borders if len(ends) in borders[-1:] else [*borders, len(ends)])


def slices_to(ends: np.ndarray) -> list[slice]:
    """The rows of each episode, from the numbers (E,) of the rows after the last one of each; as in `episode_slices`.

    Raises:
        ValueError: they are no increasing whole numbers.
    """
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or (len(ends) and int(ends[0]) < 1):
        raise ValueError(f"the ends of episodes are {ends.dtype}{ends.shape}, not whole numbers from 1 on")
    borders = ends.tolist()
    if any(first >= end for first, end in pairwise(borders)):
        raise ValueError("the ends of episodes do not increase")
    return _between(borders)


def _between(borders: list[int]) -> list[slice]:
    return [slice(first, end) for first, end in pairwise([0, *borders]) if end > first]
