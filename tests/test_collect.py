"""Collection by quality, and the check that data and evaluation have the same simulator settings."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
from conftest import OTHER_PROGRAMS, co_training, tiny
from PIL import Image
from test_bad_input import refused

import co_training as program
import collect
import evaluate
from agents.agent import Agent
from replay import OfflineDataset
from tools import BadInput, exit_on_bad_input
from training.checkpoint import resume_point
from training.collecting import EpisodeSaver, below_quality_note, learning_phases, score_to_reach
from training.collector import Collector
from training.logger import read_scores
from training.methods import SELECTED, Phase, PhaseKind
from training.trainer import Trainer
from wrappers import parse_task
from wrappers.shared import simulators
from wrappers.shared.simulators import check_recorded_alike, env_settings

pytestmark = pytest.mark.usefixtures("dots", "no_pictures")
SETTINGS = ["--envs", 0, "--size", "32,32", "--configs", "defaults", "dmc", "debug"]
LEARNING = ["--task", "dots_to_left", *SETTINGS]
WALKER = ["--task", "walker_walk", *SETTINGS]


def collected(folder: Path, *more: object, task: list = LEARNING) -> dict:
    folders = ["--out", folder / "data", "--logdir", folder / "run"]
    collect.main([str(a) for a in [*task, *folders, "--video_every", 0, *more]])
    return json.loads((folder / "data" / "dataset.json").read_text())


def test_medium_replay_stops_at_the_evaluation_that_reaches_a_third(tmp_path: Path):
    limits = ["--quality", "medium-replay", "--max_score", 0.75, "--episodes", 20]
    described = collected(tmp_path, *limits, task=WALKER)
    scores = [row for row in read_scores(tmp_path / "run") if row["phase"] == "evaluate"]
    assert len(scores) == len(described["evaluations"]) == 1  # the first evaluation reaches 0.25
    assert described["evaluations"][-1]["mean"] == float(scores[-1]["mean"]) >= described["score_to_reach"] == 0.25
    files = list((tmp_path / "data").glob("*.npz"))
    assert len(files) == described["episodes"] == len(described["returns"]) == 36 // 12  # 26 random steps, then 10
    assert described["quality"] == "medium-replay" and described["render"] == "fast"


def test_medium_expert_below_its_score_keeps_every_episode_and_prints_a_note(tmp_path: Path, capsys):
    described = collected(tmp_path, "--quality", "medium-expert", "--episodes", 4)
    assert described["episodes"] == 4 and described["score_to_reach"] == 500
    note = "note: --quality medium-expert ends at an evaluation of 500.0, the task's known maximum return; the last one"
    assert note in capsys.readouterr().err
    assert "ends at an evaluation of 100.0, a third of --max_score; " in below_quality_note(
        "medium-replay", 5, 100, 300
    )


def test_known_maxima():
    assert score_to_reach(parse_task("walker_downhill"), "medium-replay", None) == pytest.approx(848 / 3)
    assert score_to_reach(parse_task("dmc_hopper_hop"), "medium-expert", None) == 1000
    assert score_to_reach(parse_task("push_green"), "medium-expert", 500.0) == 500
    assert score_to_reach(parse_task("walker_walk"), None, None) == float("inf")


def test_a_learning_collection_resumes_beside_an_old_partial_folder(tmp_path: Path):
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "half.npz").write_bytes(b"half")
    first = collected(tmp_path, "--policy", "dreamer", "--episodes", 4)
    assert not (tmp_path / ".data.partial").exists()
    (tmp_path / "data").rename(tmp_path / "before")
    again = collected(tmp_path, "--policy", "dreamer", "--episodes", 4)
    assert again["returns"] == first["returns"] and again["evaluations"] == first["evaluations"]


def test_a_finished_collection_can_have_more_episodes(tmp_path: Path, capsys):
    whole = collected(tmp_path / "whole", "--policy", "dreamer", "--episodes", 6)
    parts = collected(tmp_path / "parts", "--policy", "dreamer", "--episodes", 4)
    (tmp_path / "parts" / "data").rename(tmp_path / "before")
    longer = collected(tmp_path / "parts", "--policy", "dreamer", "--episodes", 6)
    assert longer["returns"] == whole["returns"] and longer["returns"][:4] == parts["returns"]
    (tmp_path / "parts" / "data").rename(tmp_path / "longer")
    fewer = [
        "--policy",
        "dreamer",
        "--episodes",
        4,
        "--out",
        tmp_path / "fewer",
        "--logdir",
        tmp_path / "parts" / "run",
    ]
    assert "give --episodes 6" in refused(collect.main, [*LEARNING, *fewer], capsys)


def test_where_a_run_continues():
    random, evaluate = Phase(PhaseKind.EVALUATE_RANDOM), Phase(PhaseKind.EVALUATE, round=1)
    online, offline = Phase(PhaseKind.TRAIN_SOURCE, 20), Phase(PhaseKind.TRAIN_TARGET, 20, round=1)

    def phases(*middle: Phase) -> list[Phase]:
        return [random, *middle, evaluate]

    old = phases(online, offline)
    assert resume_point(old, old, 2, 7, 1) == (2, 7)
    assert resume_point(old, old, 4, 0, 1) == (4, 0)  # finished
    assert resume_point(old, phases(online, replace(offline, iterations=30)), 4, 0, 3) == (2, 20)
    assert resume_point(old, phases(online, replace(offline, iterations=6)), 2, 7, 1) is None
    assert resume_point(old, phases(replace(online, iterations=30), offline), 4, 0, 1) is None
    old, new = phases(online), phases(replace(online, iterations=30))
    assert resume_point(old, new, 3, 0, 3) == (1, 21)  # three simulators stepped together
    assert resume_point(new, old, 3, 0, 3) is None
    selected = replace(online, source=SELECTED)
    assert resume_point(phases(selected), phases(replace(selected, iterations=30)), 3, 0, 1) is None


def saved_actions(data: Path) -> np.ndarray:
    """The executed actions of all episodes, (steps, A)."""
    names = sorted(data.glob("*.npz"), key=lambda path: path.name.split("-")[1])
    return np.concatenate([np.load(name)["action"][1:] for name in names])


@pytest.mark.parametrize("policy", ["dreamer", "checkpoint"])
def test_action_noise_is_executed_saved_and_given_to_the_agents_next_step(policy: str, tmp_path: Path, monkeypatch):
    more = ["--policy", policy, "--episodes", 4, "--action_noise", 0.3]
    if policy == "checkpoint":
        collected(tmp_path / "trained", "--policy", "dreamer", "--episodes", 3)
        more += ["--checkpoint", tmp_path / "trained" / "run", "--agent", "source"]
    chosen, given = [], []
    act = Agent.act

    def recorded(agent, observation, state, first, sample):
        action, new = act(agent, observation, state, first, sample)
        if sample:  # else an evaluation, which has no noise
            chosen.append(action[0])
            given.append(None if state is None else state["action"][0].numpy().copy())
        return action, new

    monkeypatch.setattr(Agent, "act", recorded)
    folders = ["--logdir", tmp_path / "run"] if policy == "dreamer" else []
    collect.main([str(a) for a in [*LEARNING, "--out", tmp_path / "data", *folders, *more]])
    executed = saved_actions(tmp_path / "data")[-len(chosen) :]  # after the random steps
    noise = (executed - chosen)[abs(executed) < 1]
    assert 0.2 < noise.std() < 0.4 and abs(executed).max() <= 1
    np.testing.assert_array_equal(given[1:], executed[:-1])
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["action_noise"] == 0.3


def test_a_stopped_collection_with_noise_resumes_exactly(tmp_path: Path, monkeypatch):
    more = ["--policy", "dreamer", "--episodes", 4, "--action_noise", 0.3]
    whole = collected(tmp_path / "whole", *more)
    count = Trainer._count

    def stop(trainer: Trainer, stride: int) -> None:
        count(trainer, stride)
        if trainer.progress.step == 34:  # after 32 agent steps, in the middle of an episode
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_count", stop)
    with pytest.raises(SystemExit):
        collected(tmp_path / "parts", *more)
    monkeypatch.setattr(Trainer, "_count", count)
    resumed = collected(tmp_path / "parts", *more)
    assert resumed == whole and whole["action_noise"] == 0.3
    np.testing.assert_array_equal(*(saved_actions(tmp_path / name / "data") for name in ("whole", "parts")))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    Image.new("RGB", (50, 80), (0, 200, 0)).save(folder / "green.png")
    return folder


def test_an_agent_of_a_collection_is_evaluated_with_its_background(clips: Path, tmp_path: Path, monkeypatch):
    collected(tmp_path, "--policy", "dreamer", "--episodes", 3, "--background", clips, task=WALKER)
    made, make_env = [], simulators.make_env

    def recorded(task, **settings):
        made.append(settings.get("background"))
        return make_env(task, **settings)

    monkeypatch.setattr(simulators, "make_env", recorded)
    evaluate.main(["--logdir", str(tmp_path / "run"), "--agent", "source", "--episodes", "1"])
    assert made == [str(clips)]


def test_a_video_that_cannot_be_written_does_not_lose_the_score(tmp_path: Path, monkeypatch, capsys):
    collected(tmp_path, "--policy", "dreamer", "--episodes", 3)
    arguments = ["--logdir", tmp_path / "run", "--agent", "source", "--episodes", "1"]
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").touch()
    for video, message in (("folder.gif", "is a folder"), ("file/a.gif", "is not a folder that can be written")):
        assert message in refused(evaluate.main, [*arguments, "--video", tmp_path / video], capsys)

    def full(*_, **__):
        raise BadInput("no space")

    monkeypatch.setattr(evaluate, "save_video", full)
    capsys.readouterr()
    with pytest.raises(BadInput, match="no space"):
        evaluate.main([str(a) for a in arguments])
    assert "dots_to_left: return " in capsys.readouterr().out


@pytest.mark.parametrize("trained", [True, False])
def test_an_experts_dataset_needs_the_background_of_its_training(trained: bool, clips: Path, tmp_path: Path, capsys):
    background = ["--background", clips]
    collected(tmp_path, "--policy", "dreamer", "--episodes", 3, *background * trained, task=WALKER)
    expert = ["--policy", "checkpoint", "--checkpoint", tmp_path / "run", "--agent", "source", "--episodes", 1]
    arguments = [*WALKER, "--out", tmp_path / "expert", *expert]
    line = refused(collect.main, [*arguments, *background * (not trained)], capsys)
    assert line.endswith(f"give --background {clips if trained else repr('')}")
    collect.main([str(a) for a in [*arguments, *background * trained]])


def test_a_full_disk_leaves_no_folder(tmp_path: Path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert "No space left" in refused(collect.main, [*LEARNING, "--out", tmp_path / "data", "--episodes", 1], capsys)
    assert list(tmp_path.iterdir()) == []


def described(dataset: Path, changes: dict | None, tmp_path: Path) -> Path:
    """A copy of the dataset whose dataset.json is changed, or absent."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in dataset.glob("*.npz"):
        (folder / path.name).write_bytes(path.read_bytes())
    if changes is not None:
        original = json.loads((dataset / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(original | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"render": "full"}, "--render full"),
        ({"action_repeat": 4}, "--dmc_action_repeat 4"),
        ({"background": "clips"}, "--background clips"),
    ],
)
def test_data_with_other_settings_gives_an_error_that_names_the_flag(
    changes: dict, flag: str, dataset: Path, tmp_path: Path, capsys
):
    folder = described(dataset, changes, tmp_path)
    line = refused(program.main, [*co_training(folder, tmp_path / "run"), "--envs", 0], capsys)
    assert line.endswith(f"give {flag}")


def test_data_without_a_background_is_not_evaluated_with_one(clips: Path, dataset: Path, tmp_path: Path, capsys):
    flags = ["--envs", 0, "--background", clips]
    line = refused(program.main, [*co_training(dataset, tmp_path / "run"), *flags], capsys)
    assert line.endswith("give --background ''")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"flip": False}, "--metaworld_flip False"), ({"camera": "topview"}, "--metaworld_camera topview")],
)
def test_a_meta_world_dataset_with_another_camera_or_flip(changes: dict, flag: str, dataset: Path, tmp_path: Path):
    simulator = {"suite": "metaworld", "task": "metaworld_door-close", "render": "fast", "action_repeat": 2}
    simulator |= {"camera": "corner", "flip": True}
    folder = described(dataset, simulator | changes, tmp_path)
    with pytest.raises(BadInput, match=flag):
        check_recorded_alike(folder, OfflineDataset(folder, size=64).description, simulator)


def test_data_without_a_description_is_used_with_a_note(dataset: Path, tmp_path: Path, capsys):
    folder = described(dataset, None, tmp_path)
    simulator = {"suite": "dmc", "task": "dmc_walker_downhill", "render": "fast", "action_repeat": 2}
    check_recorded_alike(folder, OfflineDataset(folder, size=64).description, simulator)
    note = capsys.readouterr().err
    assert "does not say how it was recorded" in note and "--render" in note


def test_the_target_has_the_background_and_the_source_the_sparse_reward():
    config = tiny(sparse_reward=True, background="clips")
    source, target, collected = (env_settings(config, "walker_walk", d) for d in ("source", "target", "collect"))
    assert source["sparse_reward"] and "background" not in source
    assert target["background"] == "clips" and "sparse_reward" not in target
    assert collected["sparse_reward"] and collected["background"] == "clips"


@pytest.mark.parametrize("name", ["release_npz", "vd4rl_64px_npz", "vd4rl_84px_hdf5", "minari"])
def test_training_on_data_of_other_programs(name: str, tmp_path: Path):
    flags = ["--method", "offline_dv2", "--size", "32,32", "--rounds", 1, "--warmup_rounds", 0, "--video_every", 0]
    program.main(co_training(OTHER_PROGRAMS / name, tmp_path / "run", *flags, "--dataset_cache", tmp_path / "c"))
    assert int(read_scores(tmp_path / "run")[-1]["target_updates"]) == 4


@pytest.mark.parametrize(("number", "envs"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_stopped_collection_keeps_its_complete_episodes(number: int, envs: int, tmp_path: Path):
    arguments = ["--task", "dots_to_left", "--out", tmp_path / "out" / "data", "--episodes", 100_000]
    arguments += ["--time_limit", 5, "--envs", envs, "--configs", "defaults", "dmc", "--size", "32,32"]
    errors = tmp_path / "errors.txt"
    process = processes.start(processes.run_command, "collect", arguments, errors=errors)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/.data.partial/contents/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "kept" in errors.read_text() and "Traceback" not in errors.read_text()
    data = tmp_path / "out" / "data"
    described = json.loads((data / "dataset.json").read_text())
    assert described["episodes"] == len(list(data.glob("*.npz"))) == len(described["returns"]) > 0
    assert [p.name for p in data.parent.iterdir()] == ["data"]


def test_random_steps_alone_are_evaluated_too():
    phases = learning_phases(tiny(prefill=24, time_limit=12).replace(episodes=2))
    assert [phase.kind for phase in phases][-2:] == [PhaseKind.PRETRAIN_SOURCE, PhaseKind.EVALUATE]


def test_a_simulator_that_fails_does_not_lose_the_episodes_before(tmp_path: Path, monkeypatch, capsys):
    saved = EpisodeSaver.save

    def save(self: EpisodeSaver, episode: dict[str, np.ndarray]) -> None:
        rewards = np.where(len(self.returns) < 2, episode["reward"], np.nan)
        saved(self, {**episode, "reward": rewards})

    monkeypatch.setattr(EpisodeSaver, "save", save)
    assert "reward" in refused(collect.main, [*LEARNING, "--out", tmp_path / "data", "--time_limit", 5], capsys)
    described = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert described["episodes"] == len(list((tmp_path / "data").glob("*.npz"))) == 2


def test_a_crashed_simulator_ends_the_collection_with_one_message(tmp_path: Path, monkeypatch, capsys):
    stepped = Collector.step

    def step(self: Collector, policy: object = None) -> None:
        if self.episodes_begun == 3:
            os.kill(self.slots[0].env.pid, signal.SIGKILL)
        stepped(self, policy)

    monkeypatch.setattr(Collector, "step", step)
    arguments = [*LEARNING, "--out", tmp_path / "data", "--envs", 1, "--time_limit", 5]
    with pytest.raises(SystemExit, match="error: the process of the environment dots_to_left was killed by SIGKILL"):
        exit_on_bad_input(lambda: collect.main([str(a) for a in arguments]))
    assert "the complete episodes are kept" in capsys.readouterr().err
    assert len(list((tmp_path / "data").glob("*.npz"))) == 2
