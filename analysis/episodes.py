"""Evaluation episodes of a run's target agent, with the rewards and the critic's value estimates of every step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.base import BaseAgent
from analysis.embeddings import source_names
from config import Config, target_task
from networks import State
from tools import BadInput, progress_bar
from training.checkpoint import CHECKPOINT, build_agent, load_agent, load_checkpoint, simulated_agent_task
from training.evaluator import EVALUATION_SEED, evaluate
from training.methods import find_method
from training.policies import Observation, Policy, agent_policy
from training.values import ValuedEpisode
from wrappers.shared.simulators import make_simulator
from wrappers.shared.vector import SyncEnv

Critic = Callable[[State], Tensor]  # values (1,) of the one environment's state


class EpisodeRecorder(gymnasium.Wrapper):
    """Stores each episode's rewards (0 at its reset), and whether the task ended it."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.rewards: list[list[float]] = []
        self.terminated: list[bool] = []

    def reset(self, **settings: Any) -> tuple[dict, dict]:
        self.rewards.append([0.0])
        self.terminated.append(False)
        return self.env.reset(**settings)

    def step(self, action: np.ndarray) -> tuple:
        result = self.env.step(action)
        self.rewards[-1].append(float(result[1]))
        self.terminated[-1] = bool(result[2])
        return result


def valuing_policy(agent: BaseAgent, critics: list[Critic], estimates: list[list[list[float]]]) -> Policy:
    """The mode of the policy in one environment.

    It appends a list to ``estimates`` for each episode, with each step's values of the state by all ``critics``.
    """
    act = agent_policy(agent, sample=False)

    def policy(observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions, state = act(observation, state, first)
        if first[0]:
            estimates.append([])
        with torch.no_grad(), agent.autocast():
            estimates[-1].append([critic(state).item() for critic in critics])
        return actions, state

    return policy


def bounding_critic(logdir: Path, config: Config, target: BaseAgent, device: torch.device) -> Critic | None:
    """The source critic of Eq. 6 on the target's states.

    None without the value constraint, with several sources, if it reads the source's own states, or if the checkpoint
    has the target agent alone.
    """
    sources = source_names(config)
    bounded = find_method(config.method).aligned_with_sources and config.value_constraint != "off"
    if not bounded or config.constraint_latents == "source" or len(sources) > 1:
        return None
    saved = load_checkpoint(logdir / CHECKPOINT)
    if sources[0] not in saved["agents"]:
        return None
    source, _ = build_agent(saved, logdir, sources[0], device)
    return lambda state: source.value(target.world.rssm.feat(state))


@dataclass
class EvaluatedRun:
    """A run's label in tables and pictures, its settings, its episodes, and the frames of the first episode."""

    label: str
    config: Config
    episodes: list[ValuedEpisode]
    frames: np.ndarray

    @property
    def gamma(self) -> float:
        return self.config.discount

    @property
    def bounded(self) -> bool:
        """Whether the episodes have estimates of the source critic that bounds the target's."""
        return self.episodes[0].source_estimates is not None

    @property
    def task(self) -> str:
        return str(target_task(self.config))


def evaluate_run(logdir: Path, label: str, episodes: int, device: torch.device) -> EvaluatedRun:
    """Evaluate the target agent of a run, on episodes that start as those of the run's own evaluations."""
    agent, config = load_agent(logdir, "target", device)
    if not agent.has_critic:
        raise BadInput(f"{logdir}: method {config.method} has no critic, so no values to compare; give another run")
    task = simulated_agent_task(logdir, config, "target")
    bound = bounding_critic(logdir, config, agent, device)
    env, estimates = EpisodeRecorder(make_simulator(config, task, "target")), []
    policy = valuing_policy(agent, [agent.state_value, *([bound] if bound else [])], estimates)
    seed = EVALUATION_SEED + config.seed
    try:
        with progress_bar(episodes * config.time_limit, f"evaluate {label}", leave=False) as bar:
            result = evaluate(policy, [SyncEnv(env)], episodes, seed, bar.update)
    finally:
        env.close()
    recorded = []
    for values, r, ended in zip(estimates, map(np.array, env.rewards), env.terminated, strict=True):
        v, *bounds = np.array(values).T
        v = v if agent.world else r[:-1] + config.discount * v  # a Q begins with the reward after s_t
        recorded.append(ValuedEpisode(v, r, ended, *bounds))
    return EvaluatedRun(label, config, recorded, result.frames)


def run_labels(logdirs: list[Path]) -> list[str]:
    """A different label for each run: the last folders of its path, as few as possible. A last folder `run` is omitted.

    Raises BadInput if a run is given twice.
    """
    paths = [logdir.resolve() for logdir in logdirs]
    short = [path.parent if path.name == "run" and path.parent.name else path for path in paths]
    parts = [path.parts for path in (short if len(set(short)) == len(set(paths)) else paths)]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-count:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise BadInput("--logdir names a run twice; give each once")
