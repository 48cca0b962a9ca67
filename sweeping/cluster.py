"""Jobs as tasks of Ray: on this machine, or on a cluster that is running already."""

import atexit
import contextlib
import ctypes
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import BadInput, one_line, require
from training.threads import available_cores

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task without GPUs sees none
if (Path.home() / ".ray" / "auth_token").exists():  # without this, Ray uses it only on the machine of a cluster's head
    os.environ.setdefault("RAY_AUTH_MODE", "token")

with contextlib.suppress(ModuleNotFoundError):  # without it, `connect` refuses
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

ROOT = Path(__file__).resolve().parent.parent
SECONDS_TO_CONNECT = 5
OBJECT_STORE = 80 * 2**20  # bytes; Ray's minimum is 75 MiB, and jobs exchange files only
STOPPED = "stopped"
LOST = "lost"  # the status of a task of which Ray has lost the process
PR_SET_PDEATHSIG = 1  # prctl(2)
# Ray makes sockets in FOLDER/session_DATE_TIME_PID/sockets/NAME. Linux allows a socket's path 107 bytes.
LONGEST_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.123456")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class Result:
    """How a job's command ended: its exit status, STOPPED or LOST; and the last line of its log."""

    status: int | str
    line: str = ""


Task = Any  # ray.ObjectRefGenerator
News = dict[str, Any] | Result  # what `execute` yields


class Cluster:
    """Runs commands of this project as tasks of Ray, which `connect` has connected.

    Args:
        resources: ``cpus`` and ``gpus`` of one command.
    """

    def __init__(self, resources: dict[str, float]):
        self.threads = threads(resources)
        self.execute = ray.remote(num_cpus=resources["cpus"], num_gpus=resources["gpus"], max_retries=0)(execute)

    def start(self, command: tuple[str, ...], log: Path, stop_file: Path) -> Task:
        """Run a command as soon as a machine has the resources. See `execute`."""
        return self.execute.remote(command, Path.cwd(), log.absolute(), stop_file.absolute(), self.threads)

    def news(self, tasks: list[Task], seconds: float) -> Iterable[tuple[Task, News]]:
        """What tasks yield within ``seconds``, at most one thing a task. A `Result` is a task's last."""
        ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=seconds, fetch_local=False)
        for task in ready:
            try:
                yield task, ray.get(next(task))
            except RayError as error:
                yield task, Result(LOST, died(error))

    def cancel(self, task: Task) -> None:
        """Take back a command that has not begun."""
        ray.cancel(task)


def connect(address: str | None, resources: dict[str, float]) -> Cluster:
    """Connect to the cluster at ``address``, or start Ray on this machine.

    Raises BadInput if there is none, if no machine of it has the resources of a run, or if Ray is not installed.
    """
    require("ray", "ray", "sweep.py")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "num_cpus": available_cores(),
            "_temp_dir": session_folder(),
        }
    else:
        check_reachable(address)
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        if address is None:
            raise BadInput(f"Ray cannot be started on this machine: {one_line(error)}") from None
        raise BadInput(
            f"--address {address}: no Ray cluster answers ({one_line(error)}); start one with `ray start --head`, or "
            f"leave --address out"
        ) from None
    check_resources(resources)
    return Cluster(resources)


def session_folder() -> str:
    """The folder below which Ray makes those of its sessions: its own choice, or a short one that is deleted at exit.

    Raises BadInput if there is none in which it can make its sockets.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    if is_usable(usual):
        return str(usual)
    for parent in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="ray-", dir=parent)
            atexit.register(end_session, folder)
            return folder
    raise BadInput(
        f"Ray cannot make its sockets in {usual}, nor in {', '.join(SHORT_FOLDERS)}: set RAY_TMPDIR to a folder that "
        f"can be written, with a path of at most {LONGEST_FOLDER - len('/ray')} characters"
    )


def end_session(folder: str) -> None:
    """End Ray, and delete the folder of its sessions."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def is_usable(folder: Path) -> bool:
    """Whether Ray can make its sockets in ``folder``, which is made if it is missing.

    Ray puts the path into command lines as text, so it may have no spaces and no other special characters.
    """
    if not folder.is_absolute() or not re.fullmatch(rf"[\w./+-]{{1,{LONGEST_FOLDER}}}", str(folder), re.ASCII):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        socket_folder = tempfile.mkdtemp(dir=folder)
        with socket.socket(socket.AF_UNIX) as probe:  # some file systems have no sockets
            probe.bind(f"{socket_folder}/s")
    except OSError:
        return False
    shutil.rmtree(socket_folder, ignore_errors=True)
    return True


def check_reachable(address: str) -> None:
    """Raises BadInput if no Ray cluster lets this machine in at HOST:PORT. `ray.init` itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise BadInput(f"--address {address}: give auto, or HOST:PORT of the cluster's head, like 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        subprocess.run(
            [sys.executable, "-c", f"import ray; ray.init({address!r})"],
            check=True, capture_output=True, timeout=6 * SECONDS_TO_CONNECT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"--address {address}: nothing answers there ({one_line(error)}); start a cluster with "
            f"`ray start --head --port {port}`, or leave --address out"
        ) from None
    except subprocess.SubprocessError as error:
        kinds = ("InvalidAuthToken", "a token that this machine lacks is required")
        reason = kinds[1] if kinds[0] in str(getattr(error, "stderr", "")) else "what answers is not a Ray cluster"
        raise BadInput(f"--address {address}: {reason}; see docs/sweeps.md, or leave --address out") from None


def check_resources(resources: dict[str, float]) -> None:
    """Raises BadInput if no machine has what one run needs."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, key in (("gpus", "GPU"), ("cpus", "CPU")):
        most = max((machine.get(key, 0) for machine in machines), default=0)
        if resources[name] > most:
            raise BadInput(
                f"resources: a run needs {resources[name]:g} {name}, the largest machine has {most:g}: lower "
                f"resources.{name} (--set resources.{name}={most:g})"
            )


def threads(resources: dict[str, float]) -> int:
    """The number of threads that a run of a sweep computes with."""
    return max(1, int(resources["cpus"]))


def execute(command: tuple[str, ...], folder: Path, log: Path, stop_file: Path, threads: int) -> Iterator[News]:
    """Run ``python COMMAND`` in ``folder``, its output appended to ``log``.

    Yields the machine's name when it begins, and a `Result` at the end. When ``stop_file`` appears, the command is told
    to save and stop. If this process is killed, the command gets SIGTERM and saves too.
    """
    yield {"node": platform.node()}
    arguments = [sys.executable, "-u", str(ROOT / command[0]), *command[1:]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(['python', *command])}\n".encode())
        output.flush()
        child = subprocess.Popen(
            arguments, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
    stopping, status = False, None
    while status is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(timeout=0.5)
        if status is None and not stopping and stop_file.exists():
            stopping = True
            child.terminate()
    yield Result(STOPPED if stopping and status else status, last_line(log))


def end_with_parent() -> None:
    """Linux: the process gets SIGTERM when the one that made it ends. Elsewhere it goes on, and keeps its lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def last_line(log: Path) -> str:
    """The error line at the end of a log, or else its last line. Progress bars are left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip() and "it/s" not in line]
    errors = [line for line in lines[-3:] if line.startswith("error:")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def died(error: "RayError") -> str:
    """Why a task ended without a result."""
    kinds = {
        OutOfMemoryError: "its machine ran out of memory",
        NodeDiedError: "its machine was lost",
        WorkerCrashedError: "its process was killed",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), one_line(error))
