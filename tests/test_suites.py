"""The commands on every suite at `debug` size, and the paper's harder setups as settings."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import co_training
import collect
import evaluate
from training.checkpoint import load_checkpoint
from training.logger import read_scores
from training.policies import noisy

METAWORLD, ROBODESK = "metaworld_door-close", "robodesk_push_green"


def collected(folder: Path, task: str, *more: object) -> Path:
    arguments = ["--task", task, "--out", folder, "--episodes", 2, "--configs", "defaults", "debug"]
    collect.main([str(a) for a in (*arguments, "--envs", 0, "--size", "32,32", *more)])
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("suites")
    return {task: collected(folder / task, task) for task in (METAWORLD, ROBODESK)}


def trained(source: str, target: str, data: Path, logdir: Path, *more: object, suite: str = "metaworld") -> Path:
    short = ["--rounds", 1, "--pretrain_steps", 5, "--warmup_steps", 5, "--video_every", 0, "--eval_episodes", 1]
    places = ["--offline_traindir", data, "--logdir", logdir, "--envs", 0, "--size", "32,32"]
    tasks = ["--source_task", source, "--target_task", target, "--configs", "defaults", suite, "debug"]
    co_training.main([str(a) for a in (*tasks, *places, *short, *more)])
    return logdir


@pytest.mark.parametrize(
    ("source", "target", "sizes"),
    [
        ("metaworld_drawer-close", METAWORLD, (4, 4)),
        ("metaworld_button-press", ROBODESK, (4, 5)),
        ("robodesk_push_green", METAWORLD, (5, 4)),
        ("walker_walk", METAWORLD, (6, 4)),
    ],
)
def test_source_and_target_of_different_suites(source: str, target: str, sizes: tuple, datasets: dict, tmp_path: Path):
    suite = target.split("_")[0]
    logdir = trained(source, target, datasets[target], tmp_path, suite=suite)
    last = read_scores(logdir)[-1]
    assert 0 <= float(last["success"]) <= 1 and np.isfinite(float(last["mean"]))
    saved = load_checkpoint(logdir / "checkpoint.pt")
    assert tuple(saved["action_dims"].values()) == sizes
    with np.load(next((logdir / "source_replay").glob("*.npz"))) as episode:
        assert episode["action"].shape[1] == sizes[0]  # no padding in saved data
    weights = [agent["world"]["rssm.action_in.weight"].shape[1] for agent in saved["agents"].values()]
    assert weights == [max(sizes)] * 2


def test_a_source_on_low_dimensional_states(datasets: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    logdir = trained("metaworld_button-press", ROBODESK, datasets[ROBODESK], tmp_path, "--source_observation", "state")
    points = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    models, ties = (
        ("source/model/state_loss", "target/model/image_loss"),
        ("source/ties/eta", "target/ties/state_alignment"),
    )
    for key in (*models, *ties, "source/ties/reward_alignment"):
        assert any(key in point for point in points), key
    evaluate.main(["--logdir", str(logdir), "--agent", "source", "--episodes", "1"])
    assert "metaworld_button-press" in capsys.readouterr().out


def test_the_replay_has_the_sparse_source_reward(datasets: dict, tmp_path: Path):
    logdir = trained("metaworld_drawer-close", METAWORLD, datasets[METAWORLD], tmp_path, "--sparse_reward", True)
    for path in (logdir / "source_replay").glob("*.npz"):
        with np.load(path) as episode:
            assert set(np.unique(episode["reward"])) <= {0.0, 500.0}
            assert episode["reward"].sum() == 500 * episode["success"].max()


def still(observation, state, first):
    return np.full((len(first), 3), 0.1, np.float32), state


@pytest.mark.parametrize("w", [0.1, 1.0])
def test_noisy_actions_have_the_given_deviation_and_are_clipped(w: float):
    act = noisy(still, w, np.random.default_rng(0))
    actions = np.stack([act({}, None, np.ones(100, bool))[0] for _ in range(100)])
    inside = actions[abs(actions) < 1]
    assert abs(actions).max() <= 1
    if w == 0.1:
        assert (inside - 0.1).std() == pytest.approx(0.1, rel=0.02)
    else:  # a + w n is outside [-1, 1] with probability Phi(-0.9) + Phi(-1.1)
        assert (abs(actions) == 1).mean() == pytest.approx(0.1841 + 0.1357, abs=0.01)
    assert noisy(still, 0.0, np.random.default_rng(0)) is still


def test_saved_actions_have_the_noise_and_the_description_its_size(tmp_path: Path):
    """The saved actions are the executed ones; test_collector.py checks that they reproduce the saved frames."""
    quiet = collected(tmp_path / "quiet", "walker_walk")
    with_noise = collected(tmp_path / "noisy", "walker_walk", "--action_noise", 0.1)
    assert json.loads((with_noise / "dataset.json").read_text())["action_noise"] == 0.1
    actions = []
    for folder in (quiet, with_noise):
        with np.load(sorted(folder.glob("*.npz"))[0]) as episode:
            actions.append(episode["action"])
    deviation = (actions[1] - actions[0])[1:].std()
    assert deviation == pytest.approx(0.09, abs=0.03)  # a little less than 0.1, because actions are clipped


def test_a_moving_background_behind_the_target(dataset: Path, tmp_path: Path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0)]):
        Image.new("RGB", (32, 32), colour).save(clips / f"{i}.png")
    data = collected(tmp_path / "data", "walker_downhill", "--background", clips)
    with np.load(next(data.glob("*.npz"))) as episode:
        corner = episode["image"][:, 0, 0]
    assert {tuple(map(int, c)) for c in corner} == {(255, 0, 0), (0, 255, 0)}
    assert json.loads((data / "dataset.json").read_text())["background"] == str(clips)
    trained("walker_walk", "walker_downhill", data, tmp_path / "run", "--background", clips, suite="dmc")


def test_help_of_every_command_works(capsys: pytest.CaptureFixture):
    for name in ("co_training", "collect", "evaluate", "dataset", "report", "analyse", "export", "sweep"):
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(["--help"])
        printed = capsys.readouterr().out
        assert printed.startswith("usage: ") and "--help" in printed, name
