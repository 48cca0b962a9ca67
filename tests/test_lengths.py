"""Lengths of a run that is resumed: the messages when a finished phase would change, and the labels of its scores."""

import re
from pathlib import Path

import pytest
from conftest import tiny
from test_co_training import ONE_ROUND, train

import co_training as program
from config import Config
from tools import BadInput
from training.checkpoint import CHECKPOINT, continued_progress, load_checkpoint, save_checkpoint
from training.logger import read_scores
from training.methods import METHODS, PhaseKind

pytestmark = pytest.mark.usefixtures("no_pictures")


def message(run: Config, phase: int, iteration: int = 0, **changes: int) -> str:
    """The error when a run with ``phase`` finished phases is resumed with changed lengths."""

    def schedule(config: Config) -> list:
        return METHODS[config.method].schedule(program.algorithm_1(config), config)

    kinds = [str(p.kind) for p in schedule(run)[: phase + 1]]
    saved = {"progress": {"phase": phase, "iteration": iteration}, "phases": kinds}
    with pytest.raises(BadInput) as error:
        continued_progress(Path("run"), saved, run, run.replace(**changes), schedule)
    return str(error.value)


def phases(config: Config) -> list:
    return METHODS[config.method].schedule(program.algorithm_1(config), config)


def test_a_running_phase_accepts_any_length_from_what_is_done():
    run = tiny(pretrain_steps=5_000_000)
    place = [phase.kind for phase in phases(run)].index(PhaseKind.TRAIN_SOURCE)
    text = message(run, place, 1234, pretrain_steps=1000)
    assert "which --pretrain_steps 1000 would change: give --pretrain_steps 1234 or more, or another" in text


def test_a_phase_in_the_middle_accepts_only_its_own_length():
    run = tiny(rounds=2)
    assert "give --warmup_updates 4, or another" in message(run, len(phases(run)), warmup_updates=9)


def test_more_rounds_are_offered_only_to_those_who_want_to_train_longer():
    run = tiny(rounds=2)
    end = len(phases(run))
    assert "give --target_iterations 20 (or a larger --rounds" in message(run, end, target_iterations=30)
    assert "give --target_iterations 20, or another" in message(run, end, target_iterations=10)
    assert "give --rounds 2 or more, or another" in message(run, end, rounds=1)
    one = tiny(rounds=1)
    assert "give --target_iterations 20 or more, or another" in message(one, len(phases(one)), target_iterations=10)


@pytest.mark.parametrize("method", ["dv2_finetune", "dv2_finetune_ewc"])
def test_finetuning_says_why_it_cannot_have_more_rounds(method: str):
    run = tiny(rounds=2, method=method)
    text = message(run, len(phases(run)), rounds=3)
    reason = f"(method {method} runs phases of every round before the finished ones): give --rounds 2, or another"
    assert reason in text
    assert "larger --rounds" not in message(run, len(phases(run)), target_iterations=30)


def test_settings_without_effect_may_differ_when_a_run_is_resumed(dataset: Path, tmp_path: Path, capsys):
    """A run of an earlier version may have them, and now they cannot be given."""
    train(dataset, tmp_path, "--method", "offline_dv2", *ONE_ROUND)
    saved = load_checkpoint(tmp_path / CHECKPOINT)
    saved["config"] |= {"envs": 0, "sparse_reward": True, "metaworld_camera": "topview"}
    save_checkpoint(tmp_path / CHECKPOINT, saved)
    train(dataset, tmp_path, "--method", "offline_dv2", *ONE_ROUND)
    assert f"{tmp_path} is finished" in capsys.readouterr().err


def test_a_run_without_rounds_that_is_made_longer(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """It has one score at each step, and no label with a round 0."""
    for rounds in ("0", "1"):
        train(dataset, tmp_path, *ONE_ROUND[2:], "--rounds", rounds)
    rows = read_scores(tmp_path)
    assert [(row["phase"], row["round"]) for row in rows[1:]] == [("evaluate", "1"), ("evaluate", "1")]
    assert len({row["step"] for row in rows[1:]}) == 2
    table = capsys.readouterr().out
    assert "round 0" not in table and re.search(r"before round 1 .*\n.*at the end", table)
