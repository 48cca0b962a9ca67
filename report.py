r"""Tables and pictures of finished runs: returns, success rates, normalised scores, learning curves, a heat map.

python report.py runs --out report

Every folder under the given ones that contains config.yaml and scores.csv is a run. Runs that differ only in their seed
are in the same cell of the tables. Demo and debug runs are left out, unless their own directories are given or there
are no others.
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, write_csv, write_text  # isort: skip

import argparse
import sys
from pathlib import Path

from analysis.cells import compute_results
from analysis.conditions import choose_runs, condition_notes, refuse_duplicates
from analysis.csv_rows import curve_rows, run_rows, table_rows
from analysis.curves import AXES, draw_all_curves
from analysis.heatmap import BASELINES, choose_baseline, draw_heatmap, heatmap_panels
from analysis.interquartile import interquartile_means
from analysis.markdown import missing_cells, report_text
from analysis.rows import set_labels
from analysis.runs import leave_out_short_runs, read_runs, run_folders
from analysis.separation import separate_rows


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders that contain run directories")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--unfinished", action="store_true", help="include runs that have no last evaluation yet")
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="separate runs that differ in this setting into rows of their own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_score", action="append", default=[], metavar="[TASK=]RETURN",
        help="return with the normalised score 1; may be repeated (default: the suite's known maximum)",
    )  # fmt: skip
    parser.add_argument(
        "--x", choices=AXES,
        help="horizontal axis of the curves (default: step, or target_updates if the curves of a target share no step)",
    )  # fmt: skip
    parser.add_argument(
        "--heatmap", choices=("return", "improvement"),
        help=f"show coworld's return, or its ratio to the return of a baseline, {' or '.join(BASELINES)}: the one with "
        "runs on more task pairs of coworld (default: improvement if a baseline has all of them, else return)",
    )  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = command().parse_args(arguments)
    runs, left_out = read_runs(run_folders(args.runs))
    runs, short = leave_out_short_runs(runs, args.runs)
    left_out += short
    for line in left_out:
        print(f"warning: {line}", file=sys.stderr)
    set_labels(runs, args.by)
    chosen, unfinished = choose_runs(runs, args.unfinished)
    separate_rows(chosen, args.by)
    refuse_duplicates(chosen)
    results = compute_results(chosen, args.max_score)
    baseline = choose_baseline(results, args.heatmap)
    means = interquartile_means(results)
    where = "in rows of their own" if args.unfinished else "not in the tables; --unfinished includes them"
    notes = [*left_out, *results.notes(), *condition_notes(chosen, args.by)]
    lists = {"Missing": missing_cells(results), f"Not finished ({where})": unfinished, "Notes": notes}
    text = report_text(results, means, lists)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {args.out} cannot be written: {error.strerror}; choose another") from None
    pictures = draw_all_curves(results, args.x, args.out)
    if heatmap_panels(results, baseline):
        draw_heatmap(results, baseline, args.out / "heatmap.png")
        pictures.append("heatmap.png")
    write_text(args.out / "table.md", text + "\n" + "\n".join(f"![{p}]({p})" for p in pictures) + "\n")
    write_csv(args.out / "cells.csv", run_rows(runs, results))
    write_csv(args.out / "curves.csv", curve_rows(runs, results))
    write_csv(args.out / "table.csv", table_rows(results, means))
    print(text)
    print("written:", *(args.out / name for name in ("table.md", "cells.csv", "curves.csv", "table.csv", *pictures)))


if __name__ == "__main__":
    exit_on_bad_input(main)
