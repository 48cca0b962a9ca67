"""The target critic's values against the true returns of evaluation episodes."""

import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.signal import lfilter

from training import collector as driver
import tools
from agents.agent import Agent
from wrappers.shared.simulators import environment
from training.visuals import plt, save_figure
from training.trainer import EVALUATION_SEED
from training.trained import agent_policy, load_agent
from wrappers import parse_task

COLUMNS = 3  # of the picture's panels
ESTIMATE, TRUTH = "tab:orange", "tab:blue"
TABLE = (  # heading, column of values.csv, form
    ("score", "score", "10.1f"),
    ("estimate", "estimate", "11.2f"),
    ("true return", "true_return", "13.2f"),
    ("difference", "difference", "+12.2f"),
    ("+-", "difference_std", "9.2f"),
    ("continued", "continued_return", "11.2f"),
    ("difference", "continued_difference", "+12.2f"),
    ("steps", "compared_steps", "7d"),
    ("unseen", "unseen", "8.0%"),
)


@dataclass
class Episode:
    """An evaluation episode of T agent steps.

    estimates (T,): the critic's v(s_t), t = 0 .. T - 1 (the last state is not acted on, nor valued). rewards (T + 1,):
    r_t of arriving at s_t, r_0 = 0. terminated: the task ended it, not the time limit.
    """

    estimates: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def true_returns(self, gamma: float) -> np.ndarray:
        """G_t = sum over k = 0 .. T - t of gamma^k r_{t+k}, (T,)."""
        return lfilter([1.0], [1.0, -gamma], self.rewards[::-1])[::-1][:-1]

    def unseen(self, gamma: float) -> np.ndarray:
        """Share of an endless discounted sum of steady rewards from t on that lies beyond the last, (T,)."""
        steps = len(self.estimates)
        return np.zeros(steps) if self.terminated else gamma ** (steps + 1.0 - np.arange(steps))

    def continued_returns(self, gamma: float) -> np.ndarray:
        """G_t as if the mean reward of the episode's last tenth (one step or more) went on for ever, (T,)."""
        if self.terminated or gamma == 1:  # without discount an endless sum has no value
            return self.true_returns(gamma)
        last = self.rewards[-math.ceil(len(self.estimates) / 10) :].mean()
        return self.true_returns(gamma) + self.unseen(gamma) * last / (1 - gamma)

    def compared(self, gamma: float, limit: float) -> np.ndarray:
        """At which steps at most the share ``limit`` is unseen, (T,) bool; the first step is always one."""
        return self.unseen(gamma) <= max(limit, self.unseen(gamma)[0])


class Recorder(gymnasium.Wrapper):
    """Keeps each episode's rewards, 0 at its reset, and whether the task ended it."""

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


def valuing_policy(agent: Agent, estimates: list[list[float]]) -> driver.Policy:
    """The agent acting with its mode, N = 1; the critic's v(s_t) of each step goes into ``estimates``, by episode."""
    act = agent_policy(agent, sample=False)

    def policy(observation: driver.Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions, state = act(observation, state, first)
        with torch.no_grad(), agent.autocast():
            value = agent.behaviour.critic(agent.world.rssm.feat(state))
        if first[0]:
            estimates.append([])
        estimates[-1].append(value.item())
        return actions, state

    return policy


@dataclass
class Evaluated:
    """A run's evaluation: its name in tables and pictures, settings, episodes, and the first one's frames."""

    label: str
    config: SimpleNamespace
    episodes: list[Episode]
    frames: np.ndarray

    @property
    def gamma(self) -> float:
        return self.config.discount

    @property
    def task(self) -> str:
        return str(parse_task(self.config.target_task))


def evaluate(logdir: Path, label: str, episodes: int, device: torch.device) -> Evaluated:
    """Episodes of the target agent with its critic's estimates, begun as those of the run's own evaluations are."""
    agent, config = load_agent(logdir, "target", device)
    env, estimates = Recorder(environment(config, config.target_task, "target")), []
    with tools.progress_bar(episodes * config.time_limit, f"evaluate {label}", leave=False) as bar:
        policy, seed = valuing_policy(agent, estimates), EVALUATION_SEED + config.seed
        scores = driver.evaluate(policy, [driver.InProcess(env)], episodes, seed, bar.update)
    env.close()
    recorded = [
        Episode(np.array(v), np.array(r), ended)
        for v, r, ended in zip(estimates, env.rewards, env.terminated, strict=True)
    ]
    return Evaluated(label, config, recorded, scores.frames)


def value_row(run: Evaluated, limit: float) -> dict[str, Any]:
    """The run's line of values.csv: means over episodes of the means over an episode's compared steps."""
    gamma, means, shares = run.gamma, [], []
    for episode in run.episodes:
        at = episode.compared(gamma, limit)
        parts = episode.estimates, episode.true_returns(gamma), episode.continued_returns(gamma)
        means.append([part[at].mean() for part in parts])
        shares.append(episode.unseen(gamma)[at])
    (estimate, true, continued), differences = np.mean(means, 0), [m[0] - m[1] for m in means]
    return {
        "run": run.label,
        "task": run.task,
        "discount": gamma,
        "episodes": len(run.episodes),
        "score": float(np.mean([e.rewards.sum() for e in run.episodes])),
        "compared_steps": sum(map(len, shares)),
        "unseen": float(np.concatenate(shares).max()),
        "estimate": float(estimate),
        "true_return": float(true),
        "difference": float(estimate - true),
        "difference_std": float(np.std(differences)),
        "continued_return": float(continued),
        "continued_difference": float(estimate - continued),
    }


def step_rows(run: Evaluated, limit: float) -> list[dict[str, Any]]:
    """The run's lines of value_steps.csv, one for each step of each episode."""
    columns = ("step", "estimate", "true_return", "continued_return", "unseen", "compared")
    rows = []
    for index, e in enumerate(run.episodes):
        returns, continued = e.true_returns(run.gamma), e.continued_returns(run.gamma)
        at = e.compared(run.gamma, limit).astype(int)
        for values in zip(range(len(at)), e.estimates, returns, continued, e.unseen(run.gamma), at, strict=True):
            rows.append({"run": run.label, "episode": index, **dict(zip(columns, values, strict=True))})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """values.csv for a terminal; a positive difference is an over-estimate."""
    width = max(len("run"), *(len(row["run"]) for row in rows))
    headings = [f"{heading:>{len(format(0, form))}}" for heading, _, form in TABLE]
    lines = [f"{'run':{width}}" + "".join(headings)]
    for row in rows:
        lines.append(f"{row['run']:{width}}" + "".join(format(row[key], form) for _, key, form in TABLE))
    return "\n".join(lines)


def values_picture(runs: list[Evaluated], limit: float, path: Path) -> None:
    """A panel a run: estimates and true returns against the step, mean and deviation over episodes."""
    columns = min(COLUMNS, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.8 * columns + 0.6, 3.4 * rows + 0.9),
        squeeze=False,
        sharey=len({run.task for run in runs}) == 1,  # another task's returns are of another size
        layout="constrained",
    )
    for axis, run in zip(axes.flat, runs, strict=False):
        value_panel(axis, run, limit)
        axis.tick_params(labelleft=True)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("discounted return")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns), fontsize=8)
    save_figure(figure, path)


def value_panel(axis: Axes, run: Evaluated, limit: float) -> None:
    gamma, row = run.gamma, value_row(run, limit)
    estimates = by_step([e.estimates for e in run.episodes])
    returns = by_step([e.true_returns(gamma) for e in run.episodes])
    continued = by_step([e.continued_returns(gamma) for e in run.episodes])
    steps = np.arange(len(estimates[0]))
    for (mean, std), colour, name in ((estimates, ESTIMATE, "critic's estimate"), (returns, TRUTH, "true return")):
        axis.plot(steps, mean, color=colour, label=name)
        axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    axis.plot(steps, continued[0], color=TRUTH, linestyle=":", label="true return, last rewards continued")
    last = max(np.flatnonzero(e.compared(gamma, limit))[-1] for e in run.episodes)
    if last < steps[-1]:
        axis.axvspan(last + 0.5, steps[-1] + 0.5, color="0.5", alpha=0.15, linewidth=0, label="not compared")
    axis.set(xlabel="agent step of the episode", xlim=(-0.5, steps[-1] + 0.5))
    axis.set_title(f"{run.label}\nestimate − true return: {row['difference']:+.2f}", fontsize=10)
    axis.grid(alpha=0.3)


def by_step(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation at each step over the episodes that last so long, (longest,) each."""
    padded = np.array([*zip_longest(*series, fillvalue=np.nan)])
    return np.nanmean(padded, 1), np.nanstd(padded, 1)
