"""The offline dataset."""

import hashlib
import sys
from pathlib import Path

from replay.cache import Cache
from replay.data_files import find_data_files
from replay.description import read_description
from replay.store import SequenceStore
from replay.stored_episode import StoredEpisode
from tools import BadInput


class OfflineDataset(SequenceStore):
    """A fixed, read-only dataset in any of the known formats.

    The first opening writes an uncompressed copy (see `replay.cache`) that takes size * size * 3 bytes a step: 12 kB
    at 64 pixels, 25 GB for 2 million steps.

    Args:
        directory: the folder with the episodes.
        size: side of the model's images, in pixels; others are resized once, with a note on stderr.
        format: "auto" recognises the format; else a name in `replay.FORMATS`.
        length: the sequence length that at least one episode must have, in rows; None to skip this check.
        cache_dir: where to put the copy; by default a hidden folder beside the episodes, or the user's
            cache directory if the data is read-only.

    Attributes:
        problems: one line for each file or episode that was left out.
        digest: a hash of the contents of all episodes, in order, at the images' size.

    Raises:
        BadInput: the directory is missing or empty, all its files are bad, actions differ in size between
            episodes, no episode is as long as ``length``, or there is no space for the copy. A bad file
            among good ones only causes a warning on stderr.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        size: int,
        format: str = "auto",
        length: int | None = None,
        cache_dir: Path | str | None = None,
    ):
        super().__init__(directory)
        files = find_data_files(self.directory, format)
        self.description = self.description or read_description(files[0].path)
        cache = Cache(self.directory, files, size, cache_dir)
        self.problems = cache.problems
        self._set_episodes(cache.episodes)
        digests = "".join(episode.digest for episode in cache.episodes)
        self.digest = hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()
        if not self.stored:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise BadInput(f"{self.directory}: no usable episode: {self.problems[0]}{more}")
        for problem in self.problems:
            print(f"warning: left out: {problem}", file=sys.stderr)
        _check_action_sizes(self.directory, self.stored)
        if length is not None:
            self._start_ends(length)


def _check_action_sizes(directory: Path, episodes: list[StoredEpisode]) -> None:
    sizes: dict[int, str] = {}
    for episode in episodes:
        sizes.setdefault(episode.arrays["action"].shape[0], episode.origin)
    if len(sizes) > 1:
        listed = ", ".join(f"{size} in {name}" for size, name in sizes.items())
        raise BadInput(f"{directory}: action sizes differ between episodes ({listed}); keep one task a folder")
