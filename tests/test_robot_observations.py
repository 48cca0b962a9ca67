"""Several cameras and states of the robot formats."""

import re
from pathlib import Path

import numpy as np
import pytest
from robot_files import (
    SIZE,
    STEPS,
    frames,
    write_aloha,
    write_d4rl,
    write_diffusion_policy,
    write_libero,
    write_robomimic,
)

import co_training
import dataset
import export
from policy import load_policy
from replay import DataMapping, OfflineDataset
from replay.data_files import find_data_files
from tools import BadInput

TWO = ("agentview_image", "robot0_eye_in_hand_image")
FILES = {  # name: (how to write it, options of a mapping, size of the states, rows of the first episode)
    "robomimic": (
        lambda folder: write_robomimic(folder / "a.hdf5", cameras=TWO),
        {"image_key": ",".join(TWO), "state_keys": "robot0_eef_pos"}, {"robot0_eef_pos": 3}, STEPS[0] + 1,
    ),
    "libero": (
        lambda folder: write_libero(folder / "a.hdf5"),
        {"image_key": "agentview_rgb,eye_in_hand_rgb", "state_keys": "joint_states,ee_pos"},
        {"joint_states": 7, "ee_pos": 3}, STEPS[0],
    ),
    "aloha": (
        lambda folder: write_aloha(folder, "padded", ("top", "left_wrist")),
        {"image_key": "top,left_wrist", "state_keys": "qpos,qvel", "labelled": True},
        {"qpos": 14, "qvel": 14}, STEPS[0],
    ),
    "diffusion_policy": (
        lambda folder: write_diffusion_policy(folder / "a.zarr"),
        {"state_keys": "state", "labelled": True}, {"state": 5}, STEPS[0],
    ),
    "d4rl": (lambda folder: write_d4rl(folder / "a.npz"), {"state_keys": "qpos"}, {"qpos": 8}, STEPS[0]),
}  # fmt: skip


def first_episode(folder: Path, **options: object) -> dict:
    (load, *_) = [
        load for file in find_data_files(folder, mapping=DataMapping(**options)) for _, load in file.episodes()
    ]
    return load()


@pytest.mark.parametrize("name", FILES)
def test_an_episode_has_its_cameras_and_states(name: str, tmp_path: Path):
    if name == "diffusion_policy":
        pytest.importorskip("zarr", reason="zarr is not installed (requirements/formats.txt)")
    write, options, sizes, rows = FILES[name]
    write(tmp_path)
    episode = first_episode(tmp_path, **options)
    cameras = options.get("image_key", "one").split(",")
    assert episode["image"].shape == (rows, SIZE, SIZE, 3 * len(cameras))
    for index in range(len(cameras)):
        image = episode["image"][..., 3 * index : 3 * index + 3]
        assert image[..., 1].std(0).max() < 130 and np.ptp(image.mean((1, 2))[:, 0]) > 20, "the frames of a camera"
    for key, size in sizes.items():
        assert episode[key].shape == (rows, size) and episode[key].dtype == np.float32
    if name in ("robomimic", "aloha", "diffusion_policy"):
        assert np.array_equal(episode[next(iter(sizes))][:, 0], np.arange(rows)), "a state is that of its image"
    if name == "robomimic":
        assert np.array_equal(episode["image"][..., :3], frames(0, 0, rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_key": "agentview_image,wrist"}, r"no array 'wrist' \(--image_key\); there are:"),
        ({"image_key": "agentview_image,agentview_image"}, "--image_key: agentview_image is given twice"),
        ({"image_key": "agentview_image,robot0_eef_pos"}, r"'robot0_eef_pos' \(--image_key\) has no images"),
        ({"image_key": TWO[0], "state_keys": "qpos"}, r"no array 'qpos' \(--state_keys\); there are:"),
        ({"image_key": TWO[0], "state_keys": TWO[1]}, rf"'{TWO[1]}' \(--state_keys\) is no state"),
        ({"state_keys": "robot0_eef_pos"}, "choose one with --image_key: .*, .* several"),
    ],
    ids=["no camera", "twice", "no images", "no state", "image as state", "no choice"],
)
def test_names_that_are_refused(options: dict, message: str, tmp_path: Path):
    write_robomimic(tmp_path / "a.hdf5", cameras=TWO)
    with pytest.raises(BadInput, match=message):
        first_episode(tmp_path, **options)


def test_a_converted_dataset_keeps_cameras_and_states(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_robomimic(tmp_path / "in" / "a.hdf5", cameras=TWO)
    flags = ["--image_key", ",".join(TWO), "--state_keys", "robot0_eef_pos"]
    assert dataset.main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "npz", *flags]) == 0
    data = OfflineDataset(tmp_path / "out", size=16, mapping=DataMapping(state_keys="robot0_eef_pos"))
    assert list(data.cameras) == list(TWO) and data.states == {"robot0_eef_pos": 3}


@pytest.mark.slow
def test_two_cameras_and_states_of_a_robot_to_its_policy(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A run on robomimic's layout, its program, and the same actions from both for the data's own frames and states."""
    write_robomimic(tmp_path / "data" / "a.hdf5", cameras=TWO)
    flags = ["--image_key", ",".join(TWO), "--state_keys", "robot0_eef_pos"]
    run, program = tmp_path / "run", tmp_path / "policy.pt2"
    co_training.main(
        ["--method", "offline_dv2", "--target_task", "my_robot", "--offline_traindir", str(tmp_path / "data"),
         "--logdir", str(run), *flags, "--configs", "defaults", "dmc", "debug", "--size", "16,16",
         "--batch_length", "4"]
    )  # fmt: skip
    export.main(["--logdir", str(run), "--out", str(program)])
    episode = first_episode(tmp_path / "data", image_key=",".join(TWO), state_keys="robot0_eef_pos")
    policy = load_policy(run)
    assert list(policy.cameras) == list(TWO) and list(policy.states) == ["robot0_eef_pos"]
    for row in range(3):
        observation = {name: episode["image"][row, ..., 3 * i : 3 * i + 3] for i, name in enumerate(TWO)}
        action = policy(observation | {"robot0_eef_pos": episode["robot0_eef_pos"][row]})
        assert action.shape == (2,) and np.isfinite(action).all()
    difference = re.search(r"largest difference (\S+)", capsys.readouterr().out)[1]
    assert float(difference) < 1e-5, "export.py compares the program with load_policy"


def test_info_names_the_states_that_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_robomimic(tmp_path / "robomimic" / "lift.hdf5")
    dataset.main(["info", str(tmp_path / "robomimic"), "--out", str(tmp_path)])
    assert "other states  robot0_eef_pos (3) (--state_keys)" in capsys.readouterr().out, "depth is no state"
    dataset.main(["info", str(tmp_path / "robomimic"), "--out", str(tmp_path), "--state_keys", "robot0_eef_pos"])
    assert "other states" not in capsys.readouterr().out


def test_a_matrix_a_row_is_a_state(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Such as poses and keypoints. It is used, listed, and written by `convert`."""
    write_diffusion_policy(tmp_path / "zarr" / "a.zarr.zip")
    given, out = ["--reward_key", "n_contacts"], tmp_path / "out"
    episode = first_episode(tmp_path / "zarr", reward_key="n_contacts", state_keys="keypoint")
    assert episode["keypoint"].shape == (STEPS[0], 18)
    dataset.main(["convert", str(tmp_path / "zarr"), str(out), "--to", "npz", *given])
    with np.load(sorted(out.glob("*.npz"))[0]) as stored:
        assert stored["keypoint"].shape == (STEPS[0], 9, 2)
    capsys.readouterr()
    dataset.main(["info", str(out), "--out", str(tmp_path)])
    assert "other states  keypoint (18), state (5)" in capsys.readouterr().out
