"""Keep the records of finished runs, small enough to commit.

    python benchmarks/record.py runs/study_cpu results/study_cpu
    python benchmarks/record.py runs/study_cpu/RUN results/agents/walker_downhill --agent

For each finished run directory below the first folder, a folder of the same name with config.yaml (settings and
commit), scores.csv, and curves.csv: the curves of metrics.jsonl, thinned to at most --points lines. `report.py` reads
them like run directories. Runs that have a record are skipped. With --agent one run's target agent is kept, its weights
alone, for evaluate.py, analyse.py and export.py.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

from analysis.runs import read_run, run_folders
from tools import BadInput, Parser, directory_when_complete, exit_on_bad_input, one_line, write_text
from training.checkpoint import CHECKPOINT, build_agent, load_checkpoint, save_checkpoint

POINTS = 100  # lines of curves.csv, at most
LARGEST = 100_000  # bytes of curves.csv


def thinned_curves(path: Path, points: int) -> str:
    """The curves of a metrics.jsonl as CSV, with at most ``points`` of its lines, the first and the last among them.

    Raises BadInput if it is damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({one_line(error)}); remove the line") from None
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(points, len(rows))).astype(int))]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def record(run: Path, out: Path, points: int) -> None:
    """Write the record of one run. Raises BadInput if its curves are too large."""
    curves = thinned_curves(run / "metrics.jsonl", points)
    if len(curves) > LARGEST:
        raise BadInput(f"{run}: curves.csv would have {len(curves)} bytes, more than {LARGEST}; give fewer --points")
    with directory_when_complete(out) as folder:
        for name in ("config.yaml", "scores.csv"):
            write_text(folder / name, (run / name).read_text())
        write_text(folder / "curves.csv", curves)


def keep_agent(run: Path, out: Path) -> None:
    """Write the weights of a run's target agent, with its settings and scores. Raises BadInput if there is none."""
    saved = load_checkpoint(run / CHECKPOINT)
    agent, _ = build_agent(saved, run, "target", torch.device("cpu"))
    about = {key: saved[key] for key in ("config", "progress", "action_dims", "states", "channels", "data")}
    with directory_when_complete(out) as folder:
        for name in ("config.yaml", "scores.csv"):
            write_text(folder / name, (run / name).read_text())
        save_checkpoint(folder / CHECKPOINT, {**about, "agents": {"target": agent.model_dict()}})


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder with run directories")
    parser.add_argument("out", type=Path, help="the folder of the records")
    parser.add_argument("--points", type=int, help="at most so many lines of curves (default: 100)")
    parser.add_argument("--agent", action="store_true", help="keep the weights of the target agent of the run `runs`")
    args = parser.parse_args()
    if args.points is not None and args.points < 2:
        raise BadInput(f"--points {args.points}: give 2 or more")
    if args.agent:
        if args.points is not None:
            raise BadInput("--points has no effect with --agent; remove it")
        keep_agent(args.runs, args.out)
        return
    written = 0
    for folder in run_folders([args.runs]):
        run, out = read_run(folder), args.out / folder.name
        if run is not None and run.finished and (folder / "metrics.jsonl").exists() and not out.exists():
            record(folder, out, POINTS if args.points is None else args.points)
            written += 1
    print(f"{args.out}: {written} new records")


if __name__ == "__main__":
    exit_on_bad_input(main)
