"""Which episodes of a dataset succeeded: rewards for data without any."""

import json
from pathlib import Path

from tools import BadInput, write_text

LABELS = "coworld_labels.json"  # of `dataset.py label`, in the dataset's folder


def labels_path(directory: Path, first_file: Path) -> Path:
    """Where the labels of a dataset are. One that is a single file has them beside it."""
    return (directory.parent if first_file == directory else directory) / LABELS


def write_labels(path: Path, success: dict[str, list[str]]) -> None:
    """Write the labels of the episodes that succeeded, by the names of all files of a dataset."""
    write_text(path, json.dumps({"success": success}, indent=1) + "\n")


def read_labels(path: Path) -> dict[str, frozenset[str]] | None:
    """The labels of the successful episodes, by the names of their files; None if the dataset has no such file.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        found = json.loads(path.read_text())["success"]
        if not all(isinstance(label, str) for labels in found.values() for label in labels):
            raise ValueError
        return {name: frozenset(labels) for name, labels in found.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: not written by dataset.py label; write it again or remove it") from error


def no_rewards(where: object, folder: Path, name: str, available: str) -> str:
    """The line about data without rewards.

    Args:
        where: file or place.
        folder: the dataset's folder.
        name: the format's own name of the rewards.
        available: names of arrays that could be rewards, as text.
    """
    other = f"name them with --reward_key ({available}), or " if available else ""
    return (
        f"{where}: no rewards (array {name}); {other}say which episodes succeeded: "
        f"python dataset.py label {folder} --success 0,3,7-9"
    )
