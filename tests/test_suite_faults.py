"""Suites that are not complete, or not registered any more: one line each."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page_suite
import pytest
from conftest import DOTS, SMALL, co_training

import analyse
import co_training as program
import evaluate
import export
import wrappers
from analysis.runs import read_runs
from policy import load_policy
from tools import BadInput
from wrappers import Suite, make_env, register
from wrappers.shared.base import PixelEnv
from wrappers.shared.suites import discover

METHODS = ("_draw", "_low_dimensional", "_reset_simulator", "_step_simulator")


class NoDraw(page_suite.DotEnv):
    _draw = PixelEnv._draw


class OnlySpaces(PixelEnv):
    pass


class NoSuperInit(page_suite.DotEnv):
    def __init__(self, name: str, description: dict):
        self.description = description


class Tuple(page_suite.DotEnv):
    def _step_simulator(self, action: np.ndarray) -> Any:
        return 1.0, False


class FloatFrames(page_suite.DotEnv):
    def _draw(self) -> Any:
        return super()._draw() / 255


class NoState(page_suite.DotEnv):
    def _low_dimensional(self) -> Any:
        return self.dot


def suite(make: Any, **more: Any) -> Suite:
    return Suite(
        **{"name": "faulty", "title": "Faulty", "tasks": ("to_left",), "make": make, "uses_mujoco": False, **more}
    )


@pytest.fixture
def faulty() -> Iterator[None]:
    yield
    wrappers.SUITES.pop("faulty", None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoDraw, "class NoDraw lacks the method _draw "),
        (OnlySpaces, f"class OnlySpaces lacks the methods {', '.join(METHODS)} "),
        (Tuple, "_step_simulator of class Tuple returned tuple; it must return a SimulatorStep"),
        (FloatFrames, r"_draw of class FloatFrames returned float64 \(16, 16, 3\); it must return uint8 \(16, 16, 3\)"),
        (NoState, r"_low_dimensional of class NoState returned float64 \(2,\); it must return a dict of arrays"),
        (NoSuperInit, r"suite faulty: make returned NoSuperInit .* whose __init__ calls super\(\).__init__"),
        (lambda name, description: None, "suite faulty: make returned NoneType"),
    ],
)
def test_a_faulty_class_is_named_with_its_file(faulty: None, make: Any, message: str):
    register(suite(make))
    with pytest.raises(BadInput, match=message) as caught:
        env = make_env("faulty_to_left", size=16)
        env.reset(seed=0)
        env.step(np.zeros(2))
    assert "\n" not in str(caught.value)
    assert Path(__file__).name in str(caught.value) or "NoneType" in message


def test_a_suite_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match="is no suite: give a Suite"):
        register({"name": "faulty"})
    with pytest.raises(BadInput, match="tasks is the text 'to_left'; give a tuple"):
        register(suite(page_suite.DotEnv, tasks="to_left"))
    (tmp_path / "forgot.py").write_text("")
    monkeypatch.setattr(wrappers, "__path__", [*wrappers.__path__, str(tmp_path)])
    monkeypatch.setattr("pkgutil.iter_modules", lambda path: [type("Module", (), {"name": "forgot", "ispkg": False})])
    with pytest.raises(BadInput, match=r"forgot.py defines no SUITE = Suite\(...\)"):
        discover()
    del sys.modules["wrappers.forgot"]


@pytest.fixture
def removed(dots_dataset: Path, tmp_path: Path, no_pictures: None) -> Iterator[Path]:
    """A run on the page's suite, which is then not registered."""
    program.main([*co_training(dots_dataset, tmp_path / "run", *DOTS, *SMALL, blocks=("debug",))])
    found = wrappers.SUITES.pop("dots")
    yield tmp_path / "run"
    wrappers.SUITES["dots"] = found


def test_a_run_of_a_suite_that_was_removed(
    removed: Path, dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    message = "the task of its {} is of suite dots, which is not registered: put the suite's file into wrappers/"
    offline = ["--method", "offline_dv2", "--target_task", "dots_to_right", "--offline_traindir", str(dots_dataset)]
    commands = {
        "target": [
            lambda: evaluate.main(["--logdir", str(removed), "--episodes", "1"]),
            lambda: analyse.main(["--logdir", str(removed), "--episodes", "1"]),
        ],
        "source": [
            lambda: evaluate.main(["--logdir", str(removed), "--agent", "source"]),
            lambda: program.main(
                [*offline, "--logdir", str(removed), "--size", "32,32", "--configs", "defaults", "debug"]
            ),
            lambda: read_runs([removed]),
        ],
    }
    for name, refused in commands.items():
        for call in refused:
            with pytest.raises(BadInput) as caught:
                call()
            assert message.format(name) in str(caught.value)
    assert load_policy(removed).task == "dots_to_right" and load_policy(removed, "source").task == "dots_to_left"
    capsys.readouterr()
    export.main(["--logdir", str(removed), "--out", str(tmp_path / "policy.pt2")])
    assert "note: " in (error := capsys.readouterr().err) and message.format("target") in error
    assert (tmp_path / "policy.pt2").stat().st_size > 1000
