"""Data with other names, ranges and shapes: --image_key, --action_key, --reward_key, --done_key, --action_range."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import co_training
import dataset
from replay import DataMapping, OfflineDataset
from replay.episode import validate_episode
from replay.mapping import ActionMap, action_map, parse_range
from tools import BadInput, resize_images
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures", "no_dataset_pictures")

MINARI = Path(__file__).resolve().parent / "data" / "minari"
NAMES = ("rgb", "act", "rew", "done")
KEYS = DataMapping(*NAMES)
FLAGS = [
    text
    for role, name in zip(("image", "action", "reward", "done"), NAMES, strict=True)
    for text in (f"--{role}_key", name)
]
LOW, HIGH = -5.0, 3.0


def foreign_episode(rows: int, number: int = 0, actions: int = 2) -> dict:
    """As a program outside the repository could write it: 96x72 images, actions in [-5, 3], a flag at the end."""
    rng = np.random.default_rng(number)
    action = rng.uniform(LOW, HIGH, (rows, actions)).astype(np.float32)
    action[0] = 0
    return {
        "rgb": rng.integers(0, 256, (rows, 96, 72, 3), dtype=np.uint8),
        "act": action,
        "rew": rng.uniform(0, 1, rows),
        "done": np.arange(rows) == rows - 1,
    }


def write(folder: Path, episodes: list[dict]) -> Path:
    folder.mkdir()
    for number, episode in enumerate(episodes):
        np.savez_compressed(folder / f"{number}.npz", **episode)
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return write(tmp_path / "foreign", [foreign_episode(20 + number, number) for number in range(3)])


def test_actions_are_rescaled_and_the_map_inverts(foreign):
    data = OfflineDataset(foreign, size=32, mapping=KEYS, action_range="-5,3")
    assert data.action_map == {"low": [LOW] * 2, "high": [HIGH] * 2} and data.image_shape == (96, 72, 3)
    original = foreign_episode(20)
    rows = {"action": np.empty((20, 2), np.float32), "image": np.empty((20, 32, 32, 3), np.uint8)}
    rows |= {key: np.empty(20, np.float32) for key in ("reward", "discount")}
    data.stored[0].read_rows(0, rows)
    assert np.abs(rows["action"]).max() <= 1 and not rows["action"][0].any(), "the reset has no action"
    restored = LOW + (rows["action"][1:] + 1) / 2 * (HIGH - LOW)
    assert np.allclose(restored, original["act"][1:], atol=1e-5)
    assert np.array_equal(rows["image"], resize_images(original["rgb"], 32))
    assert np.allclose(rows["reward"], original["rew"]) and np.array_equal(rows["discount"], 1 - original["done"])
    later = np.empty((4, 2), np.float32)
    data.stored[0].read_rows(7, {"action": later})
    assert np.array_equal(later, rows["action"][7:11]), "also in the middle of an episode"


def test_the_range_of_the_data_is_that_of_all_episodes(foreign):
    data = OfflineDataset(foreign, size=16, mapping=KEYS, action_range="data")
    actions = np.concatenate([foreign_episode(20 + number, number)["act"][1:] for number in range(3)])
    assert np.allclose(data.action_map["low"], actions.min(0)) and np.allclose(data.action_map["high"], actions.max(0))
    batch = data.sample(200, 10, np.random.default_rng(0))["action"]
    assert np.abs(batch).max() <= 1 and batch.min() < -0.9 and batch.max() > 0.9
    fixed = OfflineDataset(foreign, size=16, mapping=KEYS, action_range="-6,4,-5,3")
    assert fixed.action_map == {"low": [-6, -5], "high": [4, 3]}


def test_episodes_outside_the_range_are_left_out(tmp_path, capsys):
    wide = foreign_episode(20, 1)
    wide["act"][4, 1] = 3.5
    folder = write(tmp_path / "data", [foreign_episode(20), wide])
    assert OfflineDataset(folder, size=16, mapping=KEYS, action_range="-5,3").episodes == 1
    assert "1.npz: actions" in (line := capsys.readouterr().err) and "outside --action_range -5,3" in line
    with pytest.raises(BadInput, match=r"outside --action_range -1,1.*so is every episode"):
        OfflineDataset(folder, size=16, mapping=KEYS, action_range="-1,1")
    assert dataset.main(["check", str(folder), *FLAGS, "--action_range", "-5,3"]) == 1
    assert "bad: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mapping", "action_range", "message"),
    [
        (DataMapping("rbg", "act", "rew"), "data", r"no array 'rbg' \(--image_key\); there are: rgb"),
        (DataMapping(), "", "no array named image, action, reward.*rgb.*--image_key, --action_key, --reward_key"),
        (KEYS, "", r"outside \[-1, 1\]; give --action_range data"),
        (KEYS, "-5", "-5: give data, LOW,HIGH"),
        (KEYS, "3,-5", "3 is not below -5"),
        (KEYS, "-5,3,-5,3,-5,3", "6 numbers for actions of size 2"),
        (DataMapping("rgb", "act", "rew", "rew"), "data", "must be true or false"),
        (DataMapping("rgb", "rgb", "rew"), "data", r"action has shape \(20, 96, 72, 3\)"),
    ],
)
def test_wrong_options_are_one_line(foreign, mapping, action_range, message):
    with pytest.raises(BadInput, match=message):
        OfflineDataset(foreign, size=16, mapping=mapping, action_range=action_range)


def test_copies_of_other_mappings_are_kept_apart(foreign):
    other = foreign / "0.npz"
    episode = dict(np.load(other)) | {"side": np.zeros((20, 8, 8, 3), np.uint8)}
    for path in foreign.glob("*.npz"):
        path.unlink()
    np.savez(other, **episode)
    first = OfflineDataset(foreign, size=16, mapping=KEYS, action_range="data")
    second = OfflineDataset(foreign, size=16, mapping=DataMapping("side", "act", "rew"), action_range="-9,9")
    again = OfflineDataset(foreign, size=16, mapping=KEYS, action_range="-9,9")
    assert first.digest == again.digest != second.digest and second.image_shape == (8, 8, 3)


@pytest.mark.parametrize("shape", [(5, 9, 7), (5, 9, 7, 1), (5, 1, 9, 7)])
def test_grey_images_get_three_channels(tmp_path, shape):
    grey = np.arange(5 * 9 * 7, dtype=np.uint8).reshape(shape)
    episode = {"image": grey, "action": np.zeros((5, 2), np.float32), "reward": np.zeros(5, np.float32)}
    image = validate_episode(episode, "here")["image"]
    assert image.shape == (5, 9, 7, 3) and all(np.array_equal(image[..., c], grey.reshape(5, 9, 7)) for c in range(3))
    data = OfflineDataset(write(tmp_path / "data", [episode]), size=8)
    assert data.image_shape == (9, 7, 1)
    assert dataset.main(["convert", str(tmp_path / "data"), str(tmp_path / "out-v0"), "--to", "minari"]) == 0
    assert OfflineDataset(tmp_path / "out-v0", size=8).digest == data.digest


def images_of(kind: str, rows: int = 5) -> np.ndarray:
    """Pictures with colours, without, or stored as grey ones."""
    grey = np.random.default_rng(0).integers(0, 256, (rows, 9, 7), dtype=np.uint8)
    return {"colours": np.stack([grey, 255 - grey, grey], -1), "none": np.stack([grey] * 3, -1), "grey": grey}[kind]


@pytest.mark.parametrize(
    ("kinds", "channels"),
    [
        (("colours", "none"), 3),
        (("none", "none"), 3),
        (("none", "colours"), 3),
        (("grey", "grey"), 1),
        (("grey", "none"), 3),
        (("colours", "grey"), 3),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_channels_are_those_of_the_stored_arrays(tmp_path, kinds, channels, first, capsys):
    """In one hdf5 file and in several npz files, channels last or first; the values do not matter."""
    zeros = {"action": np.zeros((5, 2), np.float32), "reward": np.zeros(5, np.float32)}
    images = [images_of(kind) for kind in kinds]
    if first:
        images = [image.transpose(0, 3, 1, 2) if image.ndim == 4 else image[:, None] for image in images]
    folder = write(tmp_path / "data", [zeros | {"image": image} for image in images])
    assert OfflineDataset(folder, size=8).image_shape == (9, 7, channels)
    assert ("grey and RGB images" in capsys.readouterr().err) == ("grey" in kinds and channels == 3)
    if len({image.shape[1:] for image in images}) == 1:
        with h5py.File(tmp_path / "data.hdf5", "w") as file:
            file["observation"] = np.concatenate(images)
            file["action"], file["reward"] = np.zeros((10, 2), np.float32), np.zeros(10, np.float32)
            file["step_type"] = np.array([0, 1, 1, 1, 2] * 2)
        assert OfflineDataset(tmp_path / "data.hdf5", size=8).image_shape == (9, 7, channels)


def test_actions_without_a_row_for_the_reset(tmp_path, capsys):
    episode = {"image": np.zeros((6, 8, 8, 3), np.uint8), "action": np.ones((5, 2)), "reward": np.zeros(5)}
    with pytest.raises(BadInput, match=r"led to image t: begin with a row of zeros .*--action_at current does it"):
        OfflineDataset(write(tmp_path / "short", [episode]), size=8)
    episode = {"image": np.zeros((6, 8, 8, 3), np.uint8), "action": np.ones((6, 2)), "reward": np.zeros(6)}
    dataset.main(["info", str(write(tmp_path / "shifted", [episode]))])
    assert "1 of 1 episode(s) with an action in row 0" in capsys.readouterr().err


def test_the_map_of_a_constant_dimension():
    found = action_map("data", np.array([-2.0, 7.0]), np.array([2.0, 7.0]))
    assert np.array_equal(found.to_unit(np.array([[1.0, 7.0]])), np.array([[0.5, 0]], np.float32))
    assert parse_range("data") is None and ActionMap((-1.0,), (1.0,)).contains(np.array([-1.0001]), np.array([1.0]))


def test_info_and_convert_use_the_mapping(foreign, tmp_path, capsys):
    assert dataset.main(["info", str(foreign), *FLAGS]) == 0
    printed = capsys.readouterr()
    assert "96x72 (3 episodes)" in printed.out and "give --action_range data" in printed.err
    flags = [*FLAGS, "--action_range", "-5,3"]
    assert dataset.main(["convert", str(foreign), str(tmp_path / "out"), "--to", "npz", *flags]) == 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["action_map"]["high"] == [HIGH] * 2
    converted = OfflineDataset(tmp_path / "out", size=16)
    mapped = OfflineDataset(foreign, size=16, mapping=KEYS, action_range="-5,3")
    assert converted.action_map == mapped.action_map and converted.image_shape == (96, 72, 3)
    one, other = (data.sample(4, 9, np.random.default_rng(0)) for data in (converted, mapped))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    with pytest.raises(BadInput, match=r"no array 'rbg'.*and 2 more"):
        dataset.main(["info", str(foreign), *FLAGS, "--image_key", "rbg"])


def test_hdf5_and_minari_take_names_too(tmp_path):
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        episode = foreign_episode(9)
        for name, array in episode.items():
            file[name] = array
        file["step_type"] = np.array([0, *[1] * 7, 2])
    data = OfflineDataset(tmp_path, size=16, mapping=KEYS, action_range="data")
    assert data.lengths == [8] and data.image_shape == (96, 72, 3)
    for storage in ("hdf5", "parquet"):
        folder = MINARI / storage / "raw-image-v0"
        plain = OfflineDataset(folder, size=8, cache_dir=tmp_path / "cache")
        kind = DataMapping(reward_key="truncations", done_key="truncations")
        mapped = OfflineDataset(folder, size=8, cache_dir=tmp_path / "cache", mapping=kind)
        assert plain.returns == [15.0, 65.0] and mapped.returns == [1.0, 0.0], "episode 0 is truncated"
    with pytest.raises(BadInput, match=r"'truncations' \(--image_key\) has no images"):
        OfflineDataset(folder, size=8, cache_dir=tmp_path / "cache", mapping=DataMapping(image_key="truncations"))


@pytest.mark.parametrize("map_fits", [True, False])
def test_a_run_with_a_map_saves_it_and_evaluates_in_the_same_units(tmp_path, map_fits, dots):
    """The simulator's own actions are in [-0.2, 0.2]: a map to that range fits, any other is refused."""
    episodes = [{**foreign_episode(13, number), "act": np.zeros((13, 2), np.float32)} for number in range(2)]
    episodes[0]["act"][2], episodes[0]["act"][3] = -0.2, 0.2
    folder = write(tmp_path / "data", episodes)
    flags = ["--method", "offline_dv2", "--target_task", "dots_to_right", "--offline_traindir", folder]
    flags += ["--logdir", tmp_path / "run", *FLAGS, "--configs", "defaults", "debug", "--size", "32,32"]
    flags += ["--action_range", "data" if map_fits else "-1,2", "--rounds", "0", "--video_every", "0"]
    if not map_fits:
        with pytest.raises(BadInput, match=r"--action_range -1,2 is not the range.*give --action_range -0.2,0.2"):
            co_training.main([str(flag) for flag in flags])
        return
    co_training.main([str(flag) for flag in flags])
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["data"]
    limit = float(np.float32(0.2))  # as the data has it
    found = {"action_map": {"low": [-limit] * 2, "high": [limit] * 2}, "image_shape": (96, 72, 3)}
    assert saved == {**found, "action_names": [], "action_at": "auto"}
