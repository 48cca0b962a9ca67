"""Replays of Dreamers: several episodes in a file, DreamerV3's chunks, terminations, discrete actions."""

from pathlib import Path

import numpy as np
import pytest

import dataset
from replay import DataMapping, OfflineDataset
from replay.data_files import find_data_files
from tools import BadInput

SIZE = 8


def make_episode(rows: int, number: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    action = rng.uniform(0.1, 0.9, (rows, 2)).astype(np.float32)
    reward = 100 * number + np.arange(rows, dtype=np.float32)
    action[0] = reward[0] = 0
    return {"image": rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8), "action": action, "reward": reward}


def stream(episodes: list[dict], kind: type = bool) -> dict[str, np.ndarray]:
    """Episodes one after the other, each of which terminates, with the flags of a replay."""
    arrays = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    ends = np.cumsum([len(episode["reward"]) for episode in episodes])
    rows = np.arange(ends[-1])
    flags = {"is_first": np.isin(rows, [0, *ends]), "is_last": np.isin(rows, ends - 1)}
    return arrays | {name: flag.astype(kind) for name, flag in (flags | {"is_terminal": flags["is_last"]}).items()}


def as_version_3(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same steps as DreamerV3 stores them: row t has the action taken AT image t, zeros at the end."""
    action = np.concatenate([arrays["action"][1:], np.zeros_like(arrays["action"][:1])])
    stepid = np.zeros((len(action), 20), np.uint8)
    return arrays | {"action": action, "stepid": stepid, "dyn/deter": np.zeros((len(action), 4), np.float16)}


def write_chunks(folder: Path, arrays: dict[str, np.ndarray], rows: int) -> list[Path]:
    folder.mkdir()
    total, paths = len(arrays["reward"]), []
    for number, first in enumerate(range(0, total, rows)):
        length = min(rows, total - first)
        path = folder / f"20240101T00000{number}F000000-id{number}-id{number + 1}-{length}.npz"
        np.savez_compressed(path, **{key: array[first : first + length] for key, array in arrays.items()})
        paths.append(path)
    return paths


def load_all(folder: Path, *, raw: bool = False, **options: str) -> list[dict]:
    files = find_data_files(folder, mapping=DataMapping(**options))
    return [load() for file in files for _, load in file.episodes(raw=raw)]


def assert_equal(found: list[dict], expected: list[dict], terminates: bool = True) -> None:
    assert [len(episode["reward"]) for episode in found] == [len(episode["reward"]) for episode in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in other)
        assert one["discount"][:-1].all() and one["discount"][-1] == 1 - terminates


@pytest.mark.parametrize("kind", [bool, np.float32, np.uint8])
@pytest.mark.parametrize("column", [False, True])
def test_a_file_of_several_episodes(tmp_path: Path, kind: type, column: bool, capsys: pytest.CaptureFixture):
    episodes = [make_episode(rows, number) for number, rows in enumerate((9, 5, 12))]
    arrays = stream(episodes, kind)
    if column:
        arrays |= {name: arrays[name][:, None] for name in ("is_first", "is_last", "is_terminal")}
    np.savez(tmp_path / "replay-26.npz", **arrays)
    assert_equal(load_all(tmp_path), episodes)
    data = OfflineDataset(tmp_path, size=SIZE)
    assert data.lengths == [8, 4, 11] and data.returns == [episode["reward"].sum() for episode in episodes]
    printed = capsys.readouterr().err
    assert "episodes begin where is_first is true" in printed
    assert "no array discount; is_terminal says where an episode terminates" in printed


def test_a_cut_last_episode_and_flags_that_are_missing(tmp_path: Path):
    episodes = [make_episode(9, 0), make_episode(6, 1)]
    arrays = stream(episodes)
    cut = {key: array[:12].copy() for key, array in arrays.items()}
    np.savez(tmp_path / "a.npz", **cut)
    first, second = load_all(tmp_path)
    assert_equal([first], episodes[:1])
    assert_equal([second], [{key: array[:3] for key, array in episodes[1].items()}], terminates=False)
    cut["is_first"][0] = False  # a port that does not say it of the first row
    np.savez(tmp_path / "a.npz", **cut)
    assert [len(episode["reward"]) for episode in load_all(tmp_path)] == [9, 3]
    del cut["is_first"]
    np.savez(tmp_path / "a.npz", **cut)
    assert [len(episode["reward"]) for episode in load_all(tmp_path)] == [9, 3], "is_last says it too"
    part = {key: array[4:] for key, array in arrays.items()}
    np.savez(tmp_path / "a.npz", **part)
    beginning, _ = load_all(tmp_path)
    assert not beginning["action"][0].any(), "it led to the image from one that is missing"
    assert np.array_equal(beginning["action"][1:], episodes[0]["action"][5:])
    renamed = {name: array for name, array in arrays.items() if not name.startswith("is_")}
    np.savez(tmp_path / "a.npz", **renamed, reset=arrays["is_first"], terminal=arrays["is_terminal"].astype(float))
    assert_equal(load_all(tmp_path), episodes)  # pydreamer's names


@pytest.mark.parametrize("rows", [7, 11, 26, 100])
def test_chunks_of_version_3_are_joined(tmp_path: Path, rows: int, capsys: pytest.CaptureFixture):
    episodes = [make_episode(length, number) for number, length in enumerate((9, 5, 12))]
    write_chunks(tmp_path / "data", as_version_3(stream(episodes)), rows)
    assert_equal(load_all(tmp_path / "data"), episodes)
    assert dataset.main(["check", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr()
    assert "3 good episode(s), 0 problem(s)" in printed.out and "taken AT an image (DreamerV3)" in printed.err
    assert dataset.main(["convert", str(tmp_path / "data"), str(tmp_path / "out"), "--to", "npz"]) == 0
    assert_equal(load_all(tmp_path / "out"), episodes)


def test_chunks_that_come_and_go(tmp_path: Path):
    """A copy of the data is made again where an episode goes on in a new chunk."""
    episodes = [make_episode(length, number) for number, length in enumerate((9, 5, 12))]
    paths = write_chunks(tmp_path / "data", as_version_3(stream(episodes)), 10)
    last = paths[2].read_bytes()
    paths[2].unlink()
    data = OfflineDataset(tmp_path / "data", size=SIZE)
    assert data.lengths == [8, 4, 5] and not data.problems
    paths[2].write_bytes(last)
    assert OfflineDataset(tmp_path / "data", size=SIZE).lengths == [8, 4, 11]
    paths[1].unlink()
    assert OfflineDataset(tmp_path / "data", size=SIZE).lengths == [8, 5], "the rest of the last one"


def test_a_discount_or_a_done_key_comes_before_is_terminal(tmp_path: Path):
    arrays = stream([make_episode(9)])
    np.savez(tmp_path / "a.npz", **arrays, end=np.zeros(9))
    assert load_all(tmp_path)[0]["discount"][-1] == 0
    assert load_all(tmp_path, done_key="end")[0]["discount"].all()
    np.savez(tmp_path / "a.npz", **arrays, discount=np.ones(9))
    assert load_all(tmp_path)[0]["discount"].all()


def test_discrete_actions(tmp_path: Path, capsys: pytest.CaptureFixture):
    arrays = stream([make_episode(9)])
    one_hot = np.eye(5, dtype=np.float32)[np.arange(9) % 5]
    one_hot[0] = 0
    np.savez(tmp_path / "a.npz", **arrays | {"action": one_hot})
    assert OfflineDataset(tmp_path, size=SIZE).action_dim == 5
    assert "actions are one-hot, of 5 discrete ones; agents learn 5 continuous ones" in capsys.readouterr().err
    np.savez(tmp_path / "a.npz", **arrays | {"action": np.arange(9)})
    with pytest.raises(BadInput, match=r"whole numbers, one a row \(discrete ones\); agents learn continuous"):
        OfflineDataset(tmp_path, size=SIZE)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("is_first", np.full(9, 2), "is_first must be true or false"),
        ("is_last", np.full((9, 3), 1), "is_last must be true or false"),
        ("is_first", np.array(["a"] * 9), "is_first must be true or false"),
        ("is_terminal", np.full(9, np.nan), "is_terminal must be true or false"),
        ("is_first", np.zeros(8), r"arrays differ in length \(action 9, is_first 8\)"),
        ("is_first", np.ones(9), "is_first is true in every row, so no episode has a step"),
    ],
)
def test_flags_that_say_nothing_are_one_line(tmp_path: Path, name: str, array: np.ndarray, message: str):
    np.savez(tmp_path / "a.npz", **stream([make_episode(9)]) | {name: array})
    with pytest.raises(BadInput, match=f"a.npz: {message}"):
        OfflineDataset(tmp_path, size=SIZE)
