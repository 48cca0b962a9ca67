"""Threads: how many, from the cores that the process may use; how they wait; and that a run keeps its number."""

import os
from contextlib import nullcontext as does_not_raise
from pathlib import Path

import processes
import pytest
import torch
from conftest import DOTS, SMALL, co_training, command, tiny
from ruamel.yaml import YAML

import analyse
import co_training as program
import collect
import config as settings
import evaluate
import export
from config import Config
from tools import ONE_THREAD, BadInput
from training import device, runs, threads
from training.checkpoint import load_checkpoint
from training.threads import available_cores, pick_threads, useful_threads
from training.trainer import Trainer


@pytest.fixture(autouse=True)
def one_thread_afterwards(monkeypatch: pytest.MonkeyPatch):
    """The tests choose by themselves, and later tests compute with one thread again."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(1)


# The cores


def machine(root: Path, files: dict[str, str]) -> Path:
    """A folder with ``proc`` and ``sys`` as a machine has them."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


V1, V2, HYBRID = "4:cpu,cpuacct:/a/b\n3:cpuset:/a", "0::/a/b", "1:cpu:/a\n0::/a/b"
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("", {}, 8),
        (V2, {}, 8),
        (V2, {"a/b/cpu.max": "max 100000"}, 8),
        (V2, {"a/b/cpu.max": "300000 100000"}, 3),
        (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),  # of a group above it; whole cores
        (V2, {"a/b/cpu.max": "50000 100000"}, 1),  # less than a core
        (V2, {"cpu.max": "400000 100000"}, 4),  # a container, whose path on the host is not here
        (V2, {"other/cpu.max": "100000 100000"}, 8),  # not its own
        (HYBRID, {"unified/a/cpu.max": "200000 100000"}, 2),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "500000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        (V1, {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"}, 8),  # no CPU controller
    ],
)
@pytest.mark.usefixtures("eight_cpus")
def test_the_quota_of_a_cgroup_limits_the_cores(groups: str, files: dict[str, str], cores: int, tmp_path: Path):
    files = {f"{GROUPS}/{name}": text for name, text in files.items()}
    assert available_cores(machine(tmp_path, {"proc/self/cgroup": groups, **files})) == cores


@pytest.mark.usefixtures("eight_cpus")
def test_two_hardware_threads_are_one_core(tmp_path: Path):
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {topology.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    assert available_cores(machine(tmp_path, files)) == 4


def test_the_affinity_limits_the_cores():
    code = "import os, training.threads as t; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    assert command("-c", f"{code}print(t.available_cores())").stdout.strip() == "1"


@pytest.mark.parametrize(("busy", "free"), [((0, 0), 2), ((100, 0), 1), ((40, 0), 2), ((100, 80), 0), ((50, 50), 1)])
def test_free_cores_are_those_that_other_processes_leave(
    busy: tuple[int, int], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the CPUs that the process may use, here 0 and 1, and of the time of the measurement alone."""

    def stat(*busy: int) -> str:
        lines = [f"cpu{cpu} 0 {500 + used} 0 {900 + 100 - used} 0 0 0 0 0 0" for cpu, used in enumerate(busy)]
        return "\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *lines, "ctxt 5"])

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    machine(tmp_path, {"proc/stat": "\n".join(f"cpu{cpu} 0 500 0 900 0 0 0 0 0 0" for cpu in range(3))})
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: machine(tmp_path, {"proc/stat": stat(*busy, 100)}))
    assert threads.free_cores(tmp_path) == free


def test_without_proc_all_cores_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert threads.free_cores(tmp_path) == 3


# The number


@pytest.mark.parametrize(
    ("setting", "variable", "useful", "cores", "number"),
    [
        ("auto", None, 8, 4, 4),
        ("auto", None, 2, 4, 2),
        ("auto", None, 1, 4, 1),
        ("auto", "3", 1, 2, 3),
        ("auto", "3,2", 1, 2, 3),
        ("auto", "many", 2, 4, 2),
        ("auto", "0", 2, 4, 2),
        ("5", "3", 1, 2, 5),
    ],
)
def test_the_setting_comes_before_the_variable_before_the_choice(
    setting: str, variable: str | None, useful: int, cores: int, number: int, monkeypatch: pytest.MonkeyPatch
):
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert pick_threads(setting, useful, cores) == number


def of_blocks(*blocks: str, **flags: str) -> Config:
    return Config(**settings.merge(settings.read_blocks(), list(blocks), flags), configs=list(blocks))


def test_larger_updates_use_more_threads():
    assert useful_threads(of_blocks("dmc"), True) > useful_threads(of_blocks("dmc", batch_size="16"), True) > 8
    assert [useful_threads(of_blocks("dmc", "small", *more), True) for more in ((), ("study",))] == [5, 2]
    assert [useful_threads(of_blocks("dmc", block), True) for block in ("demo", "debug")] == [1, 1]
    assert useful_threads(of_blocks("drq_bc"), False) > 8
    assert useful_threads(of_blocks("drq_bc", "debug"), False) == 1


# How they wait


def waiting(module: str, **environment: str) -> str:
    """OpenMP's variables at the moment when a command imports torch."""
    code = f"""
import os, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "torch":
            print({{k: v for k, v in os.environ.items() if k.startswith(("GOMP", "OMP"))}})
            sys.exit()
sys.meta_path.insert(0, Finder)
import {module}
"""
    return command("-c", code, **environment).stdout.strip()


@pytest.mark.parametrize("module", ["co_training", "collect", "evaluate", "analyse", "export", "sweep"])
def test_every_command_says_how_threads_wait_before_it_imports_torch(module: str, monkeypatch: pytest.MonkeyPatch):
    for name in threads.WAITING:
        monkeypatch.delenv(name)
    assert waiting(module) == str(threads.WAITING)


def test_the_users_own_choice_of_waiting_is_kept(monkeypatch: pytest.MonkeyPatch):
    for name in threads.WAITING:
        monkeypatch.delenv(name)
    assert waiting("evaluate", OMP_WAIT_POLICY="ACTIVE") == "{'OMP_WAIT_POLICY': 'ACTIVE'}"


def test_openmp_reads_the_variables():
    """OMP_DISPLAY_ENV makes libgomp print what it read when torch loaded it."""
    code = f"import os; [os.environ.pop(n, 0) for n in {list(threads.WAITING)}]; import training.threads, torch"
    printed = command("-c", code, OMP_DISPLAY_ENV="verbose").stderr
    assert all(f"{name} = '{value}'" in printed for name, value in threads.WAITING.items())


# Commands


def read_threads(logdir: Path) -> tuple[object, object]:
    """The number in a run's config.yaml and in its checkpoint."""
    recorded = YAML(typ="safe").load((logdir / "config.yaml").read_text())["threads"]
    return recorded, load_checkpoint(logdir / "checkpoint.pt")["config"]["threads"]


def test_the_number_is_recorded_and_kept_when_the_run_is_resumed(
    dots_dataset: Path,
    no_pictures: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    arguments = co_training(dots_dataset, tmp_path, *DOTS, *SMALL, "--rounds", 1)
    monkeypatch.setattr(runs, "useful_threads", lambda config, world_model: 2)
    monkeypatch.setattr(threads, "free_cores", lambda: 4)
    program.main(arguments)
    assert "threads: 2 on" in capsys.readouterr().err
    assert torch.get_num_threads() == 2
    assert read_threads(tmp_path) == ("2", "2")

    monkeypatch.setattr(runs, "available_cores", lambda: 1)  # as on a smaller machine
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    program.main([*arguments, "--rounds", "2"])
    assert "keeps its 2 threads, for equal results; here --threads 1 may be faster" in capsys.readouterr().err
    assert torch.get_num_threads() == 2
    assert read_threads(tmp_path) == ("2", "2")

    program.main([*arguments, "--rounds", "3", "--threads", "1"])
    assert "the run had 2 threads; from here its results are equal up to rounding" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
    assert read_threads(tmp_path) == ("1", "1")


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "many", "", "1025"])
@pytest.mark.parametrize("name", ["co_training", "collect", "evaluate", "analyse", "export"])
def test_what_is_no_number_of_threads_is_refused(name: str, given: str):
    needed = {"collect": ["--task", "walker_walk", "--out", "none"], "co_training": []}
    more = {"export": ["--out", "none.pt2"]}.get(name, [])
    main = {"co_training": program, "collect": collect, "evaluate": evaluate, "analyse": analyse, "export": export}
    with pytest.raises(BadInput, match=f"{given!r}.* is not auto, or a whole number from 1 to 1024"):
        main[name].main([*needed.get(name, ["--logdir", "none", *more]), f"--threads={given}"])


def test_random_actions_need_no_threads(tmp_path: Path):
    arguments = ["--task", "walker_walk", "--out", str(tmp_path / "data"), "--threads", "1"]
    with pytest.raises(BadInput, match="--threads has no effect with --policy random"):
        collect.main(arguments)


@pytest.fixture(scope="module")
def run(dots_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("run")
    program.main(co_training(dots_dataset, logdir, *DOTS, *SMALL, "--rounds", 1))
    return logdir


def test_other_commands_compute_with_one_thread_or_as_many_as_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "export_program", lambda *_: 1 / 0)  # what follows takes long
    commands = (evaluate, ["--episodes", "1"], does_not_raise()), (
        export, ["--out", str(tmp_path / "policy.pt2")], pytest.raises(ZeroDivisionError),
    )  # fmt: skip
    for module, more, end in commands:
        for flags, number in (([], 1), (["--threads", "2"], 2)):
            torch.set_num_threads(3)
            with end:
                module.main(["--logdir", str(run), *more, *flags])
            assert torch.get_num_threads() == number
            assert f"threads: {number} on" in capsys.readouterr().err
    calls = []
    monkeypatch.setattr(analyse, "use_threads", lambda threads: calls.append(threads) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        analyse.main(["--logdir", str(run), "--episodes", "1", "--threads", "2"])
    assert calls == ["2"]
    arguments = [
        "--task",
        "dots_to_right",
        "--out",
        str(tmp_path / "data"),
        "--policy",
        "checkpoint",
        "--episodes",
        "1",
    ]
    collect.main([*arguments, "--checkpoint", str(run), "--threads", "2", "--configs", "defaults", "dmc", "debug"])
    assert torch.get_num_threads() == 2


def test_a_real_process_computes_with_the_chosen_number(tmp_path: Path):
    """The number that torch uses in a parallel region, not only the one that it reports."""
    counts = []
    for number in ("1", "3"):
        out = tmp_path / number
        process = processes.start(processes.print_threads, number, out, errors=tmp_path / "errors.txt")
        process.join(60)
        counts.append(out.read_text().split())
    assert [count[0] for count in counts] == ["1", "3"]
    assert int(counts[1][1]) - int(counts[0][1]) >= 2  # torch has a second pool of threads


def test_simulators_and_readers_get_one_thread(monkeypatch: pytest.MonkeyPatch):
    from replay import reader_process
    from wrappers.shared import backend, vector

    backend.choose_backend()  # starts a process of its own, once
    started = []

    def record(command: list[str], **options: object):
        started.append(options["env"])
        raise RuntimeError("not started")

    for module, start in ((vector, lambda: vector.ProcessEnv("walker_walk")), (reader_process, reader_process._Reader)):
        monkeypatch.setattr(module.subprocess, "Popen", record)
        with pytest.raises(RuntimeError, match="not started"):
            start()
    assert len(started) == 2 and all(ONE_THREAD.items() <= environment.items() for environment in started)


def test_waits_are_long_if_they_are_more_than_a_third_of_an_interval(monkeypatch: pytest.MonkeyPatch):
    clock, waited = [0.0], [0.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(threads, "seconds_waited", lambda: waited[0])
    waits, found = threads.CoreWaits(), []
    for share in (0.1, 0.3, 0.5, 0.9):
        clock[0], waited[0] = clock[0] + threads.INTERVAL, waited[0] + share * threads.INTERVAL
        found += [waits.are_long(), waits.are_long()]  # at the end of an interval, and in the next one
    assert found == [False, False, False, False, True, False, True, False]


@pytest.mark.parametrize("given", [False, True])
def test_a_run_whose_threads_wait_goes_on_with_one_unless_their_number_is_given(
    given: bool,
    dots_dataset: Path,
    no_pictures: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """It saves the change, so a run that is killed at once and resumed does the same."""
    arguments = co_training(dots_dataset, tmp_path, *DOTS, *SMALL, "--rounds", 1, *["--threads", 2] * given)
    monkeypatch.setattr(runs, "useful_threads", lambda config, world_model: 2)
    monkeypatch.setattr(threads, "free_cores", lambda: 4)
    monkeypatch.setattr(threads, "INTERVAL", 0.0)
    monkeypatch.setattr(threads, "LONG_WAIT", -1.0)
    saved, save = [], Trainer.save

    def recorded(trainer: Trainer) -> None:
        save(trainer)
        saved.append((trainer.progress.step, load_checkpoint(tmp_path / "checkpoint.pt")["config"]["threads"]))

    monkeypatch.setattr(Trainer, "save", recorded)
    program.main(arguments)
    errors, left = capsys.readouterr().err, "2" if given else "1"
    assert "threads: 2 on" in errors and errors.count("other processes use the cores of this run's 2 threads") == 1
    assert ("resume it with --threads 1" in errors) == given
    assert torch.get_num_threads() == int(left) and saved[-1][1] == left
    assert read_threads(tmp_path) == (left, left)  # also in config.yaml
    assert next(number for step, number in saved if step > 0) == left  # at its first step, before the phase ends


def test_the_seconds_waited_are_of_all_threads(tmp_path: Path):
    tasks = {f"proc/self/task/{n}/schedstat": f"9000000000 {n}500000000 7" for n in (1, 2)}
    assert threads.seconds_waited(machine(tmp_path, tasks)) == 4.0
    assert threads.seconds_waited(tmp_path / "none") == 0.0


def test_debug_settings_take_one_thread():
    assert device.use_threads("auto", useful_threads(tiny(), True)) == 1
