"""Environments in processes of their own: they step while the learner works, and a crash stays out of it.

A process is started as a plain program (`wrappers.worker`), not by `multiprocessing`, whose children import
the main module again: a simulator's process holds a simulator, and no copy of PyTorch.
"""

import os
import signal
import subprocess
import sys
import weakref
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from tools import BadInput
from wrappers.shared.backend import choose_backend
from wrappers.shared.tasks import Task, parse_task

_ROOT = Path(__file__).resolve().parent.parent
_GONE = (EOFError, ConnectionError)  # what a pipe raises when its other end has ended


class WorkerCrash(RuntimeError):
    """An environment's process failed; the message has its traceback, or what ended it."""


def _start(connection) -> subprocess.Popen:
    """Start a worker on its end of a pipe, in a process group of its own: Ctrl-C is for the parent alone."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "wrappers.worker", str(connection.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        process_group=0,
    )


def _stop(connection, process: subprocess.Popen) -> None:
    connection.close()  # the worker reads the end of its pipe, closes its environment and exits
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class ProcessEnv(gymnasium.Env):
    """The environment of ``task`` in its own process, with the spaces, results and errors of `make_env`'s.

    ``step`` is ``step_async`` and ``step_wait``: between the two the environment works, and so may the
    caller. Likewise ``reset``. The process ends with `close`, with the last reference, and with this process,
    however that ends. Constructing it does not wait for the simulator, so several start side by side.

    Raises:
        BadInput: as `make_env`, when the environment is first used.
        WorkerCrash: the process failed; it says how, with the traceback if there is one.
    """

    render_mode = "rgb_array"

    def __init__(self, task: str | Task, **settings: Any):
        self.task = parse_task(task)
        choose_backend()  # here, once, for all workers
        self._connection, theirs = Pipe()
        self._process = _start(theirs)
        theirs.close()
        self._finish = weakref.finalize(self, _stop, self._connection, self._process)
        self._pending: list[str] = []  # requests whose reply has not been read, oldest first
        self._about: dict[str, Any] | None = None
        self._send("make", str(self.task), settings)

    def _check_open(self) -> None:
        if not self._finish.alive:
            raise RuntimeError(f"the environment {self.task} is closed")

    def _send(self, method: str, *arguments: Any) -> None:
        self._check_open()
        try:
            self._connection.send((method, arguments))
        except _GONE:
            self._crashed()
        self._pending.append(method)

    def _receive(self, method: str) -> Any:
        """The reply to the only request under way, which must be ``method``."""
        self._check_open()
        if self._pending != [method]:
            raise RuntimeError(f"{self.task}: no {method} is under way, but {self._pending}")
        try:
            outcome, result = self._connection.recv()
        except _GONE:
            self._crashed()
        self._pending.clear()
        if outcome == "bad input":
            self.close()
            raise BadInput(result)
        if outcome == "error":
            self.close()
            raise WorkerCrash(f"the environment {self.task} failed in its process:\n{result}")
        return result

    def _crashed(self) -> None:
        self.close()
        code = self._process.returncode
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        raise WorkerCrash(f"the process of the environment {self.task} {how}")

    def _call(self, method: str, *arguments: Any) -> Any:
        self._ready()
        self._send(method, *arguments)
        return self._receive(method)

    def _ready(self) -> dict[str, Any]:
        """Wait for the simulator to have started; what it tells of itself."""
        if self._about is None:
            self._about = self._receive("make")
        return self._about

    @property
    def observation_space(self) -> gymnasium.spaces.Dict:
        """As `make_env`'s."""
        return self._ready()["observation_space"]

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """As `make_env`'s."""
        return self._ready()["action_space"]

    @property
    def description(self) -> dict[str, Any]:
        """As `make_env`'s."""
        return self._ready()["description"]

    @property
    def pid(self) -> int:
        """The number of the environment's process."""
        return self._process.pid

    def reset_async(self, *, seed: int | None = None, options: dict | None = None) -> None:
        """Begin a reset; a step still under way is dropped."""
        self._ready()
        while self._pending:
            self._drop()
        self._send("reset", seed, options)

    def _drop(self) -> None:
        method, *others = self._pending
        self._pending = [method]
        self._receive(method)
        self._pending = others

    def reset_wait(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The observation and information of the reset under way."""
        return self._receive("reset")

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """As `make_env`'s."""
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def step_async(self, action: np.ndarray) -> None:
        """Begin a step with ``action`` (A,)."""
        self._ready()
        if self._pending:
            raise RuntimeError(f"{self.task}: {self._pending[0]} is still under way")
        self._send("step", np.asarray(action))

    def step_wait(self) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """The result of the step under way, as ``step`` returns it."""
        return self._receive("step")

    def step(self, action: np.ndarray):
        """As `make_env`'s."""
        self.step_async(action)
        return self.step_wait()

    def render(self) -> np.ndarray:
        """The present frame, (size, size, 3) uint8."""
        return self._call("render")

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        self._finish()


def make_envs(task: str | Task, count: int, **settings: Any) -> list[ProcessEnv]:
    """``count`` environments of ``task``, each in a process of its own, ready to use.

    ``settings`` and errors are those of `wrappers.make_env`.
    """
    envs = [ProcessEnv(task, **settings) for _ in range(count)]
    for env in envs:
        env._ready()
    return envs
