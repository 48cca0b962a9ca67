"""The program of an environment's process, ``python -m wrappers.worker FD PARENT``: see `wrappers.vector`."""

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import gymnasium

from tools import BadInput
from wrappers import make_env


def _leave_with(parent: int) -> None:
    """End this process soon after ``parent``, even if some other process holds the pipe's end open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _answer(env: gymnasium.Env, method: str, arguments: tuple) -> Any:
    if method == "step":
        return env.step(*arguments)
    if method == "reset":
        seed, options = arguments
        return env.reset(seed=seed, options=options)
    return env.render()


def _make(task: str, settings: dict) -> tuple[gymnasium.Env, dict[str, Any]]:
    env = make_env(task, **settings)
    about = {"observation_space": env.observation_space, "action_space": env.action_space}
    return env, {**about, "description": env.get_wrapper_attr("description")}


def serve(connection: Connection) -> None:
    """Answer requests (method, arguments) with (outcome, result) until the pipe ends."""
    env = None
    try:
        while True:
            method, arguments = connection.recv()
            try:
                if method == "make":
                    env, result = _make(*arguments)
                else:
                    result = _answer(env, method, arguments)
                reply = ("result", result)
            except BadInput as error:
                reply = ("bad input", str(error))
            except Exception:  # whatever it is, it is the parent's to report
                reply = ("error", traceback.format_exc())
            connection.send(reply)
    except (EOFError, ConnectionError):
        pass  # the parent has closed the environment, or is gone
    finally:
        if env is not None:
            env.close()


if __name__ == "__main__":
    # Signals that end a whole job are the parent's to handle: it may have things to save first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=[int(sys.argv[2])], daemon=True).start()
    serve(Connection(int(sys.argv[1])))
