"""Reading damaged and hostile files: each failure of a library becomes one clear error line, with its cause."""

import contextlib
import errno
import re
import struct
import time
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from PIL import Image

from tools import BadInput

# Everything that zipfile, zlib, numpy's header parser, HDF5, Arrow and Pillow raise on damaged files.
READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    RuntimeError,
    OverflowError,
    MemoryError,
)

# What a file may claim to contain for each stored byte, by how it is compressed. Deflate cannot expand data by more.
DEFLATE_RATIO = 1040
OTHER_RATIO = 50_000  # the other compressions of zip archives and HDF5 files
SPARE_BYTES = 1 << 20  # arrays of constant values need not be stored

GIB = 1 << 30
READ_MEMORY = 2.0  # default of --read_memory, GiB
memory_limit = READ_MEMORY  # in GiB, of the process that reads; `reader_main` sets it

RECENT = 60  # seconds; a file that changed since then may still be written

# What the operating system's errors mean for a file, and what to do. The file itself may be good.
LOCKED = "locked by another program"
LOCK_ADVICE = "close that program or wait until it has written the file, then start again"
NO_ANSWER = "its disk or network file system does not answer", "the file may be good: check the mount and start again"
CAUSES = {
    **dict.fromkeys((errno.EAGAIN, errno.EDEADLK, errno.EBUSY, errno.ETXTBSY), (LOCKED, LOCK_ADVICE)),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        ("no permission to read it", "give it (chmod u+r) or ask its owner, then start again"),
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ELOOP),
        ("the file, or what the link points to, is gone", "restore it, or remove it from the dataset"),
    ),
    **dict.fromkeys(
        (
            errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
            errno.ENOLINK, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.ENETUNREACH,
            errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENOLCK,
        ),
        NO_ANSWER,
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), ("too many open files", "raise the limit (ulimit -n), then start again")
    ),
}  # fmt: skip


class TooLarge(ValueError):
    """What is to be read does not fit in the memory that it may take."""


@contextlib.contextmanager
def safe_read(where: object, kind: str) -> Iterator[None]:
    """Turn any error that a library raises on a file into a `BadInput` that names the file, the cause and what to do.

    Args:
        where: the file or the place in it.
        kind: name of the format in the message, such as "HDF5".
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except READ_ERRORS as error:
        raise BadInput(read_problem(where, kind, error)) from error


def read_problem(where: object, kind: str, error: BaseException) -> str:
    """The line that says why a file cannot be read: not now, not with this much memory, or not at all."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, TooLarge):
        return f"{where}: {reason}; raise it with --read_memory, or copy the file again if it is damaged"
    if isinstance(error, MemoryError) or "alloc" in reason.lower():
        return (
            f"{where}: reading it needs more than {memory_limit:g} GiB of memory, the limit; raise it with "
            "--read_memory, or copy the file again if it is damaged"
        )
    what, advice = CAUSES.get(error_number(error), ("", ""))
    if not what and "open for write" in reason:  # the mark that HDF5 leaves in a file while it is written
        what, advice = "still open for writing", "close the program that writes it; if it crashed: h5clear -s FILE"
    if what:
        return f"{where}: {what} ({reason}); {advice}"
    age = seconds_since_change(named_file(str(where)))
    if age is not None and age < RECENT:
        advice = f"it changed {age:.0f} s ago: if it is still being written, start again later, else "
    return f"{where}: not a readable {kind} file ({reason}); {advice}copy it again or remove it"


def error_number(error: BaseException | None) -> int | None:
    """The operating system's number of an error or of the one that caused it, also if only its text has it."""
    while error is not None:
        if isinstance(error, OSError):
            if error.errno is not None:
                return error.errno
            if found := re.search(r"errno\W+(\d+)", str(error), re.IGNORECASE):
                return int(found[1])
        error = error.__cause__
    return None


def named_file(place: str) -> Path | None:
    """The file at the beginning of a place such as ``data/a.hdf5 episode 3``; None if there is none."""
    while place:
        with contextlib.suppress(OSError, ValueError):
            if Path(place).is_file():
                return Path(place)
        place = place.rpartition(" ")[0]
    return None


def seconds_since_change(path: Path | None) -> float | None:
    """Age of a file's last change; None if it is not known, or later than the clock."""
    with contextlib.suppress(OSError):
        if path is not None and (age := time.time() - path.stat().st_mtime) >= 0:
            return age
    return None


def require_arrays(names: Iterable[str], found: Container[str], where: object) -> None:
    """Raise `BadInput` that lists the names missing in ``found``."""
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInput(f"{where}: no array named {', '.join(missing)}; write the file again with it or remove the file")


def check_expansion(name: str, claimed: int, stored: int, ratio: int = DEFLATE_RATIO) -> None:
    """Raise ValueError if an array of ``claimed`` bytes cannot come from ``stored`` bytes compressed by ``ratio``."""
    if claimed > ratio * stored + SPARE_BYTES:
        raise ValueError(f"{name} claims {claimed} bytes from {stored} stored")


def check_memory(size: int, limit: float) -> None:
    """Raise TooLarge if ``size`` bytes are more than ``limit`` GiB."""
    if size > limit * GIB:
        raise TooLarge(f"{size / GIB:.1f} GiB at once are more than {limit:g} GiB of memory, the limit")
