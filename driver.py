"""The only code that steps simulators: collecting episodes of the source task, and evaluating."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from tools import generator_state, restore_generator


class Policy(Protocol):
    """Chooses actions (N, A) for images (N, H, W, 3); ``first`` (N,) marks where an episode begins."""

    def __call__(self, image: np.ndarray, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]: ...


class RandomPolicy:
    """Uniform over the action box; it has no state of its own but its generator."""

    def __init__(self, space: gymnasium.spaces.Box, rng: np.random.Generator):
        self.space, self.rng = space, rng

    def __call__(self, image: np.ndarray, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions = self.rng.uniform(self.space.low, self.space.high, (len(image), *self.space.shape))
        return actions.astype(np.float32), state


@dataclass
class Rows:
    """An episode as it grows, a row an image: row t holds the action that led to image t (row 0: zeros)."""

    rows: dict[str, list] = field(default_factory=dict)

    def add(
        self, observation: dict[str, np.ndarray], action: np.ndarray, reward: float, info: dict, first: bool
    ) -> None:
        row = {**observation, "action": action, "reward": np.float32(reward)}
        row["discount"] = np.float32(1.0 if first else info["discount"])
        if "success" in info or "success" in self.rows:
            row["success"] = np.float32(info.get("success", 0.0))
        for key, value in row.items():
            self.rows.setdefault(key, []).append(np.array(value))

    def __getitem__(self, key: str) -> np.ndarray:
        return np.stack(self.rows[key])

    def episode(self) -> dict[str, np.ndarray]:
        """The arrays, each with as many rows as there are images; a suite's success starts at 0."""
        length = len(self.rows["image"])
        return {k: np.stack([np.zeros_like(v[0])] * (length - len(v)) + v) for k, v in self.rows.items()}


def episode_seed(seed: int, index: int) -> int:
    """The seed that determines episode ``index`` of a run's stream of episodes."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


class Collector:
    """Steps one simulator with a policy and hands every finished episode on.

    Each episode is determined by its own seed, so a checkpoint needs only the actions of the episode under way:
    `load_state_dict` brings the simulator back by taking them again.
    """

    def __init__(self, env: gymnasium.Env, finished: Callable[[dict[str, np.ndarray]], None], seed: int):
        self.env, self.finished, self.seed = env, finished, seed
        self.random = RandomPolicy(env.action_space, np.random.default_rng([seed, 0]))
        self.index = 0
        self.rows: Rows | None = None
        self.policy_state: Any = None

    def step(self, policy: Policy | None = None) -> None:
        """One agent step, by ``policy`` or at random; the first of an episode resets the simulator."""
        first = self.rows is None
        if first:
            self._reset()
        image = self.rows.rows["image"][-1][None]
        action, self.policy_state = (policy or self.random)(image, self.policy_state, np.array([first]))
        if policy is None:
            self.policy_state = None
        if self._take(action[0]):
            episode, self.rows = self.rows.episode(), None
            self.index += 1
            self.finished(episode)

    def _reset(self) -> None:
        observation, info = self.env.reset(seed=episode_seed(self.seed, self.index))
        self.rows = Rows()
        self.rows.add(observation, np.zeros(self.env.action_space.shape, np.float32), 0.0, info, first=True)

    def _take(self, action: np.ndarray) -> bool:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rows.add(observation, action, reward, info, first=False)
        return terminated or truncated

    def state_dict(self) -> dict[str, Any]:
        actions = None if self.rows is None else torch.from_numpy(self.rows["action"][1:])
        rng = generator_state(self.random.rng)
        return {"index": self.index, "actions": actions, "policy_state": self.policy_state, "rng": rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index, self.policy_state, self.rows = state["index"], state["policy_state"], None
        restore_generator(self.random.rng, state["rng"])
        if state["actions"] is not None:
            self._reset()
            for action in state["actions"].numpy():
                self._take(action)


@dataclass
class Scores:
    """An evaluation: the return of each episode, its success where the suite has one, and the first one's frames."""

    returns: list[float] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)
    frames: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def success(self) -> float | None:
        """Share of episodes that succeeded at some step, or None where the suite has no success."""
        return float(np.mean(self.successes)) if self.successes else None


def evaluate(
    policy: Policy,
    env: gymnasium.Env,
    episodes: int,
    seed: int,
    between: Callable[[int], None] = lambda steps: None,
) -> Scores:
    """Score ``policy`` over ``episodes`` episodes, which ``seed`` determines.

    The global random state is put back afterwards, so that an evaluation changes nothing in a run. ``between`` is
    called after every step with the number of steps so far; it may raise to break off.
    """
    scores, steps = Scores(), 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for index in range(episodes):
            observation, _ = env.reset(seed=episode_seed(seed, index))
            frames, total, success, state, first, done = [observation["image"]], 0.0, None, None, True, False
            while not done:
                action, state = policy(observation["image"][None], state, np.array([first]))
                observation, reward, terminated, truncated, info = env.step(action[0])
                first, done = False, terminated or truncated
                total += float(reward)
                if "success" in info:
                    success = max(success or 0.0, float(info["success"]))
                if index == 0:
                    frames.append(observation["image"])
                steps += 1
                between(steps)
            scores.returns.append(total)
            if success is not None:
                scores.successes.append(success)
            if index == 0:
                scores.frames = np.stack(frames)
    return scores
