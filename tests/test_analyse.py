"""analyse.py: its computations on small examples, and its output for real runs at `debug` size."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOTS, tiny
from PIL import Image
from test_bad_input import refused
from test_co_training import scores, train
from test_report import lines

import analyse
from analysis import embeddings, values
from analysis.embeddings import AgentEmbeddings, embeddings_picture
from analysis.episodes import EvaluatedRun, evaluate_run, run_labels
from benchmarks.record import keep_agent
from training.checkpoint import BEFORE_ALIGNMENT, CHECKPOINT, load_agent, load_checkpoint, save_checkpoint
from training.collector import episode_seed
from training.evaluator import EVALUATION_SEED
from training.values import ValuedEpisode
from wrappers.shared.simulators import make_simulator

CPU = torch.device("cpu")
EXAMPLE = ValuedEpisode(estimates=np.array([2.0, 5.0, 3.0]), rewards=np.array([0.0, 1.0, 2.0, 4.0]), terminated=False)

pytestmark = pytest.mark.usefixtures("dots", "no_pictures")
SHORT = ("--pretrain_steps", "5", "--warmup_rounds", "0", "--rounds", "1", "--video_every", "0")


def altered(run: Path, logdir: Path, **config: object) -> Path:
    """A run directory that contains only the checkpoint of ``run``, with other settings."""
    saved = load_checkpoint(run / CHECKPOINT)
    saved["config"] |= config
    save_checkpoint(logdir / CHECKPOINT, saved)
    return logdir


def analyse_runs(*arguments: object) -> None:
    analyse.main([str(a) for a in ("--device", "cpu", "--episodes", 2, "--images", 20, "--logdir", *arguments)])


# Small examples


def test_the_table_fits_a_terminal_and_explains_its_headings():
    other = ValuedEpisode(np.array([1.0, 9.0, 9.0]), np.zeros(4), terminated=False)
    config = tiny(target_task="walker_downhill", discount=0.5)
    rows = [values.value_row(EvaluatedRun(name, config, [other], np.zeros(0)), 0.1) for name in ("x" * 99, *"abcdef")]
    for count in (1, 2, 7):
        table = values.values_table(rows[:count])
        assert max(map(len, table.splitlines())) <= 80
        *blocks, meanings = table.split("\n\n")
        shown = " ".join(block.splitlines()[0] for block in blocks).split()
        assert shown == [f"...{'x' * 21}", *"abcdef"[: count - 1]]
        headings = [heading for heading, *_ in values.TABLE]
        for lines_of in (*(block.splitlines()[1:] for block in blocks), meanings.splitlines()):
            assert all(line.startswith(heading) for line, heading in zip(lines_of, headings, strict=True))


def test_true_returns_begin_with_the_reward_of_arriving_and_end_with_the_last():
    # G_2 = 2 + 4/2, G_1 = 1 + 2/2 + 4/4, G_0 = 0 + 1/2 + 2/4 + 4/8
    np.testing.assert_allclose(EXAMPLE.true_returns(0.5), [1.5, 3.0, 4.0])
    np.testing.assert_allclose(EXAMPLE.true_returns(1.0), [7.0, 7.0, 6.0])


def test_the_unseen_share_is_that_of_the_rewards_after_the_time_limit():
    np.testing.assert_allclose(EXAMPLE.unseen(0.5), [1 / 16, 1 / 8, 1 / 4])
    np.testing.assert_array_equal(EXAMPLE.compared(0.5, 0.13), [True, True, False])
    np.testing.assert_array_equal(EXAMPLE.compared(0.5, 0.01), [True, False, False])  # always the first step
    ended = ValuedEpisode(EXAMPLE.estimates, EXAMPLE.rewards, terminated=True)
    assert not ended.unseen(0.5).any() and ended.compared(0.5, 0.0).all()
    np.testing.assert_array_equal(ended.continued_returns(0.5), ended.true_returns(0.5))


def test_continued_returns_repeat_the_last_rewards_without_end():
    # 4 a step after the limit: worth 4 / (1 - 1/2) = 8 at the first of these steps, which is 4, 3 and 2 steps away
    np.testing.assert_allclose(EXAMPLE.continued_returns(0.5), [1.5 + 8 / 16, 3 + 8 / 8, 4 + 8 / 4])
    steady = ValuedEpisode(np.zeros(40), np.array([0.0] + [3.0] * 40), terminated=False)
    np.testing.assert_allclose(steady.continued_returns(0.9), [27.0] + [30.0] * 39)
    np.testing.assert_allclose(steady.true_returns(0.9)[1:], 30 * (1 - steady.unseen(0.9)[1:]))
    last_tenth = ValuedEpisode(np.zeros(20), np.array([0.0] * 19 + [1.0, 3.0]), terminated=False)
    np.testing.assert_allclose(last_tenth.continued_returns(0.5)[-1], 1 + 3 / 2 + (2 / 0.5) / 4)


def test_the_table_averages_over_the_compared_steps_of_each_episode_and_then_over_episodes():
    other = ValuedEpisode(np.array([1.0, 9.0, 9.0]), np.zeros(4), terminated=False)
    run = EvaluatedRun("name", tiny(target_task="walker_downhill", discount=0.5), [EXAMPLE, other], np.zeros(0))
    row = values.value_row(run, 0.13)
    # compared: t = 0, 1. Estimates (2 + 5)/2 and (1 + 9)/2; returns (1.5 + 3)/2 and 0; continued (2 + 4)/2 and 0
    assert (row["task"], row["episodes"], row["compared_steps"], row["unseen"]) == ("dmc_walker_downhill", 2, 4, 0.125)
    assert (row["score"], row["estimate"], row["true_return"]) == (3.5, (3.5 + 5) / 2, 2.25 / 2)
    assert row["difference"] == (1.25 + 5) / 2 and row["difference_std"] == (5 - 1.25) / 2  # over-estimates: positive
    assert (row["continued_return"], row["continued_difference"]) == (1.5, 4.25 - 1.5)
    assert row["correlation"] == pytest.approx(np.corrcoef([2, 5, 1, 9], [2, 4, 0, 0])[0, 1])
    assert row["source_estimate"] is row["source_correlation"] is None
    table = values.values_table([row]).splitlines()
    assert table[0].split() == ["name"] and table[2].split() == ["estimate", "4.25"]
    assert table[11].split() == ["source", "-"] and table[12].split() == ["corr.", "src", "-"]
    steps = values.step_rows(run, 0.13)
    assert [(s["episode"], s["step"], s["compared"]) for s in steps[:4]] == [(0, 0, 1), (0, 1, 1), (0, 2, 0), (1, 0, 1)]
    assert [s["true_return"] for s in steps] == [1.5, 3.0, 4.0, 0.0, 0.0, 0.0]


def test_the_source_critics_estimates_of_the_same_states_are_compared_too():
    episode = replace(EXAMPLE, source_estimates=np.array([8.0, 4.0, 100.0]))
    run = EvaluatedRun("name", tiny(target_task="walker_downhill", discount=0.5), [episode, episode], np.zeros(0))
    row = values.value_row(run, 0.13)  # compared: t = 0, 1
    assert row["source_estimate"] == 6.0
    assert (row["correlation"], row["source_correlation"]) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert [s["source_estimate"] for s in values.step_rows(run, 0.13)] == [8.0, 4.0, 100.0] * 2


def test_episodes_of_different_lengths_are_averaged_step_by_step():
    mean, std = values.by_step([np.array([1.0, 2.0]), np.array([3.0])])
    np.testing.assert_array_equal(mean, [2.0, 2.0])
    np.testing.assert_array_equal(std, [1.0, 0.0])


def test_labels_are_unique(tmp_path: Path):
    assert run_labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_labels([tmp_path / "x" / "seed0", tmp_path / "y" / "seed0"]) == ["x/seed0", "y/seed0"]


def test_a_run_directory_called_run_has_its_parents_name(tmp_path: Path):
    assert run_labels([tmp_path / "demo" / "run"]) == ["demo"]
    assert run_labels([tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]) == ["x", "y", "z"]
    assert run_labels([tmp_path / "x", tmp_path / "x" / "run"]) == ["x", "run"]


@pytest.mark.parametrize(("discount", "short"), [(0.995, True), (0.5, False)])
def test_a_panel_without_comparable_steps_says_so_and_has_no_figure(discount: float, short: bool, tmp_path: Path):
    config = tiny(target_task="walker_downhill", discount=discount)
    episode = ValuedEpisode(np.full(40, 10.0), np.full(41, 1.0), terminated=False)
    figure, axis = values.plt.subplots()
    values.values_panel(axis, EvaluatedRun("name", config, [episode], np.zeros(0)), 0.1)
    texts = [text.get_text() for text in axis.texts]
    values.plt.close(figure)
    assert texts == (["too short to compare"] if short else [])
    assert axis.get_title() == ("name" if short else "name\nestimate − true return: +8.01")


# Real runs


def test_estimates_and_rewards_are_those_of_the_episode_step_by_step(finished: Path):
    run = evaluate_run(finished, "run", 2, CPU)
    agent, config = load_agent(finished, "target", CPU)
    source, _ = load_agent(finished, "source", CPU)
    env = make_simulator(config, config.target_task, "target")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(EVALUATION_SEED + config.seed)
        observation, _ = env.reset(seed=episode_seed(EVALUATION_SEED + config.seed, 0))
        state, estimates, rewards = None, [], [0.0]
        for step in range(12):
            np.testing.assert_array_equal(run.frames[step], observation["image"])
            action, state = agent.act({"image": observation["image"][None]}, state, np.array([step == 0]), False)
            with agent.autocast():
                feat = agent.world.rssm.feat(state)
                estimates.append([float(a.behavior.critic(feat)) for a in (agent, source)])
            observation, reward, *_ = env.step(action[0])
            rewards.append(reward)
    env.close()
    first, second = run.episodes
    np.testing.assert_allclose(np.stack([first.estimates, first.source_estimates], 1), estimates, rtol=1e-6)
    np.testing.assert_array_equal(first.rewards, rewards)
    assert len(second.estimates) == 12 and len(second.rewards) == 13 and not second.terminated
    mean = np.mean([episode.rewards.sum() for episode in run.episodes])
    assert mean == pytest.approx(float(scores(finished)[-1]["mean"]))  # the run's own evaluation


def test_a_target_agent_that_was_kept_alone_is_analysed_without_its_source(finished: Path, tmp_path: Path):
    keep_agent(finished, tmp_path / "agent")
    whole, alone = (evaluate_run(logdir, "run", 1, CPU) for logdir in (finished, tmp_path / "agent"))
    assert whole.bounded and not alone.bounded
    np.testing.assert_array_equal(alone.episodes[0].estimates, whole.episodes[0].estimates)


def test_two_runs_one_without_the_agents_before_alignment(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other, out = altered(finished, tmp_path / "other", discount=0.5, value_constraint="off"), tmp_path / "out"
    analyse_runs(finished, other, "--out", out)
    names = ["embeddings.png", "frames.png", "value_steps.csv", "values.csv", "values.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    whole, second = lines(out / "values.csv")
    assert (whole["run"], whole["discount"], whole["compared_steps"]) == ("whole", "0.995", "2")  # the first steps
    assert (second["run"], second["discount"], second["compared_steps"]) == ("other", "0.5", "20")  # 1/2^4 is under 10%
    assert whole["source_estimate"] and second["source_estimate"] == ""  # it has no value constraint
    steps = [row for row in lines(out / "value_steps.csv") if row["run"] == "other" and row["compared"] == "1"]
    differences = [float(row["estimate"]) - float(row["true_return"]) for row in steps]
    assert float(second["difference"]) == pytest.approx(np.mean(differences))
    shown = capsys.readouterr()
    assert f"note: {other} has no {BEFORE_ALIGNMENT}: embeddings of {CHECKPOINT} only" in shown.err
    assert "note: whole: its episodes are short for a discount of 0.995" in shown.err
    assert (
        "whole, source: walker_walk\n  " in shown.out and " before alignment\n" in shown.out and str(out) in shown.out
    )
    for name in (name for name in names if name.endswith(".png")):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200


def test_analysing_again_gives_the_same(finished: Path, tmp_path: Path):
    for out in ("one", "two"):
        analyse_runs(finished, "--out", tmp_path / out)
    for name in ("value_steps.csv", "embeddings.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_embeddings_are_those_of_the_checkpoints_and_the_kl_is_that_of_the_alignment_loss(finished: Path):
    _, config = load_agent(finished, "target", CPU)
    images = embeddings.target_images(config, 20)
    assert images.shape[1:] == (1, 32, 32, 3) and 1 < len(images) <= 20
    panels = embeddings.compute_panels(finished, config, 20, CPU)
    assert list(panels) == ["before alignment", "after alignment"]
    for parts, file in zip(panels.values(), (BEFORE_ALIGNMENT, CHECKPOINT), strict=True):
        expected = []
        for part, domain in zip(parts, ("target", "source"), strict=True):
            agent, _ = load_agent(finished, domain, CPU, file=file)
            expected.append(agent.embed({"image": torch.from_numpy(images)}).float())
            torch.testing.assert_close(part.embed, expected[-1])
        g, g_source = (e.double().softmax(-1) for e in expected)
        assert parts[1].kl == pytest.approx(float((g_source * (g_source / g).log()).sum(-1).mean()), rel=1e-3)
        assert parts[1].kl > 0 == parts[0].kl


def test_few_samples_and_several_sources_can_be_drawn(tmp_path: Path):
    torch.manual_seed(0)
    parts = [AgentEmbeddings(name, torch.randn(2, 1, 8)) for name in ("target", "source 1", "source 2")]
    assert [plane.shape for plane in embeddings.project(parts)] == [(2, 2)] * 3
    assert np.isfinite(embeddings.project([AgentEmbeddings(name, torch.randn(1, 1, 8)) for name in "ab"])).all()
    embeddings_picture({"one": {"after": parts}, "two": {"before": parts, "after": parts}}, tmp_path / "e.png")
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.width > 800 and picture.height > 900


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"source_observation": "state"}, "observes states"),
        ({"offline_traindir": "nowhere"}, "nowhere"),
    ],
)
def test_without_embeddings_the_other_output_is_written(
    config: dict, why: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    logdir = altered(finished, tmp_path / "run", **config)
    analyse_runs(logdir)
    assert sorted(p.name for p in (logdir / "analysis").glob("*.png")) == ["frames.png", "values.png"]
    start = f"note: {tmp_path.name}: no embeddings"  # the run's directory is called "run"
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith(start)]
    assert len(notes) == 1 and why in notes[0]


def test_runs_without_a_source_have_values_and_frames(
    dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The commands name a source, which has no effect."""
    runs = [tmp_path / method for method in ("offline_dv2", "online_dv2")]
    for run in runs:
        train(dots_dataset, run, *DOTS, *SHORT, "--method", run.name)
    analyse_runs(*runs)
    shown, out = capsys.readouterr().err, runs[0] / "analysis"
    assert sorted(path.name for path in out.iterdir()) == ["frames.png", "value_steps.csv", "values.csv", "values.png"]
    for run, row in zip(runs, lines(out / "values.csv"), strict=True):
        assert f"note: {run.name}: no embeddings: it has no source agent\n" in shown
        assert float(row["score"]) == pytest.approx(float(scores(run)[-1]["mean"]))


def test_every_source_is_compared_with_the_target(dots_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    sources = ("--source_task", "dots_to_left,dots_to_right")
    train(dots_dataset, tmp_path / "two", *DOTS, *sources, *SHORT, "--eval_episodes", "1")
    analyse_runs(tmp_path / "two")
    shown = capsys.readouterr()
    assert (tmp_path / "two" / "analysis" / "embeddings.png").exists() and "no embeddings" not in shown.err
    for source in ("source 1: to_left", "source 2: to_right"):
        line = rf"two, {source}\n  (\S+) +before alignment\n  (\S+) +after alignment\n"
        before, after = re.search(line, shown.out).groups()
        assert 0 < float(before) != float(after) > 0


def test_bad_input(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    def error(*arguments: object) -> str:
        return refused(analyse.main, ["--logdir", *arguments], capsys)

    assert str(tmp_path / "none") in error(finished, tmp_path / "none")
    assert "twice" in error(finished, finished)
    assert "--episodes 0" in error(finished, "--episodes", 0)
    assert "--images 0" in error(finished, "--images", 0)
    assert "--unseen 2" in error(finished, "--unseen", 2)
    (tmp_path / "file").touch()
    assert "file/out" in error(finished, "--out", tmp_path / "file" / "out")
    shutil.copytree(finished, tmp_path / "damaged")
    (tmp_path / "damaged" / CHECKPOINT).write_bytes(b"half")
    assert "damaged" in error(tmp_path / "damaged")
    assert not (finished / "analysis").exists() and not (tmp_path / "damaged" / "analysis").exists()
