"""Algorithm 1 on real simulators at `debug` size: its files, stopping and resuming."""

import contextlib
import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import processes
import pytest
import torch
from conftest import DOTS, SMALL, co_training, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import co_training as program
import evaluate as evaluate_program
from tools import BadInput
from training import evaluator as evaluator_module
from training.checkpoint import load_checkpoint
from training.collector import Collector
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("dots")


def train(dataset: Path, logdir: Path, *more: str, stop_at: int | None = None, **blocks: tuple) -> None:
    """Run the command in this process; with ``stop_at``, it gets SIGTERM at the end of that step."""
    original = Trainer._count

    def count(trainer: Trainer, stride: int) -> None:
        original(trainer, stride)
        if trainer.progress.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    Trainer._count = count
    try:
        program.main(co_training(dataset, logdir, *SMALL, *more, **blocks))
    finally:
        Trainer._count = original


def metrics(logdir: Path) -> list[dict]:
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def scores(logdir: Path) -> list[dict]:
    with (logdir / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def assert_equal(x: object, y: object, where: str) -> None:
    """Two parts of checkpoints are equal bit for bit. ``where`` names them if they are not."""
    if isinstance(x, list):
        x, y = dict(enumerate(x)), dict(enumerate(y))
    if isinstance(x, dict):
        assert x.keys() == y.keys(), where
        for key in x:
            assert_equal(x[key], y[key], f"{where}/{key}")
    else:
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, where


def assert_same_results(one: Path, other: Path, but_scores: bool = False) -> None:
    assert but_scores or scores(one) == scores(other)
    a, b = (load_checkpoint(d / "checkpoint.pt") for d in (one, other))
    assert a["progress"] == b["progress"]
    a["domains"], b["domains"] = ({n: {**d, "replay": None} for n, d in s["domains"].items()} for s in (a, b))
    for part in ("agents", "domains", "rng"):  # the replay's state has file names, with the time
        assert_equal(a[part], b[part], part)


def test_the_phases_are_those_of_algorithm_1():
    config = tiny(pretrain_steps=7, warmup_rounds=2, rounds=3)
    kinds = [(p.kind, p.round) for p in program.algorithm_1(config) if p.kind != "evaluate"]
    start = ["evaluate_random", "prefill", "pretrain_source", "train_source", *["warm_up_target", "train_source"] * 2]
    rounds = [("train_target", 1), ("train_source", 1), ("train_target", 2), ("train_source", 2), ("train_target", 3)]
    assert kinds == [(kind, 0) for kind in start] + rounds
    assert program.algorithm_1(config)[-1].kind == "evaluate"


def test_the_default_schedule_is_the_papers():
    values = program.settings.merge(program.settings.read_blocks(), ["dmc"], {})
    phases = program.algorithm_1(tiny().replace(**values))
    assert sum(p.iterations for p in phases if p.kind == "train_source") == 30_000 + 2 * 10_000 + 5 * 20_000
    assert sum(p.iterations for p in phases if p.kind == "train_target") == 6 * 20_000
    assert [p.aligned for p in phases if p.kind == "train_source"] == [False] + [True] * 7


def test_a_run_writes_scores_pictures_settings_and_videos(finished: Path):
    rows = scores(finished)
    assert [row["phase"] for row in rows] == ["evaluate_random", "evaluate", "evaluate", "evaluate"]
    assert [int(row["target_updates"]) for row in rows] == [0, 4, 8, 12]
    assert all(row["success"] == "" and row["episodes"] == "2" for row in rows)  # DMC has no success
    assert {"predictions.png", "scores.png"} <= {p.name for p in finished.iterdir()}
    assert (finished / "config.yaml").read_text().count("source_task: walker_walk") == 1
    assert sorted(p.name.rsplit("-", 1)[0] for p in (finished / "videos").glob("*0120.gif")) == [
        "source-open_loop",
        "target-open_loop",
    ]


@pytest.mark.precision
def test_every_tie_is_logged_and_eta_falls(finished: Path):
    points = metrics(finished)
    values = [v for p in points for v in p.values() if not isinstance(v, str)]
    assert np.isfinite(values).all()
    for key in (
        "target/eval/return",
        "target/ties/state_alignment",
        "source/ties/reward_alignment",
        "target/ties/value_constraint",
        "source/ties/eta",
    ):
        assert any(key in point for point in points), key
    etas = [point["source/ties/eta"] for point in points if "source/ties/eta" in point]
    updates = (4, 9, 14, 19, 24, 29, 34)  # of the 35 aligned source steps: those at which the source agent learns
    assert etas == pytest.approx([1 - 0.9 * step / 35 for step in updates])


def test_tensorboards_reader_finds_the_curves_and_videos(finished: Path):
    events, source = (
        EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
        for folder in (finished, finished / "source")
    )
    assert not any(tag.startswith("source") for tag in events.Tags()["scalars"])  # so that its colour is another
    tags = {kind: [*events.Tags()[kind], *source.Tags()[kind]] for kind in ("scalars", "images")}
    for domain in ("source", "target"):
        model, behavior = ("image_loss", "reward_loss", "kl"), ("actor_loss", "critic_loss", "value")
        assert {f"{domain}/model/{name}" for name in model} <= set(tags["scalars"])
        assert {f"{domain}/behavior/{name}" for name in behavior} <= set(tags["scalars"])
        assert f"{domain}/model/open_loop" in tags["images"]
    assert {"source/ties/eta", "source/ties/reward_alignment", "source/data/episode_return"} <= set(tags["scalars"])
    assert {"target/ties/state_alignment", "target/ties/value_constraint", "target/eval/return"} <= set(tags["scalars"])
    gif = events.Images("target/model/open_loop")[0]
    assert gif.encoded_image_string[:4] == b"GIF8"
    assert (gif.width, gif.height) == (66 + 3 * (32 + 2), 18 + 3 * (32 + 2))  # a batch of three, gaps and labels
    logged = {p["step"]: p["target/model/image_loss"] for p in metrics(finished) if "target/model/image_loss" in p}
    for event in events.Scalars("target/model/image_loss"):
        assert event.value == pytest.approx(logged[event.step])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "stop_at",
    [
        pytest.param(58, marks=pytest.mark.precision, id="inside an episode"),
        pytest.param(87, id="at the end of an offline phase"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(stop_at: int, dataset: Path, finished: Path, tmp_path: Path):
    """Step 58 is the source's 52nd, in an aligned phase: 4 steps into its fifth episode, after updates of all agents
    and 3 steps after a point of the curves. Step 87 is the last of the first round's offline phase."""
    with pytest.raises(SystemExit) as stopped:
        train(dataset, tmp_path, stop_at=stop_at)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] == stop_at
    train(dataset, tmp_path)
    assert_same_results(finished, tmp_path)
    steps = [p["step"] for p in metrics(tmp_path)]
    assert steps == sorted(steps) == [p["step"] for p in metrics(finished)]


def test_a_finished_run_is_only_summarised_and_keeps_its_record(
    dataset: Path, finished_copy: Path, capsys: pytest.CaptureFixture
):
    files = [finished_copy / name for name in ("checkpoint.pt", "config.yaml")]
    before = [file.read_bytes() for file in files]
    train(dataset, finished_copy, "--eval_episodes", "5")
    assert [file.read_bytes() for file in files] == before
    table = capsys.readouterr().out
    assert "random policy" in table and "at the end" in table and str(finished_copy) in table


ONE_ROUND = ("--rounds", "1", "--warmup_rounds", "0", "--pretrain_steps", "5", "--video_every", "0")


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_can_be_made_longer(dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Its weights are those of a run that was as long from the start; the old evaluations are kept."""
    for name, lengths in (("whole", ["36"]), ("parts", ["20", "36"])):
        for length in lengths:
            train(dots_dataset, tmp_path / name, *DOTS, *ONE_ROUND, "--target_iterations", length)
    assert_same_results(tmp_path / "whole", tmp_path / "parts", but_scores=True)
    whole, parts = scores(tmp_path / "whole"), scores(tmp_path / "parts")
    assert [int(row["target_updates"]) for row in parts] == [0, 0, 4, 7]
    assert parts[:2] == whole[:2] and parts[3] == whole[2]
    assert "target_iterations: 36\n" in (tmp_path / "parts" / "config.yaml").read_text()
    table = capsys.readouterr().out
    assert table.count("before round 1") == 3 and table.count("at an earlier end") == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_can_have_more_rounds(dots_dataset: Path, tmp_path: Path):
    train(dots_dataset, tmp_path, *DOTS, *ONE_ROUND)
    before = scores(tmp_path)
    train(dots_dataset, tmp_path, *DOTS, *ONE_ROUND, "--rounds", "2")
    after = scores(tmp_path)
    assert after[:3] == before and [int(row["round"]) for row in after[3:]] == [2, 2]
    assert [int(row["target_updates"]) for row in after[2:]] == [4, 4, 8]
    assert int(after[3]["source_steps"]) == int(before[-1]["source_steps"]) + 20  # the online phase in between
    assert "rounds: 2\n" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_iterations", "30"], "give --target_iterations 20 (or a larger --rounds, to train longer)"),
        (["--target_iterations", "10"], "give --target_iterations 20"),
        (["--rounds", "1"], "give --rounds 2"),
        (["--warmup_updates", "9", "--rounds", "3"], "give --warmup_updates 4 --rounds 2"),
        (["--eta_steps", "7"], "eta_steps 35, not 7"),
    ],
)
def test_finished_phases_cannot_be_changed(flags: list, message: str, dataset: Path, finished: Path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        train(dataset, finished, *flags)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("no_pictures")
def test_a_running_phase_cannot_be_shorter_than_what_is_done(dots_dataset: Path, tmp_path: Path):
    with pytest.raises(SystemExit):
        train(dots_dataset, tmp_path, *DOTS, stop_at=26 + 2 + 12)  # after 12 of 20 steps of the source agent alone
    with pytest.raises(BadInput, match="and 12 iterations of train_source, which --pretrain_steps 8 would change"):
        train(dots_dataset, tmp_path, *DOTS, "--pretrain_steps", "8")
    train(dots_dataset, tmp_path, *DOTS, "--pretrain_steps", "14", *ONE_ROUND[:4])
    assert metrics(tmp_path)[-1]["step"] == 26 + 2 + 14 + 20


@pytest.mark.usefixtures("no_pictures")
def test_only_evaluation_steps_the_target_simulator(
    dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Defect 3 of the release. Here a step of the target simulator outside evaluation raises an error."""
    evaluating, steps = [], []
    make_simulator, evaluate = evaluator_module.make_simulator, evaluator_module.evaluate

    class EvaluationOnly(gymnasium.Wrapper):
        def step(self, action):
            assert evaluating, "the target simulator was stepped outside evaluation"
            steps.append(1)
            return super().step(action)

    def make_checked(config, task, role):
        env = make_simulator(config, task, role)
        return EvaluationOnly(env) if role == "target" else env

    def marked(*arguments):
        evaluating.append(1)
        try:
            return evaluate(*arguments)
        finally:
            evaluating.pop()

    monkeypatch.setattr(evaluator_module, "make_simulator", make_checked)
    monkeypatch.setattr(evaluator_module, "evaluate", marked)
    train(dots_dataset, tmp_path, *DOTS, "--video_every", "0")
    assert len(steps) == 4 * 2 * 12  # four evaluations of two episodes


def test_a_crashed_simulator_is_reported_and_the_run_can_be_resumed(
    dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finish, count = Collector.finish, []

    def fail(collector: Collector) -> None:
        count.append(1)
        if len(count) == 40:
            os.kill(collector.slots[0].env.pid, signal.SIGKILL)
        finish(collector)

    monkeypatch.setattr(Collector, "finish", fail)
    flags = [*DOTS, "--size", "32,32", "--pretrain_steps", 50, "--video_every", 0, "--eval_episodes", 1]
    with pytest.raises(SystemExit, match=r"was killed by SIGKILL\n.*the same command continues"):
        program.main(co_training(dots_dataset, tmp_path, *flags))
    step = load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"]
    assert step >= 26  # the run was saved after the random steps


def test_a_checkpoint_has_each_agent_once(finished: Path):
    state = load_checkpoint(finished / "checkpoint.pt")
    names = {n: set(agent["world"]) for n, agent in state["agents"].items()}
    assert names["source"] == names["target"]
    assert not any("source" in name or "target" in name for name in names["target"])


def test_ctrl_c_saves_the_run_before_the_exit(dots_dataset: Path, tmp_path: Path):
    run, errors = tmp_path / "run", tmp_path / "errors.txt"
    arguments = co_training(dots_dataset, run, *DOTS, *SMALL, "--pretrain_steps", 100000, "--eval_episodes", 1)
    process = processes.start(processes.run_command, "co_training", arguments, errors=errors)
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGINT
    assert "the same command continues" in errors.read_text() and "Traceback" not in errors.read_text()
    assert load_checkpoint(run / "checkpoint.pt")["progress"]["step"] > 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "more",
    [
        ["--dyn_discrete", "0", "--pred_discount", "True"],
        ["--state_alignment", "False", "--reward_alignment", "False", "--value_constraint", "off"],
        ["--value_constraint", "brute", "--warmup_rounds", "0", "--actor_grad", "both", "--size", "128,128"],
    ],
)
def test_variants_run_to_the_end(more: list[str], dots_dataset: Path, tmp_path: Path):
    train(dots_dataset, tmp_path, *DOTS, "--rounds", "1", "--pretrain_steps", "10", "--video_every", "0", *more)
    assert scores(tmp_path)[-1]["target_updates"] != "0"


def simulator_processes(parent: int) -> list[int]:
    """Ids of the processes that ``parent`` started for its simulators."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            line = stat.with_name("cmdline").read_bytes()
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent and b"wrappers.shared.worker" in line:
                found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's /proc")
def test_a_run_killed_while_it_writes_a_checkpoint_leaves_no_simulator_and_resumes_bit_for_bit(
    dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """With two simulators in processes, inside an episode of each."""
    flags = [*DOTS, "--size", "32,32", "--envs", "2", "--rounds", "1", "--warmup_rounds", "0", "--eval_episodes", "1"]
    flags += ["--video_every", "0", "--checkpoint_minutes", "0", "--precision", "float32"]  # saved at each step
    killed, whole = (co_training(dots_dataset, tmp_path / name, *flags) for name in ("killed", "whole"))
    process = processes.start(processes.run_until_save, 24, "co_training", killed, errors=tmp_path / "errors.txt")
    workers, deadline = set(), time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        workers.update(simulator_processes(process.pid))
        time.sleep(0.02)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "errors.txt").read_text()
    assert len(workers) == 2
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert list((tmp_path / "killed").glob(".checkpoint*"))  # the partial file
    slots = load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["domains"]["source"]["collector"]["slots"]
    assert all(len(slot["actions"]) > 0 for slot in slots)  # episodes were running
    program.main(killed)
    assert "resuming" in capsys.readouterr().err
    assert not list((tmp_path / "killed").glob(".checkpoint*"))
    program.main(whole)
    assert_same_results(tmp_path / "whole", tmp_path / "killed")


def test_evaluate_reproduces_the_last_score_of_a_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    video = tmp_path / "episode.gif"
    evaluate_program.main(["--logdir", str(finished), "--episodes", "2", "--video", str(video)])
    assert f"return {float(scores(finished)[-1]['mean']):.1f} " in capsys.readouterr().out
    assert video.read_bytes()[:4] == b"GIF8"
