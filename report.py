r"""Tables and figures from run directories: returns, success rates, normalised scores, curves, a heat map.

python report.py runs --out report

Every folder under the given ones that holds config.yaml and scores.csv is a run. Runs that differ in their seed alone
share a cell of the tables.
"""

import argparse
import re
import sys
from pathlib import Path

from tools import BadInput, Parser, exit_on_bad_input, nearest
from analysis.cells import Results, results_of
from analysis.conditions import refuse_duplicates, unlike
from analysis.csv_rows import run_rows, table_rows
from analysis.curves import AXES, draw_curves
from analysis.heatmap import draw_heatmap, heat_baseline, heat_cells
from analysis.interquartile import Interval, interquartile_means
from analysis.markdown import bullets, missing_cells, normalised_section, score_sections
from analysis.rows import name_rows
from analysis.runs import RunResult, read_runs, run_folders
from tools import write_csv, write_text


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders that hold run directories, anywhere")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--unfinished", action="store_true", help="also runs without the evaluation at their end")
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="a setting whose values make rows of their own, where they differ; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_score", action="append", default=[], metavar="[TASK=]RETURN",
        help="return that is 1 when normalised; may be repeated (default: max_scores.yaml's)",
    )  # fmt: skip
    parser.add_argument("--x", choices=AXES, default="step", help="what the curves are drawn against (default: step)")
    parser.add_argument(
        "--heatmap", choices=("return", "improvement"),
        help="show coworld's return, or its ratio to that of offline_dv2 or dv2_finetune, whichever stands beside more "
        "of it (default: improvement if one stands beside all of it, else return)",
    )  # fmt: skip
    return parser


def choose_runs(runs: list[RunResult], unfinished: bool) -> tuple[list[RunResult], list[str]]:
    """(the runs for the tables, a line for each that is not finished). BadInput if none is left or two are one."""
    lines = [f"{run.folder}: {run.where_it_stands}" for run in runs if not run.finished]
    chosen = [run for run in runs if run.finished or (unfinished and run.scores)]
    if not chosen:
        hint = "" if unfinished or not any(run.scores for run in runs) else "; --unfinished takes them as they are"
        raise BadInput(f"none of the {len(runs)} runs is finished ({lines[0]}){hint}")
    refuse_duplicates(chosen)
    return chosen, lines


def check_by(by: list[str], runs: list[RunResult]) -> None:
    known = {key for run in runs for key in run.settings}
    for key in by:
        if key not in known:
            raise BadInput(f"--by {key}: no run has such a setting; {nearest(key, known)}")


def draw(results: Results, own: argparse.Namespace) -> list[str]:
    """Write the pictures. Returns their names."""
    names = []
    for target in results.maximum:
        names.append(f"curves-{re.sub(r'[^a-z0-9_-]+', '-', str(target))}.png")
        draw_curves(results, target, own.x, own.out / names[-1])
    if heat_cells(results, None):
        draw_heatmap(results, heat_baseline(results, own.heatmap), own.out / "heatmap.png")
        names.append("heatmap.png")
    return names


def report_text(results: Results, means: dict[str, Interval], lists: dict[str, list[str]]) -> str:
    sections = [f"# Report on {len(results.runs)} run{'s' * (len(results.runs) > 1)}"]
    sections += [*score_sections(results), *normalised_section(results, means)]
    for title, lines in lists.items():
        sections += bullets(title, lines)
    return "\n\n".join(sections) + "\n"


def main(arguments: list[str] | None = None) -> None:
    own = command().parse_args(arguments)
    runs, left_out = read_runs(run_folders(own.runs))
    for line in left_out:
        print(f"warning: {line}", file=sys.stderr)
    check_by(own.by, runs)
    name_rows(runs, own.by)
    chosen, unfinished = choose_runs(runs, own.unfinished)
    results = results_of(chosen, own.max_score)
    heat_baseline(results, own.heatmap)  # refuses before anything is written
    means = interquartile_means(results)
    taken = "in the tables, marked" if own.unfinished else "not in the tables; --unfinished takes them"
    notes = [*left_out, *unlike(chosen)]
    lists = {"Missing": missing_cells(results), f"Not finished ({taken})": unfinished, "Notes": notes}
    text = report_text(results, means, lists)
    try:
        own.out.mkdir(parents=True, exist_ok=True)
        pictures = draw(results, own)
        write_text(own.out / "table.md", text + "\n" + "\n".join(f"![{p}]({p})" for p in pictures) + "\n")
        write_csv(own.out / "cells.csv", run_rows(runs, results))
        write_csv(own.out / "table.csv", table_rows(results, means))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadInput(f"--out {own.out} cannot be written: {error.strerror}; choose another") from None
    print(text)
    print("written:", *(own.out / name for name in ("table.md", "cells.csv", "table.csv", *pictures)))


if __name__ == "__main__":
    exit_on_bad_input(main)
