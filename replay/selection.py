"""Choosing episodes of datasets: by numbers, by a condition, by a random division; and joining datasets."""

import operator
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replay.check import describe
from replay.data_files import DataFile
from replay.episode_numbers import ListedEpisode, chosen, numbered
from replay.formats import TASK
from tools import BadInput, nearest, progress_bar

NUMBERS, TEXTS = ("episode", "return", "length"), ("task", "file")  # fields of a condition
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
TOKEN = re.compile(r"""\s*(==|!=|<=|>=|<|>|"[^"]*"|'[^']*'|[^\s<>=!"']+)""")

COUNTS = {"returns", "steps", "episodes"}  # of dataset.json: they hold for the whole dataset only
KINDS = ("action_map",)  # of dataset.json: datasets that differ in it cannot be joined


@dataclass(frozen=True)
class Comparison:
    """A field of an episode, compared with a value."""

    field: str
    symbol: str
    value: float | str

    def holds(self, facts: dict[str, float | str]) -> bool:
        return OPERATORS[self.symbol](facts[self.field], self.value)


def parse_where(text: str) -> list[Comparison]:
    """The comparisons of a condition such as ``return > 200 and length <= 500``, which all have to hold.

    Fields: ``episode``, ``return`` and ``length`` (agent steps) are numbers; ``task`` and ``file`` are texts, which are
    compared with == and != only. A text with spaces stands in quotes.

    Raises:
        BadInput: it is no such condition.
    """
    where = f"--where {text}"
    expected = 'give comparisons joined with "and", like: return > 200 and length <= 500'
    tokens, place = [], 0
    while text[place:].strip():
        if (match := TOKEN.match(text, place)) is None:
            raise BadInput(f"{where}: {text[place:].strip()[:20]!r} is not understood; {expected}")
        tokens.append(match[1])
        place = match.end()
    if len(tokens) % 4 != 3 or any(token != "and" for token in tokens[3::4]):
        raise BadInput(f"{where}: {expected}")
    return [_comparison(*tokens[first : first + 3], where) for first in range(0, len(tokens), 4)]


def _comparison(name: str, symbol: str, value: str, where: str) -> Comparison:
    if name not in (*NUMBERS, *TEXTS):
        known = ", ".join((*NUMBERS, *TEXTS))
        raise BadInput(f"{where}: no field {name!r}, {nearest(name, (*NUMBERS, *TEXTS), 1)}; there are: {known}")
    if symbol not in OPERATORS:
        raise BadInput(f"{where}: {symbol!r} is no comparison; give one of {', '.join(OPERATORS)}")
    if name in TEXTS:
        if symbol not in ("==", "!="):
            raise BadInput(f"{where}: {name} is a text; compare it with == or !=")
        return Comparison(name, symbol, value.strip("\"'"))
    try:
        return Comparison(name, symbol, float(value))
    except ValueError:
        raise BadInput(f"{where}: {value!r} is no number") from None


def select(files: list[DataFile], where: str, numbers: str, task: str, directory: Path) -> list[ListedEpisode]:
    """The episodes of a dataset that fulfil a condition and are in a list of numbers; "" for none of the two.

    What cannot be read is left out, with a warning. Images are not read.

    Args:
        files: the dataset.
        where: see `parse_where`.
        numbers: see `replay.episode_numbers.parse_numbers`.
        task: of the dataset; "" if it is not known. Episodes can have their own.
        directory: names the dataset in errors.

    Raises:
        BadInput: a wrong condition or list, no task is known, or no episode is left.
    """
    comparisons = parse_where(where) if where else []
    episodes, problems = numbered(files)
    if numbers:
        episodes = chosen(episodes, numbers, "episodes", directory)
    found, tasks = [], set()
    with progress_bar(len(episodes), "selecting", unit="episode", disable=None) as bar:
        for episode in episodes:
            bar.update()
            try:
                facts = {"episode": episode.number, "file": episode.file.name, **_figures(episode, task)}
                tasks.add(facts["task"])
            except BadInput as error:
                problems.append(str(error))
                continue
            if all(comparison.holds(facts) for comparison in comparisons):
                found.append(episode)
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if tasks == {""} and any(comparison.field == "task" for comparison in comparisons):
        raise BadInput(f"--where {where}: {directory} has no dataset.json that names its task; dataset.py describe")
    if not found:
        raise BadInput(f"{directory}: none of its {len(episodes)} episode(s) is selected; see dataset.py info")
    return found


def _figures(episode: ListedEpisode, task: str) -> dict[str, float | str]:
    """What its arrays say. ``task`` is the dataset's."""
    arrays = episode.load()
    reward = np.asarray(arrays["reward"])
    total, own = float(reward.sum(dtype=np.float64)), str(arrays.get(TASK, task))
    return {"return": total, "length": len(reward) - 1, "task": own}


def divide(episodes: list[ListedEpisode], fraction: float, seed: int) -> list[list[ListedEpisode]]:
    """Two random parts, each in its old order. The first has ``fraction`` of the episodes, and at least one.

    Raises:
        BadInput: a part would be empty.
    """
    count = round(fraction * len(episodes)) if 0 < fraction < 1 else 0
    if not 0 < count < len(episodes):
        raise BadInput(f"--fraction {fraction:g} of {len(episodes)} episode(s) leaves a part empty")
    first = set(np.random.default_rng(seed).permutation(len(episodes))[:count].tolist())
    return [[e for i, e in enumerate(episodes) if (i in first) == inside] for inside in (True, False)]


def description_of_part(directory: Path, files: list[DataFile]) -> dict:
    """What ``dataset.json`` says of some of a dataset's episodes."""
    return {key: value for key, value in describe(directory, files, nulls=True).items() if key not in COUNTS}


def merged_description(datasets: list[tuple[Path, list[DataFile]]]) -> dict:
    """What ``dataset.json`` says of several datasets: what all of them say.

    Raises:
        BadInput: their actions have been rescaled differently.
    """
    found = [description_of_part(directory, files) for directory, files in datasets]
    first, *others = found
    differing = {key for other in others for key in first.keys() | other.keys() if not _agree(first, other, key)}
    for key in KINDS:
        if key in differing:
            raise BadInput(f"{datasets[0][0]} and others differ in {key} of dataset.json; merge the original datasets")
    if differing:
        print(f"note: left out of dataset.json, as datasets differ: {', '.join(sorted(differing))}", file=sys.stderr)
    return {key: value for key, value in first.items() if key not in differing}


def _agree(one: dict, other: dict, key: str) -> bool:
    return key in one and key in other and one[key] == other[key]
