"""In which row of an episode an action is stored: that of the image at which it was taken, or the next one."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from replay.description import FILENAME, read_description
from replay.formats import Format
from replay.mapping import PLACES, DataMapping
from tools import BadInput

KEY = "action_at"  # the name in dataset.json, and of the option


def resolve_action_at(mapping: DataMapping, format: Format, directory: Path, first_file: Path) -> DataMapping:
    """The mapping with the ``action_at`` of ``dataset.json`` where it is "auto" and the description has one.

    Raises:
        BadInput: the two differ, the description's is no such word, or the format's files decide it.
    """
    recorded = None
    with suppress(BadInput):  # a damaged description is reported by those that need the rest of it
        recorded = (read_description(directory) or read_description(first_file)).get(KEY)
    if recorded is not None and recorded not in PLACES:
        raise BadInput(f"{directory}: {FILENAME}'s {KEY} is {recorded!r}, not {' or '.join(PLACES)}; correct it")
    if not format.free_rows:
        if mapping.action_at != "auto":
            raise BadInput(f"{directory}: --{KEY} has no effect on format {format.name}; remove it")
        if recorded == "current":
            raise BadInput(f"{directory}: {FILENAME}'s {KEY} has no effect on format {format.name}; remove it")
        return mapping
    if recorded and mapping.action_at not in ("auto", recorded):
        raise BadInput(
            f"{directory}: --{KEY} {mapping.action_at}, but {FILENAME} says {recorded}; remove the option, or correct "
            f"{FILENAME}"
        )
    return replace(mapping, action_at=recorded or mapping.action_at)


def action_rows_note(action_at: str, reset: int, idle: int, episodes: int, directory: object) -> str | None:
    """A line if the actions seem to be in other rows than ``action_at`` says, with what to give; else None.

    Args:
        reset: number of episodes with an action in row 0.
        idle: number of episodes whose first action, that of row 1, is zeros.
        episodes: number of episodes.
        directory: the dataset's.
    """
    if action_at == "current" and idle == episodes:
        return (
            f"with {KEY} current the first action of all {episodes} episode(s) is zeros, as of a reset. If row t has "
            f"the action that led to image t, {KEY} is next: correct the option, or {FILENAME}"
        )
    if action_at != "auto" or not reset:
        return None
    return (
        f"{reset} of {episodes} episode(s) with an action in row 0: row t needs the action that LED to image t, and "
        f"row 0, the reset, zeros. If action t was taken AT image t, this moves it down: python dataset.py describe "
        f"{directory} --{KEY} current (or, for one command, --{KEY} current). If row 0 has a filler: --{KEY} next"
    )
