"""Evaluation episodes: the only use of the target simulator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from config import Config
from tools import side_by_side
from training.collector import episode_seed
from training.policies import Policy, RandomPolicy
from wrappers import Task
from wrappers.shared.simulators import evaluation_envs, make_simulator
from wrappers.shared.vector import SyncEnv

EVALUATION_SEED = 10_000  # added to the run's seed: evaluation episodes differ from training episodes


@dataclass
class EvalResult:
    """The result of an evaluation.

    Attributes:
        returns: of each episode.
        successes: of each episode, 0 or 1; empty if the simulator reports no success.
        frames: of the first episode, (T + 1, H, W, 3) uint8; several cameras are side by side.
    """

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
        """Share of episodes that succeeded at some step, or None if the simulator reports no success."""
        return float(np.mean(self.successes)) if self.successes else None


class EvalEpisode:
    """A running evaluation episode."""

    def __init__(self, env: Any, seed: int):
        self.env, self.total, self.success, self.done = env, 0.0, None, False
        self.frames: list[np.ndarray] = []
        self.observation: dict[str, np.ndarray] = {}
        env.reset_async(seed=seed)

    def begin(self) -> None:
        """Wait for the reset."""
        self.observation, _ = self.env.reset_wait()
        self.frames.append(self.observation["image"])

    def receive(self) -> None:
        """Wait for a step."""
        self.observation, reward, terminated, truncated, info = self.env.step_wait()
        self.frames.append(self.observation["image"])
        self.done = terminated or truncated
        self.total += float(reward)
        if "success" in info:
            self.success = max(self.success or 0.0, float(info["success"]))


def evaluate(
    policy: Policy,
    envs: Sequence[Any],
    episodes: int,
    seed: int,
    on_step: Callable[[int], None] = lambda steps: None,
) -> EvalResult:
    """Evaluate ``policy`` on ``episodes`` episodes, which ``seed`` and the number of ``envs`` determine.

    One episode runs in each of ``envs`` (`ProcessEnv` or `SyncEnv` of wrappers/shared/vector.py). The global RNG state
    is restored afterwards, so an evaluation does not change a run. ``on_step`` is called after every step with the
    number of agent steps; it may raise to stop the evaluation.
    """
    result, successes = EvalResult(), []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for begun in range(0, episodes, len(envs)):
            running = [
                EvalEpisode(env, episode_seed(seed, begun + i)) for i, env in enumerate(envs[: episodes - begun])
            ]
            play(policy, running, on_step)
            result.returns += [episode.total for episode in running]
            successes += [episode.success for episode in running]
            if begun == 0:
                result.frames = side_by_side(np.stack(running[0].frames))
    if any(success is not None for success in successes):  # some environments report it on success only
        result.successes = [success or 0.0 for success in successes]
    return result


def play(policy: Policy, episodes: list[EvalEpisode], on_step: Callable[[int], None]) -> None:
    """Play all episodes to their ends. The last observation of a finished one is repeated until the others end."""
    for episode in episodes:
        episode.begin()
    state, first = None, np.ones(len(episodes), bool)
    while active := [episode for episode in episodes if not episode.done]:
        keys = episodes[0].observation
        observation = {key: np.stack([episode.observation[key] for episode in episodes]) for key in keys}
        actions, state = policy(observation, state, first)
        first = np.zeros(len(episodes), bool)
        for episode, action in zip(episodes, actions, strict=True):
            if not episode.done:
                episode.env.step_async(action)
        for episode in active:
            episode.receive()
        on_step(len(active))


class Evaluator:
    """The simulators for evaluation episodes, and their settings.

    Args:
        tasks: domain -> (task, role); the roles are those of wrappers/shared/simulators.py.
    """

    def __init__(self, config: Config, tasks: dict[str, tuple[Task, str]]):
        self.config, self.tasks = config, tasks
        self.simulators: dict[str, gymnasium.Env] = {}  # in this process, by domain
        self.processes: dict[str, list[Any]] = {}  # in processes of their own, by domain

    def simulator(self, domain: str) -> gymnasium.Env:
        """The domain's simulator in this process, made on first use."""
        if domain not in self.simulators:
            self.simulators[domain] = make_simulator(self.config, *self.tasks[domain])
        return self.simulators[domain]

    def description(self, domain: str) -> dict[str, Any]:
        """How the domain's simulator is set up (see `wrappers.make_env`)."""
        return self.simulator(domain).get_wrapper_attr("description")

    def evaluate(
        self, policy: Policy | None, domain: str, on_step: Callable[[int], None] = lambda steps: None
    ) -> EvalResult:
        """``eval_episodes`` episodes. Without a policy, actions are random. ``on_step``: see `evaluate`."""
        config, envs, seed = self.config, self._envs(domain), EVALUATION_SEED + self.config.seed
        policy = policy or RandomPolicy(envs[0].action_space, np.random.default_rng(seed))
        return evaluate(policy, envs, config.eval_episodes, seed, on_step)

    def _envs(self, domain: str) -> list[Any]:
        config = self.config
        if min(config.eval_envs, config.eval_episodes) == 1:
            return [SyncEnv(self.simulator(domain))]
        if domain not in self.processes:
            self.processes[domain] = evaluation_envs(config, *self.tasks[domain], config.eval_episodes)
        return self.processes[domain]

    def close(self) -> None:
        """Close all simulators. At the interpreter's exit, an open one would print a traceback."""
        for env in [*self.simulators.values(), *(env for envs in self.processes.values() for env in envs)]:
            env.close()
