"""dataset.py label, select, split and merge: numbers of episodes, conditions, descriptions, memory."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import dataset
from replay import DataMapping, OfflineDataset, save_episode
from replay.data_files import find_data_files
from replay.episode_numbers import own_numbers, parse_numbers, ranges
from replay.formats import npz
from replay.selection import parse_where
from tools import BadInput

LENGTHS = (5, 8, 6, 9)


def make_episode(steps: int, action_dim: int = 2, reward: float = 1.0) -> dict:
    rng = np.random.default_rng(steps)
    action = rng.uniform(-1, 1, (steps + 1, action_dim)).astype(np.float32)
    action[0] = 0
    rewards = np.full(steps + 1, reward, np.float32)
    rewards[0] = 0
    image = rng.integers(0, 256, (steps + 1, 16, 16, 3), dtype=np.uint8)
    return {"image": image, "action": action, "reward": rewards, "discount": np.ones(steps + 1, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four episodes with the returns 5, 8, 6 and 9."""
    for number, steps in enumerate(LENGTHS):
        save_episode(tmp_path / "data", make_episode(steps), id=f"{number:04d}")
    description = {"task": "dmc_walker_walk", "size": 16, "returns": [5, 8, 6, 9], "steps": 28, "episodes": 4}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    return tmp_path / "data"


def lengths(folder: Path) -> list[int]:
    return [len(load()["reward"]) - 1 for file in find_data_files(folder) for _, load in file.episodes()]


def run(*arguments: object) -> int:
    return dataset.main([str(argument) for argument in arguments])


# Numbers


def test_lists_of_numbers():
    assert parse_numbers("0,3,7-9", "success") == [0, 3, 7, 8, 9] and parse_numbers("", "success") == []
    for wrong in ("a", "2-", "-3", "0-99999999999"):
        with pytest.raises(BadInput, match=rf"--episodes {wrong}: "):
            parse_numbers(wrong, "episodes")
    assert ranges([8, 0, 1, 2, 4]) == "0 to 2, 4, 8"


def test_the_datas_own_numbers():
    assert own_numbers(["demo_0", "demo_12", "episode_7.hdf5"]) == [0, 12, 7]
    assert own_numbers(["demo_0", "demo_0"]) is None, "two files with the same numbers"
    assert own_numbers(["20260101T000000-1-501.npz"]) is None and own_numbers([]) == []


# Labels


def test_labels_of_npz_files_without_rewards(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for number, path in enumerate(sorted(folder.glob("*.npz"))):
        arrays = dict(np.load(path))
        del arrays["reward"]
        np.savez(path, **arrays, score=np.full(len(arrays["action"]), number, np.float32))
    with pytest.raises(
        BadInput, match=rf"no rewards .array reward.* --reward_key .score.*label {folder} --success 0,3"
    ):
        OfflineDataset(folder, size=16)
    assert run("label", folder, "--success", "1,3") == 0
    assert "2 successful episode(s)" in capsys.readouterr().out
    data = OfflineDataset(folder, size=16)
    assert data.returns == [0, 1, 0, 1]
    assert data.read(1)["reward"].tolist() == [0] * 8 + [1]
    run("label", folder, "--success", "0-2")
    assert OfflineDataset(folder, size=16).returns == [1, 1, 1, 0], "the working copy is made again"
    assert run("info", folder, "--out", tmp_path) == 0
    printed = capsys.readouterr()
    assert "numbers       0 to 3, in the order of the files" in printed.out
    assert f"note: {folder}: rewards are those of coworld_labels.json" in printed.err
    data = OfflineDataset(folder, size=16, mapping=DataMapping(reward_key="score"))
    assert data.returns == [0, 9, 14, 30], "--reward_key takes precedence"
    run("convert", folder, tmp_path / "out", "--to", "minari")
    (tmp_path / "out" / "coworld_labels.json").unlink(missing_ok=True)
    assert OfflineDataset(tmp_path / "out", size=16).returns == [1, 1, 1, 0]
    (folder / "coworld_labels.json").unlink()
    with pytest.raises(BadInput, match="no rewards"):
        OfflineDataset(folder, size=16)


def test_labels_replace_rewards_of_every_format(folder: Path, tmp_path: Path):
    run("convert", folder, tmp_path / "minari-v0", "--to", "minari")
    run("label", tmp_path / "minari-v0", "--success", "2")
    assert OfflineDataset(tmp_path / "minari-v0", size=16).returns == [0, 0, 1, 0]
    (tmp_path / "minari-v0" / "coworld_labels.json").unlink()
    assert OfflineDataset(tmp_path / "minari-v0", size=16).returns == [5, 8, 6, 9]


def test_labels_of_one_file_of_several(folder: Path):
    first, second, *_ = sorted(folder.glob("*.npz"))
    run("label", first, "--success", "0")
    assert OfflineDataset(first, size=16).returns == [1]
    assert OfflineDataset(second, size=16).returns == [8], "it has no labels"
    with pytest.raises(
        BadInput, match=rf"coworld_labels.json: {second.name} has no labels; run dataset.py label again"
    ):
        OfflineDataset(folder, size=16)
    run("label", second, "--success", "")
    assert OfflineDataset(first, size=16).returns == [1] and OfflineDataset(second, size=16).returns == [0]


@pytest.mark.parametrize(
    "text", ["[]", '{"success": [1, 2]}', '{"success": {"a": [1]}}', "{", "[" * 9000], ids=str.__len__
)
def test_damaged_labels(folder: Path, text: str):
    (folder / "coworld_labels.json").write_text(text)
    with pytest.raises(
        BadInput, match=r"coworld_labels.json: not written by dataset.py label; write it again or remove"
    ):
        find_data_files(folder)


def test_label_refuses_wrong_numbers_and_unreadable_files(folder: Path):
    with pytest.raises(BadInput, match=r"--success 4: .*data has episodes 0 to 3; give numbers of these"):
        run("label", folder, "--success", "2-4")
    with pytest.raises(BadInput, match="unrecognized arguments: --reward_key"):
        run("label", folder, "--success", "0", "--reward_key", "a")
    (folder / "z.npz").write_text("no")
    with pytest.raises(BadInput, match=r"z.npz: not a readable npz file .*labels need all files"):
        run("label", folder, "--success", "0")


# Conditions


def test_conditions():
    (comparison,) = parse_where("return > -2.5")
    assert (comparison.field, comparison.symbol, comparison.value) == ("return", ">", -2.5)
    facts = {"return": 7.0, "length": 500, "episode": 3, "task": "open the door", "file": "a.hdf5"}
    for text, holds in {
        "return > 6": True,
        "return>=7 and length<501": True,
        "return > 6 and length > 500": False,
        "task == 'open the door' and file != b.hdf5": True,
        'task != "open the door"': False,
        "episode == 3": True,
    }.items():
        assert all(comparison.holds(facts) for comparison in parse_where(text)) == holds, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return", 'give comparisons joined with "and"'),
        ("return > 3 or length > 2", 'give comparisons joined with "and"'),
        ("return > 3 and", 'give comparisons joined with "and"'),
        ("retrun > 3", "no field 'retrun', nearest: return; there are: episode, return, length, task, file"),
        ("return = 3", "'= 3' is not understood"),
        ("return > high", "'high' is no number"),
        ("task > 3", "task is a text; compare it with == or !="),
        ("__import__('os').system('true') == 1", 'give comparisons joined with "and"|no field'),
        ("return > 'a", "is not understood"),
    ],
)
def test_wrong_conditions(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        parse_where(text)


# select, split, merge


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--where", "return > 5 and length <= 8"], [8, 6]),
        (["--episodes", "0,2-3"], [5, 6, 9]),
        (["--episodes", "0-2", "--where", "return != 8"], [5, 6]),
        (["--where", "task == dmc_walker_walk and episode >= 2"], [6, 9]),
    ],
)
def test_select(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], found: list[int]):
    run("select", folder, tmp_path / "out", *flags)
    assert lengths(tmp_path / "out") == found
    assert f"{len(found)} episode(s) written as npz" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {"task": "dmc_walker_walk", "size": 16}
    for path in (tmp_path / "out").glob("*.npz"):
        before, after = np.load(folder / path.name), np.load(path)
        assert all(np.array_equal(before[key], after[key]) for key in before)


def test_select_refuses(folder: Path, tmp_path: Path):
    for flags, message in [
        ([], "select: give --where, --episodes or both"),
        (["--where", "return > 100"], r"none of its 4 episode\(s\) is selected"),
        (["--episodes", "9"], "--episodes 9: .* has episodes 0 to 3"),
    ]:
        with pytest.raises(BadInput, match=message):
            run("select", folder, tmp_path / "out", *flags)
    (folder / "dataset.json").unlink()
    with pytest.raises(BadInput, match=r"no dataset.json that names its task"):
        run("select", folder, tmp_path / "out", "--where", "task == a")
    with pytest.raises(BadInput, match="lies within the dataset"):
        run("select", folder, folder / "out", "--episodes", "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_select_leaves_out_what_cannot_be_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = sorted(folder.glob("*.npz"))[1]
    np.savez(path, **make_episode(8) | {"reward": np.full(9, np.nan)})
    run("select", folder, tmp_path / "out", "--where", "return > 0", "--to", "minari")
    assert lengths(tmp_path / "out") == [5, 6, 9]
    assert f"{path.name}: NaN or infinite reward" in capsys.readouterr().err


def test_split(folder: Path, tmp_path: Path):
    run("split", folder, tmp_path / "a", tmp_path / "b", "--fraction", "0.75", "--seed", "3")
    first, second = lengths(tmp_path / "a"), lengths(tmp_path / "b")
    assert len(first) == 3 and sorted(first + second) == sorted(LENGTHS)
    run("split", folder, tmp_path / "c", tmp_path / "d", "--fraction", "0.75", "--seed", "3")
    assert (lengths(tmp_path / "c"), lengths(tmp_path / "d")) == (first, second)
    others = set()
    for seed in range(4, 9):
        run("split", folder, tmp_path / f"a{seed}", tmp_path / f"b{seed}", "--fraction", "0.75", "--seed", seed)
        others.add(tuple(lengths(tmp_path / f"b{seed}")))
    assert len(others) > 1
    assert (tmp_path / "a" / "dataset.json").read_text() == (tmp_path / "b" / "dataset.json").read_text()
    for fraction in ("0", "1", "0.1", "nan"):
        with pytest.raises(BadInput, match="leaves a part empty"):
            run("split", folder, tmp_path / "e", tmp_path / "f", "--fraction", fraction)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(BadInput, match="is not empty"):
        run("split", folder, tmp_path / "e", tmp_path / "full", "--fraction", "0.5")
    assert not (tmp_path / "e").exists(), "nothing of two parts is made if one cannot be"


def test_merge(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    other = tmp_path / "other-v0"
    run("select", folder, tmp_path / "some", "--episodes", "0-1")
    run("convert", tmp_path / "some", other, "--to", "minari")
    (other / "dataset.json").write_text(json.dumps({"task": "dmc_walker_run", "size": 16}))
    run("merge", tmp_path / "out", folder, other)
    assert sorted(lengths(tmp_path / "out")) == sorted([*LENGTHS, 5, 8])
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {"size": 16}
    assert "note: left out of dataset.json, as datasets differ: task" in capsys.readouterr().err
    save_episode(tmp_path / "arm", make_episode(5, action_dim=3), id="a")
    with pytest.raises(BadInput, match="actions of size 3 after 2"):
        run("merge", tmp_path / "no", folder, tmp_path / "arm")
    assert not (tmp_path / "no").exists()


def test_merge_of_moved_and_rescaled_actions(folder: Path, tmp_path: Path):
    save_episode(tmp_path / "current", make_episode(7), id="a")
    run("describe", tmp_path / "current", "--action_at", "current")
    run("merge", tmp_path / "out", tmp_path / "current", folder)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {"action_at": "next"}
    moved = next(
        e
        for e in (load() for f in find_data_files(tmp_path / "out") for _, load in f.episodes())
        if len(e["reward"]) == 8
    )
    assert np.array_equal(moved["action"][1:], make_episode(7)["action"][:-1])
    run("convert", folder, tmp_path / "scaled", "--to", "npz", "--action_range", "-2,2")
    with pytest.raises(BadInput, match=r"differ in action_map of dataset.json; merge the original datasets"):
        run("merge", tmp_path / "both", folder, tmp_path / "scaled")


def test_images_of_episodes_that_are_not_selected_are_not_read(folder: Path, tmp_path: Path, monkeypatch):
    read, original = [], npz.read_npz_rows
    monkeypatch.setattr(npz, "read_npz_rows", lambda path, header: read.append(path.name) or original(path, header))
    run("select", folder, tmp_path / "out", "--where", "return == 9")
    assert set(read) == {sorted(folder.glob("*.npz"))[3].name}


def test_select_the_episodes_of_a_task_of_lerobot(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="LeRobot needs pyarrow")
    shutil.copytree(Path(__file__).parent / "data" / "lerobot" / "v21", tmp_path / "data")
    path = tmp_path / "data" / "meta" / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["tasks"] = ["pick the cube"]
    path.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--image_key", "observation.images.wrist", "--action_range", "data"]
    run("select", tmp_path / "data", tmp_path / "out", "--where", 'task == "pick the cube"', *flags)
    assert lengths(tmp_path / "out") == [23]
