"""Read the settings of a run directory."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from config import convert, read_blocks
from tools import BadInput


@cache
def defaults() -> dict[str, Any]:
    """Values for settings that a run's config.yaml does not have, because the run is older than they are."""
    return dict(read_blocks()["defaults"])


@cache
def read_entry(text: str) -> dict[str, Any]:
    """A few lines of config.yaml, read as YAML. Raises YAMLError."""
    return YAML().load(text)  # the "safe" loader can read `off` as False


def parse_yaml(text: str) -> Any:
    """The contents of a config.yaml. Most of its lines are the same in all runs, so each different one is read once.

    Text that is more than ``key: value`` entries at the first column is read as a whole. Raises YAMLError.
    """
    comments, *entries = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)
    try:
        values = [read_entry(entry) for entry in entries]
    except YAMLError:
        values = []
    simple = values and not re.sub(r"#.*", "", comments).strip() and all(isinstance(value, dict) for value in values)
    merged = {key: value for entry in values for key, value in entry.items()} if simple else {}
    return merged if simple and len(merged) == len(entries) else YAML().load(text)


@cache
def default_values() -> dict[str, Any]:
    """The values of `defaults`, each in its own type."""
    return {key: convert(value, value) for key, value in defaults().items()}


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's settings. Raises BadInput if config.yaml cannot be read or a value has the wrong type."""
    path = folder / "config.yaml"
    try:
        text = path.read_text()
        values = parse_yaml(text)
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {str(error)[:120]}") from None
    if not isinstance(values, dict) or "target_task" not in values:
        raise BadInput(f"{path} is damaged: it has no target_task")
    merged = {**default_values(), **values}
    for key in values:
        try:
            merged[key] = convert(values[key], defaults()[key]) if key in defaults() else values[key]
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path} is damaged: {key}: {values[key]!r} {error}") from None
    blocks = re.match(r"# --configs defaults ?(.*)", text)  # of an older run, the line may be missing
    return {**merged, "configs": blocks[1] if blocks else ""}


def read_data_figures(folder: Path) -> tuple[float, ...] | None:
    """(episodes, steps, sum of returns) of a run's dataset; None if its config.yaml has no such line."""
    line = r"^# dataset: (\d+) episodes, (\d+) steps, sum of returns (\S+)$"
    found = re.search(line, (folder / "config.yaml").read_text(), re.MULTILINE)
    return tuple(map(float, found.groups())) if found else None
