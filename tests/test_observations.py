"""Several cameras and states of datasets: every format, what is refused, `dataset.py`, the replay."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from test_lerobot import DATA, TOP, WRIST, written
from test_reads import flat_of, jpegs_of, make_episode, minari_of, npz_of

import dataset
from replay import DataMapping, OfflineDataset, OnlineReplay, first_image_shape
from replay.data_files import find_data_files
from replay.observations import joined_channels
from replay.slices import SlicedArray
from tools import BadInput, resize_images, side_by_side
from training.data_notes import scale_notes

STATES = {"qpos": np.linspace(-1, 1, 27).reshape(9, 3), "gripper": np.arange(9) % 2 == 0}
STATE_KEYS = "qpos,gripper"
LEROBOT = {"image_key": f"{TOP},{WRIST}", "state_keys": "observation.state"}


def wrist() -> np.ndarray:
    return 255 - make_episode(9, 16)["image"]


def check_rows(data: OfflineDataset, front: np.ndarray) -> None:
    """Two cameras at 8 pixels, and `STATES`."""
    rows = data.read(0, keys=("image", "qpos", "gripper", "action"))
    assert np.array_equal(rows["image"], np.concatenate([front, resize_images(wrist(), 8)], -1))
    assert rows["qpos"].dtype == rows["gripper"].dtype == np.float32 and rows["gripper"].shape == (9, 1)
    assert np.allclose(rows["qpos"], STATES["qpos"]) and np.array_equal(rows["gripper"][:, 0], STATES["gripper"])
    assert data.channels == 6 and data.states == {"qpos": 3, "gripper": 1}


@pytest.mark.parametrize("write", [npz_of, flat_of, minari_of])
def test_cameras_and_states_of_a_format(tmp_path: Path, write):
    """Also through the prepared copy that a second opening uses."""
    write(tmp_path / "data", wrist=wrist(), **STATES)
    own, front = "observation" if write is flat_of else "image", make_episode(9)["image"]
    mapping = DataMapping(image_key=f"{own}, wrist", state_keys=STATE_KEYS)
    for _ in range(2):
        data = OfflineDataset(tmp_path / "data", size=8, mapping=mapping)
        check_rows(data, front)
        assert data.cameras == {own: [8, 8, 3], "wrist": [16, 16, 3]} and data.image_shape == (8, 8, 3)
    batch = data.sample(2, 4, np.random.default_rng(0), ("image", "qpos"))
    assert batch["image"].shape == (2, 4, 8, 8, 6) and batch["qpos"].shape == (2, 4, 3)
    other = OfflineDataset(tmp_path / "data", size=8, mapping=DataMapping(image_key=f"wrist,{own}"))
    assert other.digest != data.digest and list(other.cameras) == ["wrist", own]
    assert np.array_equal(other.read(0)["image"][..., 3:], front)


def test_jpegs_of_two_cameras(tmp_path: Path):
    jpegs_of(tmp_path / "data", wrist=wrist())
    both = OfflineDataset(tmp_path / "data", size=8, mapping=DataMapping(image_key="image,wrist"))
    for name, rows in (("image", slice(0, 3)), ("wrist", slice(3, 6))):
        one = OfflineDataset(tmp_path / "data", size=8, mapping=DataMapping(image_key=name))
        assert np.array_equal(both.read(0)["image"][..., rows], one.read(0)["image"])


@pytest.mark.parametrize("name", ["v21", "v30", "v30_files"])
def test_cameras_and_states_of_lerobot(tmp_path: Path, name: str):
    data = OfflineDataset(DATA / name, size=32, cache_dir=tmp_path, action_range="data", mapping=DataMapping(**LEROBOT))
    assert data.cameras == {TOP: [64, 64, 3], WRIST: [48, 64, 3]} and data.states == {"observation.state": 2}
    rows = data.read(1, keys=("image", "observation.state"))
    assert np.array_equal(rows["observation.state"][5], [5, 1]), "row t has the state at image t"
    frame = written.frame(1, 5)
    expected = [resize_images(frame[camera][None], 32)[0].astype(int) for camera in (TOP, WRIST)]
    assert np.abs(rows["image"][5] - np.concatenate(expected, -1)).mean() < 4, "but for the loss of the codec"


def test_images_that_have_the_channels_of_two_cameras(tmp_path: Path):
    """As collect.py writes them; dataset.json has the names. Nine channels are three cameras."""
    image = np.concatenate([make_episode(9)["image"], 255 - make_episode(9)["image"]], -1)
    npz_of(tmp_path / "data", image=image)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"camera": "side,back"}))
    data = OfflineDataset(tmp_path / "data", size=8)
    assert data.cameras == {"side": [8, 8, 3], "back": [8, 8, 3]} and np.array_equal(data.read(0)["image"], image)
    npz_of(tmp_path / "more", image=np.concatenate([image, image[..., :3]], -1))
    assert list(OfflineDataset(tmp_path / "more", size=4).cameras) == ["camera_0", "camera_1", "camera_2"]
    assert first_image_shape(tmp_path / "more") == (8, 8, 3)
    npz_of(tmp_path / "odd", image=image[..., :5])
    with pytest.raises(BadInput, match="image has shape"):
        OfflineDataset(tmp_path / "odd", size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_keys": "qpso"}, r"no array 'qpso' \(--state_keys\); there are: qpos, "),
        ({"image_key": "image,wirst"}, r"no array 'wirst' \(--image_key\); there are: wrist, "),
        ({"image_key": "image,image"}, "--image_key: image is given twice; remove one"),
        ({"state_keys": "reward"}, "--state_keys: reward is no state"),
        ({"state_keys": "few"}, r"few \(--state_keys\) has shape \(4,\); a state has a row for each of the 9 images"),
        ({"state_keys": "text"}, "text is of type <U1; it must be numbers"),
        ({"state_keys": "nan"}, "NaN or infinite nan in row 3"),
        ({"image_key": "image,short"}, r"cameras differ in length \(image 9, short 8\)"),
        ({"image_key": "image,qpos"}, "images are float64, not uint8"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict, message: str):
    wrong = {"few": np.zeros(4), "text": np.array(["a"] * 9), "nan": np.where(np.arange(9) == 3, np.nan, 0)}
    npz_of(tmp_path / "data", wrist=wrist(), short=make_episode(8)["image"], **STATES, **wrong)
    with pytest.raises(BadInput, match=message) as error:
        OfflineDataset(tmp_path / "data", size=8, mapping=DataMapping(**{"image_key": "image", **options}))
    assert "\n" not in str(error.value)


def test_lerobot_columns_that_are_refused(tmp_path: Path):
    for keys, message in (("observation.stat", "no array 'observation.stat'"), (WRIST, "no column .* with numbers")):
        with pytest.raises(BadInput, match=message):
            mapping = DataMapping(image_key=TOP, state_keys=keys)
            OfflineDataset(DATA / "v30_files", size=32, cache_dir=tmp_path, action_range="data", mapping=mapping)


def test_episodes_with_other_sizes_are_refused(tmp_path: Path):
    npz_of(tmp_path / "data", **STATES)
    np.savez(tmp_path / "data" / "b.npz", **make_episode(9) | STATES | {"qpos": np.zeros((9, 4))})
    mapping = DataMapping(state_keys=STATE_KEYS)
    with pytest.raises(BadInput, match="sizes of qpos differ between episodes"):
        OfflineDataset(tmp_path / "data", size=8, mapping=mapping)
    dataset.main(["check", str(tmp_path / "data")])
    assert dataset.main(["check", str(tmp_path / "data"), "--state_keys", STATE_KEYS]) == 1


def test_info_shows_cameras_and_states(tmp_path: Path, capsys: pytest.CaptureFixture):
    npz_of(tmp_path / "data", wrist=wrist(), ticks=np.full((9, 2), 4096), **STATES)
    flags = ["--image_key", "image,wrist", "--state_keys", f"{STATE_KEYS},ticks"]
    assert dataset.main(["info", str(tmp_path / "data"), *flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    for line in ("cameras       image, wrist", "image size    8x8 + 16x16", "state         qpos: 3 in [-1, 1]"):
        assert line in printed.out
    assert "state ticks has values up to 4096" in printed.err and "state qpos" not in printed.err
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("to", ["npz", "minari"])
def test_converted_data_keep_cameras_and_states(tmp_path: Path, to: str):
    front = make_episode(9)["image"]
    npz_of(tmp_path / "data", wrist=resize_images(wrist(), 8), **STATES)
    out, flags = tmp_path / f"out-{to}-v0", ["--image_key", "image,wrist", "--state_keys", STATE_KEYS]
    assert dataset.main(["convert", str(tmp_path / "data"), str(out), "--to", to, *flags]) == 0
    data = OfflineDataset(out, size=8, mapping=DataMapping(state_keys=STATE_KEYS))
    check_rows(data, front)
    assert list(data.cameras) == ["image", "wrist"], "by dataset.json"
    shutil.rmtree(out)
    npz_of(tmp_path / "other", wrist=wrist())
    with pytest.raises(BadInput, match="no usable episode"):
        dataset.main(["convert", str(tmp_path / "other"), str(out), "--to", to, *flags[:2]])


def test_converted_lerobot_data_have_the_states(tmp_path: Path):
    flags = ["--image_key", WRIST, "--state_keys", "observation.state", "--action_range", "data", "--to", "npz"]
    dataset.main(["convert", str(DATA / "v30_files"), str(tmp_path / "out"), *flags])
    mapping = DataMapping(state_keys="observation.state")
    rows = OfflineDataset(tmp_path / "out", size=32, mapping=mapping).read(0, keys=("observation.state",))
    assert np.array_equal(rows["observation.state"][5], [5, 0])


def test_slices_of_cameras_with_other_numbers_of_rows_are_joined(monkeypatch: pytest.MonkeyPatch):
    front, back = (np.random.default_rng(seed).integers(0, 256, (11, 4, 4, 3), np.uint8) for seed in (0, 1))

    def sliced(array: np.ndarray, rows: int) -> SlicedArray:
        read = lambda: (array[i : i + rows] for i in range(0, len(array), rows))  # noqa: E731
        return SlicedArray(array.shape, array.dtype, read, "file", "npz")

    monkeypatch.setattr("replay.observations.rows_at_once", lambda row_bytes: 3)
    joined = joined_channels([sliced(front, 4), back, sliced(front, 11)])
    assert [len(piece) for piece in joined] == [3, 3, 3, 2] and joined.shape == (11, 4, 4, 9)
    assert np.array_equal(np.asarray(joined), np.concatenate([front, back, front], -1))
    pictures = side_by_side(np.asarray(joined))
    assert pictures.shape == (11, 4, 12, 3) and np.array_equal(pictures[:, :, 4:8], back)


def test_mappings_without_these_settings_have_the_folders_that_they_had():
    assert DataMapping(image_key="rgb").digest() == "2889b0329b5f"
    found = {DataMapping(image_key=key, state_keys=keys).digest() for key in ("", "a,b") for keys in ("", "q", "q,r")}
    assert len(found) == 6


def test_the_replay_stores_states_and_two_cameras(tmp_path: Path):
    replay = OnlineReplay(tmp_path, capacity=100)
    episode = make_episode(9) | {"qpos": STATES["qpos"].astype(np.float32)}
    replay.add_episode(episode | {"image": np.concatenate([episode["image"]] * 2, -1)})
    batch = replay.sample(2, 4, np.random.default_rng(0), ("image", "qpos"))
    assert batch["image"].shape == (2, 4, 8, 8, 6) and batch["qpos"].shape == (2, 4, 3)


def test_states_far_from_1_are_warned_of(tmp_path: Path):
    npz_of(tmp_path / "data", ticks=np.linspace(-500, 99, 9), **STATES)
    data = OfflineDataset(tmp_path / "data", size=8, mapping=DataMapping(state_keys=f"{STATE_KEYS},ticks"))
    (line,) = scale_notes("target", data, data.states, tiny())
    assert line.startswith("warning: target: state ticks has values up to 500, ") and "--symlog True" in line
    assert scale_notes("target", data, data.states, tiny(symlog=True)) == []
    assert scale_notes("target", data, data.states, tiny(state_standardize=True)) == []


def test_one_camera_of_several_without_a_mapping_is_still_a_choice(tmp_path: Path):
    npz_of(tmp_path / "data", wrist=wrist())
    with pytest.raises(
        BadInput, match=r"choose one with --image_key: image, wrist \(or several: separate them by commas"
    ):
        find_data_files(tmp_path / "data")[0].episodes()[0][1]()


def test_a_file_without_arrays(tmp_path: Path):
    zipfile.ZipFile(tmp_path / "a.npz", "w").close()
    with pytest.raises(BadInput, match="no array named image, action, reward"):
        OfflineDataset(tmp_path, size=8)
