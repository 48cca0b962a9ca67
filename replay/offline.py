"""The offline dataset."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from replay.action_rows import action_rows_note
from replay.cache import Cache
from replay.data_files import find_data_files, print_notes
from replay.description import read_description
from replay.mapping import PLAIN, ActionMap, DataMapping, action_map, outside_range, parse_range, recorded_map
from replay.observations import names_of_cameras
from replay.store import SequenceStore
from replay.stored_episode import StoredEpisode
from tools import BadInput

MOST_WARNINGS = 20  # lines about single episodes


class OfflineDataset(SequenceStore):
    """A fixed, read-only dataset in any of the known formats.

    The first opening writes an uncompressed copy (see `replay.cache`) that takes size * size * 3 bytes a step: 12 kB
    at 64 pixels, 25 GB for 2 million steps.

    Args:
        directory: the folder with the episodes.
        size: side of the model's images, in pixels; others are resized once, with a note on stderr.
        format: "auto" recognises the format; else a name in `replay.FORMATS`.
        cache_dir: where to put the copy; by default a hidden folder beside the episodes, or the user's
            cache directory if the data is read-only.
        mapping: the names of the arrays in the files.
        action_range: range of the data's actions, which are rescaled to [-1, 1]: "data" for each dimension's smallest
            and largest value, or numbers, see `replay.mapping.parse_range`; "" if they are in [-1, 1] already.
        sample_ends: see `SequenceStore`.

    Attributes:
        problems: one line for each file or episode that was left out.
        digest: a hash of the contents of all episodes, in order, at the images' size and before actions are rescaled.
        image_shape: height, width and channels of the images before they are resized; 1 channel if they are grey.
        cameras: name of each camera, if there are several, with the shape of its images as in ``image_shape``; else {}.
        states: the names of `DataMapping.states`, with their sizes.
        action_names: what the components of the actions are; [] if the dataset does not say it.
        action_at: see `DataMapping`; what the option or ``dataset.json`` says, else "auto".

    Raises:
        BadInput: the directory is missing or empty, all its files are bad, actions differ in size between
            episodes, or there is no space for the copy. A bad file among good ones only causes a warning on stderr.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        size: int,
        format: str = "auto",
        cache_dir: Path | str | None = None,
        mapping: DataMapping = PLAIN,
        action_range: str = "",
        sample_ends: str = "off",
    ):
        super().__init__(directory, sample_ends)
        parse_range(action_range)  # first: reading the data can take minutes
        mapping = replace(mapping, any_actions=action_range != "")
        files = find_data_files(self.directory, format, mapping)
        self.description = self.description or read_description(files[0].path)
        self.action_at = files[0].mapping.action_at
        cache = Cache(self.directory, files, size, cache_dir)
        self.problems, self.image_shape = cache.problems, cache.image_shape
        self._set_episodes(cache.episodes)
        digests = "".join(episode.digest for episode in cache.episodes)
        self.digest = hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()
        if not self.stored:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise BadInput(f"{self.directory}: no usable episode: {self.problems[0]}{more}")
        _warn_of(self.problems, self.directory, len(self.stored))
        print_notes(self.directory, files)
        _check_sizes(self.directory, self.stored, mapping.states)
        names = names_of_cameras(mapping.cameras, self.description, max(len(cache.cameras), 1))
        self.cameras = dict(zip(names, cache.cameras, strict=True))
        self.states = {key: self.stored[0].arrays[key].shape[0] for key in mapping.states}
        self._action_map = self._find_action_map(action_range)
        names = files[0].format.action_names(self.directory, mapping.action_key)
        self.action_names = names if len(names) == self.action_dim else []

    @property
    def action_map(self) -> dict[str, list[float]] | None:
        """``low`` and ``high``, A numbers each, that the agent's -1 and 1 stand for; None: -1 and 1 themselves."""
        return self._action_map and self._action_map.as_dict()

    def action_rows_note(self) -> str | None:
        """A line if the actions seem to be in other rows than ``action_at`` says; see `replay.action_rows`."""
        rows, reset, idle = np.empty((2, self.action_dim), np.float32), 0, 0
        for episode in self.stored:
            replace(episode, action_map=None).read_rows(0, {"action": rows})  # a map makes row 0 zero
            reset, idle = reset + bool(rows[0].any()), idle + (not rows[1].any())
        return action_rows_note(self.action_at, reset, idle, self.episodes, self.directory)

    @property
    def channels(self) -> int:
        """Channels of an image, 3 for each camera."""
        return self.stored[0].arrays["image"].shape[-1]

    def _find_action_map(self, action_range: str) -> ActionMap | None:
        """The map of the actions; with a range, episodes rescale their actions by it, others are left out."""
        if not action_range:
            return recorded_map(self.description, self.action_dim, self.directory)
        lows, highs = (np.array([e.action_extremes[side] for e in self.stored]) for side in (0, 1))
        found = action_map(action_range, lows.min(0), highs.max(0))
        inside = [found.contains(low, high) for low, high in zip(lows, highs, strict=True)]
        outside = [episode for episode, is_inside in zip(self.stored, inside, strict=True) if not is_inside]
        lines = [f"{self.directory}: {outside_range(e.origin, e.action_extremes, action_range)}" for e in outside]
        if len(outside) == len(self.stored):
            raise BadInput(f"{lines[0]}; so is every episode")
        for line in lines:
            print(f"warning: left out: {line}", file=sys.stderr)
        self.problems = self.problems + lines
        kept = [replace(e, action_map=found) for e, is_inside in zip(self.stored, inside, strict=True) if is_inside]
        self._set_episodes(kept)
        return found


def _warn_of(problems: list[str], directory: Path, used: int) -> None:
    """Print what was left out, and how much it is."""
    for problem in problems[:MOST_WARNINGS]:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if problems:
        more = f" ({MOST_WARNINGS} of them above; dataset.py check lists all)" * (len(problems) > MOST_WARNINGS)
        print(
            f"warning: {directory}: {used} episode(s) are used, {len(problems)} episode(s) or file(s) are left "
            f"out{more}; the next start reads them again",
            file=sys.stderr,
        )


def _check_sizes(directory: Path, episodes: list[StoredEpisode], states: list[str]) -> None:
    """Raise BadInput if episodes differ in the size of an action, of a state, or of an image's channels."""
    for key in ("action", "image", *states):
        sizes: dict[int, str] = {}
        for episode in episodes:
            sizes.setdefault(episode.arrays[key].shape[-1], episode.origin)
        if len(sizes) > 1:
            listed = ", ".join(f"{size} in {name}" for size, name in sizes.items())
            what = {"action": "action sizes", "image": "channels of the images"}.get(key, f"sizes of {key}")
            raise BadInput(f"{directory}: {what} differ between episodes ({listed}); keep one task a folder")
