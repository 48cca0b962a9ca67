"""Running a list of phases: counting, logging, saving, stopping."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agents.base import BaseAgent
from config import Config, to_yaml
from tools import StopRequest, multiples_crossed, write_text
from training.bars import RunBars
from training.checkpoint import CHECKPOINT, DatasetIdentity, model_state, save_checkpoint
from training.data_limits import DataLimits
from training.data_notes import data_notes, row_counts, scale_notes, termination_note
from training.device import restore_torch_rng, torch_rng_state
from training.domains import Domain, OnlineDomain, data_properties
from training.evaluator import Evaluator
from training.logger import OFFLINE_PREFIX, Logger, curve_name
from training.methods import OFFLINE, ONLINE, SELECTED, Method, Phase, PhaseKind
from training.offline_figures import OfflineFigures
from training.plan import Clock, base_names, phase_names, plan_line
from training.policies import Policy
from training.selector import Selection, SourceSelector
from training.threads import CoreWaits
from training.visuals import enlarge, open_loop_images, open_loop_video
from wrappers import SUITES


@dataclass
class Progress:
    """The counters of a run, all of them saved."""

    phase: int = 0  # finished phases
    iteration: int = 0  # finished iterations of the running phase
    step: int = 0  # iterations of all phases, the x axis of the curves
    source_steps: int = 0  # agent steps in simulators that agents learn in
    aligned_steps: int = 0  # those since reward alignment began, the clock of eta
    source_updates: int = 0  # updates of source agents
    target_iterations: int = 0
    target_updates: int = 0
    last_score: float | None = None  # the mean return of the last evaluation


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the run has been saved."""


@dataclass
class Trainer:
    """Runs the phases of a run on its domains. `runs.open_trainer` builds one."""

    config: Config
    method: Method
    phases: list[Phase]
    domains: dict[str, Domain]
    selector: SourceSelector
    evaluator: Evaluator
    logger: Logger
    progress: Progress
    dataset: DatasetIdentity | None
    offline: OfflineFigures | None = None  # of the target, if episodes are held out
    limits: DataLimits | None = None  # of the target's dataset
    stop: StopRequest = field(default_factory=StopRequest)
    auto_threads: bool = False  # whether the number of threads may change while the run goes on
    waits: CoreWaits | None = field(default_factory=CoreWaits)
    update_seconds: dict[str, float] = field(default_factory=dict)  # of an update, by domain, if it was measured
    planned: list[int] | None = None  # the indices of the phases that this process runs; None: all that are left

    @cached_property
    def names(self) -> list[str]:
        """The names of the phases in bars, lines and status.json."""
        return phase_names(self.phases, self.method, self.config, len(self.sources))

    @cached_property
    def bars(self) -> RunBars:
        simulated = bool(self.evaluator.tasks)
        planned = range(self.progress.phase, len(self.phases)) if self.planned is None else self.planned
        clock = Clock(self.phases, self.config, planned, simulated, self.update_seconds)
        return RunBars(clock, self.config)

    @property
    def logdir(self) -> Path:
        return Path(self.config.logdir).expanduser()

    @property
    def target(self) -> Domain | None:
        """The target's domain, if the method has one."""
        return self.domains.get("target")

    @property
    def sources(self) -> list[OnlineDomain]:
        """The domains that the method learns in online. Those of `online_dv2` are the target's."""
        return [domain for domain in self.domains.values() if isinstance(domain, OnlineDomain)]

    def source(self, phase: Phase) -> OnlineDomain:
        """The domain of an online phase."""
        return self.sources[self.selector.online_source() if phase.source == SELECTED else phase.source]

    @property
    def total_steps(self) -> int:
        """`Progress.step` at the end of the run."""
        stride, total = max(self.config.envs, 1), 0
        for phase in self.phases:
            if phase.kind in (PhaseKind.PREFILL, PhaseKind.TRAIN_SOURCE):
                total += -(-phase.iterations // stride) * stride  # all simulators step together
            elif phase.kind in (PhaseKind.PRETRAIN_SOURCE, *OFFLINE):
                total += phase.iterations
        return total

    @property
    def agents(self) -> dict[str, BaseAgent]:
        return {name: domain.agent for name, domain in self.domains.items()}

    # Running

    def run(
        self,
        loops: Mapping[PhaseKind, "Loop"],
        until: Callable[["Trainer"], bool] = lambda trainer: False,
    ) -> None:
        """Run the remaining phases, each with the loop of its kind; stop if ``until`` holds before a phase.

        ``until`` may change the state of the run, and so the next phase. Raises Interrupted on Ctrl-C or SIGTERM.
        """
        if self.progress.phase < len(self.phases):
            suites = {domain.task.suite for domain in self.domains.values()} - {""}
            shown = {"ties": self.method.aligned_with_sources, "success": any(SUITES[s].has_success for s in suites)}
            self.logger.describe_run(to_yaml(self.config), list(self.domains), **shown, step=self.progress.step)
            print(self._plan(), file=sys.stderr)
        try:
            while self.progress.phase < len(self.phases):
                if until(self):
                    return
                phase = self.phases[self.progress.phase]
                self._write_status()
                loops[phase.kind](self, phase)
                self._finish(phase)
        finally:
            self.bars.close()
        self._write_status(finished=True)

    def _plan(self) -> str:
        """The line before the run. The expected time is left out if no update was measured."""
        clock = self.bars.clock
        phases = [self.phases[i] for i in clock.planned]
        seconds = sum(map(clock.seconds, phases)) if self.update_seconds else None
        return plan_line(phases, base_names(phases, self.method, len(self.sources)), self.config, seconds)

    def steps(self, phase: Phase, stride: int = 1) -> Iterator[None]:
        """Iterate over the remaining steps of a phase, logging, saving and stopping in between.

        An iteration of the caller's loop counts as ``stride`` steps.
        """
        config, progress = self.config, self.progress
        saved_at = time.monotonic()
        begun = progress.target_iterations - progress.iteration
        with self.bars.phase(progress.phase, self._label(), progress.iteration, begun) as bar:
            while progress.iteration < phase.iterations:
                yield
                self._count(stride)
                bar.update(stride)
                if multiples_crossed(progress.step, stride, config.log_every):
                    self._write_point(phase)
                    bar.values = self._postfix(phase)
                if config.video_every and multiples_crossed(progress.step, stride, config.video_every):
                    self._log_open_loop()
                if crowded := self.waits is not None and self.config.threads != "1" and self.waits.are_long():
                    self.bars.write(self._leave_cores_to_others())
                stop = self.stop.signal is not None
                if stop or crowded or time.monotonic() > saved_at + 60 * config.checkpoint_minutes:
                    self.save()
                    saved_at = time.monotonic()
                if stop:
                    raise Interrupted

    def _count(self, stride: int) -> None:
        self.progress.iteration += stride
        self.progress.step += stride

    def _leave_cores_to_others(self) -> str:
        """Go on with one thread if ``threads`` was auto. Returns a note.

        Threads that wait for cores of other processes make a run many times slower than one thread.
        """
        slow = f"other processes use the cores of this run's {self.config.threads} threads, which makes it much slower"
        self.waits = None  # once
        if not self.auto_threads:
            return f"note: {slow}; stop it and resume it with --threads 1"
        torch.set_num_threads(1)
        self.config = self.config.replace(threads="1")
        record = self.logdir / "config.yaml"
        write_text(record, re.sub(r"(?m)^threads: .*$", "threads: '1'", record.read_text()))
        return f"note: {slow}; it goes on with one, and from here its results are those of one thread"

    def _finish(self, phase: Phase) -> None:
        self._write_point(phase)
        if phase.kind == PhaseKind.TRAIN_SOURCE and phase.source == SELECTED:
            self.selector.end_round()
        if phase.kind == PhaseKind.PREFILL:
            source = self.source(phase)
            source.agent.fit_states(source.store)
            self.describe_replay(source)
        self.progress.phase += 1
        self.progress.iteration = 0
        self.save()

    def evaluate(self, policy: Policy | None, phase: Phase) -> None:
        """Evaluate ``policy``, or random actions, in the simulator of the phase's domain, and log the result.

        The target may have held-out episodes beside its simulator, or in its place.
        """
        figures = self._simulate(policy, phase) if phase.domain in self.evaluator.tasks else {}
        if policy is not None and phase.domain == "target" and self.offline is not None:
            source = self.sources[self.selector.most_followed()].agent if self.method.uses_sources else None
            offline = self.offline.compute(self.agents["target"], source)
            figures |= {f"{OFFLINE_PREFIX}{name}": value for name, value in offline.items()}
        if figures:
            counts = {k: getattr(self.progress, k) for k in ("step", "source_steps", "target_updates")}
            place = {"domain": phase.domain, "phase": str(phase.kind), "round": phase.round}
            self.logger.score(**place, **counts, **figures)

    def _simulate(self, policy: Policy | None, phase: Phase) -> dict[str, float]:
        """Evaluation episodes, and the video of the first. Returns columns of scores.csv."""

        def on_step(steps: int) -> None:
            bar.update(steps)
            if self.stop.signal is not None:
                raise Interrupted  # the last phase is saved, and this one will be repeated

        with self.bars.phase(self.progress.phase, self._label()) as bar:
            result = self.evaluator.evaluate(policy, phase.domain, on_step)
            bar.values = {"return": f"{result.mean:.1f}"}
        if policy is not None:
            frames = enlarge(result.frames, self.config.video_size)
            self.logger.video(phase.domain, "evaluation", frames, self.progress.step)
            self.progress.last_score = result.mean
        figures = {"mean": result.mean, "std": result.std, "episodes": len(result.returns)}
        return figures if result.success is None else {**figures, "success": result.success}

    # Records

    def log_selection(self, selection: Selection, phase: Phase) -> None:
        """Log the source that the next update of the target follows, if there are several."""
        if not selection.distances:
            return
        names = [source.name for source in self.sources]
        self.logger.add("target", selection.metrics(names))
        counts = {"step": self.progress.step, "target_updates": self.progress.target_updates + 1}
        distances = {f"distance_{name}": d for name, d in zip(names, selection.distances, strict=True)}
        place = {"phase": str(phase.kind), "round": phase.round}
        self.logger.choice(**counts, **place, **distances, chosen=names[selection.index])

    def _write_point(self, phase: Phase) -> None:
        p = self.progress
        counts = {"source_steps": p.source_steps, "target_updates": p.target_updates}
        totals = {"updates": p.source_updates + p.target_updates, "frames": p.source_steps}
        self.logger.write(p.step, totals, self._row_counts(), phase=str(phase.kind), round=phase.round, **counts)
        self._write_status()

    def _row_counts(self) -> dict[str, float]:
        """The curves of the rows of all domains that have episodes."""
        held_out, points = self.offline.store if self.offline else None, {}
        for name, domain in self.domains.items():
            if domain.store.episodes:
                own = held_out if name == "target" else None
                counts = row_counts(domain.store, self.config, self.method, own)
                points |= {curve_name(name, metric): value for metric, value in counts.items()}
        return points

    def describe_replay(self, source: OnlineDomain) -> None:
        """Print how the episodes of a replay are sampled, if it has any."""
        if source.store.episodes:
            notes = [termination_note(source.name, source.store, self.config)]
            notes += data_notes(source.name, source.store, self.config, self.method)
            notes += scale_notes(source.name, source.store, source.agent.senses.state, self.config)
            print("\n".join(filter(None, notes)), file=sys.stderr)

    def _write_status(self, finished: bool = False) -> None:
        p = self.progress
        place = {"phase": self.names[-1] if finished else self._label(), "step": p.step, "steps": self.total_steps}
        self.logger.status(**place, score=p.last_score, finished=finished)

    def _label(self) -> str:
        """The running phase's name, with the source that it trains if the selector chose it."""
        index = min(self.progress.phase, len(self.phases) - 1)
        phase = self.phases[index]
        chosen = phase.kind in ONLINE and phase.source == SELECTED and len(self.sources) > 1
        return self.names[index] + (f", {self.source(phase).name}" if chosen else "")

    def _postfix(self, phase: Phase) -> dict[str, str]:
        """The latest values of the curves that matter, for the progress bar."""
        domain = "target" if phase.kind in OFFLINE else self.source(phase).name
        names = {"image": "image_loss", "kl": "kl", "value": "value", "return": "episode_return"}
        latest = {k: self.logger.latest.get(curve_name(domain, v)) for k, v in names.items()}
        values = {k: f"{value:.3g}" for k, value in latest.items() if value is not None}
        score = self.progress.last_score
        return values | ({} if score is None else {"score": f"{score:.1f}"})

    def _log_open_loop(self) -> None:
        """A video of each domain's open-loop predictions."""
        seed = self.config.seed, self.progress.step
        for name, images in open_loop_images(self.domains, 4, seed).items():
            cameras = self.domains[name].cameras
            video = open_loop_video(*images, side=self.config.video_size // 2, cameras=cameras)
            self.logger.video(name, "open_loop", video, self.progress.step)

    # Saving and resuming

    def save(self) -> None:
        """Write the whole state of the run, atomically."""
        for domain in self.domains.values():
            domain.discard_prefetched()
        save_checkpoint(self.logdir / CHECKPOINT, self.state_dict())
        for domain in self.domains.values():
            domain.after_save()

    def save_models(self, name: str) -> None:
        """Write the agents' weights alone, for `checkpoint.load_agent`."""
        weights = {name: agent.model_dict() for name, agent in self.agents.items()}
        save_checkpoint(self.logdir / name, {**self._about(), "agents": weights})

    def _about(self) -> dict[str, Any]:
        return {
            "config": dict(vars(self.config)),
            "progress": asdict(self.progress),
            **model_state(self.agents),
            "data": self.target and data_properties(self.target.store),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._about(),
            "phases": [str(phase.kind) for phase in self.phases[: self.progress.phase + 1]],
            "agents": {name: agent.state_dict() for name, agent in self.agents.items()},
            "domains": {name: domain.state_dict() for name, domain in self.domains.items()},
            "selector": self.selector.state_dict(),
            "rng": torch_rng_state(),
            "logger": self.logger.state(),
            "dataset": self.dataset and self.dataset.figures,
            "dataset_digest": self.dataset and self.dataset.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything but ``progress`` and the logger's files, which were built from ``state``."""
        for name, agent in self.agents.items():
            agent.load_state_dict(state["agents"][name])
        for name, domain in self.domains.items():
            domain.load_state_dict(state["domains"][name])
        self.selector.load_state_dict(state["selector"])
        self.logger.load_state(state["logger"])
        restore_torch_rng(state["rng"])


Loop = Callable[[Trainer, Phase], None]  # runs a phase to its end
