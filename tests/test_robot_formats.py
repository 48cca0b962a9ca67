"""The robot formats: robomimic and LIBERO, ALOHA, Diffusion Policy, D4RL and OGBench, as their programs write them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from robot_files import (
    SIZE,
    STEPS,
    actions,
    encoded,
    frames,
    write_aloha,
    write_d4rl,
    write_diffusion_policy,
    write_libero,
    write_robomimic,
)

import co_training
import dataset
from replay import DataMapping, OfflineDataset
from replay.data_files import find_data_files
from replay.formats import diffusion_policy
from tools import BadInput
from training.checkpoint import load_checkpoint

ZARR = "zarr is not installed (requirements/formats.txt)"


def load_all(folder: Path, raw: bool = False, **options) -> list[dict]:
    files = find_data_files(folder, mapping=DataMapping(**options))
    return [load() for file in files for _, load in file.episodes(raw=raw)]


def assert_rows(episode: dict, number: int, steps: int, rows: int, exact: bool = True) -> None:
    """Image t is frame t; the action of row t + 1 is action t."""
    difference = np.abs(episode["image"].astype(int) - frames(number, 0, rows))
    assert difference.max() == 0 if exact else difference.mean() < 3
    assert not episode["action"][0].any() and episode["action"].dtype == np.float32
    assert np.array_equal(episode["action"][1:], actions(number, steps)[: rows - 1])


# robomimic, LIBERO


def test_robomimic_with_next_obs_loses_no_action(tmp_path: Path):
    write_robomimic(tmp_path / "lift.hdf5")
    assert {file.format.name for file in find_data_files(tmp_path)} == {"robomimic"}
    episodes = load_all(tmp_path)
    for number, (episode, steps) in enumerate(zip(episodes, STEPS, strict=True)):
        assert_rows(episode, number, steps, steps + 1)
        success = number != 1
        assert np.array_equal(episode["reward"], [0.0] * (steps - 1) + [success, success])
        assert np.array_equal(episode["discount"], [1.0] * steps + [0]), "dones of earlier steps do not count"
    raw = load_all(tmp_path, raw=True)[0]
    assert np.array_equal(raw["robot0_eef_pos"][:, 0], np.arange(7)) and "agentview_depth" not in raw


def test_robomimic_without_next_obs_has_a_row_less(tmp_path: Path):
    write_robomimic(tmp_path / "lift.hdf5", next_obs=False)
    for number, (episode, steps) in enumerate(zip(load_all(tmp_path), STEPS, strict=True)):
        assert_rows(episode, number, steps, steps)
        assert episode["reward"].sum() == 2 * (number != 1), "the last reward is added to the last row's"


def test_splits_of_robomimic(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_robomimic(tmp_path / "lift.hdf5")
    assert [len(episode["reward"]) - 1 for episode in load_all(path, split="train")] == [6, 5]
    assert OfflineDataset(tmp_path, size=16, mapping=DataMapping(split="valid")).lengths == [9]
    assert OfflineDataset(tmp_path, size=16).lengths == list(STEPS), "the copies of a split are not those of all"
    assert dataset.main(["info", str(tmp_path), "--split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "numbers       0, 2, the data's own" in printed and "splits        train, valid (--split)" in printed
    with pytest.raises(BadInput, match=r"no split 'trian' .--split.; there are: train, valid"):
        load_all(path, split="trian")
    with pytest.raises(BadInput, match="--split has no effect on format aloha; remove it"):
        load_all(write_aloha(tmp_path / "aloha"), split="train")
    dataset.main(["label", str(tmp_path), "--success", "0-1"])
    assert [sum(episode["reward"]) for episode in load_all(path, split="train")] == [1, 0]
    with h5py.File(path, "a") as file:
        file["mask/odd"] = np.array(["demo_7"], "S8")
    with pytest.raises(BadInput, match=r"split odd names 1 demonstration.s. that are not in the file, such as .demo_7"):
        load_all(path, split="odd")


def test_names_that_are_no_text(tmp_path: Path):
    """HDF5 allows any bytes as a name."""
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        for group in (file, file["data"], file["data/demo_0/obs"]):
            h5py.h5g.create(group.id, b"\xff\xfe")
    assert len(load_all(tmp_path)) == 3


def test_a_camera_of_several_is_chosen(tmp_path: Path):
    cameras = ("agentview_image", "robot0_eye_in_hand_image")
    write_robomimic(tmp_path / "lift.hdf5", cameras=cameras)
    with pytest.raises(BadInput, match=f"2 arrays of images; choose one with --image_key: {', '.join(cameras)}"):
        load_all(tmp_path)
    assert len(load_all(tmp_path, image_key=cameras[1])) == 3
    with pytest.raises(BadInput, match=r"no array 'wrist' .--image_key.; there are: .*robot0_eye_in_hand_image"):
        load_all(tmp_path, image_key="wrist")
    with pytest.raises(BadInput, match=r"'robot0_eef_pos' .--image_key. has no images"):
        load_all(tmp_path, image_key="robot0_eef_pos")


def test_files_of_robomimic_without_images(tmp_path: Path):
    path = write_robomimic(tmp_path / "low_dim.hdf5", cameras=())
    with pytest.raises(BadInput, match=r"no images among the observations .*robot0_eef_pos float64.*dataset_states_to"):
        load_all(path)


def test_libero_writes_what_was_seen_after_the_action(tmp_path: Path):
    for name in ("put_the_bowl_demo", "open_the_drawer_demo"):
        write_libero(tmp_path / f"{name}.hdf5")
    with pytest.raises(BadInput, match="--image_key: agentview_rgb, eye_in_hand_rgb"):
        load_all(tmp_path)
    episodes = load_all(tmp_path, image_key="agentview_rgb")
    assert len(episodes) == 6
    for number, steps in enumerate(STEPS):
        assert np.array_equal(episodes[number]["image"], frames(number, 1, steps + 1))
        assert np.array_equal(episodes[number]["action"][1:], actions(number, steps)[1:])
        assert not episodes[number]["action"][0].any() and episodes[number]["reward"].tolist() == [0] * (steps - 1) + [
            1
        ]
        assert episodes[number]["discount"][-1] == 0


# ALOHA


@pytest.mark.parametrize("storage", ["pixels", "padded", "bytes", "variable"])
def test_aloha(tmp_path: Path, storage: str):
    write_aloha(tmp_path, storage)
    with pytest.raises(BadInput, match=r"no rewards .array reward.; name them with --reward_key .*dataset.py label"):
        load_all(tmp_path)
    assert dataset.main(["label", str(tmp_path), "--success", "1"]) == 0
    for number, (episode, steps) in enumerate(zip(load_all(tmp_path, raw=True), STEPS, strict=True)):
        assert_rows(episode, number, steps, steps, exact=storage == "pixels")
        assert episode["reward"].tolist() == [0] * (steps - 1) + [number == 1]
        assert np.array_equal(episode["qpos"][:, 3], np.arange(steps))


def test_aloha_with_a_frame_that_is_no_jpeg(tmp_path: Path):
    write_aloha(tmp_path, "padded")
    for number in (0, 1):
        (tmp_path / f"episode_{number}.hdf5").unlink()
    with h5py.File(tmp_path / "episode_2.hdf5", "a") as file:
        file["observations/images/top"][3] = 0
        file["reward"] = np.zeros(STEPS[2])
    with pytest.raises(
        BadInput, match=r"episode_2.hdf5: not a readable HDF5 file .image 3: a frame is not a JPEG or PNG"
    ):
        load_all(tmp_path, reward_key="reward")


# Diffusion Policy


@pytest.mark.parametrize(
    ("name", "images", "kind", "version"),
    [
        ("pusht.zarr", "img", np.float32, 2),
        ("replay_buffer.zarr.zip", "camera_0", np.uint8, 2),
        ("pusht.zarr", "img", np.uint8, 3),
    ],
)
def test_diffusion_policy(tmp_path: Path, name: str, images: str, kind: type, version: int):
    pytest.importorskip("zarr", reason=ZARR)
    path = write_diffusion_policy(tmp_path / "data" / name, images, kind, version)
    for opened in (path, path.parent):
        assert {file.format.name for file in find_data_files(opened)} == {"diffusion_policy"}
        with pytest.raises(BadInput, match=rf"no rewards .array reward.*label {path.parent} --success"):
            load_all(opened)
    assert dataset.main(["label", str(path.parent), "--success", "0,2"]) == 0
    for opened in (path, path.parent):
        for number, (episode, steps) in enumerate(zip(load_all(opened, raw=True), STEPS, strict=True)):
            assert_rows(episode, number, steps, steps)
            assert episode["reward"].sum() == (number != 1) and np.array_equal(episode["state"][:, 0], np.arange(steps))


def test_the_copies_of_a_zarr_group_are_made_once(tmp_path: Path):
    """They are within its folder, which is opened as a dataset by itself."""
    pytest.importorskip("zarr", reason=ZARR)
    path = write_diffusion_policy(tmp_path / "a.zarr")
    mapping = DataMapping(reward_key="n_contacts")
    made = []
    for _ in range(2):
        assert OfflineDataset(path, size=16, mapping=mapping).lengths == [steps - 1 for steps in STEPS]
        made.append({copy.name: copy.stat().st_ino for copy in path.rglob(".coworld-cache/*/*.npz")})
    assert made[0] == made[1] and len(made[0]) == 3


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"id": "pickle"}, "img is compressed with pickle, which is not read here; write it again with blosc"),
        ({"id": "imagecodecs_jpegxl"}, "img is compressed with imagecodecs_jpegxl, which is not read here"),
    ],
)
def test_codecs_that_could_run_code_or_are_not_known(tmp_path: Path, codec: dict, message: str):
    pytest.importorskip("zarr", reason=ZARR)
    path = write_diffusion_policy(tmp_path / "a.zarr")
    metadata = path / "data" / "img" / ".zarray"
    for key in ("compressor", "filters"):
        found = json.loads(metadata.read_text())
        found[key] = [codec] if key == "filters" else codec
        metadata.write_text(json.dumps(found))
        with pytest.raises(BadInput, match=message):
            load_all(path, reward_key="n_contacts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image / 255, "images are float32 from 0 to 1; write them as uint8, 0 to 255"),
        (lambda image: image - 20, "images are float32 from -20 to 235, not 0 to 255"),
        (lambda image: np.where(image == 255, np.nan, image), "from nan to nan, not 0 to 255"),
    ],
)
def test_floating_point_images_of_another_range(tmp_path: Path, change: Callable, message: str):
    zarr = pytest.importorskip("zarr", reason=ZARR)
    path = write_diffusion_policy(tmp_path / "a.zarr")
    image = zarr.open_array(path / "data" / "img", mode="r+", zarr_format=2)
    image[:] = change(image[:])
    with pytest.raises(BadInput, match=message):
        load_all(path, reward_key="n_contacts")


def test_zarr_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "a.zarr" / "meta" / "episode_ends").mkdir(parents=True)
    (tmp_path / "a.zarr" / "meta" / "episode_ends" / ".zarray").write_text("{}")
    (file,) = find_data_files(tmp_path)
    with pytest.raises(BadInput, match=r"a.zarr needs zarr: pip install -r .*requirements/formats.txt"):
        diffusion_policy.list_episodes(file.path, False)


# D4RL, OGBench


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
def test_d4rl(tmp_path: Path, suffix: str):
    write_d4rl(tmp_path / f"a.{suffix}")
    assert {file.format.name for file in find_data_files(tmp_path)} == {"d4rl"}
    for number, (episode, steps) in enumerate(zip(load_all(tmp_path), STEPS, strict=True)):
        assert_rows(episode, number, steps, steps)
        assert episode["reward"].tolist() == [0, *range(steps - 2), 2 * steps - 3]
        assert episode["discount"][-1] == (number == 1), "terminals are terminations, timeouts are none"
    write_d4rl(tmp_path / "b" / f"a.{suffix}", following=True)
    for number, (episode, steps) in enumerate(zip(load_all(tmp_path / "b"), STEPS, strict=True)):
        assert_rows(episode, number, steps, steps + 1)
        assert episode["reward"].tolist() == [0, *range(steps)]


def test_ogbench_terminals_are_ends_and_no_terminations(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_d4rl(tmp_path / "visual-cube-single-play-v0.npz", timeouts=False, rewards=False)
    with pytest.raises(BadInput, match=r"no rewards .array rewards.; name them with --reward_key"):
        load_all(path)
    assert dataset.main(["label", str(tmp_path), "--success", "0-1"]) == 0
    for number, (episode, steps) in enumerate(zip(load_all(path), STEPS, strict=True)):
        assert_rows(episode, number, steps, steps + 1)
        assert episode["discount"].all() and episode["reward"].sum() == (number < 2)
    assert [e["discount"][-1] for e in load_all(path, done_key="terminals")] == [0, 0, 0]


def test_a_name_of_two_lines_is_shown_in_one(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **{"o\nservations": np.zeros(3)})
    with pytest.raises(BadInput, match=r"there are: 'o\\nservations'; name them") as caught:
        load_all(tmp_path)
    assert "\n" not in str(caught.value)


def test_d4rl_of_states(tmp_path: Path):
    steps = {"actions": np.zeros((9, 2)), "rewards": np.zeros(9), "terminals": np.zeros(9), "timeouts": np.zeros(9)}
    np.savez(tmp_path / "hopper.npz", observations=np.zeros((9, 11), np.float32), **steps)
    with pytest.raises(BadInput, match=r"no images .*observations float32 .9, 11.*these are states: take a visual"):
        load_all(tmp_path)
    np.savez(tmp_path / "hopper.npz", observations=frames(0, 0, 8), **steps)
    with pytest.raises(BadInput, match=r"arrays differ in length .*observations 8"):
        load_all(tmp_path)


# All of them


FORMATS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "robomimic": (lambda folder: write_robomimic(folder / "a.hdf5"), []),
    "libero": (lambda folder: write_libero(folder / "a.hdf5"), ["--image_key", "agentview_rgb"]),
    "aloha": (lambda folder: write_aloha(folder, "variable"), ["--reward_key", "reward"]),
    "diffusion_policy": (lambda folder: write_diffusion_policy(folder / "a.zarr"), ["--reward_key", "n_contacts"]),
    "d4rl": (lambda folder: write_d4rl(folder / "a.npz"), []),
}


@pytest.mark.parametrize("name", FORMATS)
def test_info_check_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    """The converted episodes are those that were read, also with the names of the arrays."""
    if name == "diffusion_policy":
        pytest.importorskip("zarr", reason=ZARR)
    write, flags = FORMATS[name]
    write(tmp_path / "data")
    if name == "aloha":
        for path in (tmp_path / "data").glob("*.hdf5"):
            with h5py.File(path, "a") as file:
                file["reward"] = np.arange(len(file["action"]), dtype=np.float32)
    folder = str(tmp_path / "data")
    assert dataset.main(["info", folder, "--out", str(tmp_path / "pictures"), *flags]) == 0
    printed = capsys.readouterr().out
    assert f"image size    {SIZE}x{SIZE} (3 episodes)" in printed and "episodes      3" in printed
    assert dataset.main(["check", folder, *flags]) == 0
    options = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    read = load_all(tmp_path / "data", **options)
    for to in ("npz", "minari") if name == "d4rl" else ("npz",):
        assert dataset.main(["convert", folder, str(tmp_path / to), "--to", to, *flags]) == 0
        for before, after in zip(read, load_all(tmp_path / to), strict=True):
            for key in ("image", "action", "reward", "discount"):
                assert np.array_equal(before[key], after[key]), key
    assert OfflineDataset(tmp_path / "npz", size=16).episodes == 3


def test_png_frames_and_files_of_another_layout(tmp_path: Path):
    write_aloha(tmp_path, "bytes")
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        del file["observations/images/top"]
        pngs = [encoded(image, "PNG") for image in frames(1, 0, STEPS[1])]
        file["observations/images/top"] = np.array(pngs, f"S{max(map(len, pngs))}")
        file["reward"] = np.zeros(STEPS[1])
    with h5py.File(tmp_path / "episode_2.hdf5", "w") as file:
        file["other"] = np.zeros(3)
    labels = {file.name: file for file in find_data_files(tmp_path)}
    (episode,) = (load() for _, load in labels["episode_1.hdf5"].episodes())
    assert np.array_equal(episode["image"], frames(1, 0, STEPS[1])), "PNG is lossless"
    with pytest.raises(BadInput, match=r"episode_2.hdf5: not a readable HDF5 file"):
        labels["episode_2.hdf5"].episodes()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_run_without_a_simulator_of_its_target(tmp_path: Path, name: str):
    if name == "diffusion_policy":
        pytest.importorskip("zarr", reason=ZARR)
    write, flags = FORMATS[name]
    write(tmp_path / "data")
    if name == "aloha":
        flags = []
        dataset.main(["label", str(tmp_path / "data"), "--success", "0,2"])
    if name == "robomimic":
        flags = ["--split", "train", "--holdout", "0.5"]
    arguments = ["--method", "offline_dv2", "--target_task", "my_robot", "--offline_traindir", str(tmp_path / "data")]
    settings = ["--size", "16,16", "--batch_length", "4", "--configs", "defaults", "debug"]
    co_training.main([*arguments, "--logdir", str(tmp_path / "run"), *flags, *settings])
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["progress"]["target_updates"] > 0 and saved["data"]["image_shape"] == (SIZE, SIZE, 3)
