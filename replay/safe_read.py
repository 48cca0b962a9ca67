"""Reading damaged and hostile files: each failure of a library becomes one clear error line."""

import contextlib
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator

import h5py
import numpy as np
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

# An episode of any suite is far smaller. A file that claims more is damaged or hostile.
MAX_EPISODE_BYTES = 2 << 30

# Deflate cannot expand data by more than this. An array that claims to is damaged or a decompression bomb.
DEFLATE_RATIO = 1040


@contextlib.contextmanager
def safe_read(where: object, kind: str) -> Iterator[None]:
    """Turn any error that a library raises on a damaged file into a `BadInput` that names the file.

    Args:
        where: the file or the place in it.
        kind: name of the format in the message, such as "HDF5".
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(f"{where}: not a readable {kind} file ({reason}); copy it again or remove it") from error


def require_arrays(names: Iterable[str], found: Container[str], where: object) -> None:
    """Raise `BadInput` that lists the names missing in ``found``."""
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInput(f"{where}: no array named {', '.join(missing)}; write the file again with it or remove the file")


def check_expansion(name: str, claimed: int, stored: int) -> None:
    """Raise ValueError if an array of ``claimed`` bytes cannot come from ``stored`` compressed bytes."""
    if claimed > min(MAX_EPISODE_BYTES, DEFLATE_RATIO * stored + 1024):
        raise ValueError(f"{name} claims {claimed} bytes from {stored} stored")


def read_hdf5_array(dataset: h5py.Dataset, rows: slice = slice(None)) -> np.ndarray:
    """Rows of an HDF5 array.

    Raises:
        ValueError: the array claims far more bytes than the file contains, or it is a group or a scalar.
    """
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError("no array where one should be")
    stored = dataset.id.get_storage_size()
    row_bytes = dataset.nbytes // max(1, len(dataset))
    check_expansion(dataset.name, row_bytes * len(range(*rows.indices(len(dataset)))), stored)
    check_expansion(dataset.name, dataset.dtype.itemsize * math.prod(dataset.chunks or ()), stored)
    return dataset[rows]
