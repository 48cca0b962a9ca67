"""The process that reads HDF5 and Arrow files for `formats.guarded`: ``python -m formats.reader FD``.

A damaged file can make those libraries loop for ever, crash or ask for all memory. Here that costs this
process alone: an alarm, which needs no cooperation, ends it when one episode takes too long, and its memory
is limited.
"""

import contextlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import h5py

from tools import BadInput
from replay.safe_read import MAX_EPISODE_BYTES, reported
from replay.formats.minari import arrow_episodes, minari_episodes
from replay.formats.vd4rl import has_steps, vd4rl_episodes

# What reading may add to the process: this much, and more for a large file, in which an episode may be large.
MEMORY = 512 << 20
TIMES_FILE = 100


def native_episodes(path: Path, raw: bool) -> list[tuple[str, Callable[[], dict]]]:
    """Label and loader of each episode of an HDF5 or Arrow file.

    Raises:
        BadInput: the file as a whole cannot be used. A loader raises it for its episode alone.
    """
    if path.suffix == ".arrow":
        return arrow_episodes(path, raw=raw)
    with reported(path, "HDF5"), h5py.File(path, "r") as file:
        flat = has_steps(file)
    return (vd4rl_episodes if flat else minari_episodes)(path, raw=raw)


def serve(connection: Connection) -> None:
    """Answer (path, raw, number, seconds) with the labels (number None) or one episode, until the end.

    An answer is ("ok", value), ("bad", one line) or ("error", a traceback).
    """
    loaders, read = [], None
    while True:
        try:
            path, raw, number, seconds = connection.recv()
        except EOFError:
            return
        signal.alarm(seconds)
        limit_memory(path)
        try:
            if number is None or read != (path, raw):
                loaders, read = native_episodes(path, raw), (path, raw)
            answer = [label for label, _ in loaders] if number is None else loaders[number][1]()
            reply = ("ok", answer)
        except BadInput as error:
            reply = ("bad", str(error))
        except Exception:
            reply = ("error", traceback.format_exc())
        signal.alarm(0)
        connection.send(reply)


def limit_memory(path: Path) -> None:
    """Let the process grow by no more than the file at ``path`` can need."""
    with contextlib.suppress(OSError, ValueError):  # systems without /proc, or with a lower limit already
        size = min(TIMES_FILE * path.stat().st_size, 2 * MAX_EPISODE_BYTES)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and its end is ours
    serve(Connection(int(sys.argv[1])))
