"""The worker process of `wrappers.shared.vector`, started as ``python -m wrappers.shared.worker FD PARENT``.

FD is the file descriptor of its end of a pipe, PARENT the parent's process ID.
"""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import gymnasium

from tools import BadInput
from wrappers import make_env, register


def _exit_with_parent(parent: int) -> None:
    """End this process within a second of ``parent``, even if another process holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make(path: list[str], suite: bytes, task: str, settings: dict) -> tuple[gymnasium.Env, dict[str, Any]]:
    sys.path[:] = path  # the parent's, so that the module of a suite outside wrappers/ can be imported
    register(pickle.loads(suite))
    env = make_env(task, **settings)
    made = {"observation_space": env.observation_space, "action_space": env.action_space}
    return env, {**made, "description": env.get_wrapper_attr("description")}


def serve(connection: Connection) -> None:
    """Answer requests (method, arguments) with (outcome, result) until the pipe is closed."""
    env = None
    try:
        while True:
            method, arguments = connection.recv()
            try:
                if method == "make":
                    env, result = _make(*arguments)
                elif method == "reset":
                    seed, options = arguments
                    result = env.reset(seed=seed, options=options)
                else:
                    result = env.step(*arguments)
                reply = ("result", result)
            except BadInput as error:
                reply = ("bad input", str(error))
            except Exception:  # any error is reported by the parent
                reply = ("error", traceback.format_exc())
            connection.send(reply)
    except (EOFError, ConnectionError):
        pass  # the parent has closed the environment, or has ended
    finally:
        if env is not None:
            env.close()


if __name__ == "__main__":
    # Signals to a whole job are handled by the parent alone, which may have to save a checkpoint first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=[int(sys.argv[2])], daemon=True).start()
    serve(Connection(int(sys.argv[1])))
