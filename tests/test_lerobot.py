"""LeRobot datasets that the lerobot package wrote (tests/data/lerobot): contents, row convention, damage, labels."""

import importlib.util
import io
import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import co_training
import dataset
from policy import load_policy
from policy.program import describe
from replay import DataMapping, OfflineDataset
from replay.data_files import find_data_files
from tools import BadInput, exit_on_bad_input
from training.checkpoint import load_checkpoint
from wrappers import SUITES, Suite, register
from wrappers.shared.base import PixelEnv, SimulatorStep

pytestmark = pytest.mark.usefixtures("no_pictures", "no_dataset_pictures")

DATA = Path(__file__).resolve().parent / "data" / "lerobot"
TOP, WRIST = "observation.images.top", "observation.images.wrist"
FOLDERS = ("v21", "v30", "v30_files")
LIST = "meta/episodes/chunk-000/file-000.parquet"

specification = importlib.util.spec_from_file_location("write", DATA / "write.py")
written = importlib.util.module_from_spec(specification)
specification.loader.exec_module(written)


@pytest.fixture
def copy(tmp_path: Path):
    def make(name: str) -> Path:
        shutil.copytree(DATA / name, tmp_path / "data")
        return tmp_path / "data"

    return make


def load_all(folder: Path, raw: bool = False, **options) -> list[dict]:
    mapping = DataMapping(**{"image_key": TOP, "any_actions": True, **options})
    return [load() for file in find_data_files(folder, mapping=mapping) for _, load in file.episodes(raw=raw)]


def open_dataset(folder: Path, tmp_path: Path, action_range: str = "data", **options) -> OfflineDataset:
    mapping = DataMapping(**{"image_key": TOP, **options})
    return OfflineDataset(folder, size=32, cache_dir=tmp_path / "cache", mapping=mapping, action_range=action_range)


@pytest.mark.parametrize("name", FOLDERS)
def test_episodes_are_those_that_lerobot_wrote(name):
    """Row t + 1 has action t and reward t; the last reward is added to the last row."""
    episodes = load_all(DATA / name)
    assert [len(episode["reward"]) for episode in episodes] == list(written.FRAMES)
    for number, episode in enumerate(episodes):
        frames = [written.frame(number, t) for t in range(written.FRAMES[number])]
        column = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        assert np.abs(episode["image"].astype(int) - column[TOP]).mean() < 2, "but for the loss of the codec"
        red = episode["image"][:, 28, :, 0] > 128
        middles = [np.flatnonzero(row).mean() for row in red]
        assert np.abs(np.array(middles) - np.arange(len(frames)) - 7.5).max() < 0.8, "the square moves by 1 a frame"
        assert not episode["action"][0].any() and np.array_equal(episode["action"][1:], column["action"][:-1])
        rewards = column["next.reward"][:, 0]
        assert np.allclose(episode["reward"][1:-1], rewards[:-2]) and episode["reward"][0] == 0
        assert np.isclose(episode["reward"][-1], rewards[-2:].sum())
        assert np.array_equal(episode["discount"], np.append(np.ones(len(frames) - 1), 0))


def test_images_in_parquet_files_and_small_frames():
    episode = load_all(DATA / "v30_files", image_key=WRIST)[2]
    frames = np.stack([written.frame(2, t)[WRIST] for t in range(36)])
    assert np.array_equal(episode["image"], frames), "PNG is lossless"
    small = load_all(DATA / "v30", image_key=WRIST, image_size=16)[1]
    assert small["image"].shape == (24, 16, 16, 3) and small["image_shape"].tolist() == [48, 64, 3]


def test_keys_name_columns():
    episodes = load_all(
        DATA / "v30", reward_key="next.success", done_key="next.success", action_key="observation.state"
    )
    assert [episode["reward"].sum() for episode in episodes] == [1, 0, 1]
    assert [episode["discount"][-1] for episode in episodes] == [0, 1, 0]
    assert np.array_equal(episodes[1]["action"][5], [4, 1])
    assert np.array_equal(load_all(DATA / "v30", raw=True)[0]["observation.state"][5], [5, 0])


def test_a_dataset_is_opened_shown_converted_and_checked(tmp_path, capsys):
    data = open_dataset(DATA / "v30", tmp_path)
    assert data.lengths == [29, 23, 35] and data.image_shape == (64, 64, 3)
    assert data.action_map == {"low": [-90, 0, 0], "high": [80, 20, 1]}
    assert np.abs(data.sample(20, 20, np.random.default_rng(0))["action"]).max() == 1
    flags = [str(DATA / "v30"), "--image_key", TOP]
    assert dataset.main(["info", *flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    for text in (
        "fps           10\n",
        "90 in 3 episodes, v3.0",
        "shoulder, elbow, gripper",
        "[-90.000, 80.000]",
        "64x64",
    ):
        assert text in printed.out
    assert "actions outside [-1, 1]" in printed.err
    assert dataset.main(["check", *flags, "--action_range", "data"]) == 0
    out = tmp_path / "npz"
    assert dataset.main(["convert", flags[0], str(out), *flags[1:], "--to", "npz", "--action_range", "data"]) == 0
    converted = OfflineDataset(out, size=32)
    assert converted.action_map == data.action_map and converted.returns == data.returns


class ArmEnv(PixelEnv):
    """A simulator whose own actions have the range of the dataset's; it records those that it is sent."""

    sent: ClassVar[list[np.ndarray]] = []

    def __init__(self, name, description):
        super().__init__(description, low=np.array([-90.0, 0, 0]), high=np.array([80.0, 20, 1]))

    def _reset_simulator(self, seed):
        pass

    def _step_simulator(self, action):
        self.sent.append(action)
        return SimulatorStep(reward=1.0)

    def _draw(self):
        return np.zeros((self.description["size"],) * 2 + (3,), np.uint8)

    def _low_dimensional(self):
        return {"x": np.zeros(1)}


def test_a_run_learns_from_it_and_acts_in_its_units(tmp_path, request):
    register(Suite("arm", "Arm", ("reach",), ArmEnv, settings={"action_repeat": 1}, max_return=500))
    request.addfinalizer(lambda: SUITES.pop("arm"))
    flags = ["--method", "offline_dv2", "--target_task", "arm_reach", "--offline_traindir", DATA / "v30_files"]
    flags += ["--dataset_cache", tmp_path / "cache", "--image_key", WRIST, "--logdir", tmp_path / "run"]
    flags += ["--configs", "defaults", "debug", "--size", "32,32", "--action_range"]
    with pytest.raises(BadInput, match=r"is not the range of arm_reach's own.*--action_range -90,80,0,20,0,1,"):
        co_training.main([str(flag) for flag in [*flags, "-100,100"]])
    co_training.main([str(flag) for flag in [*flags, "data"]])
    sent = np.array(ArmEnv.sent)
    assert (sent.min(0) < [-30, 6, 0.3]).all() and (sent.max(0) > [30, 14, 0.7]).all()
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["data"]["image_shape"] == (48, 64, 3) and saved["data"]["action_map"]["low"] == [-90, 0, 0]
    assert saved["data"]["action_names"] == ["shoulder", "elbow", "gripper"]
    assert describe(load_policy(tmp_path / "run"))["action"]["names"] == saved["data"]["action_names"]
    assert saved["progress"]["target_updates"] > 0
    # The same command finds nothing to do; without the range the data cannot be read, and another one is refused.
    co_training.main([str(flag) for flag in [*flags, "data"]])
    with pytest.raises(BadInput, match="holds a run with action_range data, not -90,80,0,20,0,1"):
        co_training.main([str(flag) for flag in [*flags, "-90,80,0,20,0,1"]])


def spoil_info(folder: Path, **changes) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def top_video(folder: Path, file: str = "chunk-000/file-000.mp4") -> Path:
    return folder / "videos" / TOP / file


def change_column(folder: Path, name: str, value: object, kind: pyarrow.DataType | None = None) -> None:
    """Every row of the data gets ``value`` in a column, of another ``kind`` if given; None: the column is removed."""
    path = folder / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(path)
    index, kind = table.schema.get_field_index(name), kind or table.schema.field(name).type
    table = table.drop_columns([name])
    if value is not None:
        table = table.add_column(index, name, pyarrow.array([value] * len(table), kind))
    pyarrow.parquet.write_table(table, path)


def rename_codec(folder: Path) -> None:
    path = top_video(folder)
    path.write_bytes(path.read_bytes().replace(b"av01", b"xy01"))


DAMAGE = {
    "cut video": ("v30", lambda f: truncate(top_video(f), 0.2), r"file-000.mp4 episode 0: not a readable video file"),
    "text as video": ("v30", lambda f: top_video(f).write_text("x"), "not a readable video file"),
    "codec": ("v30", rename_codec, "not a readable video file .its codec is unknown"),
    "no data": ("v30", lambda f: shutil.rmtree(f / "data"), "file-000.parquet: missing, with 3 episodes from 0 on"),
    "no video": ("v30", lambda f: top_video(f).unlink(), "file-000.mp4: missing, with 3 episodes from 0 on"),
    "cut data": ("v30", lambda f: truncate(f / "data/chunk-000/file-000.parquet", 0.5), "not a readable Parquet file"),
    "cut meta": (
        "v30",
        lambda f: truncate(f / "meta/episodes/chunk-000/file-000.parquet", 0.5),
        "not a readable LeRobot",
    ),
    "lines": ("v21", lambda f: (f / "meta/episodes.jsonl").write_text("{"), "not a readable LeRobot file"),
    "no list": ("v21", lambda f: (f / "meta/episodes.jsonl").unlink(), "episodes.jsonl: the file.* is gone"),
    "info": (
        "v30",
        lambda f: (f / "meta/info.json").write_text("{"),
        "not the description of a LeRobot dataset",
    ),
    "list": (
        "v30",
        lambda f: (f / "meta/info.json").write_text("[]"),
        "not the description of a LeRobot dataset",
    ),
    "version": ("v30", lambda f: spoil_info(f, codebase_version="v9"), "LeRobot format 'v9', not v2.0"),
    "no info": ("v30", lambda f: (f / "meta/info.json").unlink(), "info.json: missing; copy the dataset again"),
    "no meta": ("v30", lambda f: shutil.rmtree(f / "meta"), "info.json: missing; copy the dataset again"),
    "fps": ("v30", lambda f: spoil_info(f, fps=0), "fps 0; correct it"),
    "slow": ("v30", lambda f: spoil_info(f, fps=9), "mp4: 10 frames a second, but meta/info.json says fps 9"),
    "fast": ("v30", lambda f: spoil_info(f, fps=20), "mp4: 10 frames a second, but meta/info.json says fps 20"),
    "frames": ("v30", lambda f: change_column(f, "frame_index", 0), "frame_index of episode 0 is not 0 to 29"),
    "episodes": ("v30", lambda f: change_column(f, "episode_index", 7), "0 of the 30 rows of episode 0 are in it"),
    "column": ("v30", lambda f: change_column(f, "action", None), "no column action"),
    "no template": ("v30", lambda f: spoil_info(f, video_path=None), "info.json has no video_path"),
    "labels": (
        "v30",
        lambda f: (f / "coworld_labels.json").write_text(json.dumps({"success": {LIST: ["episode_3"]}})),
        "coworld_labels.json: no episode_3 in .*file-000.parquet; run dataset.py label again",
    ),
    "none": (
        "v21",
        lambda f: ((f / "meta/episodes.jsonl").write_text(""), spoil_info(f, total_episodes=0)),
        "there is no episode in it",
    ),
    "text": ("v30", lambda f: change_column(f, "next.reward", "much", pyarrow.string()), "not a readable LeRobot"),
    "features": ("v30", lambda f: spoil_info(f, features={"a": 1}), "not the description of a LeRobot dataset"),
    "paths": ("v30", lambda f: spoil_info(f, data_path="../x"), "data_path leaves the dataset's folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(copy, tmp_path, damage, capsys):
    name, spoil, message = DAMAGE[damage]
    folder = copy(name)
    spoil(folder)
    with pytest.raises(SystemExit) as stopped:
        exit_on_bad_input(lambda: open_dataset(folder, tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and re.search(message, line)


def test_bad_episodes_among_good_ones_are_left_out(copy, tmp_path, capsys):
    folder = copy("v30_files")
    top_video(folder, "chunk-000/file-001.mp4").unlink()
    data = open_dataset(folder, tmp_path)
    assert data.lengths == [29, 35] and len(data.problems) == 1
    assert "file-001.mp4: missing, with episode 1" in capsys.readouterr().err
    spoil_info(folder, total_episodes=5)
    assert "total_episodes is 5, meta/episodes lists 3" in open_dataset(folder, tmp_path).problems[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_key": ""}, f"2 cameras; choose one with --image_key: {TOP}, {WRIST}"),
        ({"image_key": "top"}, rf"no camera 'top' \(--image_key\); there are: {TOP}, {WRIST}$"),
        ({"image_key": "wirst"}, rf"no camera 'wirst' \(--image_key\); there are: {WRIST}, {TOP}$"),
        ({"reward_key": "success"}, r"no array 'success' \(--reward_key\); there are: next.success"),
        ({"image_key": "action"}, f"action has no images; choose one with --image_key: .*{TOP}"),
        ({"reward_key": "reward"}, r"no array 'reward' \(--reward_key\); there are: next.reward"),
        ({"action_key": TOP}, f"no column {TOP} with numbers; name one with --action_key: observation.state"),
    ],
)
def test_wrong_names_are_one_line(tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        open_dataset(DATA / "v30", tmp_path, **options)


def test_labels_give_rewards(copy, tmp_path, capsys):
    folder = copy("v21")
    info = json.loads((folder / "meta" / "info.json").read_text())
    del info["features"]["next.reward"]
    spoil_info(folder, features=info["features"])
    for path in (folder / "data").rglob("*.parquet"):
        table = pyarrow.parquet.read_table(path).drop_columns(["next.reward"])
        pyarrow.parquet.write_table(table, path)
    with pytest.raises(BadInput, match=r"no rewards .array next.reward.*--reward_key.*label .*--success 0,3,7-9"):
        open_dataset(folder, tmp_path)
    assert dataset.main(["label", str(folder), "--success", "0,2"]) == 0
    assert "2 successful" in capsys.readouterr().out
    data = open_dataset(folder, tmp_path)
    assert data.returns == [1, 0, 1]
    reward = np.empty(30, np.float32)
    data.stored[0].read_rows(0, {"reward": reward})
    assert reward[-1] == 1 and not reward[:-1].any()
    assert dataset.main(["label", str(folder), "--success", "1-2"]) == 0
    assert open_dataset(folder, tmp_path).returns == [0, 1, 1], "the working copy is made again"
    for numbers, message in [("3", "has episodes 0 to 2"), ("a", "'a' is no number"), ("2-", "is no number")]:
        with pytest.raises(BadInput, match=message):
            dataset.main(["label", str(folder), "--success", numbers])


DEPTH = {  # where lerobot says, or said, that a camera's frames are depth
    "now": {"info": {"is_depth_map": True}},
    "before": {"info": {"video.is_depth_map": True}},
    "separate": {"info": {"is_depth_map": False}, "video_info": {"video.is_depth_map": True}},
    "format": {"info": {"video.pix_fmt": "gray12le"}},
}


@pytest.mark.parametrize("place", DEPTH)
def test_depth_maps_are_no_cameras(copy, tmp_path, place):
    folder = copy("v30")
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"][WRIST] = {key: value for key, value in info["features"][WRIST].items() if "info" not in key}
    info["features"][WRIST] |= DEPTH[place]
    spoil_info(folder, features=info["features"])
    assert open_dataset(folder, tmp_path, image_key="").image_shape == (64, 64, 3), "the other one is the only camera"
    with pytest.raises(
        BadInput, match=f"{WRIST} is a depth map, not an RGB camera; choose one with --image_key: {TOP}"
    ):
        open_dataset(folder, tmp_path, image_key=WRIST)
    info["features"][TOP] |= DEPTH[place]
    spoil_info(folder, features=info["features"])
    with pytest.raises(BadInput, match=f"no RGB camera in meta/info.json, only depth maps: {TOP}, {WRIST}"):
        open_dataset(folder, tmp_path, image_key="")


def png(frame: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 1), (np.uint16, 0)])
def test_grey_pictures_and_depth_without_a_flag(copy, tmp_path, kind, channels):
    """Pictures of one channel are a grey camera's; 16 bits are depth."""
    folder = copy("v30_files")
    for path in (folder / "data").rglob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        frames = [png(np.full((48, 64), 90 + 200 * (kind != np.uint8), kind)) for _ in range(len(table))]
        column = table.schema.get_field_index(WRIST)
        pyarrow.parquet.write_table(table.set_column(column, WRIST, pyarrow.array(frames)), path)
    if channels:
        assert open_dataset(folder, tmp_path, image_key=WRIST).image_shape == (48, 64, channels)
    else:
        with pytest.raises(BadInput, match=r"an image of more than 8 bits .*, a depth map and no RGB image"):
            open_dataset(folder, tmp_path, image_key=WRIST)


@pytest.mark.parametrize("name", ["v21", "v30"])
def test_labels_take_the_numbers_of_the_data(copy, tmp_path, name, capsys):
    """Episodes were deleted: 0, 7 and 12 remain."""
    folder, numbers = copy(name), {0: 0, 1: 7, 2: 12}
    if name == "v21":
        path = folder / "meta/episodes.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps(row | {"episode_index": numbers[row["episode_index"]]}) for row in rows))
        for file in sorted(folder.rglob("episode_*.*"), reverse=True):
            number = numbers[int(file.stem[8:])]
            file.rename(file.with_name(f"episode_{number:06d}{file.suffix}"))
    for path in folder.rglob("*.parquet"):
        table = pyarrow.parquet.read_table(path, partitioning=None)
        if (index := table.schema.get_field_index("episode_index")) >= 0:
            column = [numbers[number] for number in table["episode_index"].to_pylist()]
            pyarrow.parquet.write_table(table.set_column(index, "episode_index", pyarrow.array(column)), path)
    assert dataset.main(["label", str(folder), "--success", "7,12"]) == 0
    assert open_dataset(folder, tmp_path).returns == [0, 1, 1]
    with pytest.raises(BadInput, match=r"--success 1: .* has episodes 0, 7, 12; give numbers of these"):
        dataset.main(["label", str(folder), "--success", "1"])
