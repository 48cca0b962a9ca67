"""Policies: functions from observations to actions."""

from typing import Any, Protocol

import gymnasium
import numpy as np

from agents.agent import Agent

Observation = dict[str, np.ndarray]


class Policy(Protocol):
    """Chooses actions (N, A) for observations (N, ...). ``first`` (N,) is True where an episode begins.

    ``state`` is what the last call returned beside the actions, or None.
    """

    def __call__(self, observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]: ...


class RandomPolicy:
    """Uniform over the action space."""

    def __init__(self, space: gymnasium.spaces.Box, rng: np.random.Generator):
        self.space, self.rng = space, rng

    def __call__(self, observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions = self.rng.uniform(self.space.low, self.space.high, (len(first), *self.space.shape))
        return actions.astype(np.float32), state


def agent_policy(agent: Agent, sample: bool) -> Policy:
    """The agent's policy: samples, or its mode."""
    return lambda observation, state, first: agent.act(observation, state, first, sample)


def noisy(policy: Policy, w: float, rng: np.random.Generator) -> Policy:
    """``policy`` with action a + w n, n ~ N(0, 1), clipped to [-1, 1] (Table 10)."""

    def act(observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        action, state = policy(observation, state, first)
        return np.clip(action + w * rng.standard_normal(action.shape), -1, 1).astype(np.float32), state

    return act if w else policy
