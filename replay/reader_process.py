"""Reading files in a separate process, so that a damaged one cannot hang or crash the program."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from replay.formats import Episode, Format, LabelledLoaders
from replay.mapping import DataMapping
from replay.reader_messages import Request, Sliced
from replay.slices import SlicedArray
from tools import ONE_THREAD, BadInput

# Default of --read_seconds. What it limits takes well under a second from any disk.
SECONDS = 20

GRACE = 10  # more seconds until the process is ended from here: its own alarm does not end a call of the system


def list_episodes_in_process(format: Format, path: Path, raw: bool, mapping: DataMapping) -> LabelledLoaders:
    """Label and loader of each episode of a file, read in the separate process.

    Raises:
        BadInput: the file cannot be read. A loader raises it if its episode cannot be read.
    """
    seconds = max(mapping.read_seconds or SECONDS, format.seconds or 0)
    fixed = (format.name, format.module, sys.path, path, raw, mapping)
    labels = _request(Request(*fixed, None, None, 0, seconds))
    return [(label, partial(_load, Request(*fixed, number, None, 0, seconds))) for number, label in enumerate(labels)]


def names_in_process(path: Path, mapping: DataMapping) -> frozenset[str]:
    """The names of the arrays and groups in an HDF5 file, see `replay.layouts`. Raises BadInput as above."""
    seconds = mapping.read_seconds or SECONDS
    return _request(Request("", "", [], path, False, mapping, None, None, 0, seconds))


def _load(request: Request) -> Episode:
    """An episode. Arrays that the process reads in slices are fetched slice by slice."""

    def received(name: str, array: np.ndarray | Sliced) -> np.ndarray | SlicedArray:
        if not isinstance(array, Sliced):
            return array
        rows = partial(_slices, request._replace(array=name))
        return SlicedArray(array.shape, array.dtype, rows, array.where, array.kind)

    return {name: received(name, array) for name, array in _request(request).items()}


def _slices(request: Request) -> Iterator[np.ndarray]:
    while (piece := _request(request)) is not None:
        yield piece
        request = request._replace(index=request.index + 1)


class _Reader:
    """The process and this program's end of its pipe."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": root}
        self.process = subprocess.Popen(
            # -P: a folder `replay` in the current one is not imported
            [sys.executable, "-P", "-m", "replay.reader_main", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stderr=subprocess.DEVNULL,  # messages of a crashing library do not help the user
        )
        theirs.close()

    def ask(self, request: Request) -> Any:
        """The process's answer. Raises TimeoutError, or EOFError or OSError if the process has ended."""
        self.connection.send(request)
        if not self.connection.poll(request.seconds + GRACE):
            raise TimeoutError
        return self.connection.recv()

    def exit_status(self) -> int | None:
        """Status of the process, which ends or has just ended, minus a signal's number; None if it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(GRACE)
        return None

    def close(self) -> None:
        self.connection.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.exit_status()


_reader: _Reader | None = None


def _request(request: Request) -> Any:
    """Labels of a file's episodes, one episode, or a slice of one."""
    global _reader
    if _reader is None or _reader.owner != os.getpid():
        _reader = _Reader()
    try:
        status, answer = _reader.ask(request)
    except (EOFError, OSError) as error:
        status = -signal.SIGALRM if isinstance(error, TimeoutError) else _reader.exit_status()
        stop()
        raise BadInput(_why_it_ended(request, status)) from error
    except BaseException:
        stop()  # otherwise the next request would receive the answer to this one
        raise
    if status == "bad":
        raise BadInput(answer)
    if status == "error":
        raise RuntimeError(f"while reading {request.path}:\n{answer}")
    return answer


def _why_it_ended(request: Request, status: int | None) -> str:
    """The line about a file that ended the process, with this exit status."""
    where = request.path if request.number is None else f"{request.path} episode {request.number}"
    if status == -signal.SIGALRM:
        return (
            f"{where}: reading it took longer than {request.seconds} s, the limit; on a slow disk raise it with "
            "--read_seconds, else copy it again or remove it"
        )
    if status == -signal.SIGKILL:
        return f"{where}: the process that reads it was killed, probably for lack of memory; free some and start again"
    name = signal.Signals(-status).name if status and -status in set(signal.Signals) else f"status {status}"
    more = ", or give it more memory (--read_memory)" if status == -signal.SIGABRT else ""
    return f"{where}: reading it crashes its library ({name}); copy it again or remove it{more}"


@atexit.register
def stop() -> None:
    """End the process if it is running. The next request starts another."""
    global _reader
    reader, _reader = _reader, None
    if reader is not None:
        with contextlib.suppress(OSError):
            reader.close()
