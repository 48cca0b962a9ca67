"""Value estimates, embeddings and frames of finished or stopped runs.

python analyse.py --logdir RUN [RUN ...] --episodes 10

All results are of the target agent. Several runs are drawn side by side.

values.csv, values.png: the critic's estimate v(s_t) and the return G_t = r_t + gamma r_{t+1} + ... of the same
episode, up to its last reward. The critic does not know the time limit. If the limit ends an episode, G_t lacks the
rewards after it; with constant rewards, that is the share gamma^(T - t + 1) of the whole sum ("unseen"). Only steps at
which this share is at most --unseen are compared, and always the first step. If the task itself ends an episode, no
reward is missing. The table also has the return if the mean reward of the episode's last tenth continued without end
("continued"). An estimate between the two returns may be correct. Correlations are with this return. Of a run with the
value constraint and one source, there is also the source critic's estimate of the same states, v_xi'(z) of Eq. 6
("source's").

embeddings.png: t-SNE of the target's images in the encoders of target and source, before and after alignment.

frames.png: frames of an episode.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, user_path  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse
import os
import sys

from analysis.embeddings import alignment_table, compute_panels, embeddings_picture
from analysis.episodes import evaluate_run, run_labels
from analysis.frames import frames_picture
from analysis.values import short_episode_notes, values_table, write_values
from training.checkpoint import CHECKPOINT
from training.device import add_threads, pick_device, use_threads
from training.values import UNSEEN


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, nargs="+", type=user_path, help="run directories with a checkpoint")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes of each run (default: 10)")
    parser.add_argument(
        "--out", type=user_path, help="folder for tables and pictures (default: analysis/ of the first run)"
    )
    unseen_help = f"largest share of a return after the time limit (default: {UNSEEN})"
    parser.add_argument("--unseen", type=float, default=UNSEEN, help=unseen_help)
    parser.add_argument("--images", type=int, default=500, help="images of the dataset to embed (default: 500)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_threads(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises BadInput on arguments that would fail only after the first run has been evaluated."""
    for name in ("episodes", "images"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name} {getattr(args, name)}: give 1 or more")
    if not 0 <= args.unseen <= 1:
        raise BadInput(f"--unseen {args.unseen}: give a share, from 0 to 1")
    for logdir in args.logdir:
        if not (logdir / CHECKPOINT).exists():
            raise BadInput(f"no checkpoint at {logdir / CHECKPOINT}; train first, or give the run's directory")
    folder = next(path for path in (args.out, *args.out.absolute().parents) if path.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        reason = "it cannot be written" if folder.is_dir() else f"{folder} is not a folder"
        raise BadInput(f"--out {args.out}: {reason}; choose another")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    args = command().parse_args(arguments)
    args.logdir = [logdir.expanduser() for logdir in args.logdir]
    args.out = (args.out or args.logdir[0] / "analysis").expanduser()
    check(args)
    labels, device = run_labels(args.logdir), pick_device(args.device)
    use_threads(args.threads)
    runs, panels = [], {}
    for logdir, label in zip(args.logdir, labels, strict=True):
        runs.append(evaluate_run(logdir, label, args.episodes, device))
        try:
            panels[label] = compute_panels(logdir, runs[-1].config, args.images, device)
        except BadInput as error:
            note(f"{label}: no embeddings: {error}")
    rows = write_values(runs, args.unseen, args.out)
    print(values_table(rows))
    for line in short_episode_notes(rows, args.unseen):
        note(line)
    if panels:
        embeddings_picture(panels, args.out / "embeddings.png")
        print("\n" + alignment_table(panels))
    frames_picture(runs, args.out / "frames.png")
    written = ["values.csv", "value_steps.csv", "values.png", *["embeddings.png"] * bool(panels), "frames.png"]
    print(f"\nin {args.out}: {', '.join(written)}")


if __name__ == "__main__":
    exit_on_bad_input(main)
