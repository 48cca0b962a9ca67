"""Damaged and hostile files: every way in which the readers' libraries fail becomes one clear line."""

import contextlib
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator

from PIL import Image

from tools import BadInput

# All that zipfile, zlib, numpy's header parser, HDF5, Arrow and Pillow are seen to raise on damaged files.
DAMAGE = (
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

# No single episode of any suite comes near this; a file that claims more is damaged or hostile.
MAX_EPISODE_BYTES = 2 << 30

# Deflate cannot expand by more than this, so an array that claims to is damaged or a decompression bomb.
DEFLATE_RATIO = 1040


@contextlib.contextmanager
def reported(where: object, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into `BadInput` naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(f"{where}: not a readable {kind} file ({reason}); copy it again or remove it") from error


def require(names: Iterable[str], found: Container[str], where: object) -> None:
    """Raise `BadInput` naming the arrays that a file of a known format should hold and does not."""
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInput(f"{where}: no array named {', '.join(missing)}; write the file again with it or remove the file")


def refuse_bomb(name: str, claimed: int, stored: int) -> None:
    """Raise ValueError where an array claims more bytes than its stored bytes could ever expand to."""
    if claimed > min(MAX_EPISODE_BYTES, DEFLATE_RATIO * stored + 1024):
        raise ValueError(f"{name} claims {claimed} bytes from {stored} stored")
