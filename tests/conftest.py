"""Used by all tests: tiny settings, tiny datasets, a finished run, and the commands run as a user runs them."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import page_suite
import pytest
import torch
from filelock import FileLock

import co_training as program
import collect
import config as settings
import wrappers
from agents.agent import Agent
from config import Config

ROOT = Path(__file__).parents[1]
OTHER_PROGRAMS = ROOT / "tests" / "data" / "other_programs"  # datasets that they wrote, 24 steps an episode

# A background job of a shell ignores Ctrl-C; the tests of Ctrl-C need Python's handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What `precision: auto` is in this process, whatever the processor. `make test-precision` repeats with bfloat16 what is
# marked `precision`: whole runs, which use `auto`. Tests of single parts name their precision.
BFLOAT16 = {"float32": False, "bfloat16": True}[os.environ.get("COWORLD_TEST_PRECISION", "float32")]
found = {**torch.cpu.get_capabilities(), "amx_bf16": False, "avx512_bf16": BFLOAT16}
torch.cpu.get_capabilities = lambda: found
torch.cuda.get_device_capability = lambda device=None: (8, 0) if BFLOAT16 else (7, 5)

torch.set_num_threads(1)  # of tests that call agents directly; commands choose for themselves


SLOW_FIRST = "co_training methods export lerobot source_from formats collect gym extending bad_input analyse".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long come first, so that at the end no process works alone."""
    order = {f"test_{name}": place for place, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def tiny(*blocks: str, **flags: object) -> Config:
    """The `debug` settings of a suite's block, with flags; float32 unless these say otherwise."""
    flags = {"precision": "float32", **flags}
    names = [*(blocks or ("dmc",)), "debug"]
    values = settings.merge(settings.read_blocks(), names, {k: str(v) for k, v in flags.items()})
    return Config(**values, configs=names)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """``python ARGUMENTS`` in the repository, with its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip


OFFLINE_METHODS = ("offline_dv2", "bc", "drq_bc", "cql", "curl", "lompo")  # they learn from the dataset alone
UNUSED = {  # method -> flags of the tests that it refuses, because they have no effect on it
    **{method: {"--envs", "--pretrain_steps"} for method in OFFLINE_METHODS},
    "online_dv2": {"--offline_traindir", "--pretrain_steps"},
}


def co_training(dataset: Path, logdir: Path, *more: object, blocks: tuple[str, ...] = ("dmc", "debug")) -> list[str]:
    """Arguments of `co_training.py` for a tiny run, without flags that its method does not use."""
    tasks = ["--source_task", "walker_walk", "--target_task", "walker_downhill"]
    arguments = [str(a) for a in (*tasks, "--offline_traindir", dataset, "--logdir", logdir, *more)]
    method = arguments[arguments.index("--method") + 1] if "--method" in arguments else ""
    unused = [i for i, flag in enumerate(arguments) if flag in UNUSED.get(method, ())]
    arguments = [a for i, a in enumerate(arguments) if not {i, i - 1} & set(unused)]
    return [*arguments, "--configs", "defaults", *blocks]


SMALL = ("--size", "32,32", "--envs", "0")
DOTS = ("--source_task", "dots_to_left", "--target_task", "dots_to_right")  # of the fixture `dots`


def files_digest(folder: Path) -> str:
    """A digest of the names and contents of all files in a folder, but for the prepared copies of datasets."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ".coworld-cache" not in p.parts)
    contents = [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return hashlib.sha256(repr(contents).encode()).hexdigest()


@contextlib.contextmanager
def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder ``name``, which ``make`` writes once for all processes of pytest-xdist.

    Tests that change it work on a copy: at the end of the session its files must be as ``make`` wrote them.
    """
    root = factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made_once"
    root.mkdir(exist_ok=True)
    folder, digest = root / name, root / f"{name}.sha256"
    with FileLock(root / f"{name}.lock"):
        if not digest.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            make(folder)
            digest.write_text(files_digest(folder))
    yield folder
    assert files_digest(folder) == digest.read_text(), f"a test has changed {folder}, which all tests share"


def collect_episodes(task: str, folder: Path) -> None:
    """Three episodes of ``task``, 12 steps each, by a random policy."""
    arguments = ["--task", task, "--out", folder, "--episodes", 3, "--envs", 0, "--configs", "defaults", "dmc", "debug"]
    collect.main([str(a) for a in arguments])


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three real episodes of walker_downhill, 12 steps each, by a random policy."""
    with made_once(tmp_path_factory, "walker_downhill", lambda folder: collect_episodes(folder.name, folder)) as folder:
        yield folder


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of CoWorld without interruption, on the walker's simulators. Tests read it only."""

    def run(logdir: Path) -> None:
        program.main(co_training(dataset, logdir, *SMALL))

    with made_once(tmp_path_factory, "whole", run) as folder:
        yield folder


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="module")
def dots() -> Iterator[None]:
    """The suite of docs/extending.md is known while a module's tests run."""
    wrappers.register(page_suite.SUITE)
    yield
    del wrappers.SUITES[page_suite.SUITE.name]
    if read := sys.modules.get("analysis.run_settings"):  # it keeps the settings of the suites that there were
        read.defaults.cache_clear(), read.default_values.cache_clear()


@pytest.fixture(scope="module")
def dots_dataset(dots: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three episodes of dots_to_right, 12 steps each, by a random policy."""
    with made_once(tmp_path_factory, "dots_to_right", lambda folder: collect_episodes(folder.name, folder)) as folder:
        yield folder


def count_updates(run: Callable[[], None]) -> dict[str, int]:
    """What a call of `co_training.main` did: agent steps in a simulator, and updates of its agents."""
    counts, trainers, to_completion = Counter(), [], program.run_to_completion
    world, behavior = Agent.descend_model_loss, Agent.update_behavior

    def count_world(agent: Agent, *arguments: object, **options: object) -> object:
        counts[agent.world] += 1
        return world(agent, *arguments, **options)

    def count_behavior(agent: Agent, *arguments: object, **options: object) -> object:
        counts[agent] += 1
        return behavior(agent, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "descend_model_loss", count_world)
        patch.setattr(Agent, "update_behavior", count_behavior)
        patch.setattr(program, "run_to_completion", lambda t, loops: (trainers.append(t), to_completion(t, loops)))
        run()
    (trainer,) = trainers
    target = trainer.target.agent
    sources = [source.agent for source in trainer.sources if source.agent is not target]
    return {
        "online_steps": trainer.progress.source_steps,
        "source_updates": sum(counts[agent] for agent in sources),
        "world_model_updates": counts[getattr(target, "world", None)],
        "behavior_updates": counts[target],
    }


class MethodRun(NamedTuple):
    """A finished run of a method, and the updates that were counted in it (`count_updates`)."""

    logdir: Path
    updates: dict[str, int]


@pytest.fixture(scope="module")
def method_run(dots_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], MethodRun]]:
    """The run of a method on `dots`, without interruption, with videos and without pictures. Tests read it only."""

    def train(method: str, folder: Path) -> None:
        arguments = co_training(dots_dataset, folder / "run", *SMALL, "--method", method, *DOTS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.runs.draw_summary", lambda trainer: None)
            updates = count_updates(lambda: program.main(arguments))
        (folder / "updates.json").write_text(json.dumps(updates))

    with contextlib.ExitStack() as made:

        @cache
        def run(method: str) -> MethodRun:
            make = made_once(tmp_path_factory, f"run_of_{method}", lambda folder: train(method, folder))
            folder = made.enter_context(make)
            return MethodRun(folder / "run", json.loads((folder / "updates.json").read_text()))

        yield run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their pictures, which take a third of a tiny run."""
    monkeypatch.setattr("training.runs.draw_summary", lambda trainer: None)


@pytest.fixture
def no_dataset_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dataset.py info` draws nothing, which takes most of its time. test_dataset_command.py has its pictures."""
    monkeypatch.setattr("replay.summary.Summary.draw", lambda summary, folder: [])
