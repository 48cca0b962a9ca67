"""Learning curves of agents that learn online (`collect.py --policy dreamer`), kept and drawn.

    python benchmarks/learning.py record RUN results/small_online/bfloat16-seed0   # keep a run's scores and settings
    python benchmarks/learning.py draw results/small_online docs/learning_curve.png

A record is the run's config.yaml, and curve.csv with the columns steps, minutes, return: agent steps, minutes since the
first evaluation, mean return of an evaluation. Minutes say something only if the run was not stopped and had the cores
to itself; --minutes draws them too. `draw` takes several folders. Records equal in the settings --by have one
colour; thick is their mean.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ruamel.yaml import YAML
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

from tools import BadInput, Parser, exit_on_bad_input, write_atomically, write_csv, write_text

Curve = dict[str, np.ndarray]  # the columns of curve.csv


def record(run: Path, out: Path) -> None:
    """Write the record of ``run`` to ``out``. Minutes are those of the event files, pauses included."""
    tag, folder = "source/eval/return", run / "source"
    events = EventAccumulator(str(folder if folder.is_dir() else run), {"scalars": 0})  # an older run has no folder
    events.Reload()
    if not (run / "config.yaml").is_file() or tag not in events.Tags()["scalars"]:
        raise BadInput(f"{run} has no evaluations of a source agent; give the directory of a run")
    points = events.Scalars(tag)
    rows = [
        {"steps": p.step, "minutes": round((p.wall_time - points[0].wall_time) / 60, 2), "return": round(p.value, 2)}
        for p in points
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "curve.csv", rows)
    write_text(out / "config.yaml", (run / "config.yaml").read_text())
    print(f"{out}: {len(rows)} evaluations, {rows[-1]['minutes']} minutes")


def read(folder: Path, by: list[str]) -> tuple[str, Curve]:
    """(the values of the settings ``by``, curve) of a record. A setting that its version did not have is left out."""
    settings = YAML(typ="safe").load((folder / "config.yaml").read_text())
    values = [f"{key} {'none' if settings[key] == '' else settings[key]}" for key in by if key in settings]
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    return ", ".join(values) or "without", {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


def draw(folders: list[Path], out: Path, by: list[str], steps: int, minutes: bool) -> None:
    """Return against the first ``steps`` steps, and with ``minutes`` against these, of all records in ``folders``."""
    curves = defaultdict(list)
    for path in sorted(path for folder in folders for path in folder.glob("*/curve.csv")):
        name, curve = read(path.parent, by)
        curves[name].append({key: column[curve["steps"] <= steps] for key, column in curve.items()})
    if not curves:
        raise BadInput(f"{folders[0]} has no records; make some with `learning.py record`")
    keys = [("steps", 1000, "agent steps (thousands)"), ("minutes", 1, "minutes")][: 1 + minutes]
    figure, axes = plt.subplots(
        1, len(keys), figsize=(1 + 5 * len(keys), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    panels = axes[0]
    for color, (name, group) in zip(
        plt.rcParams["axes.prop_cycle"].by_key()["color"], sorted(curves.items()), strict=False
    ):
        for panel, (key, scale, label) in zip(panels, keys, strict=True):
            panel.set_xlabel(label)
            for curve in group:
                panel.plot(curve[key] / scale, curve["return"], color=color, alpha=0.4, linewidth=1)
            grid = np.linspace(0, min(curve[key][-1] for curve in group), 60)
            mean = np.mean([np.interp(grid, curve[key], curve["return"]) for curve in group], 0)
            panel.plot(
                grid / scale,
                mean,
                color=color,
                linewidth=2.2,
                label=f"{name}, {len(group)} run{'s' * (len(group) > 1)}",
            )
    panels[0].set(ylabel="return, mean of 10 episodes", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    for panel in panels:
        panel.grid(alpha=0.3)
    write_atomically(out, lambda file: figure.savefig(file, format="png", dpi=110))
    print(out)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "draw"))
    parser.add_argument("source", type=Path, nargs="+", help="a run, or folders of records")
    parser.add_argument("out", type=Path, help="the record's folder, or the picture")
    parser.add_argument("--by", default="precision", help="with draw: settings, with commas (default: precision)")
    parser.add_argument("--steps", type=int, help="with draw: of the beginning alone")
    parser.add_argument("--minutes", action="store_true", help="with draw: also against minutes")
    args = parser.parse_args()
    if args.command == "draw":
        draw(args.source, args.out, args.by.split(","), args.steps or sys.maxsize, args.minutes)
    elif len(args.source) > 1:
        raise BadInput("record takes one run, and the folder of its record")
    else:
        record(args.source[0], args.out)


if __name__ == "__main__":
    exit_on_bad_input(main)
