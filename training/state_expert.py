"""Experts for datasets: agents that learn from a simulator's low-dimensional states, as V-D4RL's do.

They reach a task's best return in a fraction of the time of an agent that learns from pixels. The learner is soft
actor-critic (SAC, arXiv 1801.01290) of Stable-Baselines3, with its default settings.
"""

import copy
import math
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from config import Config
from tools import StopRequest, progress_bar
from training.device import pick_device
from training.evaluator import EVALUATION_SEED
from training.policies import Observation, Policy
from wrappers import Task
from wrappers.shared.patches import import_without_gym_notice
from wrappers.shared.simulators import state_simulator

if TYPE_CHECKING:
    from stable_baselines3 import SAC

ENOUGH = 0.95  # share of the maximum return at which training ends
Evaluation = dict[str, float]


class Training:
    """The course of training: evaluations in ``env``, progress bar, and the reasons to end it."""

    def __init__(self, config: Config, env: gymnasium.Env, wanted: float, stop: StopRequest):
        self.every, self.episodes = config.eval_every, config.eval_episodes
        self.env, self.wanted, self.stop = env, wanted, stop
        self.env.reset(seed=config.seed + EVALUATION_SEED)  # later resets continue its RNG
        self.evaluations: list[Evaluation] = []
        self.best: dict[str, torch.Tensor] | None = None  # weights of the best evaluation's policy

    def goes_on(self, agent: "SAC", bar: Any) -> bool:
        """Call after every step. Whether another step is to follow."""
        bar.update()
        if agent.num_timesteps % self.every == 0:
            self.evaluate(agent)
            bar.set_postfix({"return": f"{self.evaluations[-1]['mean']:.1f}"})
        return self.stop.signal is None and not self.reached

    def evaluate(self, agent: "SAC") -> None:
        """The mean return of some episodes by the mode of the policy."""
        evaluation = import_without_gym_notice("stable_baselines3.common.evaluation")
        mean, std = evaluation.evaluate_policy(agent, self.env, self.episodes, warn=False)
        if mean > self.best_mean:
            self.best = copy.deepcopy(agent.policy.state_dict())
        self.evaluations.append({"steps": agent.num_timesteps, "mean": float(mean), "std": float(std)})

    @property
    def best_mean(self) -> float:
        return max((evaluation["mean"] for evaluation in self.evaluations), default=-math.inf)

    @property
    def reached(self) -> bool:
        return self.best_mean >= self.wanted


def train_expert(
    config: Config, task: Task, steps: int, max_score: float, stop: StopRequest
) -> tuple[Policy, list[Evaluation]]:
    """Train until an evaluation reaches `ENOUGH` of ``max_score``, or for ``steps`` agent steps, or until ``stop``.

    Every ``config.eval_every`` steps ``config.eval_episodes`` episodes are played by the mode of the policy. A note is
    printed if no evaluation reaches the wanted return.

    Returns:
        The policy of the best evaluation, which samples, and the evaluations.
    """
    module = import_without_gym_notice("stable_baselines3")
    with ExitStack() as simulators:
        env, second = (simulators.enter_context(closing(state_simulator(config, task))) for _ in range(2))
        space = env.unwrapped.observation_space
        training = Training(config, second, ENOUGH * max_score, stop)
        agent = module.SAC(
            "MlpPolicy",
            env,
            seed=config.seed,
            device=pick_device(config.device),
            buffer_size=steps,
            learning_starts=min(config.prefill, steps),
        )
        with stop.listening(), progress_bar(steps, "train expert") as bar:
            agent.learn(steps, callback=lambda local, _: training.goes_on(agent, bar))
    if training.best is not None:
        agent.policy.load_state_dict(training.best)
    if not training.reached and stop.signal is None:
        best = training.best_mean
        wanted = f"the {training.wanted:.1f} at which its training ends early"
        print(
            f"note: the expert's best evaluation, {best:.1f}, is below {wanted}; give more --expert_steps",
            file=sys.stderr,
        )
    return state_policy(agent, space), training.evaluations


def state_policy(agent: "SAC", space: gymnasium.spaces.Dict) -> Policy:
    """Samples of the agent's policy for observations that have the entries of ``space``, beside others."""

    def act(observation: Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        rows = [{key: observation[key][i] for key in space} for i in range(len(first))]
        states = np.stack([gymnasium.spaces.flatten(space, row) for row in rows])
        with torch.no_grad():
            return agent.predict(states)[0], state

    return act
