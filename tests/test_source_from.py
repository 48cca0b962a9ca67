"""`--source_from`, `--pretrain_only` and status.json: runs that continue from the pretraining of another run."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import DOTS, SMALL, co_training, tiny
from test_bad_input import refused
from test_co_training import assert_equal, assert_same_results, scores

import co_training as program
import collect
import evaluate
from analysis.run_settings import read_data_figures
from benchmarks import record
from config import Config
from sweeping.networks import source_networks
from tools import BadInput
from training import pretraining, trainer
from training.checkpoint import load_agent, load_checkpoint
from training.methods import METHODS, AgentBuilder
from training.pretraining import compared_settings, difference, find_pretraining, link_files
from training.run_names import run_directory

pytestmark = pytest.mark.usefixtures("dots", "no_pictures")
SHORT = [*DOTS, "--size", "32,32", "--pretrain_steps", 8, "--video_every", 0, "--eval_episodes", 1]
SHORT += ["--target_iterations", 10, "--replay_size", 40, "--precision", "float32"]  # three episodes
ONE_ROUND = ["--rounds", 1, "--warmup_rounds", 0]
END = 1 + 3  # finished phases when one source is pretrained


def train(data: Path, logdir: Path, *more: object) -> None:
    envs = [] if "--envs" in more else ["--envs", 0]
    program.main([str(a) for a in co_training(data, logdir, *SHORT, *envs, *more)])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status(logdir: Path) -> dict:
    return json.loads((logdir / "status.json").read_text())


@pytest.fixture(scope="module")
def leader(dots_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of CoWorld on `dots`. Its replay has evicted episodes that it had when its pretraining ended."""
    logdir = tmp_path_factory.mktemp("runs") / "leader"
    train(dots_dataset, logdir)
    return logdir


# The results


@pytest.mark.parametrize(
    "more",
    [
        ["--method", "dv2_finetune_ewc", *ONE_ROUND],
        ["--state_alignment", False, "--value_constraint", "brute", "--log_every", 7, "--eval_episodes", 2],
    ],
)
def test_a_run_that_continues_from_another_method_equals_one_that_pretrains(
    more: list, dots_dataset: Path, leader: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train(dots_dataset, tmp_path / "own", *more)
    assert "continuing from" not in capsys.readouterr().err
    train(dots_dataset, tmp_path / "follower", *more, "--source_from", leader)
    assert "continuing from the pretraining of" in capsys.readouterr().err
    assert_same_results(tmp_path / "own", tmp_path / "follower")
    assert f"source_from: {leader}" in (tmp_path / "follower" / "config.yaml").read_text()
    first = json.loads((tmp_path / "follower" / "metrics.jsonl").read_text().splitlines()[1])
    assert first["step"] >= 26 + 2 + 8  # points of the pretraining are in the record of the leader only


def test_the_same_on_real_simulators(dataset: Path, finished: Path, tmp_path: Path):
    """A walker's episode was running when the pretraining ended."""
    program.main(co_training(dataset, tmp_path, *SMALL, "--source_from", finished))
    assert_same_results(finished, tmp_path)


def test_another_seed_has_the_same_source_and_a_target_of_its_own(dots_dataset: Path, leader: Path, tmp_path: Path):
    train(dots_dataset, tmp_path / "run", "--source_from", leader, "--seed", 1)
    kept, own = (load_checkpoint(run / "pretrained" / "checkpoint.pt") for run in (leader, tmp_path / "run"))
    assert_equal(kept["agents"]["source"], own["agents"]["source"], "source")
    one, two = (load_checkpoint(run / "checkpoint.pt") for run in (leader, tmp_path / "run"))
    assert one["config"]["seed"] == 0 and two["config"]["seed"] == 1
    for name in ("target", "source"):  # the source learns relabelled rewards and random numbers of its own afterwards
        with pytest.raises(AssertionError):
            assert_equal(one["agents"][name], two["agents"][name], name)


def test_the_record_has_the_figures_of_the_dataset(leader: Path):
    assert read_data_figures(leader) == tuple(load_checkpoint(leader / "checkpoint.pt")["dataset"])


def test_a_snapshot_has_episodes_that_its_run_has_evicted(leader: Path):
    kept, own = ({p.name for p in (leader / f / "source_replay").glob("*.npz")} for f in ("pretrained", "."))
    saved = load_checkpoint(leader / "pretrained" / "checkpoint.pt")
    assert set(saved["domains"]["source"]["replay"]["episodes"]) == kept and kept - own
    assert saved["progress"]["phase"] == END and set(saved["agents"]) == {"source"}
    agent, _ = load_agent(leader / "pretrained", "source", torch.device("cpu"))
    for name, tensor in agent.model_dict()["behavior"].items():
        assert torch.equal(tensor, saved["agents"]["source"]["behavior"][name])


def test_pretraining_does_not_depend_on_the_target(leader: Path, tmp_path: Path):
    """The networks of a target with one action take fewer random numbers than those of one with two."""
    data = ["--task", "cartpole_swingup", "--out", tmp_path / "data", "--episodes", 2]
    collect.main([str(a) for a in [*data, "--envs", 0, "--configs", "defaults", "dmc", "debug"]])
    train(tmp_path / "data", tmp_path / "run", "--target_task", "cartpole_swingup", "--pretrain_only")
    one, other = (load_checkpoint(run / "pretrained" / "checkpoint.pt") for run in (leader, tmp_path / "run"))
    assert one["action_dims"] == {"source": 2, "target": 2} and other["action_dims"] == {"source": 2, "target": 1}
    for state in (one, other):
        state["domains"]["source"]["replay"] = None  # file names, with the time
    for part in ("agents", "domains", "rng", "progress", "selector", "pretraining", "classes"):
        assert_equal(one[part], other[part], part)


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Interrupt the process at a call of a function of training/pretraining.py."""
    original, calls = getattr(pretraining, name), []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pretraining, name, fail)


def test_two_sources_and_interruptions(dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run is stopped after its pretraining, and continued. Another run, from its snapshot, is killed twice."""
    both, one, other = ["--source_task", "dots_to_left,dots_to_right", *ONE_ROUND], tmp_path / "one", tmp_path / "other"
    train(dots_dataset, tmp_path / "whole", *both)
    train(dots_dataset, one, *both, "--pretrain_only")
    assert load_checkpoint(one / "checkpoint.pt")["progress"]["phase"] == 1 + 2 * 3
    for name, call in (("link_files", 2), ("directory_when_complete", 1)):  # in the middle, and right after it
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            fail_at(patch, name, call)
            train(dots_dataset, other, *both, "--source_from", one)
    progress = load_checkpoint(other / "checkpoint.pt")["progress"]
    assert progress == load_checkpoint(one / "checkpoint.pt")["progress"] and not (other / "pretrained").exists()
    train(dots_dataset, one, *both)
    train(dots_dataset, other, *both)  # it keeps its --source_from
    for logdir in (one, other):
        assert_same_results(tmp_path / "whole", logdir)
    assert (other / "pretrained" / "checkpoint.pt").exists()


def test_simulators_in_processes(dots_dataset: Path, tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    short = ["--envs", 2, *ONE_ROUND]
    train(dots_dataset, one, *short, "--pretrain_only")
    slots = load_checkpoint(one / "pretrained" / "checkpoint.pt")["domains"]["source"]["collector"]["slots"]
    assert all(len(slot["actions"]) > 0 for slot in slots)  # episodes are running
    train(dots_dataset, other, *short, "--source_from", one)
    train(dots_dataset, one, *short)
    assert_same_results(one, other)


def test_pretrain_only_stops_and_changes_nothing_if_there_is_nothing_left(
    dots_dataset: Path, leader: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train(dots_dataset, tmp_path, "--pretrain_only")
    assert f"{tmp_path}: sources pretrained; the same command without --pretrain_only" in capsys.readouterr().out
    state = status(tmp_path)
    assert (state["step"], state["score"], state["finished"]) == (26 + 2 + 8, None, False)
    for logdir in (tmp_path, leader):
        before = files(logdir)
        train(dots_dataset, logdir, "--pretrain_only")
        assert "sources already pretrained; the same command without" in capsys.readouterr().out
        assert files(logdir) == before
    before = load_checkpoint(tmp_path / "pretrained" / "checkpoint.pt")["progress"]
    train(dots_dataset, tmp_path, "--pretrain_only", "--pretrain_steps", 12)  # the finished phase becomes longer
    after = load_checkpoint(tmp_path / "pretrained" / "checkpoint.pt")["progress"]
    assert (before["step"], after["step"]) == (26 + 2 + 8, 26 + 2 + 12)


def test_the_default_run_directory_does_not_name_the_source():
    assert run_directory(settings(source_from="runs/a"), "x") == run_directory(settings(), "x")


def test_status_of_a_finished_run(leader: Path):
    state = status(leader)
    last = scores(leader)[-1]
    assert state == {
        "phase": "evaluate (at the end)",
        "step": (26 + 2 + 8) + (4 + 15) + 2 * 10 + 20,
        "steps": state["step"],
        "score": pytest.approx(float(last["mean"])),
        "finished": True,
    }
    assert not list(leader.glob(".status*"))


@pytest.mark.parametrize("envs", [1, 3])
def test_the_steps_of_a_run_are_counted_as_it_counts_them(envs: int):
    """26 random steps and 20 steps of the agent are rounded up to 27 and 21 with three simulators."""
    config = tiny(envs=envs, rounds=1, warmup_rounds=0)
    run = trainer.Trainer(config, METHODS["coworld"], program.algorithm_1(config), *[None] * 6)
    assert run.total_steps == {1: 26 + 2 + 20 + 20, 3: 27 + 2 + 21 + 20}[envs]


# What may be shared


def settings(method: str = "coworld", **changes: object) -> Config:
    tasks = {"source_task": "walker_walk", "target_task": "walker_downhill"}
    return tiny(method=method, **{**tasks, **changes})


def compared(config: Config) -> dict:
    return compared_settings(config, METHODS[config.method])


def test_the_settings_that_pretraining_depends_on():
    own = compared(settings())
    same = [
        settings("dv2_finetune"),
        settings("dv2_finetune_ewc", ewc_scale=3),
        settings(
            source_task="dmc_walker_walk", target_task="cheetah_run", rounds=9, eta_end=0.3, value_constraint="off"
        ),
        settings(background="folder", metaworld_camera="corner2", eval_episodes=7, device="cuda", dyn_min_std=0.3),
    ]
    others = [{"units": 17}, {"prefill": 30}, {"pretrain_steps": 9}, {"source_task": "walker_run"}, {"envs": 2}]
    others += [{"precision": "bfloat16"}, {"dmc_action_repeat": 1}, {"discount": 0.9}, {"sparse_reward": True}]
    assert [difference(own, compared(config)) for config in same] == [""] * 4
    assert compared(settings(seed=1)) != own and difference(own, compared(settings(seed=1))) == ""
    for change in others:
        (key,) = change
        assert difference(own, compared(settings(**change))).startswith(f"{key} ")
    assert difference(own, compared(settings(precision="auto"))) == ""


def test_the_networks_that_sources_have():
    state = torch.get_rng_state()
    small, large = ({"source_task": task, "target_task": "walker_run"} for task in ("cartpole_swingup", "walker_walk"))
    for tasks, equal in ((small, False), (large, True)):  # fine-tuning builds both agents for the larger action size
        networks = {source_networks(settings(m, **tasks), METHODS[m]) for m in ("coworld", "dv2_finetune")}
        assert (len(networks) == 1) == equal
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("method", "length"), [("coworld", 6), ("coworld_warm_start", 3), ("dv2_finetune", 3), ("multitask_dv2", 0)]
)
def test_pretraining_ends_before_the_target_is_used(method: str, length: int):
    config = tiny(method=method, source_task="a,b" if method == "coworld" else "a")
    phases = METHODS[method].schedule(program.algorithm_1(config), config)
    assert find_pretraining(METHODS[method], phases) == (range(1, 1 + length) if length else range(0))


def test_files_are_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(b"episode")
    link_files([tmp_path / "a"], tmp_path / "links")
    assert (tmp_path / "links" / "a").samefile(tmp_path / "a")

    def no_links(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(pretraining.os, "link", no_links)
    link_files([tmp_path / "a"], tmp_path / "copies")
    assert [p.read_bytes() for p in (tmp_path / "copies").iterdir()] == [b"episode"]
    assert not (tmp_path / "copies" / "a").samefile(tmp_path / "a")


# Refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source_from", "nowhere"], "--source_from nowhere: there is no run; give a run's directory"),
        (["--source_from", "RUN", "--units", 24], "it was pretrained with units 16, not 24"),
        (["--source_from", "RUN", "--pretrain_steps", 9], "it was pretrained with pretrain_steps 8, not 9"),
        (["--source_from", "RUN", "--source_task", "dots_to_right"], "dots_to_left, not dots_to_right"),
        (["--source_from", "RUN", "--precision", "bfloat16"], "precision float32, not bfloat16"),
        (["--source_from", "RUN", "--method", "multitask_dv2"], "with method multitask_dv2, which does not train its"),
        (["--source_from", "RUN", "--method", "offline_dv2"], "--source_from has no effect with method offline_dv2"),
        (["--pretrain_only", "--method", "online_dv2"], "--pretrain_only has no effect with method online_dv2"),
        (["--pretrain_only", "--source_from", "RUN"], "--pretrain_only has no effect with --source_from; remove it"),
    ],
)
def test_other_settings_are_refused(
    flags: list, message: str, dots_dataset: Path, leader: Path, tmp_path: Path, capsys
):
    flags = [leader if flag == "RUN" else flag for flag in flags]
    run = tmp_path / "run"
    line = refused(program.main, co_training(dots_dataset, run, *flags, *SHORT, "--envs", 0, *flags), capsys)
    assert message in line and not run.exists()


def test_networks_of_other_sizes_are_refused(leader: Path):
    config = settings(source_from="RUN")
    saved = load_checkpoint(leader / "pretrained" / "checkpoint.pt")
    builder = AgentBuilder(config.replace(size=[32, 32]), torch.device("cpu"), {"source": 2, "target": 3}, {})
    with pytest.raises(BadInput, match=re.escape("has shape [16, 2], not [16, 3] (the largest action size")):
        pretraining.check_networks(config, saved, METHODS["coworld"].agents(builder))


def test_runs_without_a_snapshot_are_refused(dots_dataset: Path, leader: Path, tmp_path: Path, capsys):
    def refusal(run: Path, logdir: Path = tmp_path / "follower") -> str:
        line = refused(
            program.main, co_training(dots_dataset, logdir, *SHORT, "--envs", 0, "--source_from", run), capsys
        )
        assert line.startswith(f"error: --source_from {run}: ")
        return line.removeprefix(f"error: --source_from {run}: ")

    old = tmp_path / "old"
    shutil.copytree(leader, old)
    shutil.rmtree(old / "pretrained")
    assert refusal(old).startswith("it has no pretrained/: its pretraining is not finished, its method has none, or")
    (old / "checkpoint.pt").unlink()
    assert "this is the run's own directory" in refusal(old, logdir=old)


def test_damaged_snapshots_are_refused(dots_dataset: Path, leader: Path, tmp_path: Path, capsys):
    arguments = co_training(dots_dataset, tmp_path / "follower", *SHORT, "--envs", 0, "--source_from", tmp_path / "bad")
    folder = tmp_path / "bad" / "pretrained"
    shutil.copytree(leader, tmp_path / "bad")
    episode, checkpoint = next(iter((folder / "source_replay").iterdir())), folder / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    episode.write_bytes(episode.read_bytes()[:500])
    assert re.search(
        r"its pretraining is damaged .*; give another --source_from, or none", refused(program.main, arguments, capsys)
    )
    episode.unlink()
    assert "this episode of the replay is gone" in refused(program.main, arguments, capsys)
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in (line := refused(program.main, arguments, capsys)) and line.endswith("or none")
    shutil.copy(leader / "checkpoint.pt", checkpoint)  # a checkpoint, but not one of a snapshot
    assert "its pretraining is damaged (classes is missing)" in refused(program.main, arguments, capsys)
    assert not (tmp_path / "follower").exists()


def test_a_resumed_run_keeps_its_own_source(dots_dataset: Path, leader: Path, tmp_path: Path, capsys):
    follower, arguments = tmp_path / "follower", [*SHORT, "--envs", 0, *ONE_ROUND]
    train(dots_dataset, follower, *ONE_ROUND, "--source_from", leader)
    before = files(follower)
    line = refused(program.main, co_training(dots_dataset, follower, *arguments, "--source_from", tmp_path), capsys)
    assert f"holds a run with source_from {leader}, not {tmp_path}: give the old value" in line
    line = refused(program.main, co_training(dots_dataset, follower, *arguments, "--pretrain_only"), capsys)
    assert "--pretrain_only has no effect with --source_from" in line
    line = refused(
        program.main, co_training(dots_dataset, leader, *SHORT, "--envs", 0, "--source_from", follower), capsys
    )
    assert "holds a run that pretrains its sources itself: --source_from has no effect" in line
    assert files(follower) == before
    train(dots_dataset, follower, *ONE_ROUND, "--source_from", leader / ".." / leader.name)
    assert f"{follower} is finished" in capsys.readouterr().err
    train(dots_dataset, tmp_path / "third", *ONE_ROUND, "--source_from", follower, "--precision", "auto")
    assert "precision: float32" in capsys.readouterr().err  # the one of the pretraining
    assert_same_results(follower, tmp_path / "third")


def test_the_kept_agent_of_a_run_plays_as_the_run_does(
    leader: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    kept, lines = tmp_path / "kept", []
    monkeypatch.setattr(sys, "argv", ["record.py", str(leader), str(kept), "--agent"])
    record.main()
    capsys.readouterr()
    assert (kept / "checkpoint.pt").stat().st_size < 0.7 * (leader / "checkpoint.pt").stat().st_size
    for run in (leader, kept):
        evaluate.main(["--logdir", str(run), "--episodes", "1", "--video", str(tmp_path / "v.gif")])
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] and "return" in lines[0]
    assert list(load_checkpoint(kept / "checkpoint.pt")["agents"]) == ["target"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--points", "3"])
    assert "--points has no effect" in refused(lambda arguments: record.main(), [], capsys)
