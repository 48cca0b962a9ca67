"""Where a run is: names and lengths of its phases, the line before it, its bars, and its lines in a log file."""

import io
import re
import sys
from pathlib import Path

import pytest
from conftest import DOTS, SMALL, co_training, tiny

import co_training as program
import config as settings
from config import Config
from training import bars as run_bars
from training.bars import RunBars
from training.collecting import learning_phases
from training.methods import COLLECTION, METHODS, Phase, PhaseKind
from training.plan import Clock, amount, base_names, duration, phase_names, plan_line


def names(config: Config, method: str = "coworld", sources: int = 1) -> list[str]:
    schedule = METHODS[method].schedule(program.algorithm_1(config), config)
    return phase_names(schedule, METHODS[method], config, sources)


def test_every_phase_of_the_demo_has_a_name_of_its_own():
    values = settings.merge(settings.read_blocks(), ["dmc", "demo"], {})
    config = Config(**values, configs=["dmc", "demo"])
    assert names(config) == [
        "evaluate (random policy)", "prefill source (random steps)", "pretrain source", "train source (alone)",
        "warm up target", "train source (aligned), warm-up",
        "evaluate 1/2", "train target 1/2", "train source (aligned) 1/2",
        "evaluate 2/2", "train target 2/2", "evaluate (at the end)",
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_no_two_phases_of_a_method_have_the_same_name(method: str):
    for changes in ({}, {"warmup_rounds": 3, "rounds": 3}, {"reward_alignment": False}, {"warmup_rounds": 0}):
        found = names(tiny(source_task="walker_walk", **changes), method)
        assert len(found) == len(set(found)), found


def test_several_sources_and_a_collection_are_told_apart():
    found = names(tiny(source_task="walker_walk,walker_run"), sources=2)
    assert {"train source_1 (alone)", "train source_2 (alone)", "train source (aligned) 1/2"} <= set(found)
    config = tiny(source_task="walker_walk").replace(episodes=4)
    found = phase_names(learning_phases(config), COLLECTION, config, 1)
    assert found[3:7] == ["train source 1/3", "evaluate 1/3", "train source 2/3", "evaluate 2/3"]


def test_bars_count_updates_of_the_target_as_the_tables_do():
    config = tiny(train_every=5)
    phase = Phase(PhaseKind.TRAIN_TARGET, 12, round=2)
    assert amount(phase, config, 12, begun=3) == (3, "updates")  # at the target's iterations 5, 10 and 15
    assert amount(phase, config, 6, begun=3) == (1, "updates")
    assert amount(Phase(PhaseKind.TRAIN_SOURCE, 12), config, 12) == (12, "agent steps")
    assert amount(Phase(PhaseKind.WARM_UP_TARGET, 12), config, 12) == (12, "updates")


def test_the_line_before_a_run_has_lengths_and_the_expected_time():
    config = tiny(source_task="walker_walk", warmup_rounds=2, rounds=3, target_iterations=4000, train_every=2)
    phases = program.algorithm_1(config)
    line = plan_line(phases, base_names(phases, METHODS["coworld"], 1), config, 5400)
    assert line.startswith("plan: 17 phases, about 1.5 h: prefill source (random steps) 26 agent steps; ")
    assert "warm up target 2 x 4 updates; train source (aligned), warm-up 2 x 15 agent steps; " in line
    assert "train target 3 x 2,000 updates; train source (aligned) 2 x 20 agent steps; 5 evaluations" in line
    assert "about" not in plan_line(phases, base_names(phases, METHODS["coworld"], 1), config, None)
    assert [duration(s) for s in (0.2, 59, 250, 7200, 200_000)] == ["1 s", "59 s", "4 min", "2.0 h", "2.3 days"]


def test_the_time_left_is_by_measured_speed_and_else_by_expectation():
    phases = [Phase(PhaseKind.WARM_UP_TARGET, 10), Phase(PhaseKind.TRAIN_TARGET, 100, round=1)]
    config = tiny(train_every=5)
    clock = Clock(phases, config, range(2))
    assert clock.left(0, 0) is None  # nothing is known
    clock.record(phases[0], 20.0, 5)  # 4 s an update
    assert clock.left(0, 5) == pytest.approx(5 * 4 + 20 * 4)  # the other kind: 20 updates at the same speed
    assert clock.share(0, 5) == pytest.approx(20 / 120)
    clock.record(phases[1], 100.0, 100)  # 1 s an iteration
    assert clock.left(1, 40) == pytest.approx(60) and clock.share(1, 100) == 1
    measured = Clock(phases, config, range(2), update_seconds={"source": 9.0, "target": 2.0})
    assert measured.left(0, 0) == pytest.approx(10 * 2 + 20 * 2)
    assert Clock(phases, config, [1], update_seconds={"target": 2.0}).left(1, 0) == pytest.approx(40)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_two_phases(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """The output of two phases of 500 s each, with an iteration a second."""
    now = [1000.0]
    monkeypatch.setattr(run_bars.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", stderr)
    phases, config = [Phase(PhaseKind.WARM_UP_TARGET, 500), Phase(PhaseKind.WARM_UP_TARGET, 500)], tiny()
    shown = RunBars(Clock(phases, config, range(2)), config)
    for index, name in enumerate(("first", "second")):
        with shown.phase(index, name) as bar:
            bar.values = {"kl": "1.5"}
            for _ in range(500):
                now[0] += 1
                bar.update(1)
    shown.close()
    return stderr.getvalue()


def test_a_log_file_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    lines = run_two_phases(io.StringIO(), monkeypatch).splitlines()
    assert 50 < len(lines) <= 102 and not any("\r" in line for line in lines)  # of 1,000 iterations
    begin = "first: 10 of 500 updates, kl=1.5; whole run 1%, phase 1 of 2, 0:00:10 passed, about 0:16:30 left"
    middle = "first: 500 updates in 0:08:20, kl=1.5; whole run 50%, phase 1 of 2, 0:08:20 passed, about 0:08:20 left"
    assert lines[0] == begin and middle in lines
    assert lines[-1].startswith("second: 500 updates in 0:08:20") and "whole run 100%" in lines[-1]


def test_a_terminal_has_a_bar_for_the_run_beside_that_of_the_phase(monkeypatch: pytest.MonkeyPatch):
    shown = run_two_phases(Terminal(), monkeypatch)
    assert re.search(r"whole run:  50%\|[^|]+\| phase 1 of 2, 0:08:20 passed, about 0:08:20 left", shown)
    assert re.search(r"second:  80%\|[^|]+\| 400/500 updates \[.*kl=1.5\]", shown)
    assert shown.count("first: 500 updates in 0:08:20, kl=1.5\n") == 1  # it stays above the bars


@pytest.mark.usefixtures("dots", "no_pictures")
def test_a_run_prints_its_plan_and_a_finished_one_that_it_is_finished(
    dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    lengths = ("--rounds", 1, "--warmup_rounds", 0, "--pretrain_steps", 5, "--video_every", 0, "--eval_episodes", 1)
    arguments = co_training(dots_dataset, tmp_path, *DOTS, *SMALL, *lengths, "--target_iterations", 10)
    program.main(arguments)
    errors = capsys.readouterr().err
    assert "plan: 7 phases: prefill source (random steps) 26 agent steps; " in errors
    assert "train source (alone): 5 agent steps in 0:00:0" in errors and "train target 1/1: 2 updates in" in errors
    program.main(arguments)
    shown = capsys.readouterr()
    assert f"{tmp_path} is finished: nothing is left to train" in shown.err
    assert "resuming" not in shown.err and "plan:" not in shown.err and "coworld, at the end" in shown.out
