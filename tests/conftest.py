"""Used by all tests: tiny settings, a tiny real dataset, and the commands run as a user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import pytest
import torch

import collect
import config as settings
from config import Config

ROOT = Path(__file__).parents[1]

# A background job of a shell ignores Ctrl-C; the tests of Ctrl-C need Python's handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # of tests that call agents directly; commands choose for themselves


SLOW_FIRST = (
    "test_sweep_runs",
    "test_gpu_check",
    "test_extending",
    "test_co_training",
    "test_source_from",
    "test_methods",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long come first, so that at the end no process works alone."""
    items.sort(key=lambda item: item.path.stem not in SLOW_FIRST)


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


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real episodes of walker_downhill, 12 steps each, by a random policy."""
    folder = tmp_path_factory.mktemp("data") / "walker_downhill"
    arguments = [
        "--task",
        "walker_downhill",
        "--out",
        folder,
        "--episodes",
        3,
        "--configs",
        "defaults",
        "dmc",
        "debug",
    ]
    collect.main([str(a) for a in arguments])
    return folder
