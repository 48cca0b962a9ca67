"""Running a sweep's jobs to their end: in their order, with retries, until all are done or the user stops them."""

import os
import platform
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sweeping.cluster import STOPPED, Cluster, News, Result, Task
from sweeping.jobs import RUN, Job
from tools import LOCKED, StopRequest

LOG = "log.txt"
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_WHILE_LOCKED = 5.0  # until a folder that another process writes is looked at again
BAD_INPUT = 2  # exit status


class State(StrEnum):
    WAITING = "waiting"  # for the jobs that it needs
    QUEUED = "queued"  # for a free place
    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another process writes its folder
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = (State.DONE, State.FAILED, State.STOPPED)


@dataclass
class Progress:
    """What became of a job."""

    job: Job
    state: State = State.WAITING
    attempts: int = 0  # in this sweep
    node: str = ""
    seconds: float = 0.0  # of all attempts
    reason: str = ""  # why it failed, or why its last attempt ended
    needed: bool = False  # failed because a job that it needs has failed
    not_before: float = 0.0  # time.monotonic at which it may be queued
    began: float = 0.0  # time.monotonic of the running attempt

    @property
    def elapsed(self) -> float:
        running = time.monotonic() - self.began if self.state == State.RUNNING else 0.0
        return self.seconds + running


class Scheduler:
    """Runs jobs, each as a task of a cluster.

    Args:
        retries: how often a job that died is started again. Bad input is not retried.
        stop_file: a file that tells running commands to stop, in a folder that all machines see.
    """

    def __init__(self, jobs: Iterable[Job], cluster: Cluster, retries: int, stop_file: Path):
        self.progress = {job.name: Progress(job, State.DONE if job.done else State.WAITING) for job in jobs}
        self.cluster, self.retries, self.stop_file = cluster, retries, stop_file
        self.tasks: dict[Task, Progress] = {}
        self.stop = StopRequest()

    @property
    def ended(self) -> bool:
        return all(progress.state in ENDED for progress in self.progress.values())

    def step(self) -> None:
        """Start what can be started, and wait a moment for news of what runs."""
        if self.stop.signal is not None and not self.stop_file.exists():
            self._stop()
        for progress in self.progress.values():
            self._start_if_ready(progress)
        if not self.tasks:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return
        for task, news in self.cluster.news(list(self.tasks), SECONDS_BETWEEN_LOOKS):
            self._receive(task, news)

    def _start_if_ready(self, progress: Progress) -> None:
        waits = progress.state in (State.WAITING, State.ELSEWHERE) and time.monotonic() >= progress.not_before
        if self.stop.signal is not None or not waits:
            return
        if progress.job.has_output:
            progress.state = State.DONE
            return
        needed = [self.progress[name] for name in progress.job.needs]
        if failed := [need for need in needed if need.state == State.FAILED]:
            progress.state, progress.reason, progress.needed = State.FAILED, f"{failed[0].job.name} failed", True
        elif all(need.state == State.DONE for need in needed):
            job = progress.job
            self.tasks[self.cluster.start(job.command, job.folder / LOG, self.stop_file)] = progress
            progress.state = State.QUEUED

    def _receive(self, task: Task, news: News) -> None:
        """What a task yields: it begins, or it ends."""
        if isinstance(news, Result):
            self._end(self.tasks.pop(task), news)
            return
        progress = self.tasks[task]
        progress.state, progress.node, progress.began = State.RUNNING, news["node"], time.monotonic()
        progress.attempts += 1

    def _end(self, progress: Progress, result: Result) -> None:
        if progress.state == State.RUNNING:
            progress.seconds += time.monotonic() - progress.began
        else:
            progress.attempts += 1  # its machine was lost before it began
        progress.reason = "" if result.status == 0 else reason(result)
        locked = result.status == BAD_INPUT and LOCKED in result.line
        if result.status == 0 or progress.job.has_output:
            progress.state, progress.reason = State.DONE, ""
        elif result.status == STOPPED or (self.stop.signal is not None and (locked or result.status != BAD_INPUT)):
            progress.state = State.STOPPED
        elif locked:
            progress.attempts -= 1
            progress.state, progress.not_before = State.ELSEWHERE, time.monotonic() + SECONDS_WHILE_LOCKED
        elif result.status == BAD_INPUT or progress.attempts > self.retries:
            progress.state = State.FAILED
        else:
            progress.state = State.WAITING

    def _stop(self) -> None:
        """Tell running commands to save and stop; cancel the others."""
        self.stop_file.write_text(f"{platform.node()} {os.getpid()}\n")
        for task, progress in list(self.tasks.items()):
            if progress.state == State.QUEUED:
                self.cluster.cancel(task)
                del self.tasks[task]
                progress.state = State.STOPPED
        for progress in self.progress.values():
            if progress.state in (State.WAITING, State.ELSEWHERE):
                progress.state = State.STOPPED


def reason(result: Result) -> str:
    """Why a command ended with another status than 0."""
    if isinstance(result.status, int) and result.status < 0:
        name = signal.Signals(-result.status).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return result.line or f"status {result.status}"


def counts(progress: Iterable[Progress]) -> dict[str, Any]:
    """How many runs, without the jobs that prepare them, are in each state."""
    found = dict.fromkeys(State, 0)
    for one in progress:
        if one.job.kind == RUN:
            found[one.state] += 1
    return found
