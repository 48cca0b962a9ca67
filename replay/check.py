"""Finding everything that is wrong in a dataset."""

from collections import Counter
from pathlib import Path

import numpy as np

from replay.data_files import DataFile
from replay.description import read_description
from replay.episode import action_extremes
from replay.episode_numbers import numbered
from replay.formats import Load
from replay.mapping import action_map, outside_range, parse_range
from replay.slices import slices
from tools import BadInput, progress_bar


def list_episodes(files: list[DataFile]) -> tuple[list[tuple[str, Load]], list[str]]:
    """Place and loader of every episode, and one line for each file that cannot be used; see `ListedEpisode`."""
    episodes, problems = numbered(files)
    return [(episode.place, episode.load) for episode in episodes], problems


def find_problems(directory: Path, files: list[DataFile], action_range: str = "") -> tuple[int, list[str]]:
    """Read every episode of a dataset, and its description.

    With an ``action_range``, see `replay.mapping.parse_range`, actions outside it are problems.

    Returns:
        The number of good episodes, and one line for each file or episode that cannot be used, with the reason.
    """
    episodes, problems = list_episodes(files)
    try:
        describe(directory, files)
    except BadInput as error:
        problems.append(str(error))
    sizes: dict[str, int] = {}
    others: dict[str, dict[str, int]] = {key: {} for key in ("image", *files[0].mapping.states)}
    extremes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with progress_bar(len(episodes), "checking", unit="episode", disable=None) as bar:
        for place, load in episodes:
            try:
                episode = load()
                for _ in slices(episode["image"]):
                    pass  # reads all images
                extremes[place] = action_extremes(episode)
                sizes[place] = len(extremes[place][0])
                for key, found in others.items():
                    found[place] = episode[key].shape[-1]
            except BadInput as error:
                problems.append(str(error))
            bar.update()
    for key, found in {"actions": sizes, **others}.items():
        if unusual := unusual_sizes(found, key):
            return len(sizes) - len(unusual), problems + unusual
    outside = outside_of(action_range, extremes)
    return len(sizes) - len(outside), problems + outside


def outside_of(action_range: str, extremes: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """One line for each episode with actions outside a range.

    Args:
        action_range: see `replay.mapping.parse_range`.
        extremes: smallest and largest actions (A,) of each episode, by its place.
    """
    if parse_range(action_range) is None or not extremes:
        return []
    found = action_map(action_range, *next(iter(extremes.values())))
    return [outside_range(place, pair, action_range) for place, pair in extremes.items() if not found.contains(*pair)]


def describe(directory: Path, files: list[DataFile], nulls: bool = False) -> dict:
    """The dataset's description, which is in its folder or beside its first file; see `read_description`."""
    return read_description(directory, nulls) or read_description(files[0].path, nulls)


def unusual_sizes(sizes: dict[str, int], what: str = "actions") -> list[str]:
    """One line for each episode whose size differs from that of most episodes.

    Args:
        sizes: size of each episode's actions, of a state, or of its images' channels, by its place.
        what: actions, the name of the state, or image.
    """
    what = "images of channels" if what == "image" else f"{what} of size"
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        f"{place}: {what} {size}, most others have {usual}; keep one task a folder"
        for place, size in sizes.items()
        if size != usual
    ]
