"""`precision: auto`: chosen by the device, recorded, and kept when a run is resumed."""

from pathlib import Path

import pytest
import torch
from conftest import DOTS, SMALL, co_training
from ruamel.yaml import YAML

import co_training as program
from tools import BadInput
from training import runs
from training.checkpoint import load_checkpoint
from training.device import pick_precision

pytestmark = pytest.mark.usefixtures("dots", "no_pictures")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "picked"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_computes_it(able: dict, picked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert pick_precision("auto", CPU) == picked
    assert [pick_precision(name, CPU) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(("capability", "picked"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_is_bfloat16_where_the_gpu_computes_it(capability: tuple, picked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == picked


def test_the_choice_is_recorded_and_kept_when_the_run_is_resumed(
    dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    arguments = co_training(dots_dataset, tmp_path, *DOTS, *SMALL, "--rounds", 1, "--video_every", 0)
    monkeypatch.setattr(runs, "pick_precision", lambda name, device: "bfloat16")
    program.main(arguments)
    assert "precision: bfloat16 on cpu" in capsys.readouterr().err
    assert YAML(typ="safe").load((tmp_path / "config.yaml").read_text())["precision"] == "bfloat16"
    monkeypatch.setattr(runs, "pick_precision", lambda name, device: "float32")  # as on another machine
    longer = [*arguments, "--rounds", "2"]
    program.main(longer)
    assert "precision:" not in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt")["config"]["precision"] == "bfloat16"
    with pytest.raises(BadInput, match="a run with precision bfloat16, not float32"):
        program.main([*longer, "--precision", "float32"])
