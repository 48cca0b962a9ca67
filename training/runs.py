"""Opening a run: building or resuming its parts, running it to its end, and closing them."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from agents.base import BaseAgent
from config import Config, to_yaml
from replay import OfflineDataset, SequenceStore
from tools import WorkerCrash, lock_directory, write_text
from training.checkpoint import DatasetIdentity, read_resumable
from training.data_limits import measure_limits
from training.device import (
    keep_freed_memory,
    pick_device,
    pick_precision,
    seed_everything,
    seed_training,
    use_threads,
)
from training.domains import (
    OnlineDomain,
    agent_builder,
    build_domains,
    domain_tasks,
    fit_image_size,
    hold_out_episodes,
    open_dataset,
    open_simulators,
    simulated_tasks,
)
from training.estimate import update_seconds, updates
from training.evaluator import Evaluator
from training.logger import Logger
from training.methods import Method, Phase, PhaseKind
from training.offline_figures import OfflineFigures
from training.pretraining import (
    awaits_snapshot,
    check_networks,
    check_pretrain_only,
    find_pretraining,
    read_snapshot,
    share_pretraining,
)
from training.selector import SourceSelector
from training.summary import draw_summary
from training.threads import available_cores, given_threads, useful_threads
from training.trainer import Interrupted, Loop, Progress, Trainer
from training.wandb_mirror import WandbMirror


def dataset_identity(dataset: OfflineDataset | None) -> DatasetIdentity | None:
    if dataset is None:
        return None
    figures = [dataset.episodes, dataset.steps, round(float(sum(dataset.returns)), 3)]
    return DatasetIdentity(figures, dataset.digest)


def code_version() -> str:
    """The commit of this code, with ``-dirty`` if files differ from it; "unknown" outside a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def choose_precision(config: Config, snapshot: Mapping[str, Any] | None, device: torch.device) -> Config:
    """The settings with the precision that ``auto`` is: of the ``snapshot`` that a run continues, or the device's."""
    if config.precision != "auto":
        return config
    config = config.replace(precision=snapshot["config"]["precision"] if snapshot else pick_precision("auto", device))
    print(f"precision: {config.precision} on {device}", file=sys.stderr)
    return config


def compute_with_threads(config: Config, method: Method, saved: Mapping[str, Any] | None) -> Config:
    """Compute with the threads of ``config``, of `read_resumable`, and record their number.

    ``saved`` is the checkpoint of a resumed run. Another number of threads rounds sums differently, so a note says if
    it changed, or if the run keeps more than there are cores.
    """
    number, cores = use_threads(config.threads, useful_threads(config, method.world_model)), available_cores()
    before = saved["config"]["threads"] if saved else str(number)
    if before != str(number):
        print(f"note: the run had {before} threads; from here its results are equal up to rounding", file=sys.stderr)
    elif saved and number > cores:
        keeps = f"the run keeps its {number} threads, for equal results"
        print(f"note: {keeps}; here --threads {cores} may be faster", file=sys.stderr)
    return config.replace(threads=str(number))


def planned_phases(
    method: Method, phases: Sequence[Phase], progress: Progress, pretrain_only: bool, awaits: bool
) -> list[int]:
    """The indices of the phases that this process is to run.

    ``awaits``: the pretraining comes from a snapshot.
    """
    pretraining = find_pretraining(method, phases)
    end = pretraining.stop if pretrain_only else len(phases)
    return [i for i in range(progress.phase, end) if not (awaits and i in pretraining)]


def resumed_line(logdir: Path, progress: Progress, phases: Sequence[Phase]) -> str:
    if progress.phase == len(phases):
        return f"{logdir} is finished: nothing is left to train"
    return f"resuming {logdir} at iteration {progress.step}"


def dataset_line(figures: Sequence[float]) -> str:
    """The line of config.yaml that tells report.py which runs learned from the same dataset."""
    return "# dataset: {} episodes, {} steps, sum of returns {}\n".format(*figures)


def suites_line(tasks: Mapping[str, tuple[Any, str]]) -> str:
    """The line of config.yaml with the suite of each domain that has one, for `checkpoint.check_suites`.

    ``tasks`` are those of `domain_tasks`.
    """
    suites = [f"{name} {task.suite}" for name, (task, _) in tasks.items() if task.suite]
    return f"# suites: {', '.join(suites)}\n" if suites else ""


def offline_figures(
    config: Config, held_out: SequenceStore | None, agents: dict[str, BaseAgent]
) -> OfflineFigures | None:
    """Those of the held-out episodes, if there are any. Prints a note if they are too short for value figures."""
    if held_out is None:
        return None
    offline = OfflineFigures(held_out, config.discount, config.seed)
    if agents["target"].has_critic and (note := offline.short_episode_note()):
        print(note, file=sys.stderr)
    return offline


def restore_or_clear(trainer: Trainer, saved: dict[str, Any] | None) -> None:
    """Restore the state of a checkpoint, and say so; without one, empty the replays of a run that is begun anew."""
    if saved is None:
        for source in trainer.sources:
            source.clear()
        if trainer.target is not None:
            trainer.target.agent.fit_states(trainer.target.store)
        return
    trainer.load_state_dict(saved)
    print(resumed_line(trainer.logdir, trainer.progress, trainer.phases), file=sys.stderr)
    for source in trainer.sources:
        trainer.describe_replay(source)


def write_settings(logdir: Path, config: Config, about: str) -> None:
    """Write config.yaml: the settings, the version of this program, and the lines ``about`` the data and the suites."""
    write_text(logdir / "config.yaml", f"{to_yaml(config)}# commit {code_version()}\n{about}")


@contextmanager
def open_trainer(
    config: Config, method: Method, schedule: Callable[[Config], Sequence[Phase]], pretrain_only: bool = False
) -> Iterator[Trainer]:
    """Build a run, or resume the one in ``config.logdir``; simulators, records and lock are closed at the end.

    ``config`` is that of `resolve.resolve`; ``schedule`` makes the phases of settings.
    Raises `pretraining.AlreadyPretrained` before anything changes, if ``pretrain_only`` and pretraining is finished.
    """
    device, auto_threads = pick_device(config.device), given_threads(config.threads) is None
    keep_freed_memory()
    tasks = domain_tasks(config, method)
    config = fit_image_size(config, method)
    dataset = open_dataset(config, method) if method.dataset else None
    limits = measure_limits(dataset, config.discount) if dataset else None
    logdir = Path(config.logdir).expanduser()
    with ExitStack() as resources:
        resources.enter_context(lock_directory(logdir))  # first, so that it is released last
        identity = dataset_identity(dataset)
        config, saved = read_resumable(logdir, config, method, schedule, identity)
        phases = list(schedule(config))
        progress = Progress(**saved["progress"]) if saved else Progress()
        if pretrain_only:
            check_pretrain_only(config, method, phases, progress)
        snapshot = read_snapshot(config, method, phases) if awaits_snapshot(config, method, phases, progress) else None
        config = compute_with_threads(choose_precision(config, snapshot, device), method, saved)
        held_out = hold_out_episodes(config, dataset) if dataset else None
        seed_everything(config.seed)
        evaluator = Evaluator(config, simulated_tasks(tasks))
        resources.callback(evaluator.close)
        envs = open_simulators(config, method, resources)
        builder = agent_builder(config, method, device, envs, dataset, evaluator)
        planned = planned_phases(method, phases, progress, pretrain_only, bool(snapshot))
        seconds = update_seconds(builder, method, updates([phases[i] for i in planned], config))
        agents = method.agents(builder)
        seed_training(config.seed)
        if snapshot:
            check_networks(config, snapshot, agents)
            snapshot = None  # read again when its turn comes; until then its weights take no memory
        offline = offline_figures(config, held_out, agents)
        begun = (saved["logger"]["sizes"], progress.step) if saved else (None, None)
        mirror = WandbMirror(logdir, vars(config)) if config.wandb and progress.phase < len(phases) else None
        logger = Logger(logdir, *begun, offline=offline is not None, mirror=mirror)
        resources.callback(logger.close)
        domains = build_domains(config, agents, tasks, envs, dataset, logger)
        for domain in domains.values():
            resources.callback(domain.close)
        sources = [name for name, domain in domains.items() if isinstance(domain, OnlineDomain)]
        selector = SourceSelector(config, sources)
        trainer = Trainer(config, method, phases, domains, selector, evaluator, logger, progress, identity, offline)
        trainer.auto_threads, trainer.limits = auto_threads, limits
        trainer.update_seconds, trainer.planned = seconds, planned
        restore_or_clear(trainer, saved)
        if progress.phase < len(phases):  # else the record of the finished run stays
            about = dataset_line(identity.figures) + limits.line() if identity else ""
            write_settings(logdir, config, about + suites_line(tasks))
        yield trainer


def run_to_completion(
    trainer: Trainer,
    loops: Mapping[PhaseKind, Loop],
    until: Callable[[Trainer], bool] = lambda trainer: False,
) -> None:
    """Run the remaining phases, then draw the pictures. On Ctrl-C, SIGTERM or a crash, print how to resume and exit.

    Before each phase, `share_pretraining` is called; the run stops if ``until`` then holds.
    """
    logdir = trainer.logdir

    def before_phase(trainer: Trainer) -> bool:
        share_pretraining(trainer)
        return until(trainer)

    try:
        with trainer.stop.listening():
            trainer.run(loops, before_phase)
            if trainer.progress.phase == len(trainer.phases):
                draw_summary(trainer)
    except Interrupted:
        print(f"stopped and saved; the same command continues {logdir}", file=sys.stderr)
        sys.exit(128 + trainer.stop.signal)
    except WorkerCrash as crash:
        sys.exit(f"{crash}\na simulator's process failed; the same command continues {logdir} from its last checkpoint")
