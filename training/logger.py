"""The run's records: curves, scores, videos, checkpoints; and schedules and seeding."""

import csv
import ctypes
import fcntl
import io
import json
import math
import random
import signal
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from tools import DIVERGED, BadInput
from tools import write_atomically


def progress_bar(total: int, label: str, **options: Any) -> tqdm:
    """A bar on stderr; in a log file, which keeps every line, one every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=label, dynamic_ncols=True, mininterval=interval, **options)


def linear_schedule(step: int, start: float, end: float, steps: int) -> float:
    """From ``start`` at step 0 to ``end`` at ``steps`` and after."""
    share = min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0
    return start + (end - start) * share


def times_passed(count: int, stride: int, every: int) -> int:
    """How many multiples of ``every`` a counter passed when its last ``stride`` brought it to ``count``."""
    return count // every - (count - stride) // every


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy and Python's own generator, for code that draws from the global ones."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generator_state(generator: np.random.Generator) -> str:
    """A numpy generator's state as text, which a checkpoint can hold."""
    return json.dumps(generator.bit_generator.state)


def restore_generator(generator: np.random.Generator, state: str) -> None:
    generator.bit_generator.state = json.loads(state)


def torch_random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_torch_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what an update frees for the next one, which asks for the same again.

    By default glibc gives every large block back to the system, and the page faults of getting it anew take up to half
    of an update on a CPU. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # the names of the two in malloc.h
        mallopt(trim_threshold, -1 if keep else 128 * 1024)
        mallopt(mmap_max, 0 if keep else 65536)


def to_tensors(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """A sampled batch as tensors, in memory that a GPU can copy from while it works."""
    tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
    return {k: v.pin_memory() for k, v in tensors.items()} if device.type == "cuda" else tensors


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch of `to_tensors` on ``device``; images stay uint8, a quarter of the traffic."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically. BadInput if the disk is full."""
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch's archive writer hides the disk's own error behind this one
        raise BadInput(
            f"{path} cannot be written ({one_line(error)}); free space, then the same command resumes"
        ) from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint's state. It is data only: nothing in it is executed. BadInput if it is no whole checkpoint."""
    if not path.exists():
        raise BadInput(f"no checkpoint at {path}; train first, or give the run's directory")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("its contents are damaged")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not {"config", "agents", "progress"} <= state.keys():
            raise ValueError("it is not a run's")
    except Exception as error:  # damage can surface as almost anything
        reason = one_line(error) or type(error).__name__
        raise BadInput(f"checkpoint {path} cannot be read ({reason}); remove it to start the run anew") from None
    return state


def one_line(error: BaseException) -> str:
    """The first sentence of an error's text, short enough to quote."""
    return str(error).strip().split("\n")[0].split(". ")[0][:120]


def hold(folder: Path) -> IO[bytes]:
    """Keep other processes out of ``folder`` for as long as the result is open. BadInput if one is at work there."""
    lock = (folder / ".lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise BadInput(f"another process is writing {folder}; wait for it, or choose another place") from None
    return lock


class StopRequest:
    """Ctrl-C or SIGTERM as a flag to look at between steps; a second one ends the process at once."""

    def __init__(self):
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the two signals inside the ``with``; what heeded them before does so again afterwards."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def encode_gif(frames: np.ndarray, fps: int) -> bytes:
    """uint8 (T, H, W, 3) -> the bytes of a looping GIF."""
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)
    return buffer.getvalue()


class Logger:
    """Curves and videos of one run: TensorBoard events and metrics.jsonl under the same names, and scores.csv.

    Metrics may be tensors on any device. They are summed there and read once, when `write` draws the point.
    """

    SCORES = (
        "step",
        "domain",
        "phase",
        "round",
        "source_steps",
        "target_updates",
        "mean",
        "std",
        "success",
        "episodes",
    )

    def __init__(self, directory: Path, sizes: dict[str, int] | None = None, step: int | None = None):
        """``sizes`` and ``step``, from a checkpoint's `state`, cut off what a killed run wrote after it."""
        self.metrics_file, self.scores_file = directory / "metrics.jsonl", directory / "scores.csv"
        self.choices_file = directory / "choices.csv"  # only where there is a choice
        self.videos = directory / "videos"
        self.videos.mkdir(exist_ok=True)
        for file in self._files():
            with file.open("ab") as handle:
                handle.truncate((sizes or {}).get(file.name, 0))
        if not self.choices_file.stat().st_size:
            self.choices_file.unlink()
        if not self.scores_file.stat().st_size:
            self._append(self.scores_file, ",".join(self.SCORES) + "\n")
        self.writer = SummaryWriter(str(directory), purge_step=None if step is None else step + 1)
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        self.latest: dict[str, float] = {}

    def add(self, prefix: str, metrics: dict[str, Tensor | float]) -> None:
        """Count values towards the mean of ``prefix/name`` at the next `write`."""
        for name, value in metrics.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def write(self, step: int, **context: int | str) -> None:
        """One point of every curve that has values, at ``step``; ``context`` goes into the line of metrics.jsonl."""
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
        """One line of scores.csv; ``success`` is empty where the suite has none."""
        text = io.StringIO()
        csv.DictWriter(text, self.SCORES, lineterminator="\n").writerow(row)
        self._append(self.scores_file, text.getvalue())
        curves = {f"{row['domain']}/eval_return": row["mean"]}
        if row["success"] != "":
            curves[f"{row['domain']}/eval_success"] = row["success"]
        for name, value in curves.items():
            self.writer.add_scalar(name, value, row["step"])
        context = {key: row[key] for key in ("step", "phase", "round", "source_steps", "target_updates")}
        self._append(self.metrics_file, json.dumps({**context, **curves}) + "\n")

    def choice(self, **row: Any) -> None:
        """One line of choices.csv: which source an update of the target followed, and how far it was from each."""
        if not self.choices_file.exists():
            self._append(self.choices_file, ",".join(row) + "\n")
        self._append(self.choices_file, ",".join(str(value) for value in row.values()) + "\n")

    def video(self, name: str, frames: np.ndarray, step: int, fps: int = 20) -> None:
        """uint8 (T, H, W, 3) as a GIF, in TensorBoard and as videos/NAME-STEP.gif."""
        gif = encode_gif(frames, fps)
        path = self.videos / f"{name.replace('/', '-')}-{step:07d}.gif"
        write_atomically(path, lambda file: file.write(gif))
        _, height, width, _ = frames.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def state(self) -> dict[str, Any]:
        """What `Logger` needs to go on after this moment: file sizes, and the sums of the point under way."""
        self.writer.flush()
        sums = {k: float(v) for k, v in self.sums.items()}
        sizes = {file.name: file.stat().st_size for file in self._files() if file.exists()}
        return {"sizes": sizes, "sums": sums, "counts": dict(self.counts), "latest": dict(self.latest)}

    def _files(self) -> tuple[Path, ...]:
        return self.metrics_file, self.scores_file, self.choices_file

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums, self.counts, self.latest = (
            dict(state["sums"]),
            dict(state["counts"]),
            dict(state["latest"]),
        )

    def close(self) -> None:
        self.writer.close()

    @staticmethod
    def _append(path: Path, text: str) -> None:
        with path.open("a") as file:
            file.write(text)
