"""A real sweep on Ray: faults, Ctrl-C, going on, and what is left to read. tests/test_scheduler.py is the fast part."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command
from filelock import FileLock

pytestmark = pytest.mark.slow

WALKER = "dmc_walker_walk-to-dmc_walker_downhill-seed0"
COWORLD, FINETUNE = f"coworld-{WALKER}", f"dv2_finetune-{WALKER}"
BAD = "offline_dv2-dmc_cheetah_uphill-seed0"
SPEC = """
configs: [dmc, debug]
collect: {quality: random, episodes: 2}
data: DATA/{target}
grid:
  pair: walker_walk -> walker_downhill
  method: [coworld, dv2_finetune]
  source_from: coworld-{pair}-seed{seed}
runs:
  - {pair: cheetah_run -> cheetah_uphill, method: offline_dv2}
resources: {cpus: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec whose run on cheetah_uphill has a damaged dataset."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "data" / "cheetah_uphill").mkdir(parents=True)
    (folder / "data" / "cheetah_uphill" / "20200101T000000-a-12.npz").write_bytes(b"no episode")
    (folder / "spec.yaml").write_text(SPEC.replace("DATA", str(folder / "data")))
    return folder


def states(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "out" / "sweep.csv").open() as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def step_of(run: Path) -> int:
    try:
        return json.loads((run / "status.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def process_of(run: Path) -> int | None:
    """The process that trains in a run's directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run) in arguments and str(ROOT / "co_training.py") in arguments:
            return int(path.parent.name)
    return None


@pytest.fixture
def started(folder: Path) -> Iterator[subprocess.Popen]:
    arguments = [sys.executable, ROOT / "sweep.py", folder / "spec.yaml", "--out", folder / "out"]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_saves_what_runs(folder: Path, started: subprocess.Popen):
    run = folder / "out" / COWORLD
    wait_for(lambda: step_of(run) > 0, started)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: every process of the group
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert f"stopped; the same command continues {folder / 'out'}" in errors and "Traceback" not in errors
    assert (run / "checkpoint.pt").exists()
    found = states(folder)
    assert {row["state"] for row in found.values()} <= {"done", "stopped", "failed"}
    assert not list((folder / "out").glob(".stop*"))
    with FileLock(run / ".lock", timeout=0):  # nothing runs on
        pass


def test_the_same_command_ends_all_runs_but_the_bad_one(folder: Path, started: subprocess.Popen):
    """Another process has one run at first, and one is killed in the middle. Both end."""
    run, other = folder / "out" / FINETUNE, folder / "out" / COWORLD
    with FileLock(other / ".lock"):
        wait_for(lambda: "another process is writing" in (other / "log.txt").read_text(), started)
    wait_for(lambda: step_of(run) and process_of(run), started)
    os.kill(process_of(run), signal.SIGKILL)
    output, errors = started.communicate(timeout=200)
    assert started.returncode == 1, errors
    found = states(folder)
    assert {name: row["state"] for name, row in found.items() if row["kind"] == "run"} == {
        COWORLD: "done", FINETUNE: "done", BAD: "failed",
    }  # fmt: skip
    assert int(found[FINETUNE]["attempts"]) == 2 and "is started again" in errors
    assert f"{COWORLD}: another process has it" in errors
    assert found[BAD]["attempts"] in "12" and "20200101T000000-a-12.npz" in found[BAD]["reason"]
    assert f"failed: {BAD}: " in errors and "Traceback" not in errors
    assert "continuing from the pretraining" in (run / "log.txt").read_text()
    assert "| dv2_finetune" in output and (folder / "out" / "report" / "table.md").exists()


def test_nothing_is_left_to_do(folder: Path):
    """Without the bad run, the same sweep has nothing to do and prints the tables again."""
    spec = folder / "spec.yaml"
    before = (folder / "out" / COWORLD / "log.txt").read_text()
    done = command("sweep.py", spec, "--out", folder / "out", "--set", "runs=[]")
    assert done.returncode == 0 and "nothing to do, all 2 runs are done" in done.stdout
    assert (folder / "out" / COWORLD / "log.txt").read_text() == before
