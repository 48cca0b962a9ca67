"""The program of the separate process that `replay.reader_process` starts: ``python -m replay.reader_main FD``.

A damaged file can make HDF5 or Arrow loop for ever, crash or ask for all memory. Here that ends only this process. An
alarm, which needs no cooperation of the library, ends it if one request takes too long, and its memory is limited.
"""

import contextlib
import importlib
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from replay import safe_read
from replay.formats import FORMATS, Format, LabelledLoaders
from replay.layouts import hdf5_names
from replay.reader_messages import Request, Sliced
from replay.slices import SlicedArray
from tools import BadInput


@dataclass
class State:
    """What the process has open: the episodes of a file, one of them, and the slices of one of its arrays."""

    file: tuple | None = None
    format: Format | None = None
    episodes: LabelledLoaders | None = None
    number: int | None = None
    episode: dict | None = None
    array: str | None = None
    slices: Iterator[np.ndarray] | None = None
    index: int = 0


def serve(connection: Connection) -> None:
    """Answer each `Request` until the connection is closed.

    The answer is ("ok", what was asked for), ("bad", message of a BadInput) or ("error", traceback).
    """
    state = State()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        signal.alarm(request.seconds)
        try:
            reply = ("ok", answer(request, state))
        except BadInput as error:
            reply, state = ("bad", str(error)), State()
        except OSError as error:  # of a folder that cannot be looked into, and so on
            reply, state = ("bad", safe_read.read_problem(request.path, request.format, error)), State()
        except Exception:
            reply, state = ("error", traceback.format_exc()), State()
        signal.alarm(0)
        connection.send(reply)


def answer(request: Request, state: State) -> Any:
    """The labels of a file's episodes, an episode, a slice, or the names in a file; see `Request`."""
    if not request.format:
        limit_memory(request.path, request.mapping.read_memory)
        return hdf5_names(request.path)
    if request.number is None or state.file != request.file:
        state.format = load_format(request.format, request.module, request.search_path)
        limit_memory(request.path, request.mapping.read_memory)
        state.file, state.number = request.file, None
        state.episodes = state.format.episodes(request.path, request.raw, request.mapping)
    if request.number is None:
        return [label for label, _ in state.episodes]
    if state.number != request.number or request.array is None:
        state.slices = state.episode = None
        state.episode, state.number, state.array = state.episodes[request.number][1](), request.number, None
    if request.array is None:
        return {name: _header(array) for name, array in state.episode.items()}
    if (state.array, state.index) != (request.array, request.index):
        state.slices, state.array = iter(state.episode[request.array]), request.array
        for _ in range(request.index):
            next(state.slices, None)
    state.index = request.index + 1
    return next(state.slices, None)


def _header(array: np.ndarray | SlicedArray) -> np.ndarray | Sliced:
    if not isinstance(array, SlicedArray):
        return array
    return Sliced(array.shape, array.dtype, str(array.where), array.kind)


def load_format(name: str, module: str, search_path: list[str]) -> Format:
    """The format of that name, from its module if it is not one of `replay.formats`."""
    if name in FORMATS:
        return FORMATS[name]
    sys.path.extend(entry for entry in search_path if entry not in sys.path)
    return importlib.import_module(module).FORMAT


def limit_memory(path: Path, limit: float) -> None:
    """Limit the growth of the process to ``limit`` GiB, and to the file's size, which may be mapped into memory."""
    safe_read.memory_limit = limit
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower limit is set already
        size = path.stat().st_size + int(limit * safe_read.GIB)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which then ends this process
    serve(Connection(int(sys.argv[1])))
