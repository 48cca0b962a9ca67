"""Finding everything that is wrong in a dataset."""

from collections import Counter
from pathlib import Path

from replay.data_files import DataFile
from replay.description import read_description
from replay.formats import Load
from tools import BadInput, progress_bar


def list_episodes(files: list[DataFile]) -> tuple[list[tuple[str, Load]], list[str]]:
    """Place and loader of every episode, and one line for each file that cannot be used.

    A place names the file and, in a file of many episodes, the episode.
    """
    episodes, problems = [], []
    for file in files:
        try:
            for label, load in file.episodes():
                place = str(file.path) if label == file.path.name else f"{file.path} {label}"
                episodes.append((place, load))
        except BadInput as error:
            problems.append(str(error))
    return episodes, problems


def find_problems(directory: Path, files: list[DataFile]) -> tuple[int, list[str]]:
    """Read every episode of a dataset, and its description.

    Returns:
        The number of good episodes, and one line for each file or episode that cannot be used, with the reason.
    """
    episodes, problems = list_episodes(files)
    try:
        describe(directory, files)
    except BadInput as error:
        problems.append(str(error))
    sizes: dict[str, int] = {}
    with progress_bar(len(episodes), "checking", unit="episode", disable=None) as bar:
        for place, load in episodes:
            try:
                sizes[place] = load()["action"].shape[1]
            except BadInput as error:
                problems.append(str(error))
            bar.update()
    unusual = unusual_action_sizes(sizes)
    return len(sizes) - len(unusual), problems + unusual


def describe(directory: Path, files: list[DataFile], nulls: bool = False) -> dict:
    """The dataset's description, which is in its folder or beside its first file; see `read_description`."""
    return read_description(directory, nulls) or read_description(files[0].path, nulls)


def unusual_action_sizes(sizes: dict[str, int]) -> list[str]:
    """One line for each episode whose action size differs from that of most episodes.

    Args:
        sizes: action size of each episode, by its place.
    """
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        f"{place}: actions of size {size}, most others have {usual}; keep one task a folder"
        for place, size in sizes.items()
        if size != usual
    ]
