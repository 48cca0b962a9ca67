"""The online replay."""

from datetime import datetime
from pathlib import Path

import numpy as np

from replay.episode import validate_episode
from replay.npz_files import episode_filename, write_npz
from replay.store import SequenceStore
from replay.stored_episode import StoredEpisode
from tools import BadInput


class OnlineReplay(SequenceStore):
    """The newest episodes of a simulator, each in an uncompressed ``.npz`` file.

    It starts empty and does not touch files already in the directory until `load_state_dict`.

    Args:
        directory: made if it is missing.
        capacity: in agent steps. Above it the oldest episodes are evicted; their files are deleted by `delete_evicted`.
        sample_ends: see `SequenceStore`.

    Raises:
        BadInput: the capacity is not positive, or the directory cannot be made or written to.
    """

    def __init__(self, directory: Path | str, *, capacity: int, sample_ends: str = "off"):
        super().__init__(directory, sample_ends)
        if capacity < 1:
            raise BadInput(f"replay capacity {capacity} must be at least 1 step")
        self.capacity = capacity
        self._added = 0
        self._evicted: list[Path] = []
        self._deletable: list[Path] = []
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.directory}: cannot be made: {error.strerror}; choose another place") from error

    def add_episode(self, episode: dict) -> None:
        """Write an episode to disk and add it; evict the oldest episodes above the capacity.

        Args:
            episode: see `replay.episode.validate_episode`; extra arrays are stored too.

        Raises:
            BadInput: the episode is not valid or its arrays differ from the stored ones, or the disk is full.
        """
        episode = validate_episode({key: np.asarray(value) for key, value in episode.items()}, "episode to add")
        if self.stored and "success" in self.stored[0].arrays:  # some simulators report it in some episodes only
            episode.setdefault("success", np.zeros_like(episode["reward"]))
        self._check_layout(episode)
        path = self.directory / episode_filename(len(episode["reward"]), datetime.now(), f"{self._added:032x}")
        write_npz(path, episode, compress=False)
        self._added += 1
        self._set_episodes([*self.stored, StoredEpisode.open(path)])
        while self.steps > self.capacity and self.episodes > 1:
            self._evicted.append(self.stored[0].path)
            self._set_episodes(self.stored[1:])

    def _check_layout(self, episode: dict) -> None:
        for key, location in self.stored[0].arrays.items() if self.stored else ():
            found = (episode[key].dtype.str, episode[key].shape[1:]) if key in episode else "missing"
            if found != (location.dtype, location.shape):
                raise BadInput(
                    f"{self.directory}: {key} of a new episode is {found}, of the stored ones "
                    f"{(location.dtype, location.shape)}; use one replay a task and setting"
                )

    def state_dict(self) -> dict:
        """File names of the episodes, in order, and the number of episodes ever added."""
        self._deletable = list(self._evicted)
        return {"episodes": [episode.path.name for episode in self.stored], "added": self._added}

    def load_state_dict(self, state: dict) -> None:
        """Load exactly the episodes named. Files of all other episodes in the directory are deleted.

        Raises:
            BadInput: a file named is missing or damaged.
        """
        episodes = [StoredEpisode.open(self.directory / name) for name in state["episodes"]]
        keep = set(state["episodes"])
        for path in [*self.directory.glob("*.npz"), *self.directory.glob(".*.npz.*.tmp")]:
            if path.name not in keep:
                path.unlink()
        self._set_episodes(episodes)
        self._added = state["added"]
        self._evicted, self._deletable = [], []

    def delete_evicted(self) -> None:
        """Delete the files of episodes evicted before the last `state_dict`. Call it once that state is saved.

        Until then a run may have to resume from an older checkpoint, which names these files.
        """
        for path in self._deletable:
            path.unlink(missing_ok=True)
        self._evicted = [path for path in self._evicted if path not in set(self._deletable)]
        self._deletable = []
