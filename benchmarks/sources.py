"""Keep a pretrained source agent, and begin other runs from it.

    python benchmarks/sources.py keep runs/RUN results/study_source/NAME
    python benchmarks/sources.py restore results/study_source/NAME --logdir runs/RUN ... --configs defaults dmc small

`keep` writes the weights of the source agents of a run's ``pretrained/``, with its settings. `restore` takes the
options of co_training.py. It makes a run that is pretrained, as --pretrain_only does, in minutes: the weights
are those that were kept, and the replay is filled anew, with as many random steps, then with as many steps of the kept
agents. Optimisers begin anew. So results are not those of the run that was kept, bit for bit; all runs that begin from
the same restored one share its source. When it is complete, the same options to co_training.py continue it, and
--source_from begins others. A restoration that is stopped begins anew.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import training.threads  # isort: skip  # noqa: F401

import co_training
import config as settings
from config import Config
from tools import BadInput, Parser, directory_when_complete, exit_on_bad_input, write_text
from training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from training.methods import Phase, PhaseKind, find_method
from training.pretraining import (
    PRETRAINED,
    check_networks,
    compared_settings,
    describe_phases,
    difference,
    find_pretraining,
    is_pretrained,
    run_of,
)
from training.resolve import resolve
from training.runs import open_trainer, run_to_completion
from training.trainer import Trainer

KEPT = "config progress action_dims states channels classes pretraining".split()  # of a snapshot, beside the weights


def keep(run: Path, out: Path) -> None:
    """Write the weights of the pretrained sources of a run. Raises BadInput if it has no snapshot of them."""
    saved = load_checkpoint(run / PRETRAINED / CHECKPOINT, advice="give another run")
    weights = {name: {part: state[part] for part in ("world", "behavior")} for name, state in saved["agents"].items()}
    with directory_when_complete(out) as folder:
        write_text(folder / "config.yaml", (run / "config.yaml").read_text())
        save_checkpoint(folder / CHECKPOINT, {**{key: saved[key] for key in KEPT}, "agents": weights})


def restore(kept: Path, arguments: list[str]) -> Path:
    """Make a run with the options ``arguments`` of co_training.py that is pretrained, from kept weights.

    Returns its directory. Raises BadInput if it would pretrain otherwise, or there is a run already.
    """
    config, args = settings.parse(settings.parser(__doc__), arguments)
    method, saved = find_method(config.method), load_checkpoint(kept / CHECKPOINT, advice="give other kept sources")
    if not set(KEPT) <= saved.keys():
        raise BadInput(f"{kept}: no kept sources; write them with `sources.py keep`, and give the folder that it wrote")
    if config.source_from:
        raise BadInput(f"--source_from has no effect on restored sources, which are those of {kept}; remove it")

    def schedule(config: Config) -> list[Phase]:
        return method.schedule(co_training.algorithm_1(config), config)

    co_training.check_given(config, method, schedule, args.given)
    config, _ = resolve(config, method, schedule)
    phases = schedule(config)
    pretraining = describe_phases(phases[i] for i in find_pretraining(method, phases))
    if not pretraining:
        raise BadInput(f"method {config.method} does not pretrain sources; give another --method")
    differ = difference(compared_settings(*run_of(saved)), compared_settings(config, method))
    if not differ and pretraining != saved["pretraining"]:
        differ = "other phases"
    if differ:
        raise BadInput(f"{kept}: its sources were pretrained with {differ}; give the same settings")
    checkpoint = Path(config.logdir).expanduser() / CHECKPOINT
    if checkpoint.exists():
        raise BadInput(f"{config.logdir} holds a run already; give another --logdir")
    skipped = {PhaseKind.PRETRAIN_SOURCE: without_updates, PhaseKind.TRAIN_SOURCE: collect}
    with open_trainer(config, method, schedule, pretrain_only=True) as trainer:
        check_networks(config.replace(source_from=str(kept)), saved, trainer.agents)
        for source in trainer.sources:
            source.agent.load_models(saved["agents"][source.name])
        try:
            run_to_completion(trainer, co_training.LOOPS | skipped, until=is_pretrained)
        finally:
            if not is_pretrained(trainer):  # else co_training.py would go on with updates
                checkpoint.unlink(missing_ok=True)
                print(f"{trainer.logdir}: not restored; the same command begins anew", file=sys.stderr)
    return trainer.logdir


def without_updates(trainer: Trainer, phase: Phase) -> None:
    """The phase of updates without steps, with no updates."""
    for _ in trainer.steps(phase):
        pass


def collect(trainer: Trainer, phase: Phase) -> None:
    """Steps of the source agent in its simulators, without updates."""
    source = trainer.source(phase)
    policy, stride = source.policy, len(source.collector)
    for _ in trainer.steps(phase, stride):
        source.collector.start(policy)
        source.collector.finish()
        trainer.progress.source_steps += stride


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="keep|restore")
    keeping = commands.add_parser("keep", help="write the weights of a run's pretrained sources")
    keeping.add_argument("run", type=Path, help="a run directory with pretrained/")
    keeping.add_argument("out", type=Path, help="the folder to write")
    restoring = commands.add_parser("restore", help="make a run that is pretrained", add_help=False)
    restoring.add_argument("kept", type=Path, help="a folder that `keep` wrote")
    args, others = parser.parse_known_args()
    if args.command == "keep":
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        keep(args.run, args.out)
        print(f"{args.out}: kept")
    else:
        print(f"{restore(args.kept, others)}: restored; the same options to co_training.py continue it")


if __name__ == "__main__":
    exit_on_bad_input(main)
