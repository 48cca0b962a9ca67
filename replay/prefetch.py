"""Drawing batches in a background thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from replay.store import Batch


class Prefetcher:
    """Draws the next batch in a thread while the agent trains on the current one.

    The sequence of batches is the same as without prefetching. For this, `discard_pending` must be called before the
    store changes and before the state of ``rng`` is read: it drops the batch drawn ahead and restores the RNG's state.

    Args:
        draw: makes a batch. Everything that it reads, except ``rng``, changes only after `discard_pending`.
        rng: its only source of random numbers.
    """

    def __init__(self, draw: Callable[[], Batch], rng: np.random.Generator):
        self.draw, self.rng = draw, rng
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future | None = None
        self._state_before: dict | None = None

    def next(self) -> Batch:
        """The next batch. A `BadInput` raised while drawing it is raised here."""
        pending, self.pending = self.pending, None
        batch = self.draw() if pending is None else pending.result()
        self._state_before = self.rng.bit_generator.state
        self.pending = self.pool.submit(self.draw)
        return batch

    def discard_pending(self) -> None:
        """Drop the batch drawn ahead and restore the RNG's state from before it."""
        if self.pending is not None:
            self.pending.exception()  # waits until it is drawn
            self.pending, self.rng.bit_generator.state = None, self._state_before

    def close(self) -> None:
        """Stop the thread."""
        self.pool.shutdown()
