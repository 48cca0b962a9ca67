"""Files of robots whose arrays do not fit each other: nothing is left out without a word, and numbers stay."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import dataset
from tests.robot_files import STEPS, write_aloha, write_d4rl, write_diffusion_policy, write_robomimic


def replace_array(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with h5py.File(path, "a") as file:
        changed = change(file[name][:])
        del file[name]
        file[name] = changed


def check(folder: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    """What `dataset.py check` prints of a dataset with problems."""
    capsys.readouterr()
    assert dataset.main(["check", str(folder), *options]) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("obs/agentview_image", lambda a: a[:-2], "demo_1: action of shape (9, 2) for 7 images"),
        ("actions", lambda a: np.concatenate([a, a[:4]]), "demo_1: action of shape (13, 2) for 9 images"),
        ("rewards", lambda a: a[:4], "demo_1: reward of shape (4,) for 9 images"),
        ("obs/agentview_image", lambda a: a[:0], "demo_1: no rows in agentview_image: an episode without steps"),
    ],
)
def test_arrays_of_a_demonstration_have_one_length(tmp_path: Path, capsys, name: str, change: Callable, problem: str):
    path = write_robomimic(tmp_path / "lift.hdf5", next_obs=False)
    replace_array(path, f"data/demo_1/{name}", change)
    printed = check(tmp_path, capsys)
    assert "2 good episode(s), 1 problem(s)" in printed and problem in printed


def test_what_was_seen_next_has_as_many_rows(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_robomimic(tmp_path / "lift.hdf5")
    replace_array(path, "data/demo_0/next_obs/agentview_image", lambda a: a[:-4])
    assert "agentview_image has 6 rows, but 2 of what was seen next" in check(tmp_path, capsys)


@pytest.mark.parametrize("short", ["agentview_image", "robot0_eye_in_hand_image"])
def test_cameras_of_a_demonstration_have_one_length(tmp_path: Path, capsys: pytest.CaptureFixture, short: str):
    cameras = ("agentview_image", "robot0_eye_in_hand_image")
    path = write_robomimic(tmp_path / "lift.hdf5", next_obs=False, cameras=cameras)
    replace_array(path, f"data/demo_0/obs/{short}", lambda a: a[:-2])
    printed = check(tmp_path, capsys, "--image_key", ",".join(cameras))
    assert "2 good episode(s), 1 problem(s)" in printed and "demo_0: " in printed


def test_an_episode_of_aloha_with_too_few_images(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_aloha(tmp_path)
    for number, steps in enumerate(STEPS):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "a") as file:
            file["reward"] = np.arange(steps, dtype=np.float32)
    replace_array(tmp_path / "episode_1.hdf5", "observations/images/top", lambda a: a[:-3])
    assert "episode_1.hdf5: action of shape (9, 2) for 6 images" in check(tmp_path, capsys)


@pytest.mark.parametrize("kind", ["robomimic", "aloha"])
def test_files_with_different_cameras_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    if kind == "robomimic":
        write_robomimic(tmp_path / "a.hdf5")
        write_robomimic(tmp_path / "b.hdf5", cameras=("side_image",))
        seen, other, named = "agentview_image", "side_image", "b.hdf5"
    else:
        write_aloha(tmp_path, cameras=("top",))
        seen, other, named = "top", "cam_high", "episode_1.hdf5"
        for number, steps in enumerate(STEPS):
            with h5py.File(tmp_path / f"episode_{number}.hdf5", "a") as file:
                file["reward"] = np.zeros(steps)
        with h5py.File(tmp_path / named, "a") as file:
            file.move("observations/images/top", "observations/images/cam_high")
    printed = check(tmp_path, capsys)
    assert f"{named}: no camera {seen}, which other files have, but {other}; keep files with different" in printed
    assert f"no array {other!r} (--image_key)" in check(tmp_path, capsys, "--image_key", other)


def test_an_empty_demonstration_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0"]
        file.create_group("data/demo_0")
    assert "2 good episode(s), 1 problem(s)" in check(tmp_path, capsys)


def test_demonstrations_with_leading_zeros(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        for number in range(3):
            file.move(f"data/demo_{number}", f"data/demo_{number:03}")
    assert dataset.main(["check", str(tmp_path)]) == 0
    assert dataset.main(["label", str(tmp_path), "--success", "2"]) == 0
    assert "demo_002" in (tmp_path / "coworld_labels.json").read_text()


def test_images_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_robomimic(tmp_path / "lift.hdf5", next_obs=False)
    for number in range(3):
        replace_array(path, f"data/demo_{number}/obs/agentview_image", lambda a: a.astype(np.uint16))
    assert "write images as uint8, rows x height x width x 3" in check(tmp_path, capsys)


# Flat arrays


@pytest.mark.parametrize("kind", ["d4rl", "diffusion_policy"])
def test_episodes_of_one_row_keep_their_number(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    if kind == "d4rl":
        path = write_d4rl(tmp_path / "data.hdf5")
        replace_array(path, "timeouts", lambda a: a | (np.arange(len(a)) == STEPS[0]))  # the first row of episode 1
        options = []
    else:
        import zarr

        path = write_diffusion_policy(tmp_path / "data.zarr")
        ends = zarr.open_array(str(path / "meta/episode_ends"), mode="r")[:].tolist()
        shutil.rmtree(path / "meta/episode_ends")
        changed = np.array([ends[0], ends[0] + 1, *ends[1:]])
        root = zarr.open_group(str(path), mode="a")
        root.create_array("meta/episode_ends", shape=changed.shape, dtype=changed.dtype)[:] = changed
        options = ["--reward_key", "n_contacts"]
    printed = check(tmp_path, capsys, *options)
    assert "3 good episode(s), 1 problem(s)" in printed and "episode_1: " in printed
    assert dataset.main(["label", str(tmp_path), "--success", "3"]) == 0


def test_terminals_of_another_length(tmp_path: Path, capsys: pytest.CaptureFixture):
    replace_array(write_d4rl(tmp_path / "data.hdf5"), "terminals", lambda a: a[:-8])
    assert "arrays differ in length (actions 20, observations 20, rewards 20, terminals 12" in check(tmp_path, capsys)


def test_rows_after_the_last_episode(tmp_path: Path, capsys: pytest.CaptureFixture):
    import zarr

    path = write_diffusion_policy(tmp_path / "data.zarr")
    shutil.rmtree(path / "meta/episode_ends")
    root = zarr.open_group(str(path), mode="a")
    root.create_array("meta/episode_ends", shape=(2,), dtype=np.int64)[:] = np.cumsum(STEPS[:2])
    printed = check(tmp_path, capsys, "--reward_key", "n_contacts")
    assert "2 good episode(s), 1 problem(s)" in printed
    assert "rows 15 to 19 belong to no episode, as meta/episode_ends ends at 15" in printed


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_of_images_that_are_not_stored(tmp_path: Path, capsys: pytest.CaptureFixture, version: int):
    path = write_diffusion_policy(tmp_path / "data.zarr", version=version)
    assert dataset.main(["check", str(tmp_path), "--reward_key", "n_contacts"]) == 0
    assert "chunks" not in capsys.readouterr().err, "chunks of zeros are not stored, but those of images are"
    (path / "data/img" / ("1.0.0.0" if version == 2 else "c/1/0/0/0")).unlink()
    assert dataset.main(["check", str(tmp_path), "--reward_key", "n_contacts"]) == 0
    assert "data.zarr: 1 of img chunks are not stored, and read as black" in capsys.readouterr().err


# Commands


def test_new_folders_of_a_split_lie_apart(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = tmp_path / "in"
    write_robomimic(source / "lift.hdf5")
    for first, second in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        with pytest.raises(dataset.BadInput, match="lies within the new folder"):
            dataset.main(["split", str(source), str(tmp_path / first), str(tmp_path / second), "--fraction", "0.5"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_split_divides_what_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = tmp_path / "in"
    path = write_robomimic(source / "lift.hdf5", next_obs=False)
    for name in ("obs/agentview_image", "obs/robot0_eef_pos", "obs/agentview_depth", "actions", "rewards", "dones"):
        replace_array(path, f"data/demo_1/{name}", lambda a: a[:1])
    for seed in range(4):
        outs = [tmp_path / f"{part}{seed}" for part in "ab"]
        assert dataset.main(["split", str(source), *map(str, outs), "--fraction", "0.5", "--seed", str(seed)]) == 0
        assert [len(list(out.glob("*.npz"))) for out in outs] == [1, 1]


def test_states_are_named_once(tmp_path: Path):
    write_robomimic(tmp_path / "lift.hdf5")
    with pytest.raises(dataset.BadInput, match="--state_keys: robot0_eef_pos is given twice"):
        dataset.main(["check", str(tmp_path), "--state_keys", "robot0_eef_pos,robot0_eef_pos"])
