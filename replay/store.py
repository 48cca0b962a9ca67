"""Sampling sequences from episodes on disk.

A sequence lies in one episode if that has as many rows. Episodes that are shorter are joined: a sequence that reaches
the end of one goes on with the first row of the next joined one, and after the last with the first. Each of their rows
is then sampled as often as a row in the middle of a longer episode. With ``sample_ends`` all episodes are joined, so
that every row of the store is sampled equally often. docs/datasets.md says it for users.

Episodes are stored uncompressed. A batch reads only its slices, straight into the batch's arrays. Memory use does not
grow with the size of the store: unlike the pages of a memory map, what positioned reads leave in the operating system's
file cache does not count as memory of this process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replay.description import read_description
from replay.endings import ends_matter
from replay.episode import KEYS
from replay.stored_episode import StoredEpisode
from tools import BadInput

LARGE_STATE = 10.0  # the largest absolute value of a low-dimensional state without a warning

Batch = dict[str, Any]  # arrays or tensors, (B, T, ...)


class Starts(NamedTuple):
    """The rows at which a sequence, or a transition, may begin.

    Attributes:
        ends: (episodes,) cumulative number of starts. Start i is in the first episode whose number is above i.
        following: (episodes,) index of the episode with which a sequence goes on at the end of a joined one, itself not
            joined if it has that index; None if no episode is joined.
    """

    ends: np.ndarray
    following: np.ndarray | None

    def draw(self, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Uniform starts: index of the episode and row, ``count`` pairs."""
        starts = rng.integers(self.ends[-1], size=count)
        episodes = np.searchsorted(self.ends, starts, side="right")
        rows = starts - np.concatenate([[0], self.ends])[episodes]
        return list(zip(episodes.tolist(), rows.tolist(), strict=True))


class SequenceStore:
    """Stored episodes and sampling from them; the base of `OfflineDataset` and `OnlineReplay`.

    Args:
        directory: where the episodes are.
        sample_ends: whether all episodes are joined, so that their ends are sampled as often as other rows: on, off, or
            auto, where `replay.endings.ends_matter` decides.

    Attributes:
        description: contents of the directory's ``dataset.json`` (task, render setting, ...), or {}.
        stored: the episodes, in order.
    """

    def __init__(self, directory: Path | str, sample_ends: str = "off"):
        self.directory = Path(directory).expanduser()
        self.description = read_description(self.directory)
        self.sample_ends = sample_ends
        self.stored: list[StoredEpisode] = []
        self._starts: dict[tuple[int, str], Starts] = {}
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
    def rows(self) -> int:
        """Number of rows, resets included."""
        return self.steps + self.episodes

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

    @property
    def longest(self) -> int:
        """Rows of the longest episode; 0 while the store is empty."""
        return max((episode.rows for episode in self.stored), default=0)

    def shorter_than(self, rows: int) -> tuple[int, int]:
        """Number of the episodes with fewer rows, and of their rows."""
        short = [episode.rows for episode in self.stored if episode.rows < rows]
        return len(short), sum(short)

    def samples_ends(self) -> bool:
        """Whether all episodes are joined."""
        if self.sample_ends == "auto":
            return ends_matter([episode.ending for episode in self.stored])
        return self.sample_ends == "on"

    def sample(
        self,
        batch_size: int,
        length: int,
        rng: np.random.Generator,
        keys: Sequence[str] = KEYS,
        *,
        whole: bool = False,
    ) -> dict[str, np.ndarray]:
        """A batch of sequences, uniform over all valid starts.

        Args:
            batch_size: B.
            length: T, in rows. An episode of N rows has N - T + 1 starts, or N if it is joined.
            rng: the only source of random numbers.
            keys: the arrays to return. Beside the four standard ones states are stored, by `OnlineReplay` all arrays.
            whole: no sequence crosses the end of an episode, so that shorter episodes are left out.

        Returns:
            image (B, T, H, W, 3 a camera) uint8, action (B, T, A) float32, reward (B, T) float32,
            discount (B, T) float32; extras (B, T, ...). If an episode is joined, also is_first (B, T) bool, true in
            the first row of an episode: there the sequence begins anew.

        Raises:
            BadInput: the store is empty, with ``whole`` no episode has ``length`` rows, or an array asked for is not
                stored.
        """
        starts = self._sequence_starts(length, whole)
        batch = {key: self._empty(key, batch_size, length) for key in keys}
        drawn = starts.draw(batch_size, rng)
        if starts.following is None:
            for row, (index, first) in enumerate(drawn):
                self.stored[index].read_rows(first, {key: array[row] for key, array in batch.items()})
            return batch
        is_first = np.zeros((batch_size, length), bool)
        for row, (index, first) in enumerate(drawn):
            self._read_joined(index, first, starts.following, {k: v[row] for k, v in batch.items()}, is_first[row])
        return {**batch, "is_first": is_first}

    def _read_joined(
        self, index: int, first: int, following: np.ndarray, into: dict[str, np.ndarray], is_first: np.ndarray
    ) -> None:
        """Fill arrays (T, ...) with the rows of an episode from ``first`` on, then with those of the following ones."""
        done = 0
        while done < len(is_first):
            rows = min(self.stored[index].rows - first, len(is_first) - done)
            self.stored[index].read_rows(first, {key: array[done : done + rows] for key, array in into.items()})
            is_first[done] = first == 0
            index, first, done = int(following[index]), 0, done + rows

    def sample_windows(
        self, batch_size: int, frames: int, nstep: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Transitions for model-free agents, uniform over all steps t that are followed by ``nstep`` others.

        The first ``frames`` images are the observation at t, oldest first, the last ``frames`` the one at t + nstep.
        Before the beginning of an episode its first image is repeated. No transition crosses the end of an episode: one
        that begins fewer than ``nstep`` steps before it ends there. Such ones are sampled from episodes that are too
        short for others, and with ``sample_ends`` from all.

        Args:
            batch_size: B.
            frames: images of an observation.
            nstep: n, steps from one observation to the other.
            rng: the only source of random numbers.

        Returns:
            image (B, frames + n, H, W, 3) uint8; action (B, A) float32, taken at t; reward and discount (B, n)
            float32, those that came after it. If a transition may have fewer than n steps, image is
            (B, 2 * frames, H, W, 3), and steps (B,) int64 are theirs; rewards after them are 0, discounts 1.

        Raises:
            BadInput: the store is empty.
        """
        starts = self._window_starts(nstep)
        drawn, cut = starts.draw(batch_size, rng), starts.following is not None
        image = self._empty("image", batch_size, frames + (frames if cut else nstep))
        after = {key: self._empty(key, batch_size, nstep) for key in ("action", "reward", "discount")}
        steps = np.full(batch_size, nstep)
        for row, (index, t) in enumerate(drawn):
            episode = self.stored[index]
            if cut:
                steps[row] = count = min(nstep, episode.rows - 1 - t)
                self._read_images(episode, t, frames, image[row, :frames])
                self._read_images(episode, t + count, frames, image[row, frames:])
                after["reward"][row, count:], after["discount"][row, count:] = 0, 1
            else:
                self._read_images(episode, t, frames, image[row])
            episode.read_rows(t + 1, {key: array[row, : steps[row]] for key, array in after.items()})
        batch = {"image": image, **after, "action": after["action"][:, 0]}
        return {**batch, "steps": steps} if cut else batch

    @staticmethod
    def _read_images(episode: StoredEpisode, t: int, frames: int, into: np.ndarray) -> None:
        """Fill ``into`` with images, of which the first ``frames`` are the observation at t."""
        missing = max(0, frames - 1 - t)  # images before the first of the episode
        episode.read_rows(t + missing + 1 - frames, {"image": into[missing:]})
        into[:missing] = into[missing]

    def read(
        self, index: int, first: int = 0, rows: int | None = None, keys: Sequence[str] = KEYS
    ) -> dict[str, np.ndarray]:
        """``rows`` rows of an episode from ``first`` on, or all of them: the arrays ``keys``, (rows, ...)."""
        episode = self.stored[index]
        rows = episode.rows - first if rows is None else rows
        arrays = {key: np.empty((rows, *episode.arrays[key].shape), episode.arrays[key].dtype) for key in keys}
        episode.read_rows(first, arrays)
        return arrays

    def hold_out(self, share: float, rng: np.random.Generator) -> "SequenceStore":
        """Move ``share`` of the episodes, drawn by ``rng``, to a store of their own; this one does not sample them.

        At least one episode is moved, and at least one stays. Raises BadInput if there is only one.
        """
        if self.episodes < 2:
            raise BadInput(f"{self.directory}: one episode is too few to hold out a share of them; add episodes")
        count = min(max(round(share * self.episodes), 1), self.episodes - 1)
        chosen = set(rng.permutation(self.episodes)[:count].tolist())
        held_out = SequenceStore(self.directory)
        held_out._set_episodes([episode for i, episode in enumerate(self.stored) if i in chosen])
        self._set_episodes([episode for i, episode in enumerate(self.stored) if i not in chosen])
        return held_out

    def _sequence_starts(self, length: int, whole: bool) -> Starts:
        """The starts of sequences of ``length`` rows."""
        kind = "whole" if whole else "joined"
        if (length, kind) not in self._starts:
            rows = self._rows()
            joined = np.zeros(len(rows), bool) if whole else (rows < length) | (length > 1 and self.samples_ends())
            self._starts[length, kind] = _starts(rows, np.maximum(rows - length + 1, 0), joined)
        starts = self._starts[length, kind]
        if starts.ends[-1] == 0:
            raise BadInput(f"{self.directory}: no episode has {length} rows (the longest has {self.longest})")
        return starts

    def _window_starts(self, nstep: int) -> Starts:
        """The starts of transitions of ``nstep`` steps; of joined episodes they may have fewer."""
        if (nstep, "windows") not in self._starts:
            steps = self._rows() - 1
            cut = (steps < nstep) | (nstep > 1 and self.samples_ends())
            self._starts[nstep, "windows"] = _starts(steps, np.maximum(steps - nstep + 1, 0), cut)
        return self._starts[nstep, "windows"]

    def _rows(self) -> np.ndarray:
        """(episodes,). Raises BadInput if there is none."""
        if not self.stored:
            raise BadInput(f"{self.directory}: no episode to sample from; collect one first")
        return np.array([episode.rows for episode in self.stored])

    def _empty(self, key: str, batch_size: int, length: int) -> np.ndarray:
        arrays = self.stored[0].arrays
        if key not in arrays:
            raise BadInput(f"{self.directory}: array {key!r} is not stored; there are: {', '.join(arrays)}")
        return np.empty((batch_size, length, *arrays[key].shape), arrays[key].dtype)

    def _set_episodes(self, episodes: list[StoredEpisode]) -> None:
        self.stored = episodes
        self._steps = sum(episode.rows - 1 for episode in episodes)
        self._starts.clear()


def _starts(counts: np.ndarray, without_joining: np.ndarray, joined: np.ndarray) -> Starts:
    """`Starts` of episodes (episodes,): of joined ones ``counts``, of others ``without_joining``."""
    ends = np.cumsum(np.where(joined, counts, without_joining))
    if not joined.any():
        return Starts(ends, None)
    following, indices = np.arange(len(counts)), np.flatnonzero(joined)
    following[indices] = np.roll(indices, -1)
    return Starts(ends, following)
