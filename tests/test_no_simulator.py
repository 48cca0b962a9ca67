"""A target without a simulator: its name, its run, held-out episodes and the offline figures."""

import io
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOTS, co_training, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bad_input import refused
from test_co_training import assert_same_results, metrics, scores, train

import analyse
import co_training as program
import evaluate
import report
import wrappers.shared.simulators
from agents.coworld import TargetAgent
from config import to_yaml
from replay import OfflineDataset
from replay.stored_episode import StoredEpisode
from tools import BadInput
from training.checkpoint import load_agent
from training.logger import OFFLINE_COLUMNS, SCORES, Logger
from training.offline_figures import OfflineFigures, open_loop_figures
from training.values import ValuedEpisode, value_figures
from wrappers.shared.suites import simulated_task

CPU = torch.device("cpu")
NAMED = ("--target_task", "my_robot")
pytestmark = pytest.mark.usefixtures("dots")


@pytest.fixture(scope="module")
def finished(dots_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coworld run without a simulator of its target; making one raises an error."""
    logdir = tmp_path_factory.mktemp("runs") / "robot"
    make_env = wrappers.shared.simulators.make_env

    def source_only(task: str, **settings: object):
        assert str(task) == "dots_to_left"
        return make_env(task, **settings)

    printed = {name: io.StringIO() for name in ("out", "err")}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed["out"]), redirect_stderr(printed["err"]):
        patch.setattr(wrappers.shared.simulators, "make_env", source_only)
        patch.setattr("training.evaluator.make_simulator", None)
        train(dots_dataset, logdir, *DOTS, *NAMED)
    for name, text in printed.items():
        (logdir.parent / name).write_text(text.getvalue())
    return logdir


# Names


@pytest.mark.parametrize("name", ["my_robot", "Robot-2.b+c", "walker_2024", "dataset"])
def test_a_free_name_has_no_simulator(name: str):
    assert simulated_task(name) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "walker_downhil",
            "nearest: walker_downhill.*; a dataset without a simulator needs a name",
        ),
        ("dmc_waker_walk", "unknown task 'dmc_waker_walk'; nearest: dmc_walker_walk"),
        ("DMC-my_robot", "unknown task"),  # a suite's prefix
        ("dcm_walker_walk", "nearest: dmc_walker_walk"),
        ("my robot", "use letters, digits"),
        ("../robot", "use letters, digits"),
    ],
)
def test_a_typing_error_is_no_free_name(name: str, message: str):
    with pytest.raises(BadInput, match=message):
        simulated_task(name)


def test_a_tasks_own_name_has_its_simulator():
    assert str(simulated_task("walker-downhill")) == "dmc_walker_downhill"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_episodes", "3"], "--eval_episodes has no effect without a simulator of the target"),
        (["--eval_envs", "1"], "--eval_envs has no effect without a simulator of the target"),
        (["--background", "folder"], "--background has no effect without a simulator of the target"),
        (["--holdout", "0"], "without a simulator of the target, held-out episodes are needed"),
        (["--holdout", "1"], "leaves no episode"),
        (["--holdout", "1.5"], "is not between 0 and 1"),
        (["--method", "online_dv2"], "learns in the target's simulator, and my_robot has none"),
    ],
)
def test_settings_that_need_a_simulator(
    flags: list[str], message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = co_training(dataset, tmp_path / "run", *NAMED, *flags)
    assert message in refused(program.main, arguments, capsys) and not (tmp_path / "run").exists()


def test_online_dv2_refuses_held_out_episodes(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = co_training(tmp_path, tmp_path / "run", "--method", "online_dv2", "--holdout", "0.2")
    assert "--holdout has no effect with method online_dv2" in refused(program.main, arguments, capsys)


# Held-out episodes


def names(store) -> list[str]:
    return [episode.origin for episode in store.stored]


def test_held_out_episodes_are_never_sampled(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[StoredEpisode] = []
    original = StoredEpisode.read_rows
    monkeypatch.setattr(
        StoredEpisode, "read_rows", lambda episode, *given: (read.append(episode), original(episode, *given))
    )
    data, again, other = (OfflineDataset(dataset, size=32) for _ in range(3))
    everything = names(data)
    held = data.hold_out(0.4, np.random.default_rng(0))
    assert names(held) == names(again.hold_out(0.4, np.random.default_rng(0)))
    everyone, chosen = other.stored, set()
    for seed in range(9):
        other._set_episodes(everyone)
        chosen.update(names(other.hold_out(0.4, np.random.default_rng(seed))))
    assert len(chosen) > 1
    assert (held.episodes, data.episodes, data.steps) == (1, 2, 24)
    assert sorted(names(held) + names(data)) == everything
    read.clear()
    data.sample(200, 8, np.random.default_rng(0))
    assert {episode.origin for episode in read} == set(names(data))


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.34, 1), (0.6, 2), (0.999, 2)])
def test_one_episode_at_least_is_held_out_and_one_stays(share: float, count: int, dataset: Path):
    data = OfflineDataset(dataset, size=32)
    assert data.hold_out(share, np.random.default_rng(0)).episodes == count and data.episodes == 3 - count


def test_too_few_episodes_to_hold_out(dataset: Path):
    data = OfflineDataset(dataset, size=32)
    data._set_episodes(data.stored[:1])
    with pytest.raises(BadInput, match="one episode is too few"):
        data.hold_out(0.1, np.random.default_rng(0))


# Figures


@pytest.fixture(scope="module")
def agent() -> TargetAgent:
    torch.manual_seed(0)
    return TargetAgent(tiny(size="32,32"), 6, 6, CPU)


def test_figures_are_fixed_and_leave_the_rng_alone(agent: TargetAgent, dataset: Path):
    figures = OfflineFigures(OfflineDataset(dataset, size=32), 0.9, seed=3)
    state = torch.get_rng_state()
    one = figures.compute(agent)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert figures.compute(agent) == one
    assert OfflineFigures(figures.store, 0.9, seed=4).compute(agent) != one
    expected = {c.removeprefix("offline_") for c in OFFLINE_COLUMNS if c[-1] not in "05" or c.endswith("error_5")}
    assert one.keys() == expected  # the other horizons are longer than 12 steps


def test_losses_are_those_of_the_world_model_over_all_rows(agent: TargetAgent, dataset: Path):
    """Also where the episodes differ in length, so that shorter ones are padded."""
    data = OfflineDataset(dataset, size=32)
    rows = [data.read(0), {key: array[:9] for key, array in data.read(1).items()}]
    losses = []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(10_003)
        noise = agent.world.rssm.noise(2, 13)
        for i in (1, 0):  # the shorter one first
            batch = {key: torch.from_numpy(array)[None] for key, array in rows[i].items()}
            output = agent.world.observe(batch, noise[1 - i][None, : len(rows[i]["reward"])])
            found, kl = agent.world.losses(output, batch, agent.config)
            losses.append([found["image"].item(), found["reward"].item(), kl.item()])

    class Store:
        episodes = 2
        stored = [StoredEpisode(Path(), len(r["reward"]), {}, 0.0) for r in rows]  # noqa: RUF012

        def read(self, index: int, first: int = 0, count: int | None = None, keys: tuple[str, ...] = ()) -> dict:
            assert set(keys) <= rows[index].keys()
            return {key: rows[index][key][first : None if count is None else first + count] for key in keys}

    figures = OfflineFigures(Store(), 0.9, seed=3).compute(agent)
    expected = np.average(losses, axis=0, weights=[9, 13])
    assert [figures[key] for key in ("image_loss", "reward_loss", "kl")] == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_action_distance_compares_the_action_taken_in_a_state(agent: TargetAgent, dataset: Path):
    data = OfflineDataset(dataset, size=32)
    first = data.read(0)
    constant = torch.linspace(-0.5, 0.5, 6)
    actor = agent.behavior.actor
    original = actor.forward
    actor.forward = lambda feat: type("Policy", (), {"mode": constant.expand(*feat.shape[:-1], 6)})
    try:
        data._set_episodes(data.stored[:1])
        found = OfflineFigures(data, 0.9, seed=0).compute(agent)["action_distance"]
    finally:
        actor.forward = original
    taken = first["action"][1:]  # row 0 has no action
    assert found == pytest.approx(float(np.sqrt(((taken - constant.numpy()) ** 2).mean(1)).mean()), rel=1e-5)


def test_open_loop_errors_by_horizon():
    errors = np.full((2, 45), np.nan)
    errors[0, :12] = np.arange(1.0, 13.0)
    errors[1, :6] = 3 * np.arange(1.0, 7.0)
    figures = open_loop_figures(errors)
    assert {k: v for k, v in figures.items() if k != "open_loop_error"} == {
        "open_loop_error_5": 10.0,
        "open_loop_error_10": 10.0,
    }
    assert figures["open_loop_error"] == pytest.approx(np.mean([10, 12, 7, 8, 9, 10, 11, 12]))  # steps 5 to 12
    assert open_loop_figures(np.full((2, 45), np.nan)) == {}


def valued(estimates: np.ndarray, rewards: np.ndarray, terminated: bool) -> ValuedEpisode:
    return ValuedEpisode(estimates, np.concatenate([[0.0], rewards]), terminated)


def test_value_figures_of_a_critic_that_is_right_but_for_a_constant():
    rewards = np.random.default_rng(0).uniform(0, 1, 30)
    episode = valued(np.zeros(30), rewards, True)
    right = episode.true_returns(0.9)
    figures = value_figures([valued(right + 2, rewards, True), valued(right + 4, rewards, True)], 0.9)
    assert figures["value_bias"] == pytest.approx(3) and figures["value_correlation"] < 0.9999
    assert value_figures([valued(right + 2, rewards, True)], 0.9)["value_correlation"] == pytest.approx(1)
    assert value_figures([valued(-right, rewards, True)], 0.9)["value_correlation"] == pytest.approx(-1)


def test_rows_near_a_truncated_end_are_not_compared():
    estimates = np.full(60, 9.0)  # with rewards of 1: gamma + ... = 9 from the reset on, 10 later, if it never ends
    estimates[39:] = 1e6  # 0.9 ** (60 + 1 - 39) is 0.098: from step 40 on, more than a tenth is unseen
    good = valued(np.where(np.arange(60) < 39, estimates, 10.0), np.ones(60), False)
    assert abs(value_figures([good], 0.9)["value_bias"]) < 1.1
    assert value_figures([valued(estimates, np.ones(60), False)], 0.9)["value_bias"] > 1e3  # step 39 is compared
    estimates[39] = 10
    assert abs(value_figures([valued(estimates, np.ones(60), False)], 0.9)["value_bias"]) < 1.1


def test_no_value_figures_of_short_truncated_episodes(dataset: Path):
    short = valued(np.zeros(12), np.ones(12), False)
    assert value_figures([short], 0.995) == {}
    assert value_figures([valued(np.zeros(12), np.ones(12), True)], 0.995)["value_bias"] < 0
    store = OfflineDataset(dataset, size=32)
    assert "at most 12 steps" in OfflineFigures(store, 0.995, 0).short_episode_note()
    assert OfflineFigures(store, 0.9, 0).short_episode_note() is None


# Runs


def test_a_run_without_a_simulator_has_offline_figures_only(finished: Path):
    rows = scores(finished)
    assert list(rows[0]) == [*SCORES, *OFFLINE_COLUMNS]
    assert [row["phase"] for row in rows] == ["evaluate"] * 3
    assert all(row[key] == "" for row in rows for key in ("mean", "std", "success", "episodes"))
    for name in ("image_loss", "reward_loss", "kl", "open_loop_error", "open_loop_error_5", "action_distance"):
        assert all(float(row[f"offline_{name}"]) > 0 for row in rows)
        curve = [point[f"target/offline/{name}"] for point in metrics(finished) if f"target/offline/{name}" in point]
        assert curve == [float(row[f"offline_{name}"]) for row in rows]
    events = EventAccumulator(str(finished)).Reload()
    assert "held-out images" in events.SummaryMetadata("target/offline/image_loss").summary_description
    assert "Eq. 2" in events.SummaryMetadata("target/model/image_loss").summary_description
    assert not any("target/eval/return" in point for point in metrics(finished))
    pictures = {path.name for path in finished.iterdir() if path.suffix == ".png"}
    assert pictures == {"predictions.png", "offline.png"}
    kinds = {path.name.rsplit("-", 1)[0] for path in (finished / "videos").iterdir()}
    assert kinds == {"source-open_loop", "target-open_loop"}
    assert "holdout: 0.1\n" in (finished / "config.yaml").read_text()


def test_it_resumes_with_the_results_it_would_have_had(dots_dataset: Path, finished: Path, tmp_path: Path):
    with pytest.raises(SystemExit) as stopped:
        train(dots_dataset, tmp_path, *DOTS, *NAMED, stop_at=26 + 2 + 20 + 4 + 15 + 9)  # 9 iterations of the target's
    assert stopped.value.code == 128 + signal.SIGTERM
    train(dots_dataset, tmp_path, *DOTS, *NAMED)
    assert_same_results(finished, tmp_path)


@pytest.mark.parametrize("flags", [["--holdout", "0.4"], ["--target_task", "other_robot"], ["--seed", "1"]])
def test_it_cannot_be_resumed_with_other_held_out_episodes(flags: list[str], dots_dataset: Path, finished: Path):
    with pytest.raises(BadInput, match="holds a run with"):
        train(dots_dataset, finished, *DOTS, *NAMED, *flags)


def test_its_end_table_and_notes(finished: Path):
    out, err = ((finished.parent / name).read_text() for name in ("out", "err"))
    table = out.splitlines()
    assert table[0].startswith("my_robot, offline figures") and table[3].startswith("coworld, at the end")
    assert len(table) == 5 and "random" not in out
    assert "note: no simulator for my_robot" in err and "note: no value figures" in err


def test_commands_that_need_a_simulator(finished: Path, capsys: pytest.CaptureFixture):
    for main, flags in ((evaluate.main, []), (analyse.main, ["--episodes", 1])):
        assert "my_robot has no simulator" in refused(main, ["--logdir", finished, *flags], capsys)
    agent, config = load_agent(finished, "target", CPU)
    assert agent.action_dim == 2 and config.target_task == "my_robot"


def test_both_are_shown_with_a_simulator(dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    logdir = tmp_path / "both"
    train_offline = (*DOTS[2:], "--method", "offline_dv2", "--size", "32,32", "--rounds", "1", "--warmup_rounds", "0")
    program.main(co_training(dots_dataset, logdir, *train_offline, "--holdout", "0.3"))
    table = capsys.readouterr().out
    assert table.count("offline_dv2, at the end") == 2 and table.count("random policy") == 1
    rows = scores(logdir)
    assert rows[0]["phase"] == "evaluate_random" and rows[0]["mean"] and rows[0]["offline_image_loss"] == ""
    assert all(row["mean"] and row["offline_image_loss"] for row in rows[1:])
    with pytest.raises(BadInput, match=r"holds a run with holdout 0.3, not 0.6"):
        program.main(co_training(dots_dataset, logdir, *train_offline, "--holdout", "0.6"))


def test_offline_dv2_needs_no_name_at_all(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["--method", "offline_dv2", "--offline_traindir", dataset, "--size", "32,32", "--rounds", "1"]
    flags += [
        "--warmup_rounds",
        "0",
        "--video_every",
        "0",
        "--logdir",
        tmp_path / "run",
        "--configs",
        "defaults",
        "debug",
    ]
    program.main([str(flag) for flag in flags])
    assert capsys.readouterr().out.startswith("dataset, offline figures")


# Reports


def write_run(folder: Path, target: str, means: list[float | None], losses: list[float], **flags: object) -> None:
    """A run with these evaluations; the last of more than three is of the same weights as the one before."""
    folder.mkdir(parents=True)
    flags = {"target_task": target, "source_task": "walker_walk", "rounds": len(losses) - 1, **flags}
    (folder / "config.yaml").write_text(to_yaml(tiny(logdir=folder, **flags)))
    logger = Logger(folder, offline=True)
    rounds = [*range(1, len(losses)), len(losses) - 1]
    for i, (mean, loss) in enumerate(zip(means, losses, strict=True)):
        found = {} if mean is None else {"mean": mean, "std": 1.0, "episodes": 2}
        place = {"step": 100 * i, "domain": "target", "phase": "evaluate", "round": rounds[i]}
        counts = {"source_steps": 0, "target_updates": 10 * min(i, 2)}
        logger.score(**place, **counts, **found, offline_image_loss=loss, offline_value_bias=5.0)
    logger.close()


def test_a_report_never_mixes_offline_figures_with_returns(tmp_path: Path):
    for seed, loss in enumerate((8.0, 10.0)):
        write_run(tmp_path / "runs" / f"robot{seed}", "my_robot", [None] * 3, [20.0, 15.0, loss], seed=seed)
    write_run(tmp_path / "runs" / "walker", "walker_downhill", [1.0, 2.0, 4.0, 4.0], [9.0, 8.0, 6.0, 6.0])
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    returns, offline = text.split("## Offline figures: dmc_walker_downhill")
    assert "my_robot" not in returns and "walker_walk -> walker_downhill" in returns
    robot = offline.split("## Offline figures: my_robot (no simulator)")[1]
    assert "| coworld | 9 +- 1.4 (2) |" in robot
    assert "| coworld, dmc_walker_walk -> dmc_walker_downhill, seed 0 |           3 | -1.00 / -1.00 |" in robot
    lines = (tmp_path / "out" / "offline.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].split(",")[5:7] == ["image_loss", "3"]  # the bias does not change


def test_a_report_of_runs_without_simulators_alone(finished: Path, tmp_path: Path):
    report.main([str(finished), "--out", str(tmp_path)])
    assert "## Offline figures: my_robot (no simulator)" in (tmp_path / "table.md").read_text()
    assert not list(tmp_path.glob("curves-*.png"))


def test_a_return_for_a_free_name_is_of_another_programs_suite(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_run(tmp_path / "runs" / "a", "rings_in_a_row", [1.0, 2.0], [2.0, 1.0])
    assert "unknown task 'rings_in_a_row'" in refused(report.main, [tmp_path / "runs"], capsys)
