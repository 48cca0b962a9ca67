"""Sampling sequences from episodes on disk.

Episodes are stored uncompressed. A batch reads only its slices, straight into the batch's arrays. Memory use does not
grow with the size of the store: unlike the pages of a memory map, what positioned reads leave in the operating system's
file cache does not count as memory of this process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replay.description import read_description
from replay.episode import KEYS
from replay.stored_episode import StoredEpisode
from tools import BadInput

Batch = dict[str, Any]  # arrays or tensors, (B, T, ...)


class SequenceStore:
    """Stored episodes and sampling from them; the base of `OfflineDataset` and `OnlineReplay`.

    Attributes:
        directory: where the episodes are.
        description: contents of the directory's ``dataset.json`` (task, render setting, ...), or {}.
        stored: the episodes, in order.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory).expanduser()
        self.description = read_description(self.directory)
        self.stored: list[StoredEpisode] = []
        self._starts: dict[tuple[int, str], np.ndarray] = {}
        self._steps = 0

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.stored)

    @property
    def steps(self) -> int:
        """Number of agent steps. An episode of N rows has N - 1, because its first row is the reset."""
        return self._steps

    @property
    def returns(self) -> list[float]:
        """Sum of rewards of each episode, in order."""
        return [episode.total_reward for episode in self.stored]

    @property
    def lengths(self) -> list[int]:
        """Agent steps of each episode, in order."""
        return [episode.rows - 1 for episode in self.stored]

    @property
    def action_dim(self) -> int:
        """Size A of an action; 0 while the store is empty."""
        return self.stored[0].arrays["action"].shape[0] if self.stored else 0

    def sample(
        self, batch_size: int, length: int, rng: np.random.Generator, keys: Sequence[str] = KEYS
    ) -> dict[str, np.ndarray]:
        """A batch of sequences, uniform over all valid starts. No sequence crosses the end of an episode.

        Args:
            batch_size: B.
            length: T, in rows. An episode of N rows has N - T + 1 starts.
            rng: the only source of random numbers.
            keys: the arrays to return; only `OnlineReplay` stores more than the four standard ones.

        Returns:
            image (B, T, H, W, 3) uint8, action (B, T, A) float32, reward (B, T) float32,
            discount (B, T) float32; extras (B, T, ...).

        Raises:
            BadInput: no episode has ``length`` rows, or an array asked for is not stored.
        """
        ends = self._start_ends(length)
        starts = rng.integers(ends[-1], size=batch_size)
        episodes = np.searchsorted(ends, starts, side="right")
        first_rows = starts - np.concatenate([[0], ends])[episodes]
        batch = {key: self._empty(key, batch_size, length) for key in keys}
        for row, (index, first) in enumerate(zip(episodes, first_rows, strict=True)):
            self.stored[index].read_rows(int(first), {key: array[row] for key, array in batch.items()})
        return batch

    def sample_windows(
        self, batch_size: int, frames: int, nstep: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Transitions for model-free agents, uniform over all steps t that are followed by ``nstep`` others.

        The first ``frames`` images are the observation at t, oldest first, the last ``frames`` the one at t + nstep.
        Before the beginning of an episode its first image is repeated.

        Args:
            batch_size: B.
            frames: images of an observation.
            nstep: n, steps from one observation to the other.
            rng: the only source of random numbers.

        Returns:
            image (B, frames + n, H, W, 3) uint8; action (B, A) float32, taken at t; reward and discount (B, n)
            float32, those that came after it.

        Raises:
            BadInput: no episode has n + 1 rows.
        """
        ends = self._start_ends(nstep + 1, "nstep")
        starts = rng.integers(ends[-1], size=batch_size)
        episodes = np.searchsorted(ends, starts, side="right")
        steps = starts - np.concatenate([[0], ends])[episodes]
        image = self._empty("image", batch_size, frames + nstep)
        after = {key: self._empty(key, batch_size, nstep) for key in ("action", "reward", "discount")}
        for row, (index, t) in enumerate(zip(episodes, steps, strict=True)):
            missing = max(0, frames - 1 - int(t))  # images before the first of the episode
            self.stored[index].read_rows(int(t) + missing + 1 - frames, {"image": image[row, missing:]})
            image[row, :missing] = image[row, missing]
            self.stored[index].read_rows(int(t) + 1, {key: array[row] for key, array in after.items()})
        return {"image": image, **after, "action": after["action"][:, 0]}

    def read(self, index: int, first: int = 0, rows: int | None = None) -> dict[str, np.ndarray]:
        """``rows`` rows of an episode from ``first`` on, or all of them: the four standard arrays, (rows, ...)."""
        episode = self.stored[index]
        rows = episode.rows - first if rows is None else rows
        arrays = {key: np.empty((rows, *episode.arrays[key].shape), episode.arrays[key].dtype) for key in KEYS}
        episode.read_rows(first, arrays)
        return arrays

    def hold_out(self, share: float, rng: np.random.Generator) -> "SequenceStore":
        """Move ``share`` of the episodes, drawn by ``rng``, to a store of their own; this one does not sample them.

        At least one episode is moved, and at least one stays. Raises BadInput if there is only one, or if none of those
        that stay has a sequence length that was checked before.
        """
        if self.episodes < 2:
            raise BadInput(f"{self.directory}: one episode is too few to hold out a share of them; add episodes")
        count = min(max(round(share * self.episodes), 1), self.episodes - 1)
        chosen = set(rng.permutation(self.episodes)[:count].tolist())
        held_out, checked = SequenceStore(self.directory), list(self._starts)
        held_out._set_episodes([episode for i, episode in enumerate(self.stored) if i in chosen])
        self._set_episodes([episode for i, episode in enumerate(self.stored) if i not in chosen])
        for length, setting in checked:
            self._start_ends(length, setting)
        return held_out

    def _start_ends(self, length: int, setting: str = "batch_length") -> np.ndarray:
        """(episodes,) cumulative count of valid starts. Start i is in the first episode whose count is above i.

        ``setting`` decides ``length``, in rows; it is named if no episode is as long.
        """
        if (length, setting) not in self._starts:
            counts = [max(0, episode.rows - length + 1) for episode in self.stored]
            self._starts[length, setting] = np.cumsum(counts)
        ends = self._starts[length, setting]
        if len(ends) == 0 or ends[-1] == 0:
            longest = max((episode.rows for episode in self.stored), default=0)
            raise BadInput(
                f"{self.directory}: no episode has {length} rows, which {setting} asks for (the longest has "
                f"{longest}); lower {setting} or collect longer episodes"
            )
        return ends

    def _empty(self, key: str, batch_size: int, length: int) -> np.ndarray:
        arrays = self.stored[0].arrays
        if key not in arrays:
            raise BadInput(f"{self.directory}: array {key!r} is not stored; there are: {', '.join(arrays)}")
        return np.empty((batch_size, length, *arrays[key].shape), arrays[key].dtype)

    def _set_episodes(self, episodes: list[StoredEpisode]) -> None:
        self.stored = episodes
        self._steps = sum(episode.rows - 1 for episode in episodes)
        self._starts.clear()
