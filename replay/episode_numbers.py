"""The numbers of a dataset's episodes, and lists of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from replay.data_files import DataFile
from replay.formats import Load
from replay.labels import labels_path, read_labels, write_labels
from tools import BadInput

MOST_RANGES = 8  # of numbers in a message
MOST_EPISODES = 10**7  # in a list of numbers
OWN_NUMBER = re.compile(r"(?:episode|demo)_?(\d{1,9})(?:\.\w+)?")  # what the data itself calls an episode


class ListedEpisode(NamedTuple):
    """An episode of a dataset.

    Attributes:
        number: the data's own, if all its episodes have one and these differ; else its place in the order, from 0.
        file: the file that it begins in.
        label: its name in this file; a file of one episode has its own name.
        load: its loader.
    """

    number: int
    file: DataFile
    label: str
    load: Load

    @property
    def place(self) -> str:
        """Names the file and, in a file of many episodes, the episode."""
        return str(self.file.path) if self.label == self.file.path.name else f"{self.file.path} {self.label}"

    @property
    def key(self) -> tuple[str, str]:
        """The names of its file and of itself; unique in the dataset."""
        return self.file.name, self.label


def numbered(files: list[DataFile], *, raw: bool = False) -> tuple[list[ListedEpisode], list[str]]:
    """Every episode of a dataset with its number, and one line for each file that cannot be used."""
    listed, problems = [], []
    for file in files:
        try:
            listed += [(file, label, load) for label, load in file.episodes(raw=raw, sliced=True)]
        except BadInput as error:
            problems.append(str(error))
    own = own_numbers([label for _, label, _ in listed])
    numbers = own or range(len(listed))
    return [ListedEpisode(number, *episode) for number, episode in zip(numbers, listed, strict=True)], problems


def own_numbers(labels: list[str]) -> list[int] | None:
    """The numbers that episodes of these names have in the data; None if one has none, or two have the same."""
    found = [OWN_NUMBER.fullmatch(label) for label in labels]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(labels) else None


def numbers_line(numbers: list[int]) -> str:
    """The numbers of all episodes as text, for `dataset.py info`."""
    return ranges(numbers) + (
        ", in the order of the files" if numbers == list(range(len(numbers))) else ", the data's own"
    )


def parse_numbers(text: str, option: str) -> list[int]:
    """The numbers of a list such as ``0,3,7-9``; "" has none.

    Raises:
        BadInput: it is not such a list.
    """
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise BadInput(f"--{option} {text}: {part!r} is no number; give numbers of episodes, like 0,3,7-9")
        if int(last or first) - int(first) > MOST_EPISODES:
            raise BadInput(f"--{option} {text}: {part} is too long a range; give numbers of episodes, like 0,3,7-9")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def chosen(episodes: list[ListedEpisode], text: str, option: str, where: object) -> list[ListedEpisode]:
    """The episodes of a list of numbers, see `parse_numbers`.

    Raises:
        BadInput: no such list, or an episode that does not exist.
    """
    wanted = set(parse_numbers(text, option))
    existing = {episode.number for episode in episodes}
    if wrong := sorted(wanted - existing):
        raise BadInput(f"--{option} {wrong[0]}: {where} has episodes {ranges(existing)}; give numbers of these")
    return [episode for episode in episodes if episode.number in wanted]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as text: "0 to 4, 6, 8 to 9"."""
    ordered = sorted(numbers)
    known = set(ordered)
    firsts = [n for n in ordered if n - 1 not in known]
    lasts = [n for n in ordered if n + 1 not in known]
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in zip(firsts, lasts, strict=True)]
    more = f" and {len(parts) - MOST_RANGES} more" if len(parts) > MOST_RANGES else ""
    return (", ".join(parts[:MOST_RANGES]) or "none") + more


def label_episodes(directory: Path, files: list[DataFile], success: str) -> tuple[Path, int]:
    """Write which episodes succeeded; the rewards of all episodes then come from this file.

    Args:
        directory: the dataset's.
        files: those of the dataset, with a mapping that is ``list_only``.
        success: numbers of episodes, see `parse_numbers`.

    Returns:
        The path of the file, and the number of episodes that succeeded.

    Raises:
        BadInput: no such episode, a file that cannot be read, or the labels cannot be written.
    """
    episodes, problems = numbered(files)
    if problems:
        raise BadInput(f"{problems[0]} (labels need all files, as the numbers of episodes depend on them)")
    successes = chosen(episodes, success, "success", directory)
    path = labels_path(directory, files[0].path)
    others = (read_labels(path) or {}) if directory == files[0].path else {}
    found = {name: sorted(labels) for name, labels in others.items()} | {file.name: [] for file in files}
    for episode in successes:
        found[episode.file.name].append(episode.label)
    write_labels(path, found)
    return path, len(successes)
