"""One run: its agents, data, simulators and records, how they are saved, and how a phase counts its iterations."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch

import driver
import pictures
import tools
from agents import Agent, SourceAgent, TargetAgent
from config import to_yaml
from environments import check_drawn_alike, collection_envs, environment
from errors import BadInput
from replay import OfflineDataset, OnlineReplay
from wrappers import parse_task

CHECKPOINT = "checkpoint.pt"
MAY_CHANGE = set(  # between a run and its resumption; the phases already done and the data are checked by themselves
    "configs logdir device offline_traindir dataset_format dataset_cache replay_size eta_steps pretrain_steps "
    "warmup_rounds warmup_updates warmup_steps rounds target_iterations source_iterations eval_every eval_episodes "
    "log_every video_every checkpoint_minutes".split()
)
CONTEXT = 5  # frames that an open-loop prediction is given
EVALUATION_SEED = 10_000  # apart from the seeds of training episodes


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: ``kind`` names its loop in co_training.py, ``iterations`` its length."""

    kind: str
    iterations: int = 1
    round: int = 0
    domain: str = "target"  # whose agent an evaluation scores
    aligned: bool = False  # stage B (reward alignment) is on


@dataclass
class Progress:
    """Every counter of a run; all of it is saved."""

    phase: int = 0  # phases finished
    iteration: int = 0  # iterations finished of the phase under way
    step: int = 0  # iterations of all phases: the curves' axis
    source_steps: int = 0  # agent steps in the source simulator
    aligned_steps: int = 0  # those since stage B began, eta's clock
    source_updates: int = 0
    target_iterations: int = 0
    target_updates: int = 0


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the run has been saved."""


def open_dataset(config: SimpleNamespace) -> OfflineDataset:
    return OfflineDataset(
        config.offline_traindir,
        size=config.size[0],
        length=config.batch_length,
        format=config.dataset_format,
        cache_dir=config.dataset_cache or None,
    )


def named_task(config: SimpleNamespace, key: str) -> str:
    """The task's canonical name; BadInput names the flag too."""
    try:
        return str(parse_task(getattr(config, key)))
    except BadInput as error:
        raise BadInput(f"--{key}: {error}") from None


def agent_policy(agent: Agent, sample: bool) -> driver.Policy:
    """The agent acting with samples of its policy, or with its mode."""
    return lambda observation, state, first: agent.act(observation, state, first, sample)


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda to a device. BadInput if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name!r} is not known; give auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device {name}: torch {torch.__version__} finds no GPU here; use --device cpu")
    return device


class Run:
    """Everything a run holds. With a target it co-trains; without one it is the source agent alone, online.

    Attributes: config, phases, progress, source, target (agents, target may be None), replay, dataset, collector,
    logger, last_score. Building one resumes from ``logdir`` if it holds a checkpoint.
    """

    def __init__(self, config: SimpleNamespace, phases: list[Phase]):
        self.config, self.phases = config, phases
        self.logdir = Path(config.logdir).expanduser()
        self.device = pick_device(config.device)
        self.tasks = {"source": named_task(config, "source_task")}
        self.dataset, self.source_role = None, "collect"
        if config.target_task:
            self.source_role = "source"
            self.tasks["target"] = named_task(config, "target_task")
            if not config.offline_traindir:
                raise BadInput("--offline_traindir is missing: give the folder of the target dataset's episodes")
            self.dataset = open_dataset(config)
        self._check_schedule()
        self._open_logdir()
        try:
            self._set_up(self._read_saved())
        except BaseException:
            self.lock.close()
            raise

    # Parts

    def _set_up(self, saved: dict[str, Any] | None) -> None:
        """Simulators, agents, replay and counters, as new or as ``saved``."""
        config = self.config
        tools.seed_everything(config.seed)
        self.simulators: dict[str, gymnasium.Env] = {}  # for evaluation, by domain
        envs = collection_envs(config, self.tasks["source"], self.source_role)
        self.collector = driver.Collector(envs, self._episode_finished, config.seed)
        self._build_agents(envs[0])
        self.replay = OnlineReplay(self.logdir / "source_replay", capacity=config.replay_size)
        self.sampling = {
            name: np.random.default_rng([config.seed, i]) for i, name in enumerate(("source", "target"), 1)
        }
        self.progress, self.last_score = Progress(), None
        self.stop = tools.StopRequest()
        self.saved_at = time.monotonic()
        self._restore(saved)

    def simulator(self, domain: str) -> gymnasium.Env:
        """The domain's simulator for evaluation, made when first asked for. Nothing but `score` steps it."""
        if domain not in self.simulators:
            role = self.source_role if domain == "source" else domain
            self.simulators[domain] = environment(self.config, self.tasks[domain], role)
        return self.simulators[domain]

    def batch(self, domain: str) -> dict[str, torch.Tensor]:
        """A batch of the domain's data on the device: image, action, reward, discount, (B, T, ...)."""
        store, agent = (self.replay, self.source) if domain == "source" else (self.dataset, self.target)
        keys = (*agent.world.keys, "action", "reward", "discount")
        arrays = store.sample(self.config.batch_size, self.config.batch_length, self.sampling[domain], keys)
        return tools.to_device(arrays, self.device)

    def _build_agents(self, source_env: gymnasium.Env) -> None:
        self.actions = actions = {"source": source_env.action_space.shape[0]}
        self.source_state = {}
        if self.config.source_observation == "state":
            spaces = source_env.observation_space.spaces
            self.source_state = {key: space.shape[0] for key, space in spaces.items() if key != "image"}
        if self.dataset is not None:
            actions["target"] = self.dataset.action_dim
            expected = self.simulator("target").action_space.shape[0]
            if expected != self.dataset.action_dim:
                raise BadInput(
                    f"--offline_traindir {self.config.offline_traindir}: its actions have {self.dataset.action_dim} "
                    f"dimensions, those of {self.tasks['target']} have {expected}; give that task's dataset"
                )
            check_drawn_alike(self.dataset, self.simulator("target").get_wrapper_attr("description"))
        largest = max(actions.values())
        self.source = SourceAgent(self.config, actions["source"], largest, self.device, self.source_state)
        self.target = None
        if self.dataset is not None:
            self.target = TargetAgent(self.config, actions["target"], largest, self.device)

    def _check_schedule(self) -> None:
        config = self.config
        most = 8 * (os.cpu_count() or 1)
        if config.envs > most:
            raise BadInput(
                f"envs {config.envs}: {os.cpu_count()} processor cores can keep at most {most} simulators; lower it"
            )
        if config.prefill < config.time_limit * max(config.envs, 1):
            raise BadInput(
                f"prefill {config.prefill} is shorter than an episode (time_limit {config.time_limit}) of each of "
                f"{max(config.envs, 1)} simulators; raise it"
            )
        if config.time_limit + 1 < config.batch_length:
            raise BadInput(
                f"batch_length {config.batch_length} is longer than an episode of {config.time_limit} steps; lower it"
            )
        if config.eta_steps == 0:
            config.eta_steps = sum(p.iterations for p in self.phases if p.kind == "source" and p.aligned)

    def _episode_finished(self, episode: dict[str, np.ndarray]) -> None:
        self.replay.add_episode(episode)
        metrics = {
            "episode_return": float(episode["reward"].sum()),
            "episode_length": len(episode["reward"]) - 1,
        }
        if "success" in episode:
            metrics["episode_success"] = float(episode["success"].max())
        self.logger.add("source", metrics)

    # The count of iterations

    def iterations(self, phase: Phase, stride: int = 1) -> Iterator[None]:
        """Count the iterations of ``phase`` that are left, ``stride`` at a time, with what goes on beside them: the
        bar, points of the curves, videos, checkpoints, and the stop that Ctrl-C or SIGTERM asks for."""
        config, progress = self.config, self.progress
        name = f"{phase.kind.replace('_', ' ')}{f' {phase.round}/{config.rounds}' if phase.round else ''}"
        with tools.progress_bar(phase.iterations, name, initial=progress.iteration) as bar:
            while progress.iteration < phase.iterations:
                yield
                self.count(stride)
                bar.update(stride)
                if tools.times_passed(progress.step, stride, config.log_every):
                    self.write_point(phase)
                    bar.set_postfix(self._postfix(phase), refresh=False)
                if config.video_every and tools.times_passed(progress.step, stride, config.video_every):
                    self.draw_predictions()
                stop = self.stop.signal is not None
                if stop or time.monotonic() > self.saved_at + 60 * config.checkpoint_minutes:
                    self.save()
                if stop:
                    raise Interrupted

    def count(self, stride: int) -> None:
        self.progress.iteration += stride
        self.progress.step += stride

    def finish_phase(self, phase: Phase) -> None:
        self.write_point(phase)
        self.progress.phase += 1
        self.progress.iteration = 0
        self.save()

    def write_point(self, phase: Phase) -> None:
        p = self.progress
        counts = {"source_steps": p.source_steps, "target_updates": p.target_updates}
        self.logger.write(p.step, phase=phase.kind, round=phase.round, **counts)

    def _postfix(self, phase: Phase) -> dict[str, str]:
        domain = "target" if phase.kind.startswith("target") else "source"
        shown = {"image": "image_loss", "kl": "kl", "value": "value", "return": "episode_return"}
        latest = self.logger.latest
        bar = {k: f"{latest[f'{domain}/{v}']:.3g}" for k, v in shown.items() if f"{domain}/{v}" in latest}
        return bar | ({} if self.last_score is None else {"score": f"{self.last_score:.1f}"})

    def draw_predictions(self) -> None:
        """Open-loop videos of both domains: seen, predicted and the difference, a column a sequence."""
        for domain, (truth, predicted) in self.predictions(sequences=4).items():
            error = ((predicted.astype(int) - truth) // 2 + 128).astype(np.uint8)
            rows = np.concatenate([truth, predicted, error], 2)  # (B, T, 3 H, W, 3)
            frames = np.concatenate(list(rows), 2)  # (T, 3 H, B W, 3)
            self.logger.video(f"{domain}/open_loop", frames, self.progress.step)

    def draw_summary(self) -> None:
        """predictions.png, what the agents see and predict at the end, and scores.png, how the scores went."""
        sheets = {domain: (truth[0], predicted[0]) for domain, (truth, predicted) in self.predictions(1).items()}
        if sheets:
            pictures.prediction_sheet(sheets, CONTEXT, self.logdir / "predictions.png")
        pictures.score_curve(pictures.read_scores(self.logdir), self.logdir.name, self.logdir / "scores.png")

    def predictions(self, sequences: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each domain with data, true and predicted images, uint8 (B, T, H, W, 3); no random state is touched."""
        shown = {}
        agents = dict(self._agents())
        for domain, store in (("source", self.replay), ("target", self.dataset)):
            if store is None or store.episodes == 0 or agents[domain].world.state:
                continue
            rng = np.random.default_rng([self.config.seed, self.progress.step])
            arrays = store.sample(min(sequences, self.config.batch_size), self.config.batch_length, rng)
            batch = tools.to_device(arrays, self.device)
            with torch.random.fork_rng():
                context = min(CONTEXT, self.config.batch_length - 1)
                predicted = agents[domain].world.open_loop(batch["image"], batch["action"], context)
            shown[domain] = arrays["image"], predicted.cpu().numpy()
        return shown

    def score(self, policy: driver.Policy | None, domain: str) -> driver.Scores:
        """`driver.evaluate` with a bar, for ``eval_episodes``; no policy is the random one."""
        env, seed = self.simulator(domain), EVALUATION_SEED + self.config.seed
        policy = policy or driver.RandomPolicy(env.action_space, np.random.default_rng(seed))
        steps = self.config.eval_episodes * self.config.time_limit
        with tools.progress_bar(steps, f"evaluate {domain}", leave=False) as bar:

            def between(_: int) -> None:
                bar.update()
                if self.stop.signal is not None:
                    raise Interrupted  # the phase before was saved, and this one will be done again

            return driver.evaluate(policy, env, self.config.eval_episodes, seed, between)

    # Stopping, saving, resuming

    def save(self) -> None:
        """Write the whole state of the run, atomically."""
        state = {
            "config": dict(vars(self.config)),
            "progress": asdict(self.progress),
            "phases": [phase.kind for phase in self.phases[: self.progress.phase + 1]],
            "last_score": self.last_score,
            "agents": {name: agent.state_dict() for name, agent in self._agents()},
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "sampling": {name: tools.generator_state(rng) for name, rng in self.sampling.items()},
            "random": tools.torch_random_state(),
            "logger": self.logger.state(),
            "dataset": self._dataset_figures(),
            "actions": self.actions,
            "states": {name: agent.world.state for name, agent in self._agents()},
            "environments": {d: env.get_wrapper_attr("description") for d, env in self.simulators.items()},
        }
        tools.save_checkpoint(self.logdir / CHECKPOINT, state)
        self.saved_at = time.monotonic()
        self.replay.forget_dropped()

    def _agents(self) -> list[tuple[str, Agent]]:
        return [("source", self.source)] + ([("target", self.target)] if self.target else [])

    def _open_logdir(self) -> None:
        """Make the run directory and hold it; BadInput if it cannot be written or another process is at work in it."""
        try:
            self.logdir.mkdir(parents=True, exist_ok=True)
            self.lock = tools.hold(self.logdir)
        except OSError as error:
            raise BadInput(f"--logdir {self.logdir} cannot be written: {error.strerror}; choose another") from None
        for leftover in self.logdir.glob(f".{CHECKPOINT}.*tmp"):
            leftover.unlink()

    def _read_saved(self) -> dict[str, Any] | None:
        """The checkpoint of the run directory, if any; BadInput if it belongs to another run."""
        if not (self.logdir / CHECKPOINT).exists():
            return None
        saved = tools.load_checkpoint(self.logdir / CHECKPOINT)
        old, new = saved["config"], {**vars(self.config), **{f"{d}_task": t for d, t in self.tasks.items()}}
        for domain in ("source", "target"):
            if old.get(f"{domain}_task"):
                old[f"{domain}_task"] = str(parse_task(old[f"{domain}_task"]))
        for key in sorted((old.keys() & new.keys()) - MAY_CHANGE):
            if old[key] != new[key]:
                raise BadInput(
                    f"{self.logdir} holds a run with {key} {old[key]}, not {new[key]}: "
                    f"give the old value to resume it, or another --logdir"
                )
        if saved["phases"] != [phase.kind for phase in self.phases[: len(saved["phases"])]]:
            raise BadInput(
                f"{self.logdir} is past the phases {', '.join(saved['phases'])}, which these settings do not begin "
                f"with: give the old number of warm-up rounds and rounds to resume it, or another --logdir"
            )
        if saved["dataset"] != self._dataset_figures():
            raise BadInput(
                f"{self.logdir} holds a run on other data than {self.config.offline_traindir} (episodes, steps and "
                f"returns were {saved['dataset']}): give the old --offline_traindir, or another --logdir"
            )
        return saved

    def _dataset_figures(self) -> list[float] | None:
        """What tells one dataset from another: episodes, steps, sum of returns."""
        data = self.dataset
        return None if data is None else [data.episodes, data.steps, round(float(sum(data.returns)), 3)]

    def _restore(self, saved: dict[str, Any] | None) -> None:
        if saved is None:
            self.replay.load_state_dict({"episodes": [], "added": 0})  # clears what a run killed early left
            self.logger = tools.Logger(self.logdir)
            (self.logdir / "config.yaml").write_text(to_yaml(self.config))
            return
        self.progress = Progress(**saved["progress"])
        self.last_score = saved["last_score"]
        for name, agent in self._agents():
            agent.load_state_dict(saved["agents"][name])
        self.replay.load_state_dict(saved["replay"])
        self.logger = tools.Logger(self.logdir, saved["logger"]["sizes"], self.progress.step)
        self.logger.load_state(saved["logger"])
        held = saved["collector"]["policy_state"]
        saved["collector"]["policy_state"] = held and {k: v.to(self.device) for k, v in held.items()}
        self.collector.load_state_dict(saved["collector"])
        for name, rng in self.sampling.items():
            tools.restore_generator(rng, saved["sampling"][name])
        tools.restore_torch_random(saved["random"])
        (self.logdir / "config.yaml").write_text(to_yaml(self.config))
        print(f"resuming {self.logdir} at step {self.progress.step}", file=sys.stderr)

    def close(self) -> None:
        """Close simulators and records; a simulator left to the interpreter's exit would complain there."""
        self.lock.close()
        self.logger.close()
        for env in [*self.simulators.values(), *(slot.env for slot in self.collector.slots)]:
            env.close()


def load_agent(logdir: Path, domain: str, device: torch.device) -> tuple[Agent, SimpleNamespace]:
    """The ``source`` or ``target`` agent of a run's checkpoint, and the run's settings. BadInput if there is none."""
    saved = tools.load_checkpoint(Path(logdir).expanduser() / CHECKPOINT)
    if domain not in saved["agents"]:
        raise BadInput(f"{logdir} has no {domain} agent, only {', '.join(saved['agents'])}; give --agent")
    config = SimpleNamespace(**saved["config"])
    kind = {"source": SourceAgent, "target": TargetAgent}[domain]
    largest = max(saved["actions"].values())
    agent = kind(config, saved["actions"][domain], largest, device, saved["states"][domain])
    agent.load_state_dict(saved["agents"][domain])
    return agent, config
