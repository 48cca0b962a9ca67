"""Each benchmark runs, at its smallest size. Its figures are not looked at: times differ from machine to machine."""

import pytest
from conftest import command

pytestmark = pytest.mark.slow

COMMANDS = {
    "contention": ["--sizes", "debug", "--neighbours", 0, 1, "--updates", 1, "--rounds", 1, "--batch_size", 2],
    "update": ["--settings", "debug", "--batch_size", 2, "--repeats", 1, "--device", "cpu"],
    "policy": ["--settings", "debug", "--steps", 2],
    "model_free": ["--methods", "bc", "cql", "--size", 32, "--repeats", 1],
    "whole_run": ["--source_task", "walker_walk", "--target_task", "walker_downhill", "--configs", "defaults", "dmc",
                  "small", "debug", "--rounds", 1],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_runs(name: str):
    done = command(f"benchmarks/{name}.py", *COMMANDS[name])
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 3
