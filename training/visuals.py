"""Pictures of a run: what its agents see and predict, and how its scores went.

python pictures.py --logdir RUN
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

from tools import BadInput, Parser, exit_on_bad_input
from tools import write_atomically

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROWS = ("seen", "predicted", "difference")


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def prediction_sheet(predictions: dict[str, tuple[np.ndarray, np.ndarray]], context: int, path: Path) -> None:
    """A strip of frames for each name: seen, predicted open loop after ``context`` frames, and their difference.

    predictions: name -> (truth, predicted), uint8 (T, H, W, 3) each.
    """
    steps = min(len(truth) for truth, _ in predictions.values())
    shown = np.unique(np.linspace(0, steps - 1, 9).astype(int))
    blocks = len(predictions)
    figure, axes = plt.subplots(3 * blocks, len(shown), figsize=(len(shown) + 1.2, 3.15 * blocks), squeeze=False)
    for block, (name, (truth, predicted)) in enumerate(predictions.items()):
        difference = ((predicted.astype(int) - truth) // 2 + 128).astype(np.uint8)
        for row, frames in enumerate((truth, predicted, difference)):
            for axis, t in zip(axes[3 * block + row], shown, strict=True):
                axis.imshow(frames[t], interpolation="nearest")
                axis.set_xticks([]), axis.set_yticks([])
                if row == 0:
                    axis.set_title(f"t = {t}" + (" (given)" if t < context else ""), fontsize=8)
            axes[3 * block + row, 0].set_ylabel(f"{name}\n{ROWS[row]}", fontsize=8)
    figure.tight_layout(pad=0.3)
    save_figure(figure, path)


def read_scores(logdir: Path) -> list[dict[str, str]]:
    """The lines of a run's scores.csv. BadInput if there are none."""
    path = logdir / "scores.csv"
    try:
        with path.open() as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}; give a run's directory") from None
    if any(not row.get("phase") or not row.get("mean") for row in rows):
        raise BadInput(f"{path} is damaged: a line has no phase or mean; mend or remove that line")
    if not rows:
        raise BadInput(f"{path} has no score yet; let the run reach its first evaluation")
    return rows


def score_curve(rows: list[dict[str, str]], title: str, path: Path) -> None:
    """Evaluation returns, mean and deviation over episodes, with the random policy's as a dashed line."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    scored = [row for row in rows if row["phase"] == "evaluate"]
    steps, mean, std = (np.array([float(row[k]) for row in scored]) for k in ("step", "mean", "std"))
    axis.plot(steps, mean, marker="o", label="agent, acting with its mode")
    axis.fill_between(steps, mean - std, mean + std, alpha=0.2)
    for row in rows:
        if row["phase"] == "evaluate_random":
            axis.axhline(float(row["mean"]), color="gray", linestyle="--", label="random policy")
    axis.set(title=title, xlabel="iterations (source agent steps + target iterations)", ylabel="episode return")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="best")
    figure.tight_layout()
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, type=Path, help="run directory")
    parser.add_argument("--title", help="of the curve (default: the directory's name)")
    own = parser.parse_args(arguments)
    path = own.logdir / "scores.png"
    score_curve(read_scores(own.logdir), own.title or own.logdir.name, path)
    print(path)


if __name__ == "__main__":
    exit_on_bad_input(main)
