"""What a sweep shows: a line for each running job and one for the sweep, and sweep.csv."""

import csv
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sweeping.jobs import RUN
from sweeping.scheduler import LOG, Progress, Scheduler, State, counts
from tools import BadInput, progress_bar, write_csv
from training.logger import read_status

SECONDS_BETWEEN_LINES = 30.0  # in a log file
SECONDS_BETWEEN_CSV = 5.0
LONGEST_LABEL = 60


def short(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Display:
    """Progress bars on a terminal; in a log file a line for each job now and then."""

    def __init__(self, scheduler: Scheduler, csv_file: Path):
        self.scheduler, self.csv_file = scheduler, csv_file
        self.terminal = sys.stderr.isatty()
        self.earlier = read_csv(csv_file)
        self.runs = [p for p in scheduler.progress.values() if p.job.kind == RUN]
        self.sweep = progress_bar(len(self.runs), "sweep", position=0, unit="run", disable=not self.terminal)
        self.bars: dict[str, tqdm] = {}
        self.first_steps: dict[str, int] = {}
        self.states: dict[str, State] = {}
        self.csv_at = self.lines_at = 0.0
        self.changed = False  # since sweep.csv was written

    def update(self, last: bool = False) -> None:
        """Show the state of all jobs. ``last``: write sweep.csv now."""
        now = time.monotonic()
        for progress in self.scheduler.progress.values():
            self.changed |= self.states.get(progress.job.name) != progress.state
            self._event(progress)
            self.states[progress.job.name] = progress.state
        running = [p for p in self.scheduler.progress.values() if p.state == State.RUNNING]
        statuses = {p.job.name: read_status(p.job.folder) for p in running}
        if self.terminal:
            self._draw_bars(statuses)
        elif last or now > self.lines_at + SECONDS_BETWEEN_LINES:
            self.lines_at = now
            for progress in running:
                print(f"  {self._line(progress, statuses[progress.job.name])}", file=sys.stderr)
            print(f"sweep: {self._summary()} of {len(self.runs)} runs", file=sys.stderr)
        if last or (self.changed and now > self.csv_at + SECONDS_BETWEEN_CSV):
            self.csv_at, self.changed = now, False
            try:
                write_csv(self.csv_file, self.rows())
            except BadInput as error:  # the runs go on
                tqdm.write(f"warning: {error}", file=sys.stderr)

    def close(self) -> None:
        for bar in (*self.bars.values(), self.sweep):
            bar.close()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of sweep.csv: state, machine, attempts and wall time of every job, of earlier sweeps too."""
        rows = [row for name, row in self.earlier.items() if name not in self.scheduler.progress]
        for progress in self.scheduler.progress.values():
            before, status = self.earlier.get(progress.job.name, {}), read_status(progress.job.folder)
            rows.append(
                {
                    "job": progress.job.name,
                    "kind": progress.job.kind,
                    "state": str(progress.state),
                    "node": progress.node or before.get("node", ""),
                    "attempts": progress.attempts + int(before.get("attempts") or 0),
                    "wall_seconds": round(progress.elapsed + float(before.get("wall_seconds") or 0)),
                    "score": status.get("score") if progress.job.kind == RUN else None,
                    "reason": progress.reason,
                }
            )
        return rows

    def _event(self, progress: Progress) -> None:
        """Print a line when a job begins, ends or is started again."""
        name, before, now = progress.job.name, self.states.get(progress.job.name), progress.state
        if before == now or (before is None and now in (State.DONE, State.WAITING)):
            return
        attempt = f", attempt {progress.attempts}" if progress.attempts > 1 else ""
        texts = {
            State.RUNNING: f"running on {progress.node}{attempt}",
            State.DONE: f"done, {short(progress.seconds)}",
            State.FAILED: f"failed: {progress.reason}",
            State.WAITING: f"ended, and is started again: {progress.reason}",
            State.ELSEWHERE: "another process has it; waiting for that",
            State.STOPPED: "stopped",
        }
        if now in texts:
            tqdm.write(f"{name}: {texts[now]}", file=sys.stderr)

    def _line(self, progress: Progress, status: dict[str, Any]) -> str:
        name, step, steps = progress.job.name, status.get("step", 0), status.get("steps", 0)
        if not status or status.get("finished"):
            return f"{name}: starting, {short(progress.elapsed)}"
        score = "" if status.get("score") is None else f", score {status['score']:.1f}"
        left = self._seconds_left(progress, step, steps)
        ending = "" if left is None else f", {short(left)} left"
        return f"{name}: {status.get('phase')}, step {step} of {steps}{score}{ending}"

    def _seconds_left(self, progress: Progress, step: int, steps: int) -> float | None:
        """By the steps since its attempt was first seen; None before there are any."""
        key = f"{progress.job.name} {progress.attempts}"
        first = self.first_steps.setdefault(key, step)
        elapsed = time.monotonic() - progress.began
        return elapsed * (steps - step) / (step - first) if step > first else None

    def _draw_bars(self, statuses: dict[str, dict[str, Any]]) -> None:
        for name in list(self.bars):
            if name not in statuses:
                self.bars.pop(name).close()
        taken = {bar.pos for bar in self.bars.values()}
        for name, status in statuses.items():
            if name not in self.bars:
                position = next(i for i in range(1, 10_000) if -i not in taken and i not in taken)
                taken.add(position)
                label = name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"
                bar = progress_bar(0, label, position=position, leave=False, initial=status.get("step", 0))
                self.bars[name] = bar
            bar = self.bars[name]
            bar.total, bar.n = status.get("steps", 0), status.get("step", 0)
            score = status.get("score")
            bar.set_postfix({"phase": status.get("phase")} | ({} if score is None else {"score": f"{score:.1f}"}))
        self.sweep.n = counts(self.runs)[State.DONE]
        self.sweep.set_postfix_str(self._summary())

    def _summary(self) -> str:
        return ", ".join(f"{number} {state}" for state, number in counts(self.runs).items() if number)


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    """The lines of an earlier sweep.csv by job; {} if there is none."""
    try:
        with path.open() as file:
            return {row["job"]: row for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError):
        return {}


def failures(progress: Iterable[Progress]) -> list[str]:
    """A line for each job that failed by itself, with the number of those that needed it."""
    failed, lines = [one for one in progress if one.state == State.FAILED], []
    for one in failed:
        if not one.needed:
            others = sum(other.needed and one.job.name in other.job.needs for other in failed)
            more = f"; {others} jobs needed it" if others else ""
            lines.append(f"{one.job.name}: {one.reason} (log: {one.job.folder / LOG}){more}")
    return lines
