"""One run: its agents, data, simulators and records, how they are saved, and how a phase counts its iterations."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch

from training import collector as driver
import training.visuals as pictures
import tools
from agents.agent import Agent
from config import to_yaml
from wrappers.shared.simulators import check_drawn_alike, collection_envs, environment, evaluation_envs
from tools import BadInput
from training.methods import CHOSEN, Domains, Method, Phase
from replay.store import Batch, OfflineDataset, Prefetcher, SequenceStore
from training.checkpoint import read_saved
from training.selector import Choices, Source, named_tasks, online_tasks, open_source
from training.trained import CHECKPOINT

CONTEXT = 5  # frames that an open-loop prediction is given
EVALUATION_SEED = 10_000  # apart from the seeds of training episodes


@dataclass
class Progress:
    """Every counter of a run; all of it is saved."""

    phase: int = 0  # phases finished
    iteration: int = 0  # iterations finished of the phase under way
    step: int = 0  # iterations of all phases: the curves' axis
    source_steps: int = 0  # agent steps in simulators that are learned in
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
    """Everything a run holds: what ``method`` learns from, its agents, simulators and records.

    Attributes: config, method, phases, progress, agents (by domain: ``target``, ``source`` or ``source_1``, ...),
    sources (the domains it learns in online), choices (which of several it follows), dataset, logger, last_score.
    Building one resumes from ``logdir`` if it holds a checkpoint.
    """

    def __init__(self, config: SimpleNamespace, phases: list[Phase], method: Method):
        self.config, self.phases, self.method = config, phases, method
        self.logdir = Path(config.logdir).expanduser()
        self.device = pick_device(config.device)
        tools.keep_freed_memory()
        self.online = online_tasks(config, method)
        self.tasks = {name: task for name, (task, _) in self.online.items()}
        self.dataset = None
        if method.dataset:
            self.tasks["target"] = named_tasks(config, "target_task")[0]
            if not config.offline_traindir:
                raise BadInput("--offline_traindir is missing: give the folder of the target dataset's episodes")
            self.dataset = open_dataset(config)
        self._check_schedule()
        self._open_logdir()
        try:
            self._set_up(read_saved(self.logdir, config, phases, self._dataset_figures()))
        except BaseException:
            self.lock.close()
            raise

    # Parts

    def _set_up(self, saved: dict[str, Any] | None) -> None:
        """Simulators, agents, replay and counters, as new or as ``saved``."""
        config = self.config
        tools.seed_everything(config.seed)
        self.simulators: dict[str, gymnasium.Env] = {}  # one of each domain, in this process
        self.evaluators: dict[str, list[Any]] = {}  # for evaluation, by domain
        self.sources = []
        for index, (name, task) in enumerate(self.online.items()):
            envs = collection_envs(config, *task)
            self.sources.append(open_source(name, task, envs, self._episode_finished, self.logdir, config, index))
        self.choices = Choices([source.name for source in self.sources], config.select)
        self._build_agents()
        self.batches = {name: Prefetcher(*self._drawing(name, i)) for name, i in self._streams()}
        self.progress, self.last_score = Progress(), None
        self.stop = tools.StopRequest()
        self.saved_at = time.monotonic()
        self._restore(saved)

    @property
    def target(self) -> Agent | None:
        """The agent of the target's domain, if there is one."""
        return self.agents.get("target")

    @property
    def followed(self) -> Sequence[Agent]:
        """The agents that the target's updates follow, in the order of ``sources``."""
        return [source.agent for source in self.sources] if self.method.tied else []

    def simulator(self, domain: str) -> gymnasium.Env:
        """The domain's simulator in this process, made when first asked for. Nothing but `score` steps it."""
        if domain not in self.simulators:
            _, role = self.online.get(domain, (None, domain))
            self.simulators[domain] = environment(self.config, self.tasks[domain], role)
        return self.simulators[domain]

    def batch(self, domain: str) -> dict[str, torch.Tensor]:
        """A batch of the domain's data on the device: image, action, reward, discount, (B, T, ...)."""
        return tools.to_device(self.batches[domain].next(), self.device)

    def store(self, domain: str) -> SequenceStore:
        """The domain's data: the replay of a source, or the dataset."""
        return next((source.replay for source in self.sources if source.name == domain), self.dataset)

    def _streams(self) -> list[tuple[str, int]]:
        """Each domain with the number that makes its batches' chance its own: 1 a single source's, 2 the target's."""
        numbers = [(source.name, 1 if i == 0 else 2 + i) for i, source in enumerate(self.sources)]
        return numbers + ([("target", 2)] if self.dataset is not None else [])

    def _drawing(self, domain: str, number: int) -> tuple[Callable[[], Batch], np.random.Generator]:
        """What makes a batch of the domain, on the way to the device, and its chance."""
        rng, store, config = np.random.default_rng([self.config.seed, number]), self.store(domain), self.config
        keys = (*self.agents[domain].world.keys, "action", "reward", "discount")

        def draw() -> Batch:
            return tools.to_tensors(store.sample(config.batch_size, config.batch_length, rng, keys), self.device)

        return draw, rng

    def _build_agents(self) -> None:
        self.actions, self.states = {}, {}
        for source in self.sources:
            env = source.collector.slots[0].env
            self.actions[source.name] = env.action_space.shape[0]
            if self.config.source_observation == "state" and source.role != "target":
                spaces = env.observation_space.spaces
                self.states[source.name] = {key: space.shape[0] for key, space in spaces.items() if key != "image"}
        if self.dataset is not None:
            self.actions["target"] = self._target_actions()
        self.agents = self.method.agents(Domains(self.config, self.device, self.actions, self.states))
        for source in self.sources:
            source.agent = self.agents[source.name]

    def _target_actions(self) -> int:
        """The target's action size. BadInput if data and simulator do not fit."""
        expected, found = self.simulator("target").action_space.shape[0], self.dataset.action_dim
        if expected != found:
            raise BadInput(
                f"--offline_traindir {self.config.offline_traindir}: its actions have {found} "
                f"dimensions, those of {self.tasks['target']} have {expected}; give that task's dataset"
            )
        check_drawn_alike(self.dataset, self.simulator("target").get_wrapper_attr("description"))
        return found

    def _check_schedule(self) -> None:
        config = self.config
        most = 8 * (os.cpu_count() or 1)
        for key in ("envs", "eval_envs"):
            if getattr(config, key) > most:
                raise BadInput(
                    f"{key} {getattr(config, key)}: {os.cpu_count()} processor cores can keep at most {most} "
                    f"simulators; lower it"
                )
        if config.source_observation == "state" and self.sources_share_weights():
            raise BadInput(
                f"--source_observation state: method {config.method} shares weights between source and target, which "
                f"have to see alike; give image"
            )
        if config.grad_accum > config.batch_size:
            raise BadInput(f"grad_accum {config.grad_accum} is more parts than a batch of {config.batch_size} has")
        if self.online and config.prefill < config.time_limit * max(config.envs, 1):
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

    def sources_share_weights(self) -> bool:
        """With the target: methods that learn in sources and from the dataset, but not as two agents."""
        return self.method.online == "source" and self.method.dataset

    def _episode_finished(self, name: str, episode: dict[str, np.ndarray]) -> None:
        self.batches[name].withdraw()
        self.store(name).add_episode(episode)
        metrics = {
            "episode_return": float(episode["reward"].sum()),
            "episode_length": len(episode["reward"]) - 1,
        }
        if "success" in episode:
            metrics["episode_success"] = float(episode["success"].max())
        self.logger.add(name, metrics)

    # The count of iterations

    def iterations(self, phase: Phase, stride: int = 1) -> Iterator[None]:
        """Count the iterations of ``phase`` that are left, ``stride`` at a time, with what goes on beside them: the
        bar, points of the curves, videos, checkpoints, and the stop that Ctrl-C or SIGTERM asks for."""
        config, progress = self.config, self.progress
        name = f"{phase.kind.replace('_', ' ')}{f' {phase.round}/{config.rounds}' if phase.round else ''}"
        if len(self.sources) > 1 and not phase.kind.startswith("target"):
            name += f", {self.source_of(phase).name}"
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

    def source_of(self, phase: Phase) -> Source:
        """The source that an online phase is about."""
        return self.sources[self.choices.online() if phase.source == CHOSEN else phase.source]

    def finish_phase(self, phase: Phase) -> None:
        self.write_point(phase)
        if phase.kind == "source" and phase.source == CHOSEN:
            self.choices.next_turn()
        self.progress.phase += 1
        self.progress.iteration = 0
        self.save()

    def write_point(self, phase: Phase) -> None:
        p = self.progress
        counts = {"source_steps": p.source_steps, "target_updates": p.target_updates}
        self.logger.write(p.step, phase=phase.kind, round=phase.round, **counts)

    def _postfix(self, phase: Phase) -> dict[str, str]:
        domain = "target" if phase.kind.startswith("target") else self.source_of(phase).name
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
        for domain, agent in self.agents.items():
            store = self.store(domain)
            if store.episodes == 0 or agent.world.state:
                continue
            rng = np.random.default_rng([self.config.seed, self.progress.step])
            arrays = store.sample(min(sequences, self.config.batch_size), self.config.batch_length, rng)
            batch = tools.to_device(tools.to_tensors(arrays, self.device), self.device)
            with torch.random.fork_rng():
                context = min(CONTEXT, self.config.batch_length - 1)
                predicted = agent.world.open_loop(batch["image"], batch["action"], context)
            shown[domain] = arrays["image"], predicted.cpu().numpy()
        return shown

    def score(self, policy: driver.Policy | None, domain: str) -> driver.Scores:
        """`driver.evaluate` with a bar, for ``eval_episodes``; no policy is the random one."""
        envs, seed = self._evaluators(domain), EVALUATION_SEED + self.config.seed
        policy = policy or driver.RandomPolicy(envs[0].action_space, np.random.default_rng(seed))
        steps = self.config.eval_episodes * self.config.time_limit
        with tools.progress_bar(steps, f"evaluate {domain}", leave=False) as bar:

            def between(steps: int) -> None:
                bar.update(steps)
                if self.stop.signal is not None:
                    raise Interrupted  # the phase before was saved, and this one will be done again

            return driver.evaluate(policy, envs, self.config.eval_episodes, seed, between)

    def _evaluators(self, domain: str) -> list[Any]:
        """The simulators that the domain's evaluation episodes are played in, made when first asked for."""
        config = self.config
        if min(config.eval_envs, config.eval_episodes) == 1:
            return [driver.InProcess(self.simulator(domain))]
        if domain not in self.evaluators:
            _, role = self.online.get(domain, (None, domain))
            self.evaluators[domain] = evaluation_envs(config, self.tasks[domain], role, config.eval_episodes)
        return self.evaluators[domain]

    # Stopping, saving, resuming

    def save(self) -> None:
        """Write the whole state of the run, atomically."""
        for batches in self.batches.values():
            batches.withdraw()
        state = {
            **self._about(),
            "phases": [phase.kind for phase in self.phases[: self.progress.phase + 1]],
            "last_score": self.last_score,
            "agents": {name: agent.state_dict() for name, agent in self.agents.items()},
            "replay": {source.name: source.replay.state_dict() for source in self.sources},
            "collector": {source.name: source.collector.state_dict() for source in self.sources},
            "choices": self.choices.state_dict(),
            "sampling": {name: tools.generator_state(batches.rng) for name, batches in self.batches.items()},
            "random": tools.torch_random_state(),
            "logger": self.logger.state(),
            "dataset": self._dataset_figures(),
            "environments": {d: env.get_wrapper_attr("description") for d, env in self.simulators.items()},
        }
        tools.save_checkpoint(self.logdir / CHECKPOINT, state)
        self.saved_at = time.monotonic()
        for source in self.sources:
            source.replay.forget_dropped()

    def save_models(self, name: str) -> None:
        """Write the agents' models alone, for `load_agent`."""
        state = {name: agent.model_dict() for name, agent in self.agents.items()}
        tools.save_checkpoint(self.logdir / name, {**self._about(), "agents": state})

    def _about(self) -> dict[str, Any]:
        """What a checkpoint's agents are rebuilt from, and how far the run was."""
        return {
            "config": dict(vars(self.config)),
            "progress": asdict(self.progress),
            "actions": self.actions,
            "actor_dims": {name: agent.behaviour.actor.outputs for name, agent in self.agents.items()},
            "states": {name: agent.world.state for name, agent in self.agents.items()},
        }

    def _open_logdir(self) -> None:
        """Make the run directory and hold it; BadInput if it cannot be written or another process is at work in it."""
        try:
            self.logdir.mkdir(parents=True, exist_ok=True)
            self.lock = tools.hold(self.logdir)
        except OSError as error:
            raise BadInput(f"--logdir {self.logdir} cannot be written: {error.strerror}; choose another") from None
        for leftover in self.logdir.glob(f".{CHECKPOINT}.*tmp"):
            leftover.unlink()

    def _dataset_figures(self) -> list[float] | None:
        """What tells one dataset from another: episodes, steps, sum of returns."""
        data = self.dataset
        return None if data is None else [data.episodes, data.steps, round(float(sum(data.returns)), 3)]

    def _restore(self, saved: dict[str, Any] | None) -> None:
        if saved is None:
            for source in self.sources:
                source.replay.load_state_dict({"episodes": [], "added": 0})  # clears what a run killed early left
            self.logger = tools.Logger(self.logdir)
            (self.logdir / "config.yaml").write_text(to_yaml(self.config))
            return
        self.progress = Progress(**saved["progress"])
        self.last_score = saved["last_score"]
        for name, agent in self.agents.items():
            agent.load_state_dict(saved["agents"][name])
        for source in self.sources:
            source.replay.load_state_dict(saved["replay"][source.name])
        self.choices.load_state_dict(saved["choices"])
        self.logger = tools.Logger(self.logdir, saved["logger"]["sizes"], self.progress.step)
        self.logger.load_state(saved["logger"])
        for source in self.sources:
            state = saved["collector"][source.name]
            held = state["policy_state"]
            state["policy_state"] = held and {k: v.to(self.device) for k, v in held.items()}
            source.collector.load_state_dict(state)
        for name, batches in self.batches.items():
            tools.restore_generator(batches.rng, saved["sampling"][name])
        tools.restore_torch_random(saved["random"])
        (self.logdir / "config.yaml").write_text(to_yaml(self.config))
        print(f"resuming {self.logdir} at step {self.progress.step}", file=sys.stderr)

    def close(self) -> None:
        """Close simulators and records; a simulator left to the interpreter's exit would complain there."""
        self.lock.close()
        self.logger.close()
        for batches in self.batches.values():
            batches.close()
        collecting = [slot.env for source in self.sources for slot in source.collector.slots]
        evaluating = [env for envs in self.evaluators.values() for env in envs]
        for env in [*self.simulators.values(), *evaluating, *collecting]:
            env.close()
