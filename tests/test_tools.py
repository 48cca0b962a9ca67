"""Records: atomic checkpoints, curves, schedules."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tools
from tools import BadInput


def test_linear_schedule():
    assert [tools.linear_schedule(s, 1.0, 0.2, 4) for s in (-1, 0, 1, 4, 9)] == pytest.approx([1, 1, 0.8, 0.2, 0.2])
    assert tools.linear_schedule(0, 1.0, 0.2, 0) == pytest.approx(0.2)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, state = tmp_path / "checkpoint.pt", {"config": {}, "agents": {}, "progress": {}}
    tools.save_checkpoint(path, state)

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(BadInput, match="No space left"):
        tools.save_checkpoint(path, {"step": 2})
    assert tools.load_checkpoint(path) == state
    assert list(tmp_path.iterdir()) == [path]


def test_generator_states_survive_a_checkpoint(tmp_path: Path):
    rng = np.random.default_rng(1)
    rng.random(3)
    run = {"config": {}, "agents": {}, "progress": {}}
    state = {"rng": tools.generator_state(rng), "torch": tools.torch_random_state()}
    tools.save_checkpoint(tmp_path / "c.pt", run | state)
    expected = rng.random(4), torch.rand(4)
    saved = tools.load_checkpoint(tmp_path / "c.pt")
    other = np.random.default_rng(2)
    tools.restore_generator(other, saved["rng"])
    tools.restore_torch_random(saved["torch"])
    assert (other.random(4) == expected[0]).all() and torch.equal(torch.rand(4), expected[1])


def test_a_point_is_the_mean_since_the_last(tmp_path: Path):
    logger = tools.Logger(tmp_path)
    logger.add("source", {"loss": torch.tensor(1.0)})
    logger.add("source", {"loss": torch.tensor(3.0), "eta": 0.5})
    logger.write(10, phase="source")
    logger.add("source", {"loss": torch.tensor(float("nan"))})
    with pytest.raises(BadInput, match="source/loss is not finite at step 20: training has diverged"):
        logger.write(20)
    logger.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 10, "phase": "source", "source/loss": 2.0, "source/eta": 0.5}
    assert second == {"step": 20, "source/loss": "nan"}  # NaN is not JSON
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("source/loss")[0].value == 2.0


def test_resuming_cuts_off_what_came_after_the_checkpoint(tmp_path: Path):
    logger = tools.Logger(tmp_path)
    logger.add("a", {"x": 1.0})
    logger.write(1)
    logger.add("a", {"x": 5.0})
    state = logger.state()
    for step in (2, 3):
        logger.add("a", {"x": 100.0})
        logger.write(step)
    logger.close()
    logger = tools.Logger(tmp_path, state["sizes"], step=1)
    logger.load_state(state)
    logger.add("a", {"x": 7.0})
    logger.write(2)
    logger.close()
    assert [json.loads(line)["a/x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1.0,
        6.0,
    ]
    assert [e.value for e in EventAccumulator(str(tmp_path)).Reload().Scalars("a/x")] == [1.0, 6.0]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path):
    first = tools.hold(tmp_path)
    with pytest.raises(BadInput, match="another process is writing"):
        tools.hold(tmp_path)
    first.close()
    tools.hold(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"hi", b"PK\x03\x04 half", "flipped", {"a": 1}, [1]])
def test_a_damaged_checkpoint_is_one_line(content: object, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    if content == "flipped":
        tools.save_checkpoint(path, {"config": {}, "agents": torch.zeros(1000), "progress": {}})
        data = bytearray(path.read_bytes())
        middle = data.index(bytes(3000))
        data[middle + 1000] ^= 1
        path.write_bytes(data)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(BadInput, match="cannot be read") as refused:
        tools.load_checkpoint(path)
    assert "()" not in str(refused.value) and len(str(refused.value)) < 200 + len(str(path))
