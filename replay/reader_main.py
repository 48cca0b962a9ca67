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
from multiprocessing.connection import Connection
from pathlib import Path

from replay.formats import FORMATS, Format
from replay.safe_read import MAX_EPISODE_BYTES
from tools import BadInput

# How many bytes a request may add to the process: this many, plus `Format.expansion` times the file's size.
MEMORY = 512 << 20


def serve(connection: Connection) -> None:
    """Answer requests until the connection is closed.

    A request is (format name, its module, sys.path, path, raw, mapping, number, seconds). The answer is ("ok", the
    labels if the number is None, else that episode), ("bad", message of a BadInput) or ("error", traceback).
    """
    episodes, listed = [], None
    while True:
        try:
            name, module, search_path, path, raw, mapping, number, seconds = connection.recv()
        except EOFError:
            return
        signal.alarm(seconds)
        try:
            if number is None or listed != (name, path, raw, mapping):
                format = load_format(name, module, search_path)
                limit_memory(path, format.expansion)
                episodes, listed = format.episodes(path, raw, mapping), (name, path, raw, mapping)
            else:
                limit_memory(path, format.expansion)
            answer = [label for label, _ in episodes] if number is None else episodes[number][1]()
            reply = ("ok", answer)
        except BadInput as error:
            reply = ("bad", str(error))
        except Exception:
            reply = ("error", traceback.format_exc())
        signal.alarm(0)
        connection.send(reply)


def load_format(name: str, module: str, search_path: list[str]) -> Format:
    """The format of that name, from its module if it is not one of `replay.formats`."""
    if name in FORMATS:
        return FORMATS[name]
    sys.path.extend(entry for entry in search_path if entry not in sys.path)
    return importlib.import_module(module).FORMAT


def limit_memory(path: Path, expansion: int) -> None:
    """Limit the growth of the process to what reading the file at ``path`` can need."""
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower limit is set already
        size = min(expansion * path.stat().st_size, 2 * MAX_EPISODE_BYTES)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which then ends this process
    serve(Connection(int(sys.argv[1])))
