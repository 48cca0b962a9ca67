"""Processes for tests that kill or signal a command. A fork server loads torch and the commands once for all."""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["co_training", "collect", "evaluate", "page_suite"])


def start(function: Callable[..., None], *arguments: object, errors: Path, **environment: str) -> ForkServerProcess:
    """Call a function of this module in a new process, which writes its stderr to a file.

    The exit code of the process is that of a command; without an error it is 0.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # where the server finds what it loads
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
    process = CONTEXT.Process(target=_call, args=(function, arguments, errors, environment))
    process.start()
    return process


def _call(function: Callable[..., None], arguments: tuple, errors: Path, environment: dict[str, str]) -> None:
    """In the new process: its own stderr, signals as in a new Python, and the ends of a command."""
    from tools import exit_on_bad_input

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_on_bad_input(lambda: function(*arguments))


def run_command(name: str, arguments: list[object]) -> None:
    """``python NAME.py ARGUMENTS``, in which the suite of docs/extending.md is known too."""
    import page_suite

    import wrappers

    wrappers.register(page_suite.SUITE)
    importlib.import_module(name).main([str(argument) for argument in arguments])


def run_until_save(number: int, name: str, arguments: list[object]) -> None:
    """`run_command`, killed by SIGKILL while it writes its checkpoint for the ``number``-th time."""
    import torch

    save, calls = torch.save, []

    def half(state: object, file: object) -> None:
        calls.append(1)
        if len(calls) == number:
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    torch.save = half
    run_command(name, arguments)


def print_threads(number: str, out: Path) -> None:
    """Write the threads that torch reports, and those that the process has after a parallel region."""
    import torch

    from training.device import use_threads

    use_threads(number)
    a = torch.randn(4096, 4096)
    torch.exp(a), a @ a[:, :512]
    out.write_text(f"{torch.get_num_threads()} {len(list(Path('/proc/self/task').iterdir()))}")


def run_code(code: str, folder: Path, arguments: list[str], out: Path) -> None:
    """``python -c CODE ARGUMENTS`` in a folder, with the output written to a file."""
    os.chdir(folder)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    sys.path.insert(0, "")
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
