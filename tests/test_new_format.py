"""A dataset format outside the tree: registered, recognised, opened, inspected, and read in the separate process."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import dataset
from replay import FORMATS, OfflineDataset, save_episode
from replay.data_files import find_data_files
from replay.formats import Format, register
from tools import BadInput


def make_episode(rows: int, size: int = 8) -> dict:
    rng = np.random.default_rng(rows)
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "reward": np.arange(rows, dtype=np.float32),
    }


# A whole format: a JSON header with the shapes, and a file of raw bytes beside it.
RAW_FORMAT = """
import json
from functools import partial

import numpy as np

from replay.episode import validate_episode
from replay.formats import Format
from replay.safe_read import safe_read


def list_episodes(path, raw):
    return [(path.name, partial(load, path, raw))]


def load(path, raw):
    with safe_read(path, "raw"):
        rows, actions, size = json.loads(path.read_text())
        data = np.fromfile(path.with_suffix(".bytes"), np.float32).reshape(rows, actions + 1 + size * size * 3)
        image = data[:, actions + 1 :].reshape(rows, size, size, 3).astype(np.uint8)
        episode = {"image": image, "action": data[:, :actions], "reward": data[:, actions]}
    standard = validate_episode(episode, path)
    return episode if raw else standard


FORMAT = Format(
    name="raw", title="*.head.json", list_episodes=list_episodes, suffixes=(".head.json",), separate_process=SEPARATE
)
"""


def write_raw(folder: Path, episodes: list[dict]) -> None:
    folder.mkdir()
    for number, episode in enumerate(episodes):
        rows, actions = episode["action"].shape
        (folder / f"{number}.head.json").write_text(json.dumps([rows, actions, episode["image"].shape[1]]))
        arrays = [episode["action"], episode["reward"][:, None], episode["image"].reshape(rows, -1)]
        np.concatenate(arrays, 1, dtype=np.float32).tofile(folder / f"{number}.head.bytes")


@pytest.mark.parametrize("separate_process", [False, True])
def test_a_format_outside_the_tree_needs_one_file(tmp_path, monkeypatch, request, capsys, separate_process):
    module = f"raw_format_{separate_process}"
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / f"{module}.py").write_text(RAW_FORMAT.replace("SEPARATE", str(separate_process)))
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    register(importlib.import_module(module).FORMAT)
    request.addfinalizer(lambda: FORMATS.pop("raw"))
    with pytest.raises(ValueError, match="already used"):
        register(importlib.import_module(module).FORMAT)
    episodes = [make_episode(rows) for rows in (6, 9)]
    write_raw(tmp_path / "data", episodes)
    (tmp_path / "data" / "dataset.json").write_text('{"task": "dmc_walker_walk"}')
    assert [(file.format.name, file.name) for file in find_data_files(tmp_path / "data")] == [
        ("raw", "0.head.json"),
        ("raw", "1.head.json"),
    ]
    data = OfflineDataset(tmp_path / "data", size=8, format="raw")
    assert data.lengths == [5, 8] and data.description == {"task": "dmc_walker_walk"}
    assert np.array_equal(data.read(1)["image"], episodes[1]["image"])
    assert dataset.main(["info", str(tmp_path / "data"), "--dataset_format", "raw"]) == 0
    assert "format        raw, 2 file(s)" in capsys.readouterr().out
    assert dataset.main(["convert", str(tmp_path / "data"), str(tmp_path / "npz"), "--to", "npz"]) == 0
    assert OfflineDataset(tmp_path / "npz", size=8).lengths == [5, 8]
    with pytest.raises(BadInput, match="see --help"):
        dataset.main(["convert", str(tmp_path / "data"), str(tmp_path / "raw"), "--to", "raw"])
    (tmp_path / "data" / "0.head.bytes").write_bytes(b"")
    (tmp_path / "data" / "0.head.json").touch()
    assert OfflineDataset(tmp_path / "data", size=8).lengths == [8]
    assert "0.head.json: not a readable raw file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"\*.npz.*\*.head.json"):
        OfflineDataset(tmp_path / "empty", size=8)


def test_two_formats_with_one_suffix_are_told_apart_by_the_flag(tmp_path, request):
    register(Format("other", "*.npz", FORMATS["npz"].list_episodes, suffixes=(".npz",), separate_process=False))
    request.addfinalizer(lambda: FORMATS.pop("other"))
    save_episode(tmp_path, make_episode(6), id="a")
    with pytest.raises(BadInput, match="give --dataset_format"):
        find_data_files(tmp_path)
    assert [file.format.name for file in find_data_files(tmp_path, "other")] == ["other"]


def test_a_format_that_the_separate_process_cannot_import_is_refused():
    with pytest.raises(ValueError, match="define it as FORMAT in the module"):
        register(Format("mine", "*.mine", lambda path, raw: [], suffixes=(".mine",)))
