"""The description of a dataset: the file ``dataset.json`` in its folder."""

import json
from pathlib import Path

from tools import BadInput

FILENAME = "dataset.json"


def read_description(place: Path, nulls: bool = False) -> dict:
    """A dataset's ``dataset.json`` (task, render setting, ...), or {} if there is none.

    Args:
        place: the dataset's folder, or one of its files. For a file, its folder and the one above are searched.
        nulls: include null values. A null ``background`` says that the dataset was recorded without one.

    Returns:
        The names and values of the file; without ``nulls``, those that are not null.

    Raises:
        BadInput: the file cannot be read, is not JSON, or is not a JSON object.
    """
    folders = [place.parent, place.parent.parent] if place.is_file() else [place]
    for folder in folders:
        path = folder / FILENAME
        try:
            description = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}; correct or remove it") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: not JSON ({str(error)[:120]}); correct or remove it") from error
        if not isinstance(description, dict):
            raise BadInput(f'{path}: not a JSON object such as {{"task": ...}}; correct or remove it')
        return {key: value for key, value in description.items() if nulls or value is not None}
    return {}
