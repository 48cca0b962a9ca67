"""Records: atomic checkpoints, curves, locks, videos."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_report import write_run

import tools
from analysis.runs import read_run
from benchmarks import record
from co_training import algorithm_1
from tools import BadInput
from training import pictures
from training.checkpoint import VERSION, load_checkpoint, read_resumable, save_checkpoint
from training.device import generator_state, restore_generator, restore_torch_rng, torch_rng_state
from training.logger import Logger, read_scores
from training.methods import METHODS
from training.visuals import save_video


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, state = tmp_path / "checkpoint.pt", {"config": {}, "agents": {}, "progress": {}}
    save_checkpoint(path, state)

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(BadInput, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"version": VERSION, **state}
    assert list(tmp_path.iterdir()) == [path]


def test_rng_states_are_restored_from_a_checkpoint(tmp_path: Path):
    rng = np.random.default_rng(1)
    rng.random(3)
    run = {"config": {}, "agents": {}, "progress": {}}
    state = {"rng": generator_state(rng), "torch": torch_rng_state()}
    save_checkpoint(tmp_path / "c.pt", run | state)
    expected = rng.random(4), torch.rand(4)
    saved = load_checkpoint(tmp_path / "c.pt")
    other = np.random.default_rng(2)
    restore_generator(other, saved["rng"])
    restore_torch_rng(saved["torch"])
    assert (other.random(4) == expected[0]).all() and torch.equal(torch.rand(4), expected[1])


def test_a_point_is_the_mean_since_the_last_point(tmp_path: Path):
    logger = Logger(tmp_path)
    logger.add("source", {"loss": torch.tensor(1.0)})
    logger.add("source", {"loss": torch.tensor(3.0), "eta": 0.5})
    logger.write(10, phase="source")
    logger.add("source", {"loss": torch.tensor(float("nan"))})
    with pytest.raises(BadInput, match="source/other/loss is not finite at step 20: training has diverged"):
        logger.write(20)
    logger.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 10, "phase": "source", "source/other/loss": 2.0, "source/ties/eta": 0.5}
    assert second == {"step": 20, "source/other/loss": "nan"}  # NaN is not JSON
    assert EventAccumulator(str(tmp_path / "source")).Reload().Scalars("source/other/loss")[0].value == 2.0


@pytest.mark.parametrize(("domain", "folder"), [("target", ""), ("source", "source"), ("source_2", "source_2")])
def test_resuming_removes_points_written_after_the_checkpoint(domain: str, folder: str, tmp_path: Path):
    logger = Logger(tmp_path)
    logger.add(domain, {"x": 1.0})
    logger.write(1)
    logger.add(domain, {"x": 5.0})
    state = logger.state()
    for step in (2, 3):
        logger.add(domain, {"x": 100.0})
        logger.write(step)
    logger.close()
    logger = Logger(tmp_path, state["sizes"], step=1)
    logger.load_state(state)
    logger.add(domain, {"x": 7.0})
    logger.write(2)
    logger.close()
    name, written = f"{domain}/other/x", (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)[name] for line in written] == [1.0, 6.0]
    assert [e.value for e in EventAccumulator(str(tmp_path / folder)).Reload().Scalars(name)] == [1.0, 6.0]


def test_one_process_at_a_time_can_lock_a_folder(tmp_path: Path):
    with tools.lock_directory(tmp_path), pytest.raises(BadInput, match="another process is writing"):
        tools.lock_directory(tmp_path).__enter__()
    with tools.lock_directory(tmp_path):
        pass


def test_a_lock_leaves_nothing_in_a_new_folder_and_keeps_what_was_written(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), tools.lock_directory(tmp_path / "runs" / "new"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with tools.lock_directory(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "file").touch()
    assert (tmp_path / "runs" / "new" / "file").exists()
    (tmp_path / "old").mkdir()
    with tools.lock_directory(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_temporary_files_of_killed_processes_are_deleted_under_the_lock(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "videos").mkdir()
    left = [tmp_path / name for name in (f".a.gif.{ended.pid}.tmp", f"videos/.b.gif.{ended.pid}.tmp")]
    running = tmp_path / "videos" / f".c.gif.{os.getppid()}.tmp"
    kept = [running, tmp_path / ".mine.tmp", tmp_path / f"a.{ended.pid}.tmp"]
    for path in (*left, *kept):
        path.touch()
    with tools.lock_directory(tmp_path):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
        left[0].touch()
        with pytest.raises(BadInput):
            tools.lock_directory(tmp_path).__enter__()
        assert left[0].exists()


def test_an_evaluation_at_the_same_step_replaces_the_one_of_an_earlier_end(tmp_path: Path):
    logger = Logger(tmp_path)
    row = {"domain": "target", "phase": "evaluate", "source_steps": 3, "target_updates": 2, "mean": 1.0, "std": 0.0}
    for step, number in ((5, 0), (5, 1), (9, 1), (9, 1), (9, 2)):
        logger.score(**row, step=step, round=number, episodes=2, success="")
    logger.close()
    assert [(line["step"], line["round"]) for line in read_scores(tmp_path)] == [("5", "1"), ("9", "1"), ("9", "2")]


def test_a_file_of_scores_that_was_removed_is_named_so(tmp_path: Path):
    Logger(tmp_path).close()
    with pytest.raises(BadInput, match="let the run reach its first evaluation"):
        read_scores(tmp_path)
    with pytest.raises(BadInput, match=r"scores.csv was removed or emptied after the run wrote it; restore it"):
        read_scores(tmp_path, evaluated=True)


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), tools.directory_when_complete(out) as folder:
        (folder / "half").write_text("half")
        assert not out.exists()
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with tools.directory_when_complete(out) as folder:
        (folder / "whole").write_text("whole")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/whole"]
    with pytest.raises(BadInput, match="is not empty"), tools.directory_when_complete(out):
        pass


def test_videos_have_the_format_of_their_extension(tmp_path: Path):
    frames = np.zeros((6, 32, 32, 3), np.uint8)
    for t in range(6):
        frames[t, :, 5 * t :] = 255
    for name, start in (("a.gif", slice(0, 4)), ("a.mp4", slice(4, 8))):
        save_video(tmp_path / name, frames, fps=20)
        assert (tmp_path / name).read_bytes()[start] in (b"GIF8", b"ftyp")
        shown = imageio.imread(tmp_path / name)
        assert shown.shape == frames.shape and abs(shown.astype(int) - frames).mean() < 8
    with pytest.raises(BadInput, match=r"a.avi: give a name that ends in .gif or .mp4"):
        save_video(tmp_path / "a.avi", frames, fps=20)


def test_a_gif_keeps_the_colour_of_a_small_object_among_many_others(tmp_path: Path):
    frames = np.random.default_rng(0).integers(60, 130, (2, 64, 64, 3), np.uint8)
    frames[:, 30:32, 30:32] = (0, 255, 0)
    save_video(tmp_path / "a.gif", frames, fps=20)
    shown = imageio.imread(tmp_path / "a.gif").astype(int)
    assert abs(shown[:, 30:32, 30:32] - (0, 255, 0)).max() < 32
    assert abs(shown - frames).mean() < 10


@pytest.mark.parametrize("content", [b"", b"hi", b"PK\x03\x04 half", "flipped", {"a": 1}, [1]])
def test_a_damaged_checkpoint_gives_a_one_line_error(content: object, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    if content == "flipped":
        save_checkpoint(path, {"config": {}, "agents": torch.zeros(1000), "progress": {}})
        data = bytearray(path.read_bytes())
        middle = data.index(bytes(3000))
        data[middle + 1000] ^= 1
        path.write_bytes(data)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(BadInput, match="cannot be read") as refused:
        load_checkpoint(path)
    assert "()" not in str(refused.value) and len(str(refused.value)) < 200 + len(str(path))


def test_a_checkpoint_of_another_version_gives_a_one_line_error(tmp_path: Path):
    path = tmp_path / "pretrained" / "checkpoint.pt"
    path.parent.mkdir()
    torch.save({"version": 3, "config": {}, "agents": {}, "progress": {}}, path)
    for settings, writer in (
        ("", "another version of this program"),
        ("seed: 0\n# commit 12ab\n", "commit 12ab of this"),
    ):
        (tmp_path / "config.yaml").write_text(settings)
        with pytest.raises(BadInput, match=f"format 3, written by {writer}.* reads format 4: use .*, or remove it"):
            load_checkpoint(path)


def test_a_record_that_is_shorter_than_the_checkpoint_says_is_not_extended(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    Logger(tmp_path, {"metrics.jsonl": 500, "scores.csv": 500}, step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "scores.csv").read_text().startswith("step,domain")


def test_finished_runs_can_be_kept_as_small_records(tmp_path: Path, monkeypatch, capsys):
    for name, scores, finished in [("done", [1, 20], True), ("running", [1, 20], False)]:
        folder = write_run(tmp_path / "runs" / name, scores, seed=len(name), finished=finished)
        (folder / "metrics.jsonl").write_text(
            "".join(f'{{"step": {step}, "phase": "x", "target/model/kl": {step / 3}}}\n' for step in range(1000))
        )
    arguments = ["record.py", str(tmp_path / "runs"), str(tmp_path / "kept")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--points", "50"])
    record.main()
    assert "1 new records" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["done"]
    with (tmp_path / "kept/done/curves.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert len(curve) == 50
    assert [curve[0]["step"], curve[-1]["step"], curve[-1]["target/model/kl"]] == ["0", "999", "333"]
    for name in ("config.yaml", "scores.csv"):
        assert (tmp_path / "kept/done" / name).read_bytes() == (tmp_path / "runs/done" / name).read_bytes()
    monkeypatch.setattr(sys, "argv", arguments)
    record.main()
    assert "0 new records" in capsys.readouterr().out


def test_a_folder_given_as_a_link_is_written_where_it_points(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with tools.directory_when_complete(tmp_path / "link") as folder:
        (folder / "whole").write_text("whole")
    assert (tmp_path / "disk" / "whole").exists() and (tmp_path / "link").is_symlink()


def test_a_mount_point_is_refused_and_what_cannot_be_renamed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
        with pytest.raises(BadInput, match="is a mount point"), tools.directory_when_complete(tmp_path / "out"):
            pass

    def busy(self: Path, other: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with (
        pytest.raises(BadInput, match="busy; all of it is in"),
        tools.directory_when_complete(tmp_path / "out") as folder,
    ):
        (folder / "whole").write_text("whole")
    assert (tmp_path / ".out.partial/contents/whole").read_text() == "whole"


def test_damaged_curves_and_folders_without_curves_give_no_record(tmp_path: Path, monkeypatch, capsys):
    def run_record(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["record.py", str(tmp_path / "runs"), str(tmp_path / "kept"), *more])
        record.main()

    folder = write_run(tmp_path / "runs" / "done", [1, 20])
    (folder / "metrics.jsonl").unlink()
    run_record()
    assert "0 new records" in capsys.readouterr().out  # it is itself a record, or a kept agent
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(BadInput, match=r"metrics.jsonl is damaged"):
        run_record()
    with pytest.raises(BadInput, match="give 2 or more"):
        run_record("--points", "0")
    assert not (tmp_path / "kept").exists()


def test_a_run_that_is_made_longer_is_not_finished(tmp_path: Path):
    folder = write_run(tmp_path / "run", [1, 20])
    assert read_run(folder).finished
    (folder / "status.json").write_text('{"finished": false}')
    assert not read_run(folder).finished


def test_a_kept_agent_cannot_be_resumed():
    with pytest.raises(BadInput, match="has the weights of an agent alone"):
        read_resumable(ROOT / "results/agents/walker_downhill", tiny(), METHODS["coworld"], algorithm_1, None)


@pytest.mark.parametrize(("mean", "bottom"), [(-200.0, False), (200.0, True)])
def test_scores_below_zero_are_inside_the_picture(mean: float, bottom: bool, tmp_path: Path, monkeypatch):
    limits = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: limits.append(figure.axes[0].get_ylim()))
    rows = [{"phase": phase, "step": "5", "mean": str(mean), "std": "1"} for phase in ("evaluate_random", "evaluate")]
    pictures.score_curve(rows, "title", tmp_path / "scores.png")
    low, high = limits[0]
    assert low < mean < high and (-0.1 * high < low < 0) == bottom
    rows = [{**row, "mean": "0"} for row in rows[:1]] + rows[1:]
    pictures.score_curve(rows, "title", tmp_path / "scores.png")
    assert limits[1][0] < 0 < limits[1][1]  # a random policy's line at 0 is inside too
