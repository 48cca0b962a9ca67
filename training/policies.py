"""Policies: functions from observations to actions."""

from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from agents.base import BaseAgent

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


def agent_policy(agent: BaseAgent, sample: bool) -> Policy:
    """The agent's policy: samples, or its mode."""
    return lambda observation, state, first: agent.act(observation, state, first, sample)


def noisy(policy: Policy, w: float, rng: np.random.Generator) -> Policy:
    """``policy`` with action a + w n, n ~ N(0, 1), clipped to [-1, 1] (Table 10); ``policy`` itself if ``w`` is 0.

    An agent's state gets this action, the executed one, so that its next posterior uses it.
    """

    def act(observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        action, state = policy(observation, state, first)
        executed = np.clip(action + w * rng.standard_normal(action.shape), -1, 1).astype(np.float32)
        return executed, with_executed_action(state, executed)

    return act if w else policy


def with_executed_action(state: Any, action: np.ndarray) -> Any:
    """A policy's state with another last action (N, A). The state of a policy without memory is returned as it is."""
    if not isinstance(state, dict) or "action" not in state:
        return state
    return {**state, "action": torch.as_tensor(action).to(state["action"])}
