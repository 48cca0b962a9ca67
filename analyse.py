"""What finished or stopped runs show beyond their scores: value estimates against true returns, embeddings of the
target's images before and after alignment, and frames of an episode.

python analyse.py --logdir RUN [RUN ...] --episodes 10

All of it is of the target agent; several runs are drawn side by side. The critic's v(s_t) is compared with
G_t = r_t + gamma r_{t+1} + ... of the same episode, up to its last reward. The critic knows no time limit, so where the
limit cuts an episode, G_t lacks the rewards that would have followed: were rewards steady, the share gamma^(T - t + 1)
of them ("unseen"). The two are compared at the steps alone where that share is at most --unseen (at the first step in
any case); an episode that the task itself ends lacks nothing. The table also has the return continued, as if the mean
reward of the episode's last tenth went on for ever: an over-estimate of the one and not of the other is undecided.
"""

import argparse
import sys
from pathlib import Path

from analysis.embeddings import alignment, alignment_table, embeddings_picture
from analysis.frames import frames_picture
from analysis.values import Evaluated, evaluate, step_rows, table, value_row, values_picture
from tools import BadInput, Parser, exit_on_bad_input
from training.trainer import pick_device
from tools import write_csv
from training.trained import CHECKPOINT


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def labels(logdirs: list[Path]) -> list[str]:
    """A name for each run: its directory's, with as many of the folders above as tell all runs apart."""
    parts = [logdir.resolve().parts for logdir in logdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise BadInput("--logdir names a run twice; give each once")


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, nargs="+", type=Path, help="run directories that hold checkpoints")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes of each run (default: 10)")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures (default: RUN/analysis of the first)")
    parser.add_argument(
        "--unseen", type=float, default=0.1, help="largest share of a return beyond the time limit (default: 0.1)"
    )
    parser.add_argument("--images", type=int, default=500, help="of the dataset, to embed (default: 500)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def check(own: argparse.Namespace) -> None:
    """BadInput on anything that would otherwise show only after the first run has been evaluated."""
    for name in ("episodes", "images"):
        if getattr(own, name) < 1:
            raise BadInput(f"--{name} {getattr(own, name)}: give 1 or more")
    if not 0 <= own.unseen <= 1:
        raise BadInput(f"--unseen {own.unseen}: give a share, from 0 to 1")
    for logdir in own.logdir:
        if not (logdir / CHECKPOINT).exists():
            raise BadInput(f"no checkpoint at {logdir / CHECKPOINT}; train first, or give the run's directory")
    try:
        own.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {own.out} cannot be written: {error.strerror}; choose another") from None


def main(arguments: list[str] | None = None) -> None:
    own = command().parse_args(arguments)
    own.logdir = [logdir.expanduser() for logdir in own.logdir]
    own.out = (own.out or own.logdir[0] / "analysis").expanduser()
    names, device = labels(own.logdir), pick_device(own.device)
    check(own)
    runs, aligned = [], {}
    for logdir, name in zip(own.logdir, names, strict=True):
        runs.append(evaluate(logdir, name, own.episodes, device))
        try:
            aligned[name] = alignment(logdir, runs[-1].config, own.images, device)
        except BadInput as error:
            note(f"{name}: no embeddings: {error}")
    report_values(runs, own.unseen, own.out)
    if aligned:
        embeddings_picture(aligned, own.out / "embeddings.png")
        print("\n" + alignment_table(aligned))
    frames_picture(runs, own.out / "frames.png")
    written = ["values.csv", "value_steps.csv", "values.png", *["embeddings.png"] * bool(aligned), "frames.png"]
    print(f"\nin {own.out}: {', '.join(written)}")


def report_values(runs: list[Evaluated], limit: float, out: Path) -> None:
    """Write values.csv, value_steps.csv and values.png, and print the table."""
    rows = [value_row(run, limit) for run in runs]
    write_csv(out / "values.csv", rows)
    write_csv(out / "value_steps.csv", [row for run in runs for row in step_rows(run, limit)])
    values_picture(runs, limit, out / "values.png")
    print(table(rows))
    for row in rows:
        if row["unseen"] > limit:
            note(
                f"{row['run']}: its episodes are short for a discount of {row['discount']:g}: compared where the least "
                f"is unseen, up to {row['unseen']:.0%} of a steady reward's value lies beyond the time limit"
            )


if __name__ == "__main__":
    exit_on_bad_input(main)
