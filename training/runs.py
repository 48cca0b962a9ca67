"""Opening a run: building or resuming its parts, running it to its end, and closing them."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from config import Config, to_yaml
from replay import OfflineDataset
from tools import lock_directory, write_text
from training.checkpoint import DatasetIdentity, read_resumable
from training.device import keep_freed_memory, pick_device, pick_precision, seed_everything, seed_training
from training.domains import (
    OnlineDomain,
    agent_builder,
    build_domains,
    domain_tasks,
    open_dataset,
    open_simulators,
)
from training.evaluator import Evaluator
from training.logger import Logger, read_scores
from training.methods import Method, Phase, PhaseKind
from training.pretraining import (
    awaits_snapshot,
    check_networks,
    check_pretrain_only,
    read_snapshot,
    share_pretraining,
)
from training.selector import SourceSelector
from training.trainer import Interrupted, Progress, Trainer
from training.visuals import CONTEXT, open_loop_images, prediction_sheet, score_curve
from wrappers.shared.vector import WorkerCrash


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


@contextmanager
def open_trainer(
    config: Config, method: Method, schedule: Callable[[Config], Sequence[Phase]], pretrain_only: bool = False
) -> Iterator[Trainer]:
    """Build a run, or resume the one in ``config.logdir``; simulators, records and lock are closed at the end.

    ``config`` is that of `config.resolve`; ``schedule`` makes the phases of settings.
    Raises `pretraining.AlreadyPretrained` before anything changes, if ``pretrain_only`` and pretraining is finished.
    """
    device = pick_device(config.device)
    keep_freed_memory()
    tasks = domain_tasks(config, method)
    dataset = open_dataset(config) if method.dataset else None
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
        if config.precision == "auto":
            precision = snapshot["config"]["precision"] if snapshot else pick_precision("auto", device)
            config = config.replace(precision=precision)
            print(f"precision: {config.precision} on {device}", file=sys.stderr)
        seed_everything(config.seed)
        evaluator = Evaluator(config, tasks)
        resources.callback(evaluator.close)
        envs = open_simulators(config, method, resources)
        agents = method.agents(agent_builder(config, device, envs, dataset, evaluator))
        seed_training(config.seed)
        if snapshot:
            check_networks(config, snapshot, agents)
            snapshot = None  # read again when its turn comes; until then its weights take no memory
        logger = Logger(logdir, saved["logger"]["sizes"], progress.step) if saved else Logger(logdir)
        resources.callback(logger.close)
        domains = build_domains(config, agents, tasks, envs, dataset, logger)
        for domain in domains.values():
            resources.callback(domain.close)
        sources = [name for name, domain in domains.items() if isinstance(domain, OnlineDomain)]
        selector = SourceSelector(config, sources)
        trainer = Trainer(config, method, phases, domains, selector, evaluator, logger, progress, identity)
        if saved:
            trainer.load_state_dict(saved)
            print(f"resuming {logdir} at step {progress.step}", file=sys.stderr)
        else:
            for source in trainer.sources:
                source.clear()
        if progress.phase < len(phases):  # else the record of the finished run stays
            write_text(logdir / "config.yaml", to_yaml(config) + f"# commit {code_version()}\n")
        yield trainer


def run_to_completion(
    trainer: Trainer,
    loops: Mapping[PhaseKind, Callable[[Trainer, Phase], None]],
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
            draw_summary(trainer)
    except Interrupted:
        print(f"stopped and saved; the same command continues {logdir}", file=sys.stderr)
        sys.exit(128 + trainer.stop.signal)
    except WorkerCrash as crash:
        sys.exit(f"{crash}\na simulator's process failed; the same command continues {logdir} from its last checkpoint")


def draw_summary(trainer: Trainer) -> None:
    """predictions.png, what the agents see and predict at the end, and scores.png."""
    logdir, seed = trainer.logdir, (trainer.config.seed, trainer.progress.step)
    images = open_loop_images(trainer.domains, 1, seed)
    if images:
        sheets = {name: (truth[0], predicted[0]) for name, (truth, predicted) in images.items()}
        prediction_sheet(sheets, CONTEXT, logdir / "predictions.png")
    score_curve(read_scores(logdir, evaluated=True), logdir.name, logdir / "scores.png")


def summary(trainer: Trainer) -> str:
    """The scores of a finished run as a short table; with several sources, how often each was selected."""
    config, tasks = trainer.config, [domain.task for domain in trainer.domains.values()]
    rows = [row for row in read_scores(trainer.logdir, evaluated=True) if row["domain"] == "target"]
    labels = []
    for row in rows:
        before = f"{config.method}, before round {row['round']}"
        longer = before in labels or row["round"] == "0"  # the run was made longer, perhaps from no rounds
        earlier = f"{config.method}, at an earlier end" if longer else before
        labels.append("random policy" if row["phase"] == "evaluate_random" else earlier)
    if rows[-1]["phase"] == "evaluate":
        labels[-1] = f"{config.method}, at the end"
    width = max(map(len, [*labels, *tasks])) + 10
    lines = [f"{trainer.target.task:{width}} {'return':>9} {'+-':>7} {'success':>8} {'target updates':>15}"]
    for label, row in zip(labels, rows, strict=True):
        success = f"{float(row['success']):.0%}" if row["success"] else "-"
        figures = f"{float(row['mean']):9.1f} {float(row['std']):7.1f} {success:>8} {row['target_updates']:>15}"
        lines.append(f"{label:{width}} {figures}")
    counts = trainer.selector.total_counts
    if sum(counts):
        lines.append(f"{'source':{width}} {'selected':>9} of {sum(counts)} target updates")
        for source, count in zip(trainer.sources, counts, strict=True):
            lines.append(f"{source.name + ' ' + source.task:{width}} {count / sum(counts):9.0%}")
    return "\n".join([*lines, f"run directory: {trainer.logdir}"])
