"""Images that are stored as JPEG or PNG files, one a row, in arrays of bytes or objects."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from replay.slices import SlicedArray, stacked

SIGNATURES = (b"\xff\xd8", b"\x89PNG")  # the first bytes of every JPEG and PNG

# No simulator's or camera's frames are larger. A header that claims more is damaged.
MAX_SIDE = 4096


def is_encoded(array: np.ndarray | SlicedArray) -> bool:
    """Whether the rows of an array are JPEGs or PNGs: padded rows of uint8, texts of bytes, or objects.

    Its first row is read.
    """
    rows_of_bytes = (array.dtype == np.uint8 and array.ndim == 2) or (array.dtype.kind in "OSV" and array.ndim == 1)
    return rows_of_bytes and len(array) > 0 and as_bytes(first_row(array)).startswith(SIGNATURES)


def first_row(array: np.ndarray | SlicedArray) -> object:
    return (array.first() if isinstance(array, SlicedArray) else array)[0]


def as_bytes(row: object) -> bytes:
    """The bytes of a row; b"" for one that has none, such as a text or a number."""
    return bytes(row) if isinstance(row, bytes | np.void | np.ndarray) else b""


def decoded(frames: SlicedArray) -> SlicedArray:
    """The images (N, H, W, 3), or (N, H, W) if they are grey, of JPEGs or PNGs of equal size.

    Raises:
        BadInput: while iterating, if one is damaged.
        ValueError: if the first one is.
    """
    first = _decode(as_bytes(first_row(frames)))

    def read() -> Iterator[np.ndarray]:
        rows = (frame for piece in frames for frame in piece)
        return stacked(_decode_row(number, frame) for number, frame in enumerate(rows))

    return SlicedArray((len(frames), *first.shape), np.uint8, read, frames.where, frames.kind)


def _decode_row(number: int, frame: object) -> np.ndarray:
    try:
        return _decode(as_bytes(frame))
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"image {number}: {error}") from error


def _decode(data: bytes) -> np.ndarray:
    if not data.startswith(SIGNATURES):
        raise ValueError("a frame is not a JPEG or PNG")
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"an image of {image.size[0]}x{image.size[1]} pixels")
        if image.mode[0] in "IF":
            raise ValueError(f"an image of more than 8 bits ({image.mode}), a depth map and no RGB image")
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))  # grey ones stay grey
