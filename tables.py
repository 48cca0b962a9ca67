"""Tables and text as files, written whole or not at all."""

import csv
import io
from pathlib import Path
from typing import Any

from formats.npz import write_atomically


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line or more, all with the columns of the first; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
