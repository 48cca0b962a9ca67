"""Actions stored at the image at which they were taken: warnings, --action_at, and its record in dataset.json."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import DOTS, OTHER_PROGRAMS, co_training
from test_bad_input import refused

import co_training as program
import dataset
from replay import DataMapping, OfflineDataset
from replay.mapping import moved_down
from tools import BadInput
from training.checkpoint import load_checkpoint

CURRENT = DataMapping(action_at="current")
pytestmark = pytest.mark.usefixtures("dots", "no_pictures", "no_dataset_pictures")


def episode(number: int, images: int = 14, after_last: bool = True) -> dict[str, np.ndarray]:
    """Of a recorder that writes what it sees, then what it does; ``after_last``: also at the last image."""
    rng, rows = np.random.default_rng(number), images - (not after_last)
    return {
        "image": rng.integers(0, 256, (images, 16, 16, 3), dtype=np.uint8),
        "action": rng.uniform(0.1, 1, (rows, 2)).astype(np.float32),
        "reward": rng.uniform(0, 1, rows).astype(np.float32),
        "discount": (np.arange(rows) < rows - 1).astype(np.float32),
    }


def write(folder: Path, **options: bool) -> Path:
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"{number}.npz", **episode(number, **options))
    return folder


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


@pytest.mark.parametrize("after_last", [True, False])
def test_rows_are_moved_down_and_returns_stay(tmp_path: Path, after_last: bool):
    data = OfflineDataset(write(tmp_path / "data", after_last=after_last), size=16, mapping=CURRENT)
    for number in range(3):
        own, read = episode(number, after_last=after_last), data.read(number)
        assert np.array_equal(read["image"], own["image"]) and not read["action"][0].any() and read["reward"][0] == 0
        assert np.array_equal(read["action"][1:], own["action"][:13])
        assert np.array_equal(read["reward"][1:13], own["reward"][:12])
        assert np.array_equal(read["discount"], [1] * 13 + [0])
        assert read["reward"].sum() == pytest.approx(own["reward"].sum(), rel=1e-6)
    assert data.action_rows_note() is None


def test_an_array_that_fits_no_image_is_named():
    with pytest.raises(BadInput, match=r"here: action of shape \(3, 2\) for 5 images; where actions are those taken"):
        moved_down({"action": np.zeros((3, 2))}, 5, "here")


def test_actions_in_another_range_are_moved_too(recorded: Path):
    """A map makes row 0 zero, and so hid the first action of such data."""
    plain = OfflineDataset(recorded, size=16, action_range="-2,2")
    assert not plain.read(0)["action"][0].any() and "3 of 3 episode(s)" in plain.action_rows_note()
    moved = OfflineDataset(recorded, size=16, action_range="-2,2", mapping=CURRENT)
    assert np.allclose(moved.read(0)["action"][1], episode(0)["action"][0] / 2)


def test_info_warns_with_the_command_that_mends_it(recorded: Path, capsys: pytest.CaptureFixture):
    dataset.main(["info", str(recorded)])
    command = f"dataset.py describe {recorded} --action_at current"
    warning = capsys.readouterr().err
    assert "warning: 3 of 3 episode(s) with an action in row 0" in warning and command in warning
    dataset.main(["info", str(recorded), "--action_at", "next"])
    assert capsys.readouterr().err == "", "the user says that it is right"
    assert dataset.main(command.split()[1:]) == 0
    assert json.loads((recorded / "dataset.json").read_text()) == {"action_at": "current"}
    dataset.main(["info", str(recorded)])
    printed = capsys.readouterr()
    assert printed.err == "" and "action_at     current" in printed.out


def test_the_record_holds_in_every_command(recorded: Path, tmp_path: Path):
    dataset.main(["describe", str(recorded), "--action_at", "current"])
    data = OfflineDataset(recorded, size=16)
    assert data.digest == OfflineDataset(recorded, size=16, mapping=CURRENT).digest and data.action_at == "current"
    for name, format in (("npz", "npz"), ("moved-v0", "minari")):
        assert dataset.main(["convert", str(recorded), str(tmp_path / name), "--to", format]) == 0
        assert json.loads((tmp_path / name / "dataset.json").read_text()) == {"action_at": "next"}
        assert OfflineDataset(tmp_path / name, size=16).digest == data.digest, "not moved a second time"


def test_describe_adds_and_never_changes(recorded: Path, capsys: pytest.CaptureFixture):
    def describe(*flags: str) -> list[str]:
        return ["describe", str(recorded), *flags]

    assert "nothing to write; give --preset" in refused(dataset.main, describe(), capsys)
    dataset.main(describe("--action_at", "current"))
    dataset.main(describe("--preset", "vd4rl", "--task", "walker_walk"))
    dataset.main(describe("--action_at", "current"))
    written = json.loads((recorded / "dataset.json").read_text())
    assert written["action_at"] == "current" and written["task"] == "dmc_walker_walk" and written["size"] == 16
    assert "dataset.json says current" in refused(dataset.main, describe("--action_at", "next"), capsys)
    assert "says otherwise (task)" in refused(dataset.main, describe("--task", "walker_run"), capsys)
    assert json.loads((recorded / "dataset.json").read_text()) == written
    (recorded / "dataset.json").write_text('{"action_at": "now"}')
    assert "action_at is 'now', not current or next" in refused(dataset.main, ["info", str(recorded)], capsys)


def test_where_the_option_has_no_effect(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    dataset.main(["convert", str(recorded), str(tmp_path / "kept-v0"), "--to", "minari"])
    flags = [str(tmp_path / "kept-v0"), "--action_at", "current"]
    message = "--action_at has no effect on format minari; remove it"
    assert message in refused(dataset.main, ["info", *flags], capsys)
    assert message in refused(dataset.main, ["describe", *flags], capsys)
    (found,) = (tmp_path / "kept-v0").rglob("main_data.hdf5")
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "any.hdf5").write_bytes(found.read_bytes())
    with pytest.raises(BadInput, match="action_at current has no effect on Minari files"):
        OfflineDataset(flat, size=16, mapping=CURRENT)


def test_data_that_is_right_already_is_not_moved_without_a_warning(tmp_path: Path):
    data = OfflineDataset(OTHER_PROGRAMS / "vd4rl_64px_npz", size=16, cache_dir=tmp_path, mapping=CURRENT)
    assert "first action of all" in data.action_rows_note() and "is zeros, as of a reset" in data.action_rows_note()
    plain = OfflineDataset(OTHER_PROGRAMS / "vd4rl_64px_npz", size=16, cache_dir=tmp_path)
    assert plain.action_rows_note() is None


def test_flat_hdf5_is_moved_episode_by_episode(tmp_path: Path):
    folder = tmp_path / "flat"
    folder.mkdir()
    parts = [episode(number) for number in range(3)]
    with h5py.File(folder / "all.hdf5", "w") as file:
        file["observation"] = np.concatenate([part["image"] for part in parts]).transpose(0, 3, 1, 2)
        for key in ("action", "reward", "discount"):
            file[key] = np.concatenate([part[key] for part in parts])
        file["step_type"] = np.tile([0, *[1] * 12, 2], 3)
    data = OfflineDataset(folder, size=16, mapping=CURRENT)
    assert np.array_equal(data.read(1)["action"][1:], parts[1]["action"][:13]) and not data.read(1)["action"][0].any()


def test_training_warns_and_a_run_keeps_its_choice(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    train = ["--method", "offline_dv2", *DOTS[2:], "--size", "16,16", "--rounds", "0", "--warmup_updates", "1"]

    def run(name: str, *flags: str) -> str:
        program.main(co_training(recorded, tmp_path / name, *train, "--video_every", "0", *flags))
        return capsys.readouterr().err

    command = f"python dataset.py describe {recorded} --action_at current"
    assert "warning: 3 of 3 episode(s) with an action in row 0: " in (err := run("plain")) and command in err
    assert "in row 0" not in run("moved", "--action_at", "current")
    assert load_checkpoint(tmp_path / "moved" / "checkpoint.pt")["data"]["action_at"] == "current"
    with pytest.raises(BadInput, match="holds a run with action_at current, not auto"):
        run("moved")
    dataset.main(command.split()[2:])
    with pytest.raises(BadInput, match="holds a run on other data"):
        run("plain")
    assert "in row 0" not in run("held_out", "--holdout", "0.3")
