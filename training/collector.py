"""The only code that steps simulators: collecting episodes of the source task, and evaluating."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from tools import generator_state, restore_generator

Observation = dict[str, np.ndarray]


class Policy(Protocol):
    """Chooses actions (N, A) for observations (N, ...); ``first`` (N,) marks where an episode begins."""

    def __call__(self, observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]: ...


class RandomPolicy:
    """Uniform over the action box; it has no state of its own but its generator."""

    def __init__(self, space: gymnasium.spaces.Box, rng: np.random.Generator):
        self.space, self.rng = space, rng

    def __call__(self, observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions = self.rng.uniform(self.space.low, self.space.high, (len(first), *self.space.shape))
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

    def __bool__(self) -> bool:
        return True

    def episode(self) -> dict[str, np.ndarray]:
        """The arrays, each with as many rows as there are images; a suite's success starts at 0."""
        length = len(self.rows["image"])
        return {k: np.stack([np.zeros_like(v[0])] * (length - len(v)) + v) for k, v in self.rows.items()}


def episode_seed(seed: int, index: int) -> int:
    """The seed that determines episode ``index`` of a run's stream of episodes."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


class InProcess(gymnasium.Wrapper):
    """A simulator in this process under the interface of `wrappers.vector.ProcessEnv`: it steps when waited for."""

    def reset_async(self, seed: int | None = None) -> None:
        self._seed = seed

    def reset_wait(self) -> tuple[dict, dict]:
        return self.env.reset(seed=self._seed)

    def step_async(self, action: np.ndarray) -> None:
        self._action = action

    def step_wait(self) -> tuple:
        return self.env.step(self._action)


@dataclass
class Slot:
    """One of the collector's simulators and the episode under way in it; ``index`` determines that episode."""

    env: Any
    index: int = -1
    rows: Rows | None = None


class Collector:
    """Steps simulators side by side with a policy and hands every finished episode on.

    A step is `start`, which chooses the actions and sets the simulators going, and `finish`, which waits for them:
    the learner works in between. Each episode is determined by its own seed, so a checkpoint needs only the actions
    of the episodes under way: `load_state_dict` brings the simulators back by taking them again.

    envs: `wrappers.vector.ProcessEnv`, or `InProcess`, all of one task.
    """

    def __init__(self, envs: list[Any], finished: Callable[[dict[str, np.ndarray]], None], seed: int):
        self.slots, self.finished, self.seed = [Slot(env) for env in envs], finished, seed
        self.random = RandomPolicy(envs[0].action_space, np.random.default_rng([seed, 0]))
        self.episodes = 0  # begun so far
        self.policy_state: Any = None

    def __len__(self) -> int:
        """Agent steps that a step takes: one in each simulator."""
        return len(self.slots)

    def step(self, policy: Policy | None = None) -> None:
        self.start(policy)
        self.finish()

    def start(self, policy: Policy | None = None) -> None:
        """Choose an action for each simulator, by ``policy`` or at random, and send it; new episodes begin first."""
        first = np.array([slot.rows is None for slot in self.slots])
        self._begin_episodes([slot for slot in self.slots if slot.rows is None])
        keys = self.slots[0].env.observation_space
        seen = {key: np.stack([slot.rows.rows[key][-1] for slot in self.slots]) for key in keys}
        actions, state = (policy or self.random)(seen, self.policy_state, first)
        self.policy_state = None if policy is None else state
        self._sent = actions
        for slot, action in zip(self.slots, actions, strict=True):
            slot.env.step_async(action)

    def finish(self) -> None:
        """Wait for the simulators, in their order, and hand on the episodes that ended."""
        for slot, action in zip(self.slots, self._sent, strict=True):
            if self._receive(slot, action):
                episode, slot.rows = slot.rows.episode(), None
                self.finished(episode)

    def _begin_episodes(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.index = self.episodes
            self.episodes += 1
        self._reset(slots)

    def _reset(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.env.reset_async(seed=episode_seed(self.seed, slot.index))
        for slot in slots:
            observation, info = slot.env.reset_wait()
            slot.rows = Rows()
            slot.rows.add(observation, np.zeros(slot.env.action_space.shape, np.float32), 0.0, info, first=True)

    @staticmethod
    def _receive(slot: Slot, action: np.ndarray) -> bool:
        observation, reward, terminated, truncated, info = slot.env.step_wait()
        slot.rows.add(observation, action, reward, info, first=False)
        return terminated or truncated

    def state_dict(self) -> dict[str, Any]:
        slots = [
            {"index": slot.index, "actions": slot.rows and torch.from_numpy(slot.rows["action"][1:])}
            for slot in self.slots
        ]
        rng = generator_state(self.random.rng)
        return {"slots": slots, "episodes": self.episodes, "policy_state": self.policy_state, "rng": rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where `state_dict` was taken; the number of simulators must be the same."""
        self.episodes, self.policy_state = state["episodes"], state["policy_state"]
        restore_generator(self.random.rng, state["rng"])
        for slot, saved in zip(self.slots, state["slots"], strict=True):
            slot.index, slot.rows = saved["index"], None
            if saved["actions"] is not None:
                self._reset([slot])
                for action in saved["actions"].numpy():
                    slot.env.step_async(action)
                    self._receive(slot, action)


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
    envs: Sequence[Any],
    episodes: int,
    seed: int,
    between: Callable[[int], None] = lambda steps: None,
) -> Scores:
    """Score ``policy`` over ``episodes`` episodes, which ``seed`` and the number of ``envs`` determine.

    As many episodes as there are ``envs`` (`InProcess` or `wrappers.vector.ProcessEnv`) are played side by side. The
    global random state is put back afterwards, so that an evaluation changes nothing in a run. ``between`` is called
    after every step with the number of agent steps it took; it may raise to break off.
    """
    scores = Scores()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for begun in range(0, episodes, len(envs)):
            players = [Player(env, episode_seed(seed, begun + i)) for i, env in enumerate(envs[: episodes - begun])]
            play(policy, players, between)
            scores.returns += [player.total for player in players]
            scores.successes += [player.success for player in players if player.success is not None]
            if begun == 0:
                scores.frames = np.stack(players[0].frames)
    return scores


class Player:
    """An evaluation episode under way: what it was seen to do so far."""

    def __init__(self, env: Any, seed: int):
        self.env, self.total, self.success, self.done = env, 0.0, None, False
        env.reset_async(seed=seed)
        self.frames: list[np.ndarray] = []

    def begin(self) -> None:
        self.observation, _ = self.env.reset_wait()
        self.frames.append(self.observation["image"])

    def receive(self) -> None:
        self.observation, reward, terminated, truncated, info = self.env.step_wait()
        self.frames.append(self.observation["image"])
        self.done = terminated or truncated
        self.total += float(reward)
        if "success" in info:
            self.success = max(self.success or 0.0, float(info["success"]))


def play(policy: Policy, players: list[Player], between: Callable[[int], None]) -> None:
    """Play the episodes to their ends. One that is over waits for the others, its last observation repeated."""
    for player in players:
        player.begin()
    state, first = None, np.ones(len(players), bool)
    while active := [player for player in players if not player.done]:
        seen = {key: np.stack([player.observation[key] for player in players]) for key in players[0].observation}
        actions, state = policy(seen, state, first)
        first = np.zeros(len(players), bool)
        for player, action in zip(players, actions, strict=True):
            if not player.done:
                player.env.step_async(action)
        for player in active:
            player.receive()
        between(len(active))
