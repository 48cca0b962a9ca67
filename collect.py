r"""Collect a dataset: episodes of a task by a random policy, a trained agent, or a DreamerV2 agent as it learns.

python collect.py --task walker_downhill --out data/walker_downhill --episodes 200 --policy dreamer \
    --configs defaults dmc
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

import config as settings
import driver
import tools
from co_training import carry_out, source_agent_alone
from errors import BadInput, exit_on_bad_input
from formats.npz import write_atomically
from replay import save_episode
from run import Phase, Run, agent_policy, collection_envs, load_agent, pick_device
from wrappers import parse_task

POLICIES = ("random", "checkpoint", "dreamer")


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument("--task", required=True, help="task name, as in co_training.py")
    parser.add_argument("--out", required=True, type=Path, help="folder for the episodes, new or empty")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="random",
        help="random actions; the agent of --checkpoint, sampling; or a DreamerV2 agent trained online, every episode "
        "of its replay from the first",
    )
    parser.add_argument("--checkpoint", type=Path, help="run directory of the agent, for --policy checkpoint")
    parser.add_argument("--agent", choices=("target", "source"), default="target", help="which of the run's two agents")
    return parser


def learning_phases(config: SimpleNamespace, episodes: int) -> list[Phase]:
    """DreamerV2 online for ``episodes`` episodes, evaluated every ``eval_every`` steps."""
    left = episodes * config.time_limit - config.prefill
    if left < 0:
        raise BadInput(
            f"--episodes {episodes} is fewer than the random steps at the start; lower --prefill {config.prefill}"
        )
    evaluation = Phase("evaluate", domain="source")
    phases = [Phase("evaluate_random", domain="source"), *source_agent_alone(config, 0)[:-1]]
    while left > 0:
        phases += [Phase("source", min(left, config.eval_every)), evaluation]
        left -= config.eval_every
    return phases


def collect_learning(config: SimpleNamespace, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a DreamerV2 agent on the task and copy its replay, the paper's way. The same command resumes."""
    config.source_task, config.target_task = arguments.task, ""
    config.logdir = config.logdir or f"runs/collect-{parse_task(arguments.task)}-seed{config.seed}"
    config.replay_size = max(config.replay_size, arguments.episodes * config.time_limit)
    run = Run(config, learning_phases(config, arguments.episodes))
    carry_out(run)
    for name in tqdm(run.replay.state_dict()["episodes"], desc="copy episodes"):
        with np.load(run.replay.directory / name, allow_pickle=False) as arrays:
            save_episode(arguments.out, dict(arrays), id=name.split("-")[1])
    return run.simulator("source").get_wrapper_attr("description") | {"steps": run.replay.steps}


def collect_playing(config: SimpleNamespace, arguments: argparse.Namespace) -> dict[str, Any]:
    """Episodes of the random policy, or of a checkpoint's agent acting with samples of its policy."""
    policy = None
    if arguments.policy == "checkpoint":
        if arguments.checkpoint is None:
            raise BadInput("--checkpoint is missing: give the run directory of the agent")
        agent, trained = load_agent(arguments.checkpoint, arguments.agent, pick_device(config.device))
        config.size = trained.size
        policy = agent_policy(agent, sample=True)
    envs = collection_envs(config, arguments.task, "collect")
    tools.seed_everything(config.seed)
    returns: list[float] = []
    lengths: list[int] = []

    def finished(episode: dict[str, np.ndarray]) -> None:
        if len(returns) == arguments.episodes:
            return  # of several simulators, some finish after the last
        save_episode(arguments.out, episode, id=f"{config.seed:08x}{len(returns):024x}")
        returns.append(float(episode["reward"].sum()))
        lengths.append(len(episode["reward"]) - 1)

    collector = driver.Collector(envs, finished, config.seed)
    policy = noisy(policy or collector.random, config.action_noise, np.random.default_rng([config.seed, 1]))
    with tools.progress_bar(arguments.episodes, "episodes") as bar:
        while len(returns) < arguments.episodes:
            collector.step(policy)
            if len(returns) > bar.n:
                bar.update()
                bar.set_postfix({"return": f"{returns[-1]:.1f}", "mean": f"{np.mean(returns):.1f}"}, refresh=False)
    description = envs[0].get_wrapper_attr("description")
    for env in envs:
        env.close()
    return {**description, "steps": sum(lengths), "action_noise": config.action_noise}


def noisy(policy: driver.Policy, w: float, rng: np.random.Generator) -> driver.Policy:
    """The actions of ``policy`` plus w n, n ~ N(0, 1), clipped to [-1, 1]: what is executed, and so what is saved."""

    def act(observation: driver.Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        action, state = policy(observation, state, first)
        return np.clip(action + w * rng.standard_normal(action.shape), -1, 1).astype(np.float32), state

    return act if w else policy


def main(arguments: list[str] | None = None) -> None:
    config, own = settings.parse(command(), arguments)
    if own.episodes < 1:
        raise BadInput(f"--episodes {own.episodes}: give 1 or more")
    if own.out.exists() and (not own.out.is_dir() or any(own.out.iterdir())):
        raise BadInput(f"--out {own.out} is not empty; choose a new folder, nothing was overwritten")
    try:
        own.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {own.out} cannot be made: {error.strerror}") from None
    collect = collect_learning if own.policy == "dreamer" else collect_playing
    description = {
        **collect(config, own),
        "policy": own.policy,
        "seed": config.seed,
        "episodes": own.episodes,
    }
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(own.out / "dataset.json", lambda file: file.write(text.encode()))
    print(f"{own.episodes} episodes in {own.out}")


if __name__ == "__main__":
    exit_on_bad_input(main)
