"""diffusion_policy: the zarr groups of Diffusion Policy and UMI, in a folder or a ``.zarr.zip`` file.

``data/`` has the rows of all episodes, one array each for images (``img``, ``camera_0``), ``action`` and states;
``meta/episode_ends`` has the row after the last one of each episode. Action t was taken AT image t. An episode of T
images has T rows here, as in `replay.formats.lerobot`.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from replay.endings import slices_to
from replay.formats import Format, LabelledLoaders
from replay.mapping import PLAIN, DataMapping
from replay.safe_read import READ_ERRORS, safe_read
from replay.slices import whole
from replay.steps import StepColumns, choose_names, read_episode, used_names
from replay.zarr_store import METADATA, ZIP, ZarrRoot, unstored_chunks, zarr_column, zarr_root
from tools import BadInput

OWN = {"image": "img", "action": "action", "reward": "reward", "done": ""}
ENDS = "meta/episode_ends"
DEPTH = 2  # levels below the given folder at which a group is searched for


def find_below(directory: Path) -> list[Path]:
    """The zarr groups with ``meta/episode_ends`` at or below a folder."""
    for level in range(DEPTH + 1):
        patterns = [f"{'*/' * level}{ENDS}/{name}" for name in METADATA]
        if found := {file.parents[2] for pattern in patterns for file in directory.glob(pattern)}:
            return sorted(found)
    return []


def related(path: Path) -> list[Path]:
    """All files of a group in a folder, but not those that this program adds to it; see `Format`."""
    return sorted(file for group in ("data", "meta") for file in (path / group).rglob("*")) if path.is_dir() else []


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """Label and loader of each episode of a group.

    Raises:
        BadInput: it is damaged or has no images, no camera is chosen of several, or zarr is not installed.
    """
    with safe_read(path, "zarr"):
        root = zarr_root(path)
        columns = _columns(root, path, mapping)
        ends = whole(zarr_column(root, ENDS, path, mapping.read_memory).rows(slice(None)), mapping.read_memory)
        pieces = slices_to(np.asarray(ends))
    names = {} if mapping.list_only else choose_names(columns, mapping, path, path.parent)
    available = columns.observed | columns.acted
    short = {name: available[name].shape[0] for name in used_names(names, mapping)}
    if pieces and (missing := [name for name, rows in short.items() if rows < pieces[-1].stop]):
        listed = ", ".join(f"{name} has {short[name]} rows" for name in missing)
        raise BadInput(f"{path}: {ENDS} goes to row {pieces[-1].stop}, but {listed}; copy it again")
    found: LabelledLoaders = [
        (f"episode_{number}", partial(_load, path, f"{path} episode_{number}", rows, names, raw, mapping))
        for number, rows in enumerate(pieces)
    ]
    if pieces and short and pieces[-1].stop < max(short.values()):
        found.append((f"episode_{len(found)}", partial(_refuse_rest, path, pieces[-1].stop, max(short.values()))))
    return found


def _refuse_rest(path: Path, first: int, end: int) -> dict:
    raise BadInput(
        f"{path}: rows {first} to {end - 1} belong to no episode, as {ENDS} ends at {first}; copy it again, or ignore "
        "them"
    )


def notes(paths: list[Path], mapping: DataMapping) -> list[str]:
    """Which groups have images of which parts are not stored: zarr reads them as zeros."""
    found = []
    for path in paths:
        with suppress(*READ_ERRORS):
            root = zarr_root(path)
            counts = {name: unstored_chunks(root, f"data/{name}") for name in root.names("data")}
            if listed := ", ".join(f"{count} of {name}" for name, count in counts.items() if count):
                found.append(f"{path.name}: {listed} chunks are not stored, and read as black: an incomplete copy?")
    return found


def _columns(root: ZarrRoot, where: object, mapping: DataMapping) -> StepColumns:
    arrays = {name: zarr_column(root, f"data/{name}", where, mapping.read_memory) for name in root.names("data")}
    acted = {name: column for name, column in arrays.items() if name == "action" or len(column.shape) == 1}
    return StepColumns({name: column for name, column in arrays.items() if name not in acted}, acted, OWN)


def _load(path: Path, where: str, rows: slice, names: dict[str, str], raw: bool, mapping: DataMapping) -> dict:
    with safe_read(where, "zarr"):
        return read_episode(_columns(zarr_root(path), where, mapping), names, rows, where, raw, mapping)


FORMAT = Format(
    name="diffusion_policy",
    title="Diffusion Policy",
    list_episodes=list_episodes,
    mapped=True,
    suffixes=(ZIP,),
    find_below=find_below,
    related=related,
    notes=notes,
)
