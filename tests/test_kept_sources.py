"""benchmarks/sources.py: kept sources, and runs that begin from them."""

from pathlib import Path

import pytest
from conftest import co_training
from test_co_training import assert_equal, assert_same_results
from test_source_from import SHORT, train

import co_training as program
from benchmarks import sources
from tools import BadInput
from training.checkpoint import load_checkpoint
from training.trainer import Interrupted, Trainer

pytestmark = pytest.mark.usefixtures("dots", "no_pictures")


def test_kept_sources_are_restored_without_updates(dots_dataset: Path, tmp_path: Path):
    leader = tmp_path / "leader"
    train(dots_dataset, leader, "--pretrain_only")
    sources.keep(leader, tmp_path / "kept")
    options = [str(a) for a in co_training(dots_dataset, tmp_path / "run", *SHORT, "--envs", 0)]
    assert sources.restore(tmp_path / "kept", options) == tmp_path / "run"
    for folder, more, message in (
        ("kept", [], "holds a run already"),
        ("run", [], "run: no kept sources; write them with `sources.py keep`"),
        ("kept", ["--source_from", str(leader)], "--source_from has no effect on restored sources"),
        ("kept", ["--method", "offline_dv2", "--source_task", ""], "no effect with method offline_dv2"),
    ):
        with pytest.raises(BadInput, match=message):
            sources.restore(tmp_path / folder, [*options, *more])
    kept, own = (load_checkpoint(run / "pretrained" / "checkpoint.pt") for run in (leader, tmp_path / "run"))
    for part in ("world", "behavior"):
        assert_equal(kept["agents"]["source"][part], own["agents"]["source"][part], part)
    assert own["progress"] == kept["progress"] | {"source_updates": 0}
    train(dots_dataset, tmp_path / "run")
    train(dots_dataset, tmp_path / "follower", "--source_from", tmp_path / "run")
    assert_same_results(tmp_path / "run", tmp_path / "follower")
    with pytest.raises(BadInput, match="its sources were pretrained with units 16, not 24; give the same"):
        sources.restore(tmp_path / "kept", [*options, "--logdir", str(tmp_path / "other"), "--units", "24"])


def test_a_restoration_that_is_stopped_leaves_no_run_that_would_be_trained(
    dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    train(dots_dataset, tmp_path / "leader", "--pretrain_only")
    sources.keep(tmp_path / "leader", tmp_path / "kept")
    options = [str(a) for a in co_training(dots_dataset, tmp_path / "run", *SHORT, "--envs", 0)]

    def stop(trainer: Trainer, phase: object) -> None:
        trainer.save()
        trainer.stop.signal = 15
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(sources, "collect", stop)
        with pytest.raises(SystemExit):
            sources.restore(tmp_path / "kept", options)
    assert "not restored; the same command begins anew" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    assert sources.restore(tmp_path / "kept", options) == tmp_path / "run"


def test_sources_are_pretrained_for_a_target_without_a_simulator(
    dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    at = SHORT.index("--eval_episodes")
    short = [*SHORT[:at], *SHORT[at + 2 :], "--envs", 0, "--pretrain_only", "--target_task", "my_robot"]
    program.main([str(a) for a in co_training(dots_dataset, tmp_path, *short)])
    assert "sources pretrained; the same command" in capsys.readouterr().out
