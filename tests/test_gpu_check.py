"""`make gpu-check` without a GPU: one line; and its checks on a CPU."""

from pathlib import Path

import pytest
import torch
from conftest import command

from benchmarks import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path):
    done = command("benchmarks/gpu_check.py", "--out", tmp_path / "report.md")
    assert done.returncode == 2 and done.stderr.startswith("error: no GPU") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.md").exists()


def test_the_checks_of_a_cpu_pass_and_are_reported(tmp_path: Path):
    arguments = ["--device", "cpu", "--only", "updates", "resume", "--out", str(tmp_path / "report.md")]
    assert gpu_check.main(arguments) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Failures: none" in text and "Largest difference of a weight: 0.0e+00" in text
    for method in gpu_check.METHODS:
        for precision in ("float32", "bfloat16"):
            assert f"| {method} | {precision} | False | 0.0e+00" in text


def test_a_failed_check_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "run", lambda *arguments, **options: 1 / 0)
    monkeypatch.setattr(gpu_check, "TOLERANCE", {"float32": -1.0})
    arguments = ["--device", "cpu", "--only", "updates", "rendering", "--out", str(tmp_path / "report.md")]
    assert gpu_check.main(arguments) == 1
    text = (tmp_path / "report.md").read_text()
    assert "- updates: coworld float32" in text and "- Rendering: ZeroDivisionError" in text and "FAILED" in text
