"""Reading HDF5 and Arrow files in another process, so that a damaged one cannot hang or crash the program."""

import atexit
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

from tools import BadInput

# For one episode, or the list of a file's episodes; both take well under a second from any disk.
SECONDS = 20


def guarded_episodes(path: Path, *, raw: bool = False) -> list[tuple[str, Callable[[], dict]]]:
    """Label and loader of each episode of an HDF5 or Arrow file; see `formats.sources.Source.episodes`."""
    labels = _ask(path, raw, None)
    return [(label, partial(_ask, path, raw, number)) for number, label in enumerate(labels)]


class _Reader:
    """The process and our end of its pipe."""

    def __init__(self):
        self.owner = os.getpid()
        ours, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "formats.reader", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stderr=subprocess.DEVNULL,  # what a dying library prints means nothing to the user
        )
        theirs.close()
        self.connection = ours

    def close(self) -> None:
        self.connection.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_reader: _Reader | None = None


def _ask(path: Path, raw: bool, number: int | None) -> object:
    global _reader
    if _reader is None or _reader.owner != os.getpid():
        _reader = _Reader()
    try:
        _reader.connection.send((path, raw, number, SECONDS))
        kind, answer = _reader.connection.recv()
    except (EOFError, OSError) as error:
        stop()
        where = path if number is None else f"{path} episode {number}"
        raise BadInput(f"{where}: reading it crashes or does not end; copy it again or remove it") from error
    except BaseException:
        stop()  # an answer may still be on its way
        raise
    if kind == "bad":
        raise BadInput(answer)
    if kind == "error":
        raise RuntimeError(f"while reading {path}:\n{answer}")
    return answer


@atexit.register
def stop() -> None:
    """End the process, if there is one; the next file starts another."""
    global _reader
    reader, _reader = _reader, None
    if reader is not None:
        with contextlib.suppress(OSError):
            reader.close()
