"""The records of a run: curves, scores, selections and videos."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from tools import DIVERGED, BadInput, write_atomically
from training.visuals import encode_video

SCORES = "step domain phase round source_steps target_updates mean std success episodes".split()


class Logger:
    """Writes TensorBoard events and metrics.jsonl with the same curves, scores.csv, choices.csv and videos.

    Metrics may be tensors on any device. They are summed there, and read once, when `write` makes a point.
    """

    def __init__(self, directory: Path, sizes: dict[str, int] | None = None, step: int | None = None):
        """``sizes`` and ``step`` of a checkpoint's `state` remove what a killed run wrote after the checkpoint."""
        self.metrics_file, self.scores_file = directory / "metrics.jsonl", directory / "scores.csv"
        self.choices_file = directory / "choices.csv"  # only with several sources
        self.videos = directory / "videos"
        self.videos.mkdir(exist_ok=True)
        for file in self._files():
            with file.open("ab") as handle:
                handle.truncate((sizes or {}).get(file.name, 0))
        if not self.choices_file.stat().st_size:
            self.choices_file.unlink()
        if not self.scores_file.stat().st_size:
            self._append(self.scores_file, ",".join(SCORES) + "\n")
        self.writer = SummaryWriter(str(directory), purge_step=None if step is None else step + 1)
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        self.latest: dict[str, float] = {}

    def add(self, prefix: str, metrics: dict[str, Tensor | float]) -> None:
        """Add values to the mean of ``prefix/name`` at the next `write`."""
        for name, value in metrics.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def write(self, step: int, **context: int | str) -> None:
        """One point of every curve that has values, at ``step``. ``context`` goes into the line of metrics.jsonl.

        Raises BadInput if a value is not finite.
        """
        if not self.sums:
            return
        point = {key: float(total) / self.counts[key] for key, total in self.sums.items()}
        self.sums.clear(), self.counts.clear()
        for key, value in point.items():
            self.writer.add_scalar(key, value, step)
        finite = {key: value if math.isfinite(value) else str(value) for key, value in point.items()}
        self._append(self.metrics_file, json.dumps({"step": step, **context, **finite}) + "\n")
        wrong = [key for key, value in point.items() if not math.isfinite(value)]
        if wrong:
            raise BadInput(f"{wrong[0]} is not finite at step {step}: {DIVERGED}")
        self.latest.update(point)

    def score(self, **row: Any) -> None:
        """One line of scores.csv and a point of the evaluation curves; ``success`` is empty if the suite has none."""
        text = io.StringIO()
        csv.DictWriter(text, SCORES, lineterminator="\n").writerow(row)
        self._append(self.scores_file, text.getvalue())
        curves = {f"{row['domain']}/eval_return": row["mean"]}
        if row["success"] != "":
            curves[f"{row['domain']}/eval_success"] = row["success"]
        for name, value in curves.items():
            self.writer.add_scalar(name, value, row["step"])
        context = {key: row[key] for key in ("step", "phase", "round", "source_steps", "target_updates")}
        self._append(self.metrics_file, json.dumps({**context, **curves}) + "\n")

    def choice(self, **row: Any) -> None:
        """One line of choices.csv: the source of a target update, and the distance to each."""
        if not self.choices_file.exists():
            self._append(self.choices_file, ",".join(row) + "\n")
        self._append(self.choices_file, ",".join(str(value) for value in row.values()) + "\n")

    def video(self, name: str, frames: np.ndarray, step: int, fps: int = 20) -> None:
        """uint8 (T, H, W, 3) as a GIF, in TensorBoard and as videos/NAME-STEP.gif."""
        gif = encode_video(frames, fps, ".gif")
        path = self.videos / f"{name.replace('/', '-')}-{step:07d}.gif"
        write_atomically(path, lambda file: file.write(gif))
        _, height, width, _ = frames.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the sizes of the files, and the sums since the last point."""
        self.writer.flush()
        sums = {k: float(v) for k, v in self.sums.items()}
        sizes = {file.name: file.stat().st_size for file in self._files() if file.exists()}
        return {"sizes": sizes, "sums": sums, "counts": dict(self.counts), "latest": dict(self.latest)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.latest = dict(state["latest"])

    def close(self) -> None:
        self.writer.close()

    def _files(self) -> tuple[Path, ...]:
        return self.metrics_file, self.scores_file, self.choices_file

    @staticmethod
    def _append(path: Path, text: str) -> None:
        with path.open("a") as file:
            file.write(text)


def read_scores(logdir: Path) -> list[dict[str, str]]:
    """The lines of a run's scores.csv. Raises BadInput if there are none."""
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
