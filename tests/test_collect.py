"""Collection by quality, and whether data and evaluation were recorded with the same settings."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, co_training, tiny
from test_bad_input import refused

import co_training as program
import collect
from replay import OfflineDataset
from tools import BadInput
from training.collecting import score_to_reach
from training.logger import read_scores
from wrappers.shared.simulators import check_recorded_alike, env_settings

LEARNING = ["--task", "walker_walk", "--envs", 0, "--size", "32,32", "--configs", "defaults", "dmc", "debug"]


def collected(folder: Path, *more: object) -> dict:
    collect.main([str(a) for a in [*LEARNING, "--out", folder / "data", "--logdir", folder / "run", *more]])
    return json.loads((folder / "data" / "dataset.json").read_text())


def test_medium_replay_stops_at_the_evaluation_that_reaches_a_third(tmp_path: Path):
    described = collected(tmp_path, "--quality", "medium-replay", "--max_score", 0.75, "--episodes", 20)
    scores = [row for row in read_scores(tmp_path / "run") if row["phase"] == "evaluate"]
    assert len(scores) == len(described["evaluations"]) == 1  # a quarter of a point is reached at once
    assert described["evaluations"][-1]["mean"] == float(scores[-1]["mean"]) >= described["score_to_reach"] == 0.25
    files = list((tmp_path / "data").glob("*.npz"))
    assert len(files) == described["episodes"] == len(described["returns"]) == 36 // 12  # 26 random steps and 10 more
    assert described["quality"] == "medium-replay" and described["render"] == "fast"


def test_medium_expert_that_is_out_of_reach_uses_every_episode_and_says_so(tmp_path: Path, capsys):
    described = collected(tmp_path, "--quality", "medium-expert", "--episodes", 4)
    assert described["episodes"] == 4 and described["score_to_reach"] == 1000
    assert "is below the 1000.0 asked for" in capsys.readouterr().err


def test_known_maxima():
    assert score_to_reach("walker_downhill", "medium-replay", None) == pytest.approx(848 / 3)
    assert score_to_reach("dmc_hopper_hop", "medium-expert", None) == 1000
    assert score_to_reach("push_green", "medium-expert", 500.0) == 500
    assert score_to_reach("walker_walk", None, None) == float("inf")


def test_a_learning_collection_resumes_in_spite_of_an_old_partial_folder(tmp_path: Path):
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "half.npz").write_bytes(b"half")
    first = collected(tmp_path, "--policy", "dreamer", "--episodes", 4)
    assert not (tmp_path / ".data.partial").exists()
    (tmp_path / "data").rename(tmp_path / "before")
    again = collected(tmp_path, "--policy", "dreamer", "--episodes", 4)
    assert again["returns"] == first["returns"] and again["evaluations"] == first["evaluations"]


def test_a_full_disk_leaves_no_dataset_under_its_name(tmp_path: Path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    arguments = ["--task", "walker_walk", "--out", tmp_path / "data", "--episodes", 1, "--configs", "defaults", "debug"]
    assert "No space left" in refused(collect.main, [*arguments, "--envs", 0], capsys)
    assert list(tmp_path.iterdir()) == []


def described(dataset: Path, changes: dict | None, tmp_path: Path) -> Path:
    """A copy of the dataset whose dataset.json is changed, or absent."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in dataset.glob("*.npz"):
        (folder / path.name).write_bytes(path.read_bytes())
    if changes is not None:
        original = json.loads((dataset / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(original | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"render": "full"}, "--render full"),
        ({"action_repeat": 4}, "--dmc_action_repeat 4"),
        ({"background": "clips"}, "--background clips"),
    ],
)
def test_data_with_other_settings_is_refused_with_the_flag_to_give(
    changes: dict, flag: str, dataset: Path, tmp_path: Path, capsys
):
    folder = described(dataset, changes, tmp_path)
    line = refused(program.main, [*co_training(folder, tmp_path / "run"), "--envs", 0], capsys)
    assert line.endswith(f"give {flag}")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"flip": False}, "--metaworld_flip False"), ({"camera": "topview"}, "--metaworld_camera topview")],
)
def test_a_meta_world_dataset_with_another_camera_or_flip(changes: dict, flag: str, dataset: Path, tmp_path: Path):
    simulator = {"suite": "metaworld", "task": "metaworld_door-close", "render": "fast", "action_repeat": 2}
    simulator |= {"camera": "corner", "flip": True}
    folder = described(dataset, simulator | changes, tmp_path)
    with pytest.raises(BadInput, match=flag):
        check_recorded_alike(folder, OfflineDataset(folder, size=64).description, simulator)


def test_data_without_a_record_is_used_with_a_note(dataset: Path, tmp_path: Path, capsys):
    folder = described(dataset, None, tmp_path)
    simulator = {"suite": "dmc", "task": "dmc_walker_downhill", "render": "fast", "action_repeat": 2}
    check_recorded_alike(folder, OfflineDataset(folder, size=64).description, simulator)
    note = capsys.readouterr().err
    assert "does not say how it was recorded" in note and "--render" in note


def test_the_target_has_the_background_and_the_source_the_sparse_reward():
    config = tiny(sparse_reward=True, background="clips")
    source, target, collected = (env_settings(config, "walker_walk", d) for d in ("source", "target", "collect"))
    assert source["sparse_reward"] and "background" not in source
    assert target["background"] == "clips" and "sparse_reward" not in target
    assert collected["sparse_reward"] and collected["background"] == "clips"


SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="the shared example data is not beside the repository")
@pytest.mark.parametrize("name", ["release_npz", "vd4rl_64px_npz", "vd4rl_84px_hdf5", "minari"])
def test_other_programs_data_trains(name: str, tmp_path: Path):
    flags = ["--envs", 0, "--size", "32,32", "--rounds", 1, "--pretrain_steps", 5, "--warmup_rounds", 0]
    arguments = co_training(
        SHARED / name, tmp_path / "run", *flags, "--video_every", 0, "--dataset_cache", tmp_path / "c"
    )
    program.main(arguments)
    assert int(read_scores(tmp_path / "run")[-1]["target_updates"]) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_collection_that_is_stopped_keeps_its_whole_episodes(number: int, tmp_path: Path):
    arguments = ["--task", "walker_walk", "--out", tmp_path / "data", "--episodes", 100_000, "--time_limit", 5]
    command = [sys.executable, "collect.py", *map(str, arguments), "--configs", "defaults", "dmc", "--size", "32,32"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".data.partial/contents/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "kept" in errors and "Traceback" not in errors
    described = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert described["episodes"] == len(list((tmp_path / "data").glob("*.npz"))) == len(described["returns"]) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
