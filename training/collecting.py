"""The work of collect.py: datasets by a policy, or by a DreamerV2 agent as it learns."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from replay import save_episode
from tools import BadInput, StopRequest, WorkerCrash, progress_bar
from training.checkpoint import agent_role, check_fits, load_agent
from training.collector import Collector
from training.device import pick_device, seed_everything, use_threads
from training.logger import read_scores
from training.methods import COLLECTION, Phase, PhaseKind
from training.policies import Policy, agent_policy
from training.resolve import resolve
from training.run_names import run_directory
from training.runs import open_trainer, run_to_completion
from training.state_expert import train_expert
from training.trainer import Loop, Trainer
from wrappers import Task, max_return
from wrappers.shared.simulators import check_trained_alike, collection_envs

EXPERT_STEPS = 200_000  # agent steps of an expert's training, at most
SHARE_OF_MAXIMUM = {"medium-replay": 1 / 3, "medium-expert": 1.0}  # where the paper's collection stops


def best_return(task: Task, max_score: float | None) -> float:
    """``max_score``, or else the suite's known maximum. Raises BadInput if it is not positive, or not known."""
    if max_score is not None and not 0 < max_score < float("inf"):
        raise BadInput(f"--max_score {max_score}: give a positive return")
    return max_return(task) if max_score is None else max_score


def score_to_reach(task: Task, quality: str | None, max_score: float | None) -> float:
    """The evaluation return at which collection stops: infinite without a ``medium-*`` quality."""
    return SHARE_OF_MAXIMUM[quality] * best_return(task, max_score) if quality in SHARE_OF_MAXIMUM else float("inf")


def below_quality_note(quality: str, score: float, wanted: float, max_score: float | None) -> str:
    """A note that the agent's last evaluation, ``score``, did not reach ``wanted``, where the quality ends."""
    share = "a third of " if SHARE_OF_MAXIMUM[quality] < 1 else ""
    maximum = "--max_score" if max_score is not None else "the task's known maximum return"
    return (
        f"note: --quality {quality} ends at an evaluation of {wanted:.1f}, {share}{maximum}; the last one is "
        f"{score:.1f}. The episodes are kept; more --episodes, in a new --out, continue the training"
    )


def learning_phases(config: Config) -> list[Phase]:
    """DreamerV2 online for ``config.episodes`` episodes, evaluated every ``eval_every`` steps."""
    left = config.episodes * config.time_limit - config.prefill
    if left < 0:
        raise BadInput(
            f"--episodes {config.episodes} is fewer than the random steps at the start: "
            f"lower --prefill {config.prefill}"
        )
    phases = [
        Phase(PhaseKind.EVALUATE_RANDOM, domain="source"),
        Phase(PhaseKind.PREFILL, config.prefill),
        Phase(PhaseKind.PRETRAIN_SOURCE, config.pretrain),
    ]
    lengths = [min(config.eval_every, left - done) for done in range(0, left, config.eval_every)]
    for length in lengths:
        phases += [Phase(PhaseKind.TRAIN_SOURCE, length), Phase(PhaseKind.EVALUATE, domain="source")]
    return phases if lengths else [*phases, Phase(PhaseKind.EVALUATE, domain="source")]


def collect_from_learner(
    config: Config, args: argparse.Namespace, folder: Path, loops: Mapping[PhaseKind, Loop]
) -> dict[str, Any]:
    """Train a DreamerV2 agent on the task and copy its replay to ``folder``, the paper's way. Resumes a stopped run.

    ``args`` are collect.py's, ``loops`` co_training.py's. Returns the dataset's description.
    """
    kind = args.quality or args.policy
    config = config.replace(
        source_task=str(args.task),
        target_task="",
        logdir=config.logdir or str(run_directory(config, "collect", str(args.task), kind)),
        episodes=args.episodes,  # the length of the run, so that its checkpoint has it
        replay_size=max(config.replay_size, args.episodes * config.time_limit),
    )
    wanted = score_to_reach(args.task, args.quality, args.max_score)

    def reached(trainer: Trainer) -> bool:
        return trainer.progress.last_score is not None and trainer.progress.last_score >= wanted

    config, _ = resolve(config, COLLECTION, learning_phases)
    with open_trainer(config, COLLECTION, learning_phases) as trainer:
        run_to_completion(trainer, loops, until=reached)
        if args.quality and not reached(trainer):
            score = trainer.progress.last_score
            print(below_quality_note(args.quality, score, wanted, args.max_score), file=sys.stderr)
        replay = trainer.sources[0].store
        copy_episodes([stored.path for stored in replay.stored[: args.episodes]], folder)
        scores = [row for row in read_scores(trainer.logdir) if row["phase"] == "evaluate"]
        return {
            **trainer.evaluator.description("source"),
            "returns": replay.returns[: args.episodes],
            "steps": sum(replay.lengths[: args.episodes]),
            "evaluations": [{"steps": int(row["source_steps"]), "mean": float(row["mean"])} for row in scores],
            "score_to_reach": wanted if args.quality else None,
            "action_noise": config.action_noise,
        }


def copy_episodes(paths: list[Path], folder: Path) -> None:
    """Compress plainly stored episodes into ``folder``."""
    with progress_bar(len(paths), "copy episodes") as bar:
        for path in paths:
            with np.load(path, allow_pickle=False) as arrays:
                save_episode(folder, dict(arrays), id=path.name.split("-")[1])
            bar.update()


def collect_from_policy(
    config: Config, args: argparse.Namespace, folder: Path, stop: StopRequest
) -> tuple[dict[str, Any], BadInput | WorkerCrash | None]:
    """Episodes by random actions, or samples of the policy of a checkpoint's agent or an expert, saved to ``folder``.

    ``args`` are collect.py's. ``stop`` ends it early. Returns the dataset's description, and the error that ended it
    after the first episode, if there was one.
    """
    error = None
    agent, policy, trained = None, None, {}
    if args.policy == "checkpoint":
        config, agent, policy = load_policy(config, args)
        use_threads(config.threads)
    elif args.policy == "sac":
        steps, wanted = args.expert_steps or EXPERT_STEPS, best_return(args.task, args.max_score)
        use_threads(config.threads)
        policy, trained["evaluations"] = train_expert(config, args.task, steps, wanted, stop)
    envs = collection_envs(config, args.task, "collect")
    try:
        if agent:
            check_fits(agent, envs[0], args.task)
        seed_everything(config.seed)
        episodes = EpisodeSaver(folder, config.seed, args.episodes)
        collector = Collector(envs, episodes.save, config.seed, config.action_noise)
        description = envs[0].get_wrapper_attr("description")
        try:
            collect_episodes(collector, policy, episodes, stop)
        except (BadInput, WorkerCrash) as raised:
            if not episodes.returns:
                raise
            error = raised
    finally:
        for env in envs:
            env.close()
    figures = {"returns": episodes.returns, "steps": sum(episodes.lengths)}
    return {**description, **figures, **trained, "action_noise": config.action_noise}, error


def load_policy(config: Config, args: argparse.Namespace) -> tuple[Config, Any, Policy]:
    """The settings with the image size of the checkpoint's agent, the agent, and its policy."""
    name = args.agent or "target"
    agent, trained = load_agent(args.checkpoint, name, pick_device(config.device))
    if "size" in args.given and config.size != trained.size:
        observes = f"the agent of --checkpoint observes {trained.size[0]} pixels"
        raise BadInput(f"--size {config.size[0]}: {observes}; remove it")
    check_trained_alike(args.checkpoint, trained, agent_role(trained, name), config, args.task)
    return config.replace(size=trained.size), agent, agent_policy(agent, sample=True)


class EpisodeSaver:
    """Saves the first ``limit`` episodes to a folder. With several simulators, more may be finished.

    Attributes: returns and lengths (agent steps) of the saved episodes.
    """

    def __init__(self, folder: Path, seed: int, limit: int):
        self.folder, self.seed, self.limit = folder, seed, limit
        self.returns: list[float] = []
        self.lengths: list[int] = []

    def save(self, episode: dict[str, np.ndarray]) -> None:
        if len(self.returns) == self.limit:
            return
        save_episode(self.folder, episode, id=f"{self.seed:08x}{len(self.returns):024x}")
        self.returns.append(float(episode["reward"].sum()))
        self.lengths.append(len(episode["reward"]) - 1)


def collect_episodes(collector: Collector, policy: Policy | None, episodes: EpisodeSaver, stop: StopRequest) -> None:
    """Step the collector until all episodes are saved, or until Ctrl-C or SIGTERM. Without a policy, at random."""
    with stop.listening(), progress_bar(episodes.limit, "episodes") as bar:
        while len(episodes.returns) < episodes.limit and stop.signal is None:
            collector.step(policy)
            if len(episodes.returns) > bar.n:
                bar.update(len(episodes.returns) - bar.n)
                last, mean = episodes.returns[-1], np.mean(episodes.returns)
                bar.set_postfix({"return": f"{last:.1f}", "mean": f"{mean:.1f}"}, refresh=False)
