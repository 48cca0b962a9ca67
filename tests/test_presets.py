"""dataset.py describe: what dataset.json says of well-known datasets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import dataset
from replay import save_episode
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
