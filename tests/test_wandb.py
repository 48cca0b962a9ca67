"""--wandb True: the real package, offline; what it would send is read from the files that it writes."""

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DOTS, SMALL, co_training, tiny

import co_training as program
import collect
from tools import BadInput
from training import wandb_mirror
from training.logger import Logger

INSTALLED = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not INSTALLED, reason="wandb is not installed (requirements/wandb.txt)")
BLOCK = 32768  # bytes of a block of wandb's files, which are LevelDB's logs


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    if INSTALLED:
        import wandb

        wandb.teardown()  # it reads its variables once a process


def chunks(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind wandb's header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield record
            record = b""


def records(logdir: Path) -> list[tuple[str, Any]]:
    """(kind, record) of all that wandb has recorded of a run directory, in order.

    wandb's own process may still write after `finish`; its last record of a file is of kind exit.
    """
    from wandb.proto import wandb_internal_pb2

    files, found = sorted(logdir.glob("wandb/offline-run-*/*.wandb")), []
    deadline = time.monotonic() + 60
    while [kind for kind, _ in found].count("exit") < len(files) and time.monotonic() < deadline:
        time.sleep(0.1 if found else 0)
        found = []
        for data in [data for file in files for data in chunks(file.read_bytes())]:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            found.append((kind, getattr(record, kind)))
    return found


def history(logdir: Path) -> list[dict[str, Any]]:
    """The points that a run has sent, without wandb's own entries."""
    rows = []
    for kind, record in records(logdir):
        if kind == "history":
            items: dict[str, Any] = {}
            for item in record.item:  # a video is one value, or a value for each of its fields
                *names, field = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                items |= (
                    {field: value} if not names else {"/".join(names): {**items.get("/".join(names), {}), field: value}}
                )
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


@needs_wandb
def test_a_run_and_its_continuation_are_one_run_with_the_curves_of_metrics_jsonl(
    dots_dataset: Path, tmp_path: Path, no_pictures: None
):
    """The results are those of a run without it."""
    flags = (*SMALL, *DOTS, "--method", "offline_dv2")
    program.main(co_training(dots_dataset, tmp_path / "plain", *flags))
    program.main(co_training(dots_dataset, tmp_path / "run", *flags, "--wandb", "True"))
    first = history(tmp_path / "run")
    longer = ("--rounds", "3", "--wandb", "True")
    program.main(co_training(dots_dataset, tmp_path / "run", *flags, *longer))
    sent = history(tmp_path / "run")
    assert len(sent) > len(first)
    rates = "per_second"
    keys = {"phase", "round", "source_steps", "target_updates"}
    for folder, rows in (("plain", first), ("run", sent)):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        written = [
            {key: value for key, value in line.items() if key not in keys and rates not in key} for line in lines
        ]
        curves = [row for row in rows if not any(isinstance(value, dict) for value in row.values())]
        found = [{key: value for key, value in row.items() if rates not in key} for row in curves]
        assert found == written
    found = [(row["step"], *pair) for row in sent for pair in row.items() if isinstance(pair[1], dict)]
    names = [f"{curve.split('/')[0]}-{curve.split('/')[-1]}-{step:07}.gif" for step, curve, _ in found]
    assert set(names) == {path.name for path in (tmp_path / "run" / "videos").iterdir()}
    videos = [video for *_, video in found]
    assert {video["_type"] for video in videos} == {"video-file"}
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/files/media/videos/**/*.gif"))) == len(videos)
    runs = [record for kind, record in records(tmp_path / "run") if kind == "run"]
    assert len({run.run_id for run in runs}) == 1 and {run.project for run in runs} == {"coworld"}
    assert {run.display_name for run in runs} == {"run"}
    config = {item.key: json.loads(item.value_json) for run in runs for item in run.config.update}
    assert config["method"] == "offline_dv2" and config["rounds"] == 3 and config["size"] == [32, 32]


@needs_wandb
def test_a_failure_of_wandb_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    mirror = wandb_mirror.WandbMirror(tmp_path, {"seed": 0})
    logger = Logger(tmp_path, mirror=mirror)
    mirror.run.finish()  # as if its process had ended
    for step in (1, 2):
        logger.add("target", {"kl": 1.0})
        logger.write(step)
    logger.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("warning: wandb failed, the run goes on without it") == 1


@needs_wandb
def test_without_an_account_the_run_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(BadInput, match=r"--wandb True: .*; log in with `wandb login`, or set WANDB_MODE=offline"):
        wandb_mirror.WandbMirror(tmp_path, {})


@pytest.mark.parametrize(
    ("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")], ids=["mode", "disabled"]
)
@needs_wandb
def test_wandb_that_is_switched_off(variable: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput, match=f"--wandb True has no effect with {variable}={value}; remove one of the two"):
        wandb_mirror.check_wandb()


def test_without_the_package_it_is_refused_before_anything_is_made(
    dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = co_training(dots_dataset, tmp_path / "run", *SMALL, *DOTS, "--wandb", "True")
    with pytest.raises(BadInput, match=r"--wandb True needs wandb: pip install -r .*requirements/wandb.txt"):
        program.main(arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()
    namespace = type("Namespace", (), {"__path__": [str(tmp_path / "wandb")]})
    monkeypatch.setitem(wandb_mirror.sys.modules, "wandb", namespace)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(BadInput, match="is a folder of that name, not the package"):
        wandb_mirror.check_wandb()


def test_it_has_no_effect_where_nothing_is_learned(tmp_path: Path):
    arguments = ["--task", "walker_walk", "--out", str(tmp_path / "data"), "--wandb", "True"]
    with pytest.raises(BadInput, match="--wandb has no effect with --policy random; remove it"):
        collect.main([*arguments, "--configs", "defaults", "dmc", "debug"])


def test_it_is_off_by_default():
    assert tiny().wandb is False
