r"""Collect a dataset: episodes of a task by a random policy, a trained agent, or a DreamerV2 agent as it learns.

python collect.py --task walker_downhill --out data/walker_downhill --quality medium-replay --episodes 1000 \
    --configs defaults dmc
"""

import argparse
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

import config as settings
from training import collector as driver
import max_scores
import tools
from co_training import carry_out, source_agent_alone
from wrappers.shared.simulators import collection_envs
from tools import BadInput, exit_on_bad_input
from tools import write_atomically
from training.methods import COLLECTION, Phase
from training.visuals import read_scores
from replay.store import save_episode
from training.trainer import Run, pick_device
from training.trained import agent_policy, check_fits, load_agent
from wrappers import parse_task

POLICIES = ("random", "checkpoint", "dreamer")
QUALITIES = {"random": "random", "expert": "checkpoint", "medium-replay": "dreamer", "medium-expert": "dreamer"}
SHARE = {"medium-replay": 1 / 3, "medium-expert": 1.0}  # of the maximum score, where the paper's collection stops


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument("--task", required=True, help="task name, as in co_training.py")
    parser.add_argument("--out", required=True, type=Path, help="folder for the episodes, new or empty")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes; with --quality medium-*, at most")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="random",
        help="random actions; the agent of --checkpoint, sampling; or a DreamerV2 agent trained online, every episode "
        "of its replay from the first",
    )
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        help="instead of --policy: random; expert (--checkpoint's agent); medium-replay and medium-expert: the replay "
        "of a DreamerV2 agent until an evaluation reaches a third, or the whole, of --max_score",
    )
    parser.add_argument("--max_score", type=float, help="an agent's best return (default: max_scores.yaml's)")
    parser.add_argument("--checkpoint", type=Path, help="run directory of the agent, for --policy checkpoint")
    parser.add_argument("--agent", default="target", help="which of the run's agents: target, source, source_2, ...")
    return parser


def score_to_reach(task: str, quality: str | None, max_score: float | None) -> float:
    """The evaluation return at which collection stops: infinite without a ``medium-*`` quality."""
    if quality not in SHARE:
        return float("inf")
    if max_score is not None and not 0 < max_score < float("inf"):
        raise BadInput(f"--max_score {max_score}: give a positive return")
    if max_score is None:
        max_score = max_scores.of(parse_task(task))
    return SHARE[quality] * max_score


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


def collect_learning(config: SimpleNamespace, own: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train a DreamerV2 agent on the task and copy its replay, the paper's way. The same command resumes."""
    config.source_task, config.target_task = own.task, ""
    kind = own.quality or own.policy
    config.logdir = config.logdir or f"runs/collect-{parse_task(own.task)}-{kind}-seed{config.seed}"
    config.replay_size = max(config.replay_size, own.episodes * config.time_limit)
    wanted = score_to_reach(own.task, own.quality, own.max_score)
    run = Run(config, learning_phases(config, own.episodes), COLLECTION)
    replay = run.sources[0].replay
    carry_out(run, until=lambda run: run.last_score is not None and run.last_score >= wanted)
    if own.quality and run.last_score < wanted:
        print(f"note: the last evaluation, {run.last_score:.1f}, is below the {wanted:.1f} asked for", file=sys.stderr)
    names = replay.state_dict()["episodes"][: own.episodes]  # a resumed run may have gone on for longer
    with tools.progress_bar(len(names), "copy episodes") as bar:
        for name in names:
            with np.load(replay.directory / name, allow_pickle=False) as arrays:
                save_episode(out, dict(arrays), id=name.split("-")[1])
            bar.update()
    scores = [row for row in read_scores(run.logdir) if row["phase"] == "evaluate"]
    return {
        **run.simulator("source").get_wrapper_attr("description"),
        "returns": replay.returns[: own.episodes],
        "steps": sum(replay.lengths[: own.episodes]),
        "evaluations": [{"steps": int(row["source_steps"]), "mean": float(row["mean"])} for row in scores],
        "score_to_reach": wanted if own.quality else None,
    }


def collect_playing(config: SimpleNamespace, own: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Episodes of the random policy, or of a checkpoint's agent acting with samples of its policy."""
    policy = None
    if own.policy == "checkpoint":
        if own.checkpoint is None:
            raise BadInput("--checkpoint is missing: give the run directory of the agent")
        agent, trained = load_agent(own.checkpoint, own.agent, pick_device(config.device))
        config.size = trained.size
        check_trained_alike(config, trained, own)
        policy = agent_policy(agent, sample=True)
    envs = collection_envs(config, own.task, "collect")
    if policy:
        check_fits(agent, envs[0], own.task)
    tools.seed_everything(config.seed)
    returns: list[float] = []
    lengths: list[int] = []

    def finished(episode: dict[str, np.ndarray]) -> None:
        if len(returns) == own.episodes:
            return  # of several simulators, some finish after the last
        save_episode(out, episode, id=f"{config.seed:08x}{len(returns):024x}")
        returns.append(float(episode["reward"].sum()))
        lengths.append(len(episode["reward"]) - 1)

    collector = driver.Collector(envs, finished, config.seed)
    policy = noisy(policy or collector.random, config.action_noise, np.random.default_rng([config.seed, 1]))
    with own.stop.listening(), tools.progress_bar(own.episodes, "episodes") as bar:
        while len(returns) < own.episodes and own.stop.signal is None:
            collector.step(policy)
            if len(returns) > bar.n:
                bar.update()
                bar.set_postfix({"return": f"{returns[-1]:.1f}", "mean": f"{np.mean(returns):.1f}"}, refresh=False)
    description = envs[0].get_wrapper_attr("description")
    for env in envs:
        env.close()
    return {**description, "returns": returns, "steps": sum(lengths), "action_noise": config.action_noise}


def check_trained_alike(config: SimpleNamespace, trained: SimpleNamespace, own: argparse.Namespace) -> None:
    """BadInput if the checkpoint's agent would see or act otherwise than in its training."""
    suite = parse_task(own.task).suite
    keys = ["render", f"{suite}_action_repeat"] + ["metaworld_camera", "metaworld_flip"] * (suite == "metaworld")
    for key in keys:
        was, now = getattr(trained, key), getattr(config, key)
        if was != now:
            raise BadInput(f"--checkpoint {own.checkpoint}: its agent was trained with {key} {was}: give --{key} {was}")


def noisy(policy: driver.Policy, w: float, rng: np.random.Generator) -> driver.Policy:
    """The actions of ``policy`` plus w n, n ~ N(0, 1), clipped to [-1, 1]: what is executed, and so what is saved."""

    def act(observation: driver.Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        action, state = policy(observation, state, first)
        return np.clip(action + w * rng.standard_normal(action.shape), -1, 1).astype(np.float32), state

    return act if w else policy


def new_folder(out: Path) -> tuple[Path, IO[bytes]]:
    """A hidden folder beside ``out`` that takes its name once the dataset is whole, and the hold on it.

    BadInput if ``out`` is in use, or another collection is writing it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out} is not empty; choose a new folder, nothing was overwritten")
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = tools.hold(partial)
    except OSError as error:
        raise BadInput(f"--out {out} cannot be made: {error.strerror}; choose another place") from None
    for left in partial.iterdir():  # by a collection that was killed
        if left.name != ".lock":
            left.unlink()
    return partial, lock


def finish(partial: Path, out: Path, description: dict[str, Any]) -> None:
    """Describe a dataset and give it its name."""
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(partial / "dataset.json", lambda file: file.write(text.encode()))
    (partial / ".lock").unlink()
    partial.replace(out)


def main(arguments: list[str] | None = None) -> None:
    config, own = settings.parse(command(), arguments)
    if own.episodes < 1:
        raise BadInput(f"--episodes {own.episodes}: give 1 or more")
    own.policy, own.stop = QUALITIES.get(own.quality, own.policy), tools.StopRequest()
    partial, lock = new_folder(own.out)
    try:
        collect = collect_learning if own.policy == "dreamer" else collect_playing
        description = collect(config, own, partial)
        description |= {"episodes": len(description["returns"]), "policy": own.policy, "quality": own.quality}
        description |= {"seed": config.seed, "versions": {p: version(p) for p in ("mujoco", "torch")}}
        if description["episodes"]:
            finish(partial, own.out, description)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.close()
    print(f"{description['episodes']} episodes, {description['steps']} steps in {own.out}")
    if own.stop.signal is not None:
        print("stopped; the episodes that were whole are kept", file=sys.stderr)
        sys.exit(128 + own.stop.signal)


if __name__ == "__main__":
    exit_on_bad_input(main)
