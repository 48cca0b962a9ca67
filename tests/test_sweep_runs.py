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


ASK = """
import os, sys, tempfile
from pathlib import Path
from sweeping import cluster
connected = cluster.connect(None, {"cpus": 1, "gpus": 0})
work = Path(sys.argv[1])
print(int(cluster.ray.cluster_resources()["CPU"]))
print(cluster.ray._private.worker._global_node.get_temp_dir_path())
task = connected.start(("tools.py",), work / "log.txt", work / "stop")
results = []
while not results or isinstance(results[-1], dict):
    results += [news for _, news in connected.news([task], 5.0)]
print(results[-1].status)
"""


@pytest.mark.parametrize("name", ["a" * 120, "with space, and 'quotes'"])
def test_ray_starts_with_any_tmpdir_and_on_the_cores_of_the_process(name: str, tmp_path: Path):
    """A long path, one with spaces: its sockets are then in a short folder, which is deleted at the end."""
    (tmp_path / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / name), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_TMPDIR", None)
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    arguments = [*one_core, sys.executable, "-c", ASK, str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    cores, session, status = done.stdout.splitlines()
    assert cores == "1" and status == "0" and str(tmp_path) not in session
    assert len(session) < 30 and not Path(session).exists()
