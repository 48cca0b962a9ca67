"""docs/extending.md: its suite, format and method, outside the tree, with the commands of the clone."""

import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

import processes
import pytest
from conftest import ROOT

DEBUG = "--size 32,32 --configs defaults debug"
TARGET = "--target_task to-right --offline_traindir data/dots --video_every 0"
PLAIN = "plain_offline-dots_to_right-debug-data=dots-size=32x32-seed0"
COMMANDS = (
    f"collect --task dots_to_right --out data/npz --episodes 3 {DEBUG}",
    "dataset convert data/npz data/dots --to structured",
    "dataset info data/dots",
    f"co_training --method plain_offline {TARGET} {DEBUG}",
    f"co_training --source_task to_left {TARGET} --dots_action_repeat 1 --envs 0 {DEBUG}",
    f"evaluate --logdir runs/{PLAIN} --episodes 1",
    "report runs",
)
MISSPELT = {  # arguments -> what the one line of the error has
    "collect --task dots_to_rihgt --out out": "nearest: dots_to_right",
    "co_training --method plain_ofline --target_task to_right": "nearest: plain_offline",
    "co_training --dots_action_repaet 2": "nearest: --dots_action_repeat",
    "co_training --dots_action_repeat 0": "is not 1 or more",
    "co_training --dataset_format structurd": "one of auto, aloha, d4rl, diffusion_policy, lerobot, minari, npz, ",
}
EACH = """import importlib, runpy, sys
from tools import exit_on_bad_input

def as_printed():
    runpy.run_path("my_project.py", run_name="__main__")

def registered():
    exit_on_bad_input(importlib.import_module(sys.argv.pop(1)).main)

lines, sys.argv[1:] = sys.argv[1:], []
try:
    as_printed()
except SystemExit as end:
    print("without a command:", end.code)
import replay.formats
del replay.formats.FORMATS["structured"]  # for the second time that it is registered

for number, line in enumerate(lines):
    sys.argv[1:] = line.split()
    try:
        registered() if number else as_printed()
    except SystemExit as end:
        print("exit status", end.code or 0, flush=True)
"""


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


class Done(NamedTuple):
    """What the commands have printed."""

    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def done(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All commands in one process. The first is run by my_project.py; what that registers stays for the others."""
    out, errors = (tmp_path_factory.mktemp("printed") / name for name in ("out.txt", "errors.txt"))
    call = processes.run_code, EACH, project, [*COMMANDS, *MISSPELT], out
    process = processes.start(*call, errors=errors, PYTHONPATH=os.pathsep.join([str(ROOT), str(project)]))
    process.join(200)
    assert process.exitcode == 0, errors.read_text()
    return Done(out.read_text(), errors.read_text())


def test_a_suite_a_format_and_a_method_outside_the_tree(project: Path, done: Done):
    statuses = re.findall(r"^exit status (\d+)$", done.stdout, re.MULTILINE)
    assert statuses[: len(COMMANDS)] == ["0"] * len(COMMANDS), done.stderr
    report = done.stdout.split("exit status 0")[len(COMMANDS) - 1]
    assert "plain_offline" in report and "Dots" in report
    runs = {folder.name: folder for folder in (project / "runs").iterdir()}
    assert set(runs) == {PLAIN, "dots_to_left-to-dots_to_right-debug-data=dots-envs=0-size=32x32-seed0"}
    for folder in runs.values():
        with (folder / "scores.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        assert (last["target_updates"], last["success"] != "") == ("12", True)


def test_the_script_without_a_command_prints_its_usage(done: Done):
    usage = done.stdout.split("exit status")[0]
    assert usage.startswith("without a command: python my_project.py COMMAND ...: a command of the clone")
    assert "COMMAND is co_training, collect, " in usage


def test_misspelt_names_of_extensions_are_answered_with_the_nearest(done: Done):
    statuses = re.findall(r"^exit status (\d+)$", done.stdout, re.MULTILINE)
    assert statuses[len(COMMANDS) :] == ["2"] * len(MISSPELT), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, message in zip(errors, MISSPELT.values(), strict=True):
        assert message in line
