"""dataset.py describe: what dataset.json says of well-known datasets."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from robot_files import write_robomimic

import dataset
from replay import OfflineDataset, save_episode
from replay.description import read_description
from replay.presets import PRESETS
from tools import BadInput
from wrappers import make_env
from wrappers.shared.simulators import check_recorded_alike


@pytest.fixture
def data(tmp_path: Path) -> Path:
    episode = {"image": np.zeros((4, 64, 64, 3), np.uint8), "action": np.zeros((4, 6)), "reward": np.zeros(4)}
    save_episode(tmp_path / "data", episode, id="a")
    return tmp_path / "data"


def describe(data: Path, *flags: str) -> dict:
    assert dataset.main(["describe", str(data), *flags]) == 0
    return json.loads((data / "dataset.json").read_text())


def test_vd4rl(data):
    found = describe(data, "--preset", "vd4rl", "--task", "walker-walk")
    expected = {"task": "dmc_walker_walk", "render": "full", "camera": 0, "action_repeat": 2, "time_limit": 500}
    assert expected.items() <= found.items() and found["size"] == 64 and found["background"] is None
    assert describe(data, "--preset", "vd4rl", "--task", "walker_walk") == found, "the same one stays"
    with pytest.raises(BadInput, match=r"dataset.json says otherwise \(task\); remove it"):
        dataset.main(["describe", str(data), "--preset", "vd4rl"])
    with pytest.raises(BadInput, match="has no metaworld tasks"):
        dataset.main(["describe", str(data), "--preset", "vd4rl", "--task", "door-close"])


@pytest.mark.parametrize("task", ["walker_downhill", "door-close", "push_green"])
def test_the_release_and_the_simulator_with_its_own_settings_agree(data, task, capsys):
    with pytest.raises(BadInput, match="datasets of dmc, metaworld, robodesk: give the dataset's --task"):
        dataset.main(["describe", str(data), "--preset", "coworld_release"])
    found = describe(data, "--preset", "coworld_release", "--task", task)
    capsys.readouterr()
    env = make_env(task, render="full")
    simulator = env.get_wrapper_attr("description")
    check_recorded_alike(data, found, simulator)
    env.close()
    assert capsys.readouterr().err == "", "nothing is unknown"
    camera = found["camera"] if found["suite"] != "dmc" else "side"  # camera 0 of the walker
    assert camera == simulator["camera"] and found["flip"] == simulator["flip"]
    with pytest.raises(BadInput, match="give --render full"):
        check_recorded_alike(data, found, {**simulator, "render": "fast"})


def test_a_preset_needs_square_images_and_an_episode(tmp_path):
    episode = {"image": np.zeros((4, 64, 48, 3), np.uint8), "action": np.zeros((4, 6)), "reward": np.zeros(4)}
    save_episode(tmp_path / "wide", episode, id="a")
    with pytest.raises(BadInput, match="64x48; those of --preset vd4rl are square"):
        dataset.main(["describe", str(tmp_path / "wide"), "--preset", "vd4rl"])
    assert not (tmp_path / "wide" / "dataset.json").exists() and sorted(PRESETS) == ["coworld_release", "vd4rl"]


def test_a_lerobot_dataset_is_described_with_the_camera_that_is_named(tmp_path: Path):
    data = shutil.copytree(Path(__file__).parent / "data" / "lerobot" / "v30", tmp_path / "v30")
    found = describe(data, "--preset", "vd4rl", "--image_key", "observation.images.top")
    assert found["suite"] == "dmc"


def test_actions_that_the_releases_collector_did_not_clip(tmp_path, capsys):
    """Gaussian samples, recorded before the simulator clipped them."""
    rng, episodes = np.random.default_rng(0), []
    (tmp_path / "data").mkdir()
    for number in range(3):
        action = (1.1 * rng.standard_normal((20, 6))).astype(np.float32) * (number > 0)
        action[0] = 0
        image = rng.integers(0, 256, (20, 64, 64, 3), np.uint8)
        episodes.append({"image": image, "action": action, "reward": np.zeros(20)})
        np.savez(tmp_path / "data" / f"{number}.npz", **episodes[-1])
    actions = np.concatenate([episode["action"][1:] for episode in episodes])
    count, data = int((np.abs(actions) > 1.001).sum()), tmp_path / "data"
    advice = "LOW,HIGH .here they are from .*; if the simulator clipped them: dataset.py describe DIR --clip_actions"
    assert dataset.main(["check", str(data)]) == 1
    assert re.search(r"outside \[-1, 1\]; give --action_range data, or " + advice, capsys.readouterr().out)
    flags = ("--preset", "coworld_release", "--task", "walker_downhill")
    found = describe(data, *flags)
    printed = capsys.readouterr().out
    assert f"{count} of {actions.size} action components" in printed and "in 2 of 3 episodes" in printed
    assert f"from {actions.min():.4g} to {actions.max():.4g}" in printed
    assert found["clip_actions"] is True and describe(data, *flags) == found, "the same one stays"
    store = OfflineDataset(data, size=64)
    assert store.episodes == 3 and not store.problems and store.action_map is None
    assert np.array_equal(store.read(1)["action"], np.clip(episodes[1]["action"], -1, 1))
    assert "actions are clipped to [-1, 1], as dataset.json says" in capsys.readouterr().err
    assert dataset.main(["check", str(data)]) == 0
    dataset.main(["convert", str(data), str(tmp_path / "out"), "--to", "npz"])
    assert np.abs(OfflineDataset(tmp_path / "out", size=64).read(2)["action"]).max() == 1
    (data / "dataset.json").unlink()
    assert describe(data, "--clip_actions") == {"clip_actions": True}
    assert OfflineDataset(data, size=64).digest == store.digest


def test_what_needs_no_clipping(data, capsys):
    assert "clip_actions" not in describe(data, "--preset", "coworld_release", "--task", "walker_downhill")
    assert "all 18 action components are in [-1, 1]; none is clipped" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"--clip_actions has no effect on .*; remove it"):
        dataset.main(["describe", str(data), "--clip_actions"])
    with pytest.raises(BadInput, match=r"nothing to write; give --preset, --task, --action_at or --clip_actions"):
        dataset.main(["describe", str(data)])
    with np.load(next(data.glob("*.npz"))) as stored:
        episode = dict(stored)
    np.savez(next(data.glob("*.npz")), **episode | {"action": np.full((4, 6), 3.0)})
    before = read_description(data)
    dataset.main(["describe", str(data), "--clip_actions"])
    assert read_description(data) == before | {"clip_actions": True}


def test_describe_says_once_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_robomimic(tmp_path / "lift.hdf5", cameras=("agentview_image", "wrist_image"))
    with pytest.raises(BadInput, match="2 arrays of images; choose one with --image_key"):
        dataset.main(["describe", str(tmp_path), "--clip_actions"])
    assert capsys.readouterr().err == ""
