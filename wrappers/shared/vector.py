"""Environments in processes of their own: they step while the learner computes, and a crash is confined to them.

A process is started as a plain program (`wrappers.shared.worker`), not by `multiprocessing`, whose children import
the main module again: a worker holds a simulator and no PyTorch.
"""

# Not gymnasium 1.4.0's AsyncVectorEnv. Memory of one of 4 workers (PSS, walker_walk, torch imported by the script):
# ours 150 MB, spawn 281, forkserver 280, fork 121 but unsafe after PyTorch and OpenGL have started threads. It also
# steps all environments at once, ends its workers on Ctrl-C, and leaves them running after a SIGKILL of the parent if
# another process holds their pipes.

import os
import pickle
import signal
import subprocess
import sys
import weakref
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from tools import ONE_THREAD, BadInput, WorkerCrash
from wrappers.shared.backend import choose_backend, choose_backend_if_possible
from wrappers.shared.suites import SUITES, Suite, Task, parse_task

_ROOT = Path(__file__).resolve().parent.parent.parent
_CLOSED = (EOFError, ConnectionError)  # raised by a pipe whose other end is closed


class SyncEnv(gymnasium.Wrapper):
    """A simulator in this process under the interface of `ProcessEnv`."""

    def reset_async(self, *, seed: int | None = None, options: dict | None = None) -> None:
        """Store the arguments for `reset_wait`."""
        self._reset_arguments = {"seed": seed, "options": options}

    def reset_wait(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reset, and return observation and info."""
        return self.env.reset(**self._reset_arguments)

    def step_async(self, action: np.ndarray) -> None:
        """Store ``action`` (A,) for `step_wait`."""
        self._action = action

    def step_wait(self) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Step, and return as ``step`` does."""
        return self.env.step(self._action)


def _start(connection) -> subprocess.Popen:
    """Start a worker with its end of a pipe, in its own process group: Ctrl-C reaches the parent alone."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "wrappers.shared.worker", str(connection.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
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


def _pickled(suite: Suite) -> bytes:
    """The suite as bytes, with its ``make`` by reference. Raises BadInput if a worker cannot import ``make``."""
    module = getattr(suite.make, "__module__", None)
    try:
        if module == "__main__":
            raise pickle.PicklingError("it is defined in the script itself")
        return pickle.dumps(suite)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInput(
            f"suite {suite.name}: worker processes cannot import its make function ({error}); "
            f"define it at the top level of a module"
        ) from None


class ProcessEnv(gymnasium.Env):
    """The environment of ``task`` in its own process, with the spaces, results and errors of `make_env`'s.

    ``step`` is `step_async` and then `step_wait`; between the two, environment and caller run in parallel.
    The same holds for ``reset``. The process ends on `close`, when the last reference is deleted, and when this
    process ends in any way. The constructor does not wait for the simulator, so several start in parallel.

    Raises:
        BadInput: as `make_env`, when the environment is first used; at once if a worker cannot import the suite.
        WorkerCrash: the process failed.
    """

    def __init__(self, task: str | Task, **settings: Any):
        self.task = parse_task(task)
        suite = SUITES[self.task.suite]
        pickled = _pickled(suite)
        if suite.uses_mujoco:
            choose_backend()  # once in the parent, for all workers
        elif suite.uses_mujoco is None:
            choose_backend_if_possible()
        self._connection, worker_end = Pipe()
        self._process = _start(worker_end)
        worker_end.close()
        self._finish = weakref.finalize(self, _stop, self._connection, self._process)
        self._pending: list[str] = []  # requests whose replies have not been read, oldest first
        self._made: dict[str, Any] | None = None  # the reply to "make"
        self._send("make", sys.path, pickled, str(self.task), settings)

    def _check_open(self) -> None:
        if not self._finish.alive:
            raise RuntimeError(f"the environment {self.task} is closed")

    def _send(self, method: str, *arguments: Any) -> None:
        self._check_open()
        try:
            self._connection.send((method, arguments))
        except _CLOSED:
            self._crashed()
        self._pending.append(method)

    def _receive(self, method: str) -> Any:
        """The reply to the only pending request, which must be ``method``."""
        self._check_open()
        if self._pending != [method]:
            raise RuntimeError(f"{self.task}: no {method} is pending; pending: {', '.join(self._pending) or 'nothing'}")
        try:
            outcome, result = self._connection.recv()
        except _CLOSED:
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

    def wait_until_made(self) -> dict[str, Any]:
        """Wait for the simulator; its ``observation_space``, ``action_space`` and ``description``."""
        if self._made is None:
            self._made = self._receive("make")
        return self._made

    @property
    def observation_space(self) -> gymnasium.spaces.Dict:
        """As `make_env`'s."""
        return self.wait_until_made()["observation_space"]

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """As `make_env`'s."""
        return self.wait_until_made()["action_space"]

    @property
    def description(self) -> dict[str, Any]:
        """As `make_env`'s."""
        return self.wait_until_made()["description"]

    @property
    def pid(self) -> int:
        """The process ID of the worker."""
        return self._process.pid

    def reset_async(self, *, seed: int | None = None, options: dict | None = None) -> None:
        """Start a reset. The result of a pending step is discarded."""
        self.wait_until_made()
        while self._pending:
            self._discard_oldest()
        self._send("reset", seed, options)

    def _discard_oldest(self) -> None:
        method, *others = self._pending
        self._pending = [method]
        self._receive(method)
        self._pending = others

    def reset_wait(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and info of the pending reset."""
        return self._receive("reset")

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """As `make_env`'s."""
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def step_async(self, action: np.ndarray) -> None:
        """Start a step with ``action`` (A,)."""
        self.wait_until_made()
        if self._pending:
            raise RuntimeError(f"{self.task}: {self._pending[0]} is still pending")
        self._send("step", np.asarray(action))

    def step_wait(self) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """The result of the pending step, as ``step`` returns it."""
        return self._receive("step")

    def step(self, action: np.ndarray):
        """As `make_env`'s."""
        self.step_async(action)
        return self.step_wait()

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        self._finish()


def make_envs(task: str | Task, count: int, **settings: Any) -> list[ProcessEnv]:
    """``count`` environments of ``task``, each in its own process, ready to use.

    ``settings`` and errors are those of `wrappers.make_env`.
    """
    envs = [ProcessEnv(task, **settings) for _ in range(count)]
    for env in envs:
        env.wait_until_made()
    return envs
