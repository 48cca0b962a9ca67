"""`make gpu-check` without a GPU: one line; and its checks on a CPU."""

import math
from pathlib import Path

import pytest
import torch

import config as settings
from benchmarks import gpu_check
from config import Config
from tools import exit_on_bad_input


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        exit_on_bad_input(lambda: gpu_check.main(["--out", str(tmp_path / "report.md")]))
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and errors.startswith("error: no GPU") and len(errors.splitlines()) == 1
    assert not (tmp_path / "report.md").exists()


def check(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of the checks on a CPU, and their report."""
    path = tmp_path / "report.md"
    return gpu_check.main(["--device", "cpu", *arguments, "--out", str(path)]), path.read_text()


def test_the_updates_of_the_given_methods_are_compared_and_reported(tmp_path: Path):
    status, text = check(tmp_path, "--only", "updates", "--methods", "coworld", "lompo")
    assert status == 0 and "Failures: none" in text
    rows = [line.split(" | ")[:4] for line in text.splitlines() if line.startswith("| ")][1:]
    expected = [(method, precision) for method in ("coworld", "lompo") for precision in ("float32", "bfloat16")]
    assert [(row[0][2:], row[1]) for row in rows] == expected
    assert all(row[2] == "False" and row[3].startswith("0.0e+00") for row in rows)


@pytest.mark.slow
def test_the_check_of_resuming_passes(tmp_path: Path):
    status, text = check(tmp_path, "--only", "resume")
    assert status == 0 and "Largest difference of a weight: 0.0e+00" in text


def test_a_failed_check_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "run", lambda *arguments, **options: 1 / 0)
    monkeypatch.setattr(gpu_check, "TOLERANCE", {"float32": -1.0})
    status, text = check(tmp_path, "--only", "updates", "rendering", "--methods", "coworld")
    assert status == 1
    assert "- updates: coworld float32" in text and "- Rendering: ZeroDivisionError" in text and "FAILED" in text


@pytest.mark.parametrize("method", gpu_check.METHODS)
def test_the_gpu_check_can_update_every_method(method: str):
    values = settings.merge(settings.read_blocks(), ["dmc", "debug"], {"method": method, "precision": "float32"})
    found = gpu_check.update(Config(**values, configs=["dmc", "debug"]), method, torch.device("cpu"))
    assert any(name.endswith("gradient") for name in found) and all(math.isfinite(value) for value in found.values())
