"""Reading files in a separate process, so that a damaged one cannot hang or crash the program."""

import atexit
import contextlib
import os
import subprocess
import sys
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from replay.formats import Format, LabelledLoaders
from replay.mapping import DataMapping
from tools import ONE_THREAD, BadInput

# Time limit for one episode or for the list of a file's episodes. Both take well under a second from any disk.
SECONDS = 20


def list_episodes_in_process(format: Format, path: Path, raw: bool, mapping: DataMapping) -> LabelledLoaders:
    """Label and loader of each episode of a file, read in the separate process.

    Raises:
        BadInput: the file cannot be read. A loader raises it if its episode cannot be read.
    """
    labels = _request(format, path, raw, mapping, None)
    return [(label, partial(_request, format, path, raw, mapping, number)) for number, label in enumerate(labels)]


class _Reader:
    """The process and this program's end of its pipe."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": root}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replay.reader_main", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stderr=subprocess.DEVNULL,  # messages of a crashing library do not help the user
        )
        theirs.close()

    def close(self) -> None:
        self.connection.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_reader: _Reader | None = None


def _request(format: Format, path: Path, raw: bool, mapping: DataMapping, number: int | None) -> Any:
    """Labels of a file's episodes (``number`` None), or one episode."""
    global _reader
    if _reader is None or _reader.owner != os.getpid():
        _reader = _Reader()
    try:
        _reader.connection.send(
            (format.name, format.module, sys.path, path, raw, mapping, number, format.seconds or SECONDS)
        )
        status, answer = _reader.connection.recv()
    except (EOFError, OSError) as error:
        stop()
        where = path if number is None else f"{path} episode {number}"
        raise BadInput(f"{where}: reading it crashes or does not end; copy it again or remove it") from error
    except BaseException:
        stop()  # otherwise the next request would receive the answer to this one
        raise
    if status == "bad":
        raise BadInput(answer)
    if status == "error":
        raise RuntimeError(f"while reading {path}:\n{answer}")
    return answer


@atexit.register
def stop() -> None:
    """End the process if it is running. The next request starts another."""
    global _reader
    reader, _reader = _reader, None
    if reader is not None:
        with contextlib.suppress(OSError):
            reader.close()
