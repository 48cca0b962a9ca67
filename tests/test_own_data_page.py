"""docs/own_data.md: its files and commands, as they are printed, with fewer episodes and the block `debug`."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import co_training
import dataset
import export
from config import read_blocks

PAGE = (ROOT / "docs" / "own_data.md").read_text()
EPISODES = 4
FEWER = {"range(60)": f"range({EPISODES})"}  # of record.py


def page_command(program: str) -> list[str]:
    """The arguments of the page's command that runs a program of the clone."""
    (text,) = re.findall(rf"^    (?:PYTHONPATH=\. )?python CLONE/{program}\.py ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    return shlex.split(text.replace("\\\n", " "))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, the recorded episodes, and the finished run of its command."""
    folder = tmp_path_factory.mktemp("own")
    files = dict(re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
    assert list(files) == ["reach.py", "record.py", "drive.py", "loop.py"]
    deployment = (ROOT / "docs" / "deployment.md").read_text()
    files["robot.py"] = re.search(r"`robot.py`:\n\n```python\n(.*?)```", deployment, re.DOTALL).group(1)
    for name, text in files.items():
        for printed, fewer in FEWER.items() if name == "record.py" else ():
            assert printed in text
            text = text.replace(printed, fewer)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(sys, "argv", ["record.py", "data/my_robot"])
        runpy.run_path("record.py", run_name="__main__")
        assert page_command("dataset") == ["info", "data/my_robot"] and dataset.main(page_command("dataset")) == 0
        arguments = page_command("co_training")
        assert arguments[-3:] == ["--configs", "defaults", "quick"]
        co_training.main([*arguments, "debug", "--envs", "0", "--video_every", "0", "--precision", "float32"])
    return folder


def run_script(project: Path, *command: str) -> str:
    """The output of a script of the page in a process that finds `coworld` as if it were installed."""
    paths = os.pathsep.join([str(project), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_recorded_episodes_are_right(project: Path, capsys: pytest.CaptureFixture):
    paths = sorted((project / "data" / "my_robot").glob("*.npz"))
    assert len(paths) == EPISODES and len(PAGE.split("`record.py`:")[1].split("```")[1].splitlines()) < 30
    for path in paths:
        episode = np.load(path)
        assert episode["image"].shape == (51, 64, 64, 3) and not episode["action"][0].any() and not episode["reward"][0]
        assert np.abs(episode["action"]).max() <= 1 and episode["discount"].all(), "only the time limit ends episodes"
    assert dataset.main(["info", str(project / "data" / "my_robot")]) == 0
    assert capsys.readouterr().err == "", "no warnings"


def test_the_run_has_what_the_page_reads(project: Path):
    run = project / "runs" / "my_robot"
    assert {"offline.png", "predictions.png", "scores.csv", "checkpoint.pt"} <= {path.name for path in run.iterdir()}
    assert "offline_value_bias" in (run / "scores.csv").read_text()


def test_quick_is_one_of_the_short_blocks_with_all_of_the_demos_networks():
    blocks = read_blocks()
    quick, demo = blocks["quick"], blocks["demo"]
    assert demo.keys() - quick.keys() == {"time_limit"} and "dmc_action_repeat" not in quick
    assert quick["target_iterations"] * quick["rounds"] > demo["target_iterations"] * demo["rounds"]
    assert quick["prefill"] >= blocks["defaults"]["time_limit"], "of any environment"


def test_the_policy_acts_in_a_loop_of_ones_own(project: Path):
    pytest.importorskip("coworld")
    printed = run_script(project, "drive.py", "runs/my_robot")
    assert re.fullmatch(r"(episode \d: return -?\d+\.\d\n){3}", printed)


@pytest.mark.slow
def test_the_exported_program_acts_in_a_loop(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    assert page_command("export") == ["--logdir", "runs/my_robot", "--out", "policy.pt2"]
    export.main(page_command("export"))
    assert re.fullmatch(r"return -?\d+\.\d\n", run_script(project, "loop.py", "policy.pt2"))
