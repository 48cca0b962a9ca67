"""What a sweep does when runs die, are locked, are bad or are stopped. Local processes stand for Ray's tasks.

tests/test_sweep_runs.py does the same on Ray, with real runs.
"""

import csv
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from filelock import FileLock
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

import sweep
from config import to_yaml
from sweeping import cluster, scheduler
from sweeping.cluster import LOST, News, Result
from sweeping.jobs import Checks, planned_runs
from sweeping.spec import expand, read_spec
from tools import BadInput, short_name

SPEC = """
configs: [dmc, debug]
data: DATA/{target}
collect: {quality: random, episodes: 2}
grid: {pair: walker_walk -> walker_downhill, method: [coworld, dv2_finetune, offline_dv2]}
"""
PAIR = "dmc_walker_walk-to-dmc_walker_downhill-seed0"
COWORLD, FINETUNE, OFFLINE = f"coworld-{PAIR}", f"dv2_finetune-{PAIR}", "offline_dv2-dmc_walker_downhill-seed0"
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import tools

def main():
    folder, act = Path(sys.argv[1]), sys.argv[2]
    stop, end = tools.StopRequest(), time.monotonic() + 30
    with tools.lock_directory(folder), stop.listening():
        (folder / "began").open("a").write(f"{act}\\n")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "bad":
            raise tools.BadInput("a.npz is damaged")
        while act == "run_on" and stop.signal is None and time.monotonic() < end:
            time.sleep(0.05)
        (folder / "saved").touch()
    if stop.signal is not None:
        sys.exit(128 + stop.signal)

tools.exit_on_bad_input(main)
"""


class LocalProcesses:
    """Has the methods of `sweeping.cluster.Cluster`. Runs PROGRAM by `cluster.execute` in threads, two at a time.

    Args:
        acts: what the attempts of a job do, by the name of its folder: end, die, bad, run_on, or the `Result` of a
            task that is lost before it begins. The last is repeated; the default is ["end"].
    """

    def __init__(self, program: Path, acts: dict[str, list[str | Result]], places: int = 2):
        self.program, self.acts = program, acts
        self.pool, self.arrived = ThreadPoolExecutor(places), queue.SimpleQueue()
        self.started: list[str] = []
        self.cancelled = 0
        self.waiting: dict[object, Future] = {}

    def start(self, command: tuple[str, ...], log: Path, stop_file: Path) -> object:
        name, task = log.parent.name, object()
        acts = self.acts.get(name, ["end"])
        act = acts[min(self.started.count(name), len(acts) - 1)]
        self.started.append(name)
        self.waiting[task] = self.pool.submit(self._execute, task, act, log, stop_file)
        return task

    def _execute(self, task: object, act: str | Result, log: Path, stop_file: Path) -> None:
        if isinstance(act, Result):
            self.arrived.put((task, act))
            return
        for news in cluster.execute((str(self.program), str(log.parent), act), Path.cwd(), log, stop_file, threads=1):
            self.arrived.put((task, news))

    def news(self, tasks: list[object], seconds: float) -> Iterator[tuple[object, News]]:
        with suppress(queue.Empty):
            task, news = self.arrived.get(timeout=seconds)
            assert task in tasks
            yield task, news

    def cancel(self, task: object) -> None:
        assert self.waiting[task].cancel()
        self.cancelled += 1


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalProcesses]]:
    """Makes the next sweep of `run_sweep` use local processes with these acts."""
    (tmp_path / "data" / "walker_downhill").mkdir(parents=True)
    (tmp_path / "data" / "walker_downhill" / "episode.npz").touch()
    (tmp_path / "spec.yaml").write_text(SPEC.replace("DATA", str(tmp_path / "data")))
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(scheduler, "SECONDS_WHILE_LOCKED", 0.2)
    pools = []

    def named(folders: list[Path], *_: object, **__: object) -> str:
        return f"report of {sorted(folder.name for folder in folders)}"

    monkeypatch.setattr("analysis.report_files.write_report", named)

    def with_acts(acts: dict[str, list[str | Result]], places: int = 2) -> LocalProcesses:
        local = LocalProcesses(tmp_path / "program.py", acts, places)
        monkeypatch.setattr(cluster, "connect", lambda *_: local)
        pools.append(local.pool)
        return local

    yield with_acts
    for pool in pools:
        pool.shutdown(cancel_futures=True)


def run_sweep(folder: Path, *changes: str) -> int:
    """The sweep's exit status."""
    arguments = [part for change in changes for part in ("--set", change)]
    try:
        sweep.main([str(folder / "spec.yaml"), "--out", str(folder / "out"), *arguments])
    except SystemExit as end:
        return end.code
    return 0


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "out" / "sweep.csv").open() as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def states(folder: Path) -> dict[str, tuple[str, int]]:
    """State and attempts of each job in sweep.csv."""
    return {name: (row["state"], int(row["attempts"])) for name, row in rows_of(folder).items()}


def began(folder: Path, name: str) -> list[str]:
    """What the attempts of a run were told to do, of those that got its lock."""
    path = folder / "out" / name / "began"
    return path.read_text().split() if path.exists() else []


def once(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Calls ``act`` in a thread as soon as ``condition`` holds."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_killed_run_is_started_again_and_bad_input_is_not(tmp_path: Path, start, capsys: pytest.CaptureFixture):
    start({COWORLD: ["die", "end"], FINETUNE: ["die"], OFFLINE: ["bad"]})
    assert run_sweep(tmp_path, "retries=2") == 1
    assert states(tmp_path) == {COWORLD: ("done", 2), FINETUNE: ("failed", 3), OFFLINE: ("failed", 1)}
    assert began(tmp_path, COWORLD) == ["die", "end"] and began(tmp_path, FINETUNE) == ["die"] * 3
    output, errors = capsys.readouterr()
    assert f"{COWORLD}: ended, and is started again: killed by SIGKILL (out of memory?)" in errors
    assert f"failed: {FINETUNE}: killed by SIGKILL (out of memory?) (log: " in errors
    assert f"failed: {OFFLINE}: a.npz is damaged (log: " in errors
    assert f"report of ['{COWORLD}']" in output and "1 runs done, 2 runs failed" in output


def test_a_lost_task_is_an_attempt(tmp_path: Path, start):
    lost = Result(LOST, "its machine was lost")
    start({COWORLD: [lost, "end"], FINETUNE: [lost]})
    assert run_sweep(tmp_path, "method=[coworld,dv2_finetune]", "retries=1") == 1
    assert states(tmp_path) == {COWORLD: ("done", 2), FINETUNE: ("failed", 2)}
    assert rows_of(tmp_path)[FINETUNE]["reason"] == "its machine was lost"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OutOfMemoryError("x"), "its machine ran out of memory"),
        (NodeDiedError("x"), "its machine was lost"),
        (WorkerCrashedError(), "its process was killed"),
    ],
)
def test_why_ray_lost_a_task(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch):
    task, waits = iter(["reference"]), []
    monkeypatch.setattr(cluster.ray, "wait", lambda tasks, **options: waits.append(options) or (tasks, []))

    def get(reference: str) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "get", get)
    assert list(cluster.Cluster({"cpus": 1, "gpus": 0}).news([task], 0.5)) == [(task, Result(LOST, text))]
    assert waits[0]["timeout"] == 0.5


def test_a_run_of_another_process_is_waited_for(tmp_path: Path, start, capsys: pytest.CaptureFixture):
    """That is no attempt of this sweep, whatever `retries` is, and the other runs go on meanwhile."""
    start({})
    run = tmp_path / "out" / COWORLD
    run.mkdir(parents=True)
    lock = FileLock(run / ".lock", thread_local=False)
    lock.acquire()

    def refused_and_others_done() -> bool:
        log = run / "log.txt"
        refusals = log.read_text().count("another process is writing") if log.exists() else 0
        return refusals >= 2 and (tmp_path / "out" / FINETUNE / "saved").exists()

    began_before = []
    thread = once(refused_and_others_done, lambda: (began_before.extend(began(tmp_path, COWORLD)), lock.release()))
    assert run_sweep(tmp_path, "method=[coworld,dv2_finetune]", "retries=0") == 0
    thread.join()
    assert began_before == [] and began(tmp_path, COWORLD) == ["end"]
    assert states(tmp_path) == {COWORLD: ("done", 1), FINETUNE: ("done", 1)}
    assert f"{COWORLD}: another process has it; waiting for that" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_what_runs_and_starts_nothing(number: int, tmp_path: Path, start, capsys: pytest.CaptureFixture):
    local = start({COWORLD: ["run_on"], FINETUNE: ["run_on"]}, places=1)
    thread = once(lambda: began(tmp_path, COWORLD), lambda: os.kill(os.getpid(), number))
    assert run_sweep(tmp_path) == 128 + number
    thread.join()
    assert states(tmp_path) == {COWORLD: ("stopped", 1), FINETUNE: ("stopped", 0), OFFLINE: ("stopped", 0)}
    assert (tmp_path / "out" / COWORLD / "saved").exists() and not began(tmp_path, FINETUNE)
    assert len(local.started) == 3 and local.cancelled == 2 and not list((tmp_path / "out").glob(".stop*"))
    output, errors = capsys.readouterr()
    assert output == "" and f"stopped; the same command continues {tmp_path / 'out'}" in errors
    with FileLock(tmp_path / "out" / COWORLD / ".lock", timeout=0):  # nothing runs on
        pass
    start({})
    assert run_sweep(tmp_path) == 0
    assert states(tmp_path) == {COWORLD: ("done", 2), FINETUNE: ("done", 1), OFFLINE: ("done", 1)}


def test_runs_wait_for_their_dataset_and_fail_with_it(tmp_path: Path, start, capsys: pytest.CaptureFixture):
    (tmp_path / "data" / "walker_downhill" / "episode.npz").unlink()
    data, folder = f"data {tmp_path}/data/walker_downhill", short_name(f"{tmp_path}/data/walker_downhill".strip("/"))
    local = start({folder: ["bad"]})
    assert run_sweep(tmp_path) == 1
    assert local.started == [folder]
    assert {name: row["reason"] for name, row in rows_of(tmp_path).items()} == {
        data: "a.npz is damaged",
        **dict.fromkeys((COWORLD, FINETUNE, OFFLINE), f"{data} failed"),
    }
    assert "3 jobs needed it" in capsys.readouterr().err


def test_a_sweep_that_is_done_starts_nothing(tmp_path: Path, start, capsys: pytest.CaptureFixture, monkeypatch):
    start({})
    monkeypatch.delattr(cluster, "connect")
    spec = read_spec(tmp_path / "spec.yaml", [])
    for planned in planned_runs(spec, expand(spec), tmp_path / "out", Checks(sweep.check_run, sweep.check_collection)):
        run = tmp_path / "out" / planned.run.name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(planned.config))
        (run / "status.json").write_text('{"finished": true}')
    assert run_sweep(tmp_path) == 0
    output = capsys.readouterr().out
    assert f"report of ['{COWORLD}', '{FINETUNE}', '{OFFLINE}']" in output
    assert "nothing to do, all 3 runs are done" in output


def test_resources_that_no_machine_has(monkeypatch: pytest.MonkeyPatch):
    machines = [{"Alive": True, "Resources": {"CPU": 4, "GPU": 1}}, {"Alive": False, "Resources": {"CPU": 4, "GPU": 8}}]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: machines)
    cluster.check_resources({"cpus": 4, "gpus": 1})
    with pytest.raises(BadInput, match=r"a run needs 2 gpus, the largest machine has 1: .*--set resources.gpus=1\)"):
        cluster.check_resources({"cpus": 4, "gpus": 2})


@pytest.mark.parametrize("name", ["a" * 120, "with space", "it's", "file/below"])
def test_a_tmpdir_that_ray_cannot_use_gives_a_short_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended: list[tuple] = []
    monkeypatch.setattr(cluster.atexit, "register", lambda *call: ended.append(call))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    folder = cluster.session_folder()
    assert len(folder) <= cluster.LONGEST_FOLDER and Path(folder).is_dir() and str(tmp_path) not in folder
    ((end, *arguments),) = ended
    end(*arguments)
    assert not Path(folder).exists()


def test_a_tmpdir_that_ray_can_use_is_used(monkeypatch: pytest.MonkeyPatch):
    """RAY_TMPDIR first, as Ray does. Nothing of the test of the folder stays."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as first, tempfile.TemporaryDirectory(dir="/tmp") as second:
        monkeypatch.setenv("TMPDIR", first)
        assert cluster.session_folder() == f"{first}/ray" and not list(Path(first, "ray").iterdir())
        monkeypatch.setenv("RAY_TMPDIR", second)
        assert cluster.session_folder() == f"{second}/ray"


def test_without_a_folder_for_its_sockets_ray_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("a" * 120)))
    monkeypatch.setattr(cluster, "SHORT_FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(BadInput, match=r"Ray cannot make its sockets in .*: set RAY_TMPDIR to a folder"):
        cluster.session_folder()
