"""aloha: HDF5 files of ALOHA and ACT, one episode a file: ``observations/images/<camera>``, ``action``.

Action t was taken AT image t. An episode of T images has T rows here, as in `replay.formats.lerobot`. Images are arrays
of pixels, or JPEGs: rows of bytes padded to equal length (with ``compress_len``), or bytes of any length.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import h5py

from replay.formats import Format, LabelledLoaders
from replay.hdf5 import hdf5_columns, open_hdf5
from replay.mapping import PLAIN, DataMapping
from replay.safe_read import safe_read
from replay.steps import StepColumns, choose_names, read_episode, row_count

OWN = {"image": "", "action": "action", "reward": "reward", "done": ""}
IMAGES = "observations/images"


def recognises(names: Collection[str]) -> bool:
    return "action" in names and IMAGES in names


def list_episodes(path: Path, raw: bool, mapping: DataMapping = PLAIN) -> LabelledLoaders:
    """The file's name and the loader of its episode.

    Raises:
        BadInput: the file is damaged or has no images, or no camera is chosen of several.
    """
    if mapping.list_only:
        return [(path.name, partial(_load, path, {}, raw, mapping))]
    with safe_read(path, "HDF5"), open_hdf5(path) as file:
        names = choose_names(_columns(file, path, mapping), mapping, path, path.parent)
    return [(path.name, partial(_load, path, names, raw, mapping))]


def _columns(file: h5py.File, path: Path, mapping: DataMapping) -> StepColumns:
    observed = {}
    for group in ("observations", IMAGES):
        observed |= hdf5_columns(path, file[group], path, mapping.read_memory)
    return StepColumns(observed, hdf5_columns(path, file, path, mapping.read_memory), OWN)


def _load(path: Path, names: dict[str, str], raw: bool, mapping: DataMapping) -> dict:
    with safe_read(path, "HDF5"):
        with open_hdf5(path) as file:
            columns = _columns(file, path, mapping)
        return read_episode(columns, names, slice(0, row_count(columns, names, mapping)), path, raw, mapping)


FORMAT = Format(
    name="aloha",
    title="ALOHA",
    list_episodes=list_episodes,
    mapped=True,
    free_cameras=True,
    suffixes=(".hdf5", ".h5"),
    recognises=recognises,
)
