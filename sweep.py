r"""Run many experiments: every combination of a spec's task pairs, methods, seeds and settings, on Ray.

python sweep.py sweeps/debug.yaml

Ray runs on this machine, or on the cluster at --address. Datasets that are missing are collected first, then the
sources are pretrained that other runs begin from (`source_from` in the spec). The same command continues a sweep that
was stopped, and skips finished runs.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, write_text, user_path  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse
import sys
import uuid
from pathlib import Path

import co_training
import collect
import config as settings
from analysis.cells import given_max_scores
from config import Config, settings_with
from sweeping import cluster
from sweeping.cluster import Cluster
from sweeping.display import Display, failures
from sweeping.estimate import plan_text
from sweeping.jobs import RUN, Checks, Job, make_jobs, planned_runs
from sweeping.scheduler import Scheduler, State, counts
from sweeping.spec import RESOURCES, Spec, expand, read_spec
from training.collecting import learning_phases, score_to_reach
from training.device import use_threads
from training.given import check_given
from training.methods import Method, Phase
from training.resolve import resolve


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("spec", type=user_path, metavar="SPEC.yaml", help="what to run (docs/sweeps.md)")
    parser.add_argument("--out", type=user_path, help="folder of the run directories (default: runs/SPEC's name)")
    parser.add_argument("--address", help="a running Ray cluster: auto, or HOST:PORT (default: this machine alone)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan with its hours, and start nothing")
    parser.add_argument(
        "--seconds_per_update", type=float, metavar="S",
        help="for --dry_run: seconds of one update, as benchmarks/update.py prints them (default: measured here)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change the spec: a key of its grid, or resources.gpus=1, retries=0, ...; may be repeated",
    )  # fmt: skip
    return parser


def check_run(config: Config, method: Method, given: list[str]) -> tuple[Config, list[Phase]]:
    """The settings as co_training.py resolves them, and the phases. Raises BadInput if it would refuse to start."""

    def schedule(config: Config) -> list[Phase]:
        return method.schedule(co_training.algorithm_1(config), config)

    check_given(config, method, schedule, given)
    return resolve(config, method, schedule)


def check_collection(arguments: list[str]) -> bool:
    """Whether an agent learns to collect. Raises BadInput if collect.py would refuse to start."""
    config, args = settings.parse(collect.command(), arguments)
    collect.check(config, args)
    if args.policy == "dreamer":
        score_to_reach(args.task, args.quality, args.max_score)
        learning_phases(config.replace(episodes=args.episodes))
    return args.policy == "dreamer"


def run_all(spec: Spec, jobs: list[Job], on: Cluster, out: Path) -> Scheduler:
    """Run the jobs to their end, or until Ctrl-C, with a display."""
    stop_file = out / f".stop-{uuid.uuid4().hex[:12]}"
    scheduler = Scheduler(jobs, on, spec.retries, stop_file)
    display = Display(scheduler, out / "sweep.csv")
    try:
        with scheduler.stop.listening():
            while not scheduler.ended:
                scheduler.step()
                display.update()
    finally:
        display.update(last=True)
        display.close()
        stop_file.unlink(missing_ok=True)
    return scheduler


def finish(spec: Spec, scheduler: Scheduler, out: Path) -> None:
    """Print what failed, write the report of the runs that are done, and exit with 1 if one failed."""
    progress = scheduler.progress.values()
    failed = failures(progress)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if scheduler.stop.signal is not None:
        print(f"stopped; the same command continues {out}", file=sys.stderr)
        sys.exit(128 + scheduler.stop.signal)
    done = [one.job.folder for one in progress if one.job.kind == RUN and one.state == State.DONE]
    if done:
        with_report(spec, done, out)
    found = {state: number for state, number in counts(progress).items() if number}
    print(
        f"{out}: " + ", ".join(f"{number} runs {state}" for state, number in found.items()) + f"; {out / 'sweep.csv'}"
    )
    if any(one.state != State.DONE for one in progress):
        sys.exit(1)


def with_report(spec: Spec, folders: list[Path], out: Path) -> None:
    """The tables and pictures of report.py in ``out/report``."""
    varied = {key for grid in (spec.grid, *spec.runs) for key in grid} - {
        "pair",
        *settings_with(lambda setting: setting.named_by_reports),
    }
    options = {"by": sorted(varied), **spec.report}
    from analysis.report_files import write_report  # loads matplotlib and scipy, which nothing before the end needs

    print(write_report(folders, out / "report", **options))


def main(arguments: list[str] | None = None) -> None:
    args = command().parse_args(arguments)
    spec = read_spec(args.spec, args.set)
    out = args.out or Path("runs") / args.spec.stem
    checks = Checks(check_run, check_collection)
    planned = planned_runs(spec, expand(spec), out, checks)
    jobs = make_jobs(spec, planned, out, checks)
    resources = {**RESOURCES, **spec.resources}
    targets = {p.run.target for p in planned if p.run.target.suite}
    given_max_scores(spec.report.get("max_score", []), sorted(targets, key=str))
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise BadInput(f"--out {out} is not a folder, or is below a file; choose another")
    if args.dry_run:
        if args.seconds_per_update is None:
            use_threads(str(cluster.threads(resources)))
        print(plan_text(planned, jobs, args.seconds_per_update))
        return
    if args.seconds_per_update is not None:
        raise BadInput("--seconds_per_update has no effect without --dry_run; remove it")
    if all(job.done for job in jobs):
        with_report(spec, [job.folder for job in jobs], out)
        print(f"{out}: nothing to do, all {len(planned)} runs are done")
    else:
        connected = cluster.connect(args.address, resources)
        write_text(out / ".writable", "")  # raises BadInput before a run starts
        (out / ".writable").unlink()
        finish(spec, run_all(spec, jobs, connected, out), out)


if __name__ == "__main__":
    exit_on_bad_input(main)
