"""docs/extending.md: its suite, format and method, outside the tree, with the commands of the clone."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page prints."""
    folder = tmp_path_factory.mktemp("project")
    page = (ROOT / "docs" / "extending.md").read_text()
    files = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["dots.py", "structured.py", "plain_offline.py", "my_project.py"]
    for name, text in files:
        (folder / name).write_text(text)
    return folder


def run(project: Path, *arguments: object, program: tuple = ("my_project.py",)) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=200)


def test_a_suite_a_format_and_a_method_outside_the_tree(project: Path):
    debug = ["--size", "32,32", "--configs", "defaults", "debug"]
    target = ["--target_task", "to-right", "--offline_traindir", "data/dots", "--video_every", 0]
    for arguments in (
        ["collect", "--task", "dots_to_right", "--out", "data/npz", "--episodes", 3, *debug],
        ["dataset", "convert", "data/npz", "data/dots", "--to", "structured"],
        ["dataset", "info", "data/dots"],
        ["co_training", "--method", "plain_offline", *target, *debug],
        ["co_training", "--source_task", "to_left", *target, "--dots_action_repeat", 1, *debug],
        ["evaluate", "--logdir", "runs/plain_offline-dots_to_right-debug-data=dots-size=32x32-seed0", "--episodes", 1],
        ["report", "runs"],
    ):
        done = run(project, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    assert "plain_offline" in done.stdout and "Dots" in done.stdout
    runs = {folder.name: folder for folder in (project / "runs").iterdir()}
    assert set(runs) == {
        "plain_offline-dots_to_right-debug-data=dots-size=32x32-seed0",
        "dots_to_left-to-dots_to_right-debug-data=dots-size=32x32-seed0",
    }
    for folder in runs.values():
        with (folder / "scores.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        assert (last["target_updates"], last["success"] != "") == ("12", True)


MISSPELT = {  # arguments -> what the one line of the error has
    "collect --task dots_to_rihgt --out out": "nearest: dots_to_right",
    "co_training --method plain_ofline --target_task to_right": "nearest: plain_offline",
    "co_training --dots_action_repaet 2": "nearest: --dots_action_repeat",
    "co_training --dots_action_repeat 0": "is not 1 or more",
    "co_training --dataset_format structurd": "one of auto, lerobot, minari, npz, hdf5, structured",
}
EACH = """import importlib, sys, my_project
for line in sys.argv[1:]:
    command, *sys.argv[1:] = line.split()
    try:
        my_project.exit_on_bad_input(importlib.import_module(command).main)
    except SystemExit as end:
        print(end.code)
"""


def test_misspelt_names_of_extensions_are_answered_with_the_nearest(project: Path):
    done = run(project, *MISSPELT, program=("-c", EACH))
    assert done.stdout.split() == ["2"] * len(MISSPELT), done.stderr
    for line, message in zip(done.stderr.splitlines(), MISSPELT.values(), strict=True):
        assert message in line
