r"""Tables (Markdown, CSV, LaTeX) and pictures (PNG, PDF) of finished runs: returns, scores, comparisons, curves.

python report.py runs --out report

Every folder under the given ones that contains config.yaml and scores.csv is a run. Runs that differ only in their seed
are in the same cell of the tables. Demo and debug runs are left out, unless a given folder has no other runs.

If one folder is given, its file report.args may hold options for it; those of the command line come after them.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, one_line, user_path  # isort: skip

import argparse
import shlex
import sys
from pathlib import Path

from analysis.curves import AXES
from analysis.heatmap import BASELINES
from analysis.report_files import write_report

STORED = "report.args"


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="DIR", help="folders that contain run directories")
    parser.add_argument("--out", type=user_path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--unfinished", action="store_true", help="include runs that have no last evaluation yet")
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="separate runs that differ in this setting into rows of their own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--name", action="append", default=[], metavar="SETTINGS=NAME",
        help="call a row METHOD, NAME in place of METHOD, SETTINGS; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_score", action="append", default=[], metavar="[TASK=]RETURN",
        help="return with the normalised score 1; may be repeated (default: the suite's known maximum)",
    )  # fmt: skip
    parser.add_argument(
        "--last",
        type=int,
        default=1,
        metavar="N",
        help="a run's score is the mean of its last N evaluations (default: 1)",
    )
    parser.add_argument(
        "--x", choices=AXES,
        help="horizontal axis of the curves (default: step, or target_updates if the curves of a target share no step)",
    )  # fmt: skip
    parser.add_argument(
        "--heatmap", choices=("return", "improvement"),
        help=f"show coworld's return, or its ratio to the return of a baseline, {' or '.join(BASELINES)}: the one with "
        "runs on more task pairs of coworld (default: improvement if a baseline has all of them, else return)",
    )  # fmt: skip
    parser.add_argument(
        "--reference",
        metavar="ROW",
        help="also the differences of all rows to this one, paired by seed, with intervals",
    )
    return parser


def stored_options(file: Path) -> list[str]:
    """The options in a report.args, as words. Raises BadInput if the file cannot be read or has anything else."""
    try:
        words = shlex.split(file.read_text(), comments=True)
        args = command().parse_args(["folder", *words])
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(f"{file}: {one_line(error)}") from None
    if len(args.runs) > 1:
        raise BadInput(f"{file}: {args.runs[1]} is not an option; give folders on the command line")
    return words


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, after the options that its only folder stores."""
    args = command().parse_args(arguments)
    files = [folder / STORED for folder in args.runs if (folder / STORED).is_file()]
    if len(args.runs) > 1:
        for file in files:
            print(f"note: {file} is not used, because several folders are given", file=sys.stderr)
        return args
    words = [word for file in files for word in stored_options(file)]
    if words:
        print(f"options of {files[0]}: {shlex.join(words)}", file=sys.stderr)
    return command().parse_args([*words, *arguments])


def main(arguments: list[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    text = write_report(
        args.runs, args.out, unfinished=args.unfinished, by=args.by, name=args.name, max_score=args.max_score,
        x=args.x, heatmap=args.heatmap, last=args.last, reference=args.reference,
    )  # fmt: skip
    print(text)


if __name__ == "__main__":
    exit_on_bad_input(main)
