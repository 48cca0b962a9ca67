"""The verdict on a trained agent, and the notes on the data's task and rewards."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DOTS, ROOT, co_training
from test_bad_input import refused

import co_training as program
import report
from replay import OfflineDataset
from training.data_limits import DataLimits, measure_limits
from training.pictures import line_panels, score_curve
from training.target_notes import reward_note
from training.verdict import Evidence, verdict

LIMITS = DataLimits(0, 76, 0, 40, 0, 1, 0.7)
COSTS = DataLimits(-90, -5, -60, -1, -2, 0, 0.7)
DATA = (80, 8000, 80 * 34.0)  # a mean return of 34 in 100 steps
GOOD = {"score": 50.0, "data": DATA, "time_limit": 100, "value": 20.0, "limits": LIMITS}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"score": 33.0}, "it scored 33, below the data's mean of 34"),
        ({"score": 18.0, "time_limit": 50}, None),  # in half as many steps as the data's episodes
        ({"score": 16.0, "time_limit": 50}, "it scored 16, below the data's mean of 17"),
        ({"value": 59.0}, None),
        ({"value": 61.0}, "its values, 61 on average, are far above .* return in the data is 40"),
        ({"value": 61.0, "score": 77.0}, None),  # better than the data's best episode
        ({"offline": {"value_bias": 39.0, "action_distance": 1.39}}, None),
        ({"offline": {"value_bias": 41.0}}, "on held-out episodes its values are too high by 41 .* is 40"),
        ({"offline": {"action_distance": 1.41}}, None),  # its score shows that they are good
        ({"offline": {"action_distance": 1.41}, "score": None}, "distance 1.41; .* mean action .* only a test"),
        ({"offline": {"action_distance": 1.41}, "score": 33.0}, "below the data's mean .* far from the data's"),
        ({"score": None, "value": None}, None),
        ({"data": None, "limits": None, "score": 0.0}, None),
        ({"value": None, "limits": COSTS, "score": -60.0, "data": None}, None),
        ({"value": 28.0, "limits": COSTS, "score": -60.0, "data": None}, None),
        ({"value": 30.0, "limits": COSTS, "score": -60.0, "data": None}, "its values, 30"),
    ],
)
def test_the_rules(changes: dict, expected: str | None):
    text = verdict(Evidence(**{**GOOD, **changes}))
    assert text is None if expected is None else re.fullmatch(f"do not deploy this agent: .*{expected}.*", text)


def test_limits_of_a_dataset(tmp_path: Path):
    """Two episodes of three steps: one is cut off, the task ends the other."""
    for number, (rewards, end) in enumerate((([0, 1, 1, 1], 1.0), ([0, -4, 0, 2], 0.0))):
        actions = np.array([[9, 9], [-1, 0] if number else [1, 0], [1, 0], [-1, 0]])
        episode = {"image": np.zeros((4, 8, 8, 3), np.uint8), "action": actions / 9.0, "reward": np.float32(rewards)}
        np.savez(tmp_path / f"{number}.npz", **episode, discount=np.float32([1, 1, 1, end]))
    found = measure_limits(OfflineDataset(tmp_path, size=8), 0.5)
    assert (found.worst_return, found.best_return, found.low_reward, found.high_reward) == (-2, 3, -4, 2)
    assert found.high == pytest.approx(2.0)  # 1 a step, continued without end
    assert found.low == pytest.approx(-4 + 0.25 * 2)
    assert found.action_spread == pytest.approx(np.sqrt(0.5) / 9)
    written = DataLimits.find(f"seed: 0\n# commit abc\n{found.line()}")
    assert written.high == pytest.approx(2.0) and written.scale == pytest.approx(3.5) and written.reward_size == 4
    assert DataLimits.find("seed: 0\n") is None
    assert DataLimits.find(DataLimits(1e-7, 2e9, -3e-12, 1, 0, 1, 0.5).line()).best_return == 2e9


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, None), (-10, 0, None), (0, 500, None), (0, 0.05, None),
        (0, 1e4, "warning: rewards are from 0 to 1e.04 a step: too large .*Multiply all rewards by 0.0001 "),
        (-3e5, 0, "Multiply all rewards by 1e-05"),
        (0, 2e-4, "lost beside .*Multiply all rewards by 10000"),
        (0, 0, "note: all rewards are from 0 to 0 a step: nothing can be learned"),
    ],
)  # fmt: skip
def test_rewards_far_from_1_give_a_note(low: float, high: float, expected: str | None):
    text = reward_note(DataLimits(0, 0, 0, 0, low, high, 1))
    assert text is None if expected is None else re.search(expected, text)


@pytest.fixture(scope="module")
def good_data(dots_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of dots_to_right with rewards that no policy gets, and actions within 1% of one value."""
    folder = tmp_path_factory.mktemp("data") / "dots_to_right"
    shutil.copytree(dots_dataset, folder, ignore=shutil.ignore_patterns(".coworld-cache"))
    for path in folder.glob("*.npz"):
        arrays = dict(np.load(path))
        arrays["reward"][1:] += 20
        arrays["action"][1:] = 0.9 + 0.01 * arrays["action"][1:]
        np.savez(path, **arrays)
    return folder


def test_a_bad_run_ends_with_its_verdict(good_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    """In the table at the end, in the pictures, in the report and its cells.csv."""
    titles = []
    monkeypatch.setattr("training.pictures.score_curve", lambda *args: titles.append(args[3]))
    monkeypatch.setattr("training.pictures.line_panels", lambda *args: titles.append(args[4]))
    flags = ["--method", "offline_dv2", *DOTS[2:], "--size", "32,32", "--rounds", "1", "--warmup_rounds", "0"]
    logdir = tmp_path / "run"
    program.main(co_training(good_data, logdir, *flags, "--holdout", "0.3", "--video_every", "0"))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("do not deploy this agent: it scored ") and "its actions are far from the data's" in last
    assert titles == [last, last]
    report.main([str(logdir), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Do not deploy" in text and "1 of 1" in text.split("## Do not deploy")[1]
    assert last.removeprefix("do not deploy this agent: ") in text
    (row,) = csv.DictReader((tmp_path / "out" / "cells.csv").open())
    assert row["verdict"] == last


def test_a_warning_is_drawn(tmp_path: Path):
    rows = [{"phase": "evaluate", "step": step, "mean": 1.0, "std": 0.1} for step in (0, 10)]
    curve = {"bias": [(0, 1.0), (10, 2.0)]}
    for warning in (None, "do not deploy this agent: " + "reasons " * 30):
        score_curve(rows, "title", tmp_path / f"scores{bool(warning)}.png", warning)
        line_panels(curve, "iterations", "title", tmp_path / f"offline{bool(warning)}.png", warning)
    for name in ("scores", "offline"):
        plain, warned = ((tmp_path / f"{name}{has}.png").read_bytes() for has in (False, True))
        assert plain != warned


def test_records_give_no_verdict_that_they_cannot_know(tmp_path: Path):
    record = next((ROOT / "results" / "study_cpu").glob("dv2_finetune*cheetah_downhill-seed0"))
    report.main([str(record), "--out", str(tmp_path / "plain")])
    assert "Do not deploy" not in (tmp_path / "plain" / "table.md").read_text()
    copy = shutil.copytree(record, tmp_path / "run")
    with (copy / "config.yaml").open("a") as file:
        file.write(f"# dataset: 45 episodes, 22500 steps, sum of returns 5094.4\n{LIMITS.line()}")
    report.main([str(copy), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "it scored 33.85, below the data's mean of 113.2" in text


# The task of the data


def test_data_of_another_task_is_refused(dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["--method", "offline_dv2", "--target_task", "dots_to_left", "--size", "32,32", "--rounds", "0"]
    arguments = co_training(dots_dataset, tmp_path / "run", *flags, "--warmup_updates", "1", "--video_every", "0")
    error = refused(program.main, arguments, capsys)
    assert f"{dots_dataset} has episodes of dots_to_right, the target is dots_to_left" in error
    assert "give --target_task dots_to_right" in error and "--other_task True" in error
    assert not (tmp_path / "run" / "config.yaml").exists()
    program.main([*arguments, "--other_task", "True"])
    assert "note: " in (err := capsys.readouterr().err) and "the target is dots_to_left" in err
    same = [text.replace("dots_to_left", "dots_to_right") for text in arguments] + ["--logdir", str(tmp_path / "same")]
    assert "--other_task True has no effect" in refused(program.main, [*same, "--other_task", "True"], capsys)


def test_a_short_name_of_the_same_task_is_no_other_task(dots_dataset: Path, tmp_path: Path):
    data = shutil.copytree(dots_dataset, tmp_path / "data", ignore=shutil.ignore_patterns(".coworld-cache"))
    described = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(described | {"task": "to-right"}))
    flags = ["--method", "bc", *DOTS[2:], "--size", "32,32", "--rounds", "0", "--warmup_updates", "1"]
    program.main(co_training(data, tmp_path / "run", *flags))
