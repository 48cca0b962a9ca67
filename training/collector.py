"""Collecting episodes in simulators that run side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from training.device import generator_state, restore_generator
from training.policies import Policy, RandomPolicy, noisy


@dataclass
class EpisodeBuilder:
    """The rows of an episode so far. Row t has the action that led to image t; the action of row 0 is zeros."""

    rows: dict[str, list] = field(default_factory=dict)

    def add(
        self, observation: dict[str, np.ndarray], action: np.ndarray, reward: float, info: dict, first: bool
    ) -> None:
        """Append a row. ``info`` is the simulator's; ``first`` marks the reset."""
        row = {**observation, "action": action, "reward": np.float32(reward)}
        row["discount"] = np.float32(1.0 if first else info["discount"])
        if "success" in info or "success" in self.rows:
            row["success"] = np.float32(info.get("success", 0.0))
        for key, value in row.items():
            self.rows.setdefault(key, []).append(np.array(value))

    def episode(self) -> dict[str, np.ndarray]:
        """The arrays, each with as many rows as there are images; rows missing at the start are zeros."""
        length = len(self.rows["image"])
        return {k: np.stack([np.zeros_like(v[0])] * (length - len(v)) + v) for k, v in self.rows.items()}


def episode_seed(seed: int, index: int) -> int:
    """The seed of episode ``index`` in a sequence of episodes."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclass
class EnvSlot:
    """One simulator of a collector and its running episode. The episode's seed depends on ``index``."""

    env: Any
    index: int = -1
    builder: EpisodeBuilder | None = None


class Collector:
    """Steps simulators side by side with a policy and passes on every finished episode.

    `start` chooses actions and starts the simulators, `finish` waits for them; in between the learner can work. Each
    episode has its own seed, so a checkpoint needs only the actions of the running episodes: `load_state_dict` repeats
    them.

    Args:
        envs: simulators of one task, `ProcessEnv` or `SyncEnv` of wrappers/shared/vector.py.
        on_episode: called with each finished episode, a dict of arrays.
        seed: determines all episodes, the random policy and the noise.
        action_noise: weight w of the noise that is added to every action (see `policies.noisy`).
    """

    def __init__(
        self,
        envs: list[Any],
        on_episode: Callable[[dict[str, np.ndarray]], None],
        seed: int,
        action_noise: float = 0.0,
    ):
        self.slots, self.on_episode, self.seed = [EnvSlot(env) for env in envs], on_episode, seed
        self.random_policy = RandomPolicy(envs[0].action_space, np.random.default_rng([seed, 0]))
        self.action_noise, self.noise_rng = action_noise, np.random.default_rng([seed, 0, 2])
        self.episodes_begun = 0
        self.policy_state: Any = None
        self._actions: np.ndarray | None = None  # of the running step

    def __len__(self) -> int:
        """Agent steps in one step of the collector: one for each simulator."""
        return len(self.slots)

    def step(self, policy: Policy | None = None) -> None:
        self.start(policy)
        self.finish()

    def start(self, policy: Policy | None = None) -> None:
        """Begin new episodes if needed; send each simulator an action of ``policy``, or a random one, with noise."""
        first = np.array([slot.builder is None for slot in self.slots])
        self._begin_episodes([slot for slot in self.slots if slot.builder is None])
        keys = self.slots[0].env.observation_space
        observation = {key: np.stack([slot.builder.rows[key][-1] for slot in self.slots]) for key in keys}
        act = noisy(policy or self.random_policy, self.action_noise, self.noise_rng)
        self._actions, state = act(observation, self.policy_state, first)
        self.policy_state = None if policy is None else state
        for slot, action in zip(self.slots, self._actions, strict=True):
            slot.env.step_async(action)

    def finish(self) -> None:
        """Wait for the simulators in their order, and pass on the episodes that ended."""
        for slot, action in zip(self.slots, self._actions, strict=True):
            if self._receive(slot, action):
                episode, slot.builder = slot.builder.episode(), None
                self.on_episode(episode)

    def close(self) -> None:
        for slot in self.slots:
            slot.env.close()

    def _begin_episodes(self, slots: list[EnvSlot]) -> None:
        for slot in slots:
            slot.index = self.episodes_begun
            self.episodes_begun += 1
        self._reset(slots)

    def _reset(self, slots: list[EnvSlot]) -> None:
        for slot in slots:
            slot.env.reset_async(seed=episode_seed(self.seed, slot.index))
        for slot in slots:
            observation, info = slot.env.reset_wait()
            slot.builder = EpisodeBuilder()
            slot.builder.add(observation, np.zeros(slot.env.action_space.shape, np.float32), 0.0, info, first=True)

    @staticmethod
    def _receive(slot: EnvSlot, action: np.ndarray) -> bool:
        observation, reward, terminated, truncated, info = slot.env.step_wait()
        slot.builder.add(observation, action, reward, info, first=False)
        return terminated or truncated

    def state_dict(self) -> dict[str, Any]:
        slots = []
        for slot in self.slots:
            actions = slot.builder and torch.from_numpy(np.stack(slot.builder.rows["action"])[1:])
            slots.append({"index": slot.index, "actions": actions})
        rngs = {"rng": generator_state(self.random_policy.rng), "noise_rng": generator_state(self.noise_rng)}
        return {"slots": slots, "episodes": self.episodes_begun, "policy_state": self.policy_state, **rngs}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore the state that `state_dict` returned. The number of simulators must be the same."""
        policy_state = state["policy_state"]
        self.policy_state = policy_state and {k: v.to(device) for k, v in policy_state.items()}
        self.episodes_begun = state["episodes"]
        restore_generator(self.random_policy.rng, state["rng"])
        restore_generator(self.noise_rng, state["noise_rng"])
        for slot, saved in zip(self.slots, state["slots"], strict=True):
            slot.index, slot.builder = saved["index"], None
            if saved["actions"] is not None:
                self._reset([slot])
                for action in saved["actions"].numpy():
                    slot.env.step_async(action)
                    self._receive(slot, action)
