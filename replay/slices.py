"""Arrays that are read a slice of rows at a time, so that memory follows the slice and not the episode."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from replay.safe_read import check_memory, safe_read
from tools import resize_images

SLICE_BYTES = 16 << 20  # a slice has as many rows as fit, at least one
ENCODED_ROWS = 64  # rows of a slice of JPEGs or other objects

Rows = Callable[[], Iterator[np.ndarray]]  # starts at row 0 each time it is called


class SlicedArray:
    """An array (N, ...) that is read from row 0 on, slice by slice, each time it is iterated over.

    ``np.asarray`` reads it whole.

    Attributes:
        shape, dtype: those of the whole array.

    Raises:
        BadInput: while iterating, if the rows cannot be read or do not have this type, shape and number.
    """

    def __init__(self, shape: Iterable[int], dtype: Any, read: Rows, where: object, kind: str):
        """``where`` and ``kind`` name the file and its format in errors, see `safe_read`."""
        self.shape, self.dtype = tuple(map(int, shape)), np.dtype(dtype)
        self.read, self.where, self.kind = read, where, kind

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __iter__(self) -> Iterator[np.ndarray]:
        pieces, done = None, 0
        while True:
            with safe_read(self.where, self.kind):
                pieces = self.read() if pieces is None else pieces
                piece = next(pieces, None)
                if piece is None:
                    if done != len(self):
                        raise ValueError(f"{done} of {len(self)} rows are in it")
                    return
                done += len(piece)
                if piece.shape[1:] != self.shape[1:] or piece.dtype != self.dtype or done > len(self):
                    raise ValueError(f"rows {piece.dtype}{piece.shape[1:]} in an array {self.dtype}{self.shape}")
            yield piece

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = np.empty(self.shape, self.dtype)
        row = 0
        for piece in self:
            found[row : row + len(piece)] = piece
            row += len(piece)
        return found if dtype is None else found.astype(dtype, copy=False)

    def first(self) -> np.ndarray:
        """Row 0 as an array (1, ...). Raises BadInput if it cannot be read or does not exist."""
        with safe_read(self.where, self.kind):
            return next(iter(self))[:1]

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "SlicedArray":
        """The array whose slices are ``change(slice)``, a function that keeps the rows apart."""
        probe = change(np.zeros((1, *self.shape[1:]), self.dtype))
        shape = (len(self), *probe.shape[1:])
        return SlicedArray(shape, probe.dtype, partial(_mapped, self, change), self.where, self.kind)


def joined(parts: list[SlicedArray]) -> SlicedArray:
    """Arrays of the same type, one after the other. Raises ValueError if their rows differ in type or shape."""
    first = parts[0]
    if any(part.shape[1:] != first.shape[1:] or part.dtype != first.dtype for part in parts):
        raise ValueError(f"rows of {', '.join(f'{part.dtype}{part.shape[1:]}' for part in parts)}")

    def read() -> Iterator[np.ndarray]:
        for part in parts:
            yield from part

    return SlicedArray((sum(map(len, parts)), *first.shape[1:]), first.dtype, read, first.where, first.kind)


def _mapped(array: SlicedArray, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    for piece in array:
        yield change(piece)


def rows_at_once(row_bytes: int) -> int:
    """Rows of a slice."""
    return max(1, SLICE_BYTES // max(1, row_bytes))


def stacked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Slices (n, ...) of frames (...) of equal shape.

    Raises:
        ValueError: a frame has another shape than the first.
    """
    waiting: list[np.ndarray] = []
    first = None
    for index, frame in enumerate(frames):
        first = frame if first is None else first
        if frame.shape != first.shape:
            raise ValueError(f"frame {index} is {frame.shape}, the first {first.shape}")
        waiting.append(frame)
        if len(waiting) >= rows_at_once(frame.nbytes):
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def resized(image: np.ndarray | SlicedArray, size: int) -> np.ndarray | SlicedArray:
    """Images (N, H, W, 3) uint8 as (N, size, size, 3) uint8, see `tools.resize_images`."""
    change = partial(resize_images, size=size)
    return image.map(change) if isinstance(image, SlicedArray) else change(image)


def shrunk(episode: dict, size: int | None) -> dict:
    """A validated episode; images larger than ``size`` x ``size`` pixels are resized to it.

    Their own shape is then in the array ``image_shape``, see `replay.episode.camera_shapes`.
    """
    image = episode["image"]
    if size is None or max(image.shape[1:3]) <= size:
        return episode
    return {"image_shape": np.array(image.shape[1:])} | episode | {"image": resized(image, size)}


def slices(array: np.ndarray | SlicedArray) -> Iterator[np.ndarray]:
    """The slices of any array."""
    return iter(array if isinstance(array, SlicedArray) else [array])


def whole(array: np.ndarray | SlicedArray, limit: float) -> np.ndarray:
    """The array, read whole. Raises BadInput if it is larger than ``limit`` GiB."""
    if not isinstance(array, SlicedArray):
        return array
    with safe_read(array.where, array.kind):
        check_memory(array.nbytes, limit)
    return np.asarray(array)
