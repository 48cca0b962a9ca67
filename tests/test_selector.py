"""Several sources: which one the target follows, and which one learns online."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_agents import CPU, agents, batch, update_target, weights
from test_co_training import assert_same_results, train

import config as settings
import models
from agents.coworld import SourceAgent, TargetAgent
from tools import BadInput
from training.checkpoint import load_checkpoint
from training.selector import SourceSelector

THREE = ("--source_task", "walker_walk,walker_run,cheetah_run", "--size", "32,32", "--envs", "0")


def choices(logdir: Path) -> list[dict[str, str]]:
    with (logdir / "choices.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def three(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("three") / "run"
    train(dataset, logdir, *THREE)
    return logdir


def points(logdir: Path) -> list[dict]:
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def test_the_chosen_source_is_the_nearest(three: Path):
    rows = choices(three)
    assert len(rows) == 4 + 2 * 20 // 5
    for row in rows:
        distances = {name[9:]: float(value) for name, value in row.items() if name.startswith("distance_")}
        assert set(distances) == {"source_1", "source_2", "source_3"}
        assert row["chosen"] == min(distances, key=distances.get) and min(distances.values()) > 0


def test_distances_and_choices_are_curves(three: Path):
    found = [p for p in points(three) if "target/ties/distance_source_2" in p]
    assert found
    for point in found:
        shares = [point[f"target/ties/follows_source_{i}"] for i in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1.0)
        pairs = zip((1, 2, 3), shares, strict=True)
        expected = sum(point[f"target/ties/distance_source_{i}"] * share for i, share in pairs)
        assert point["target/ties/state_alignment"] == pytest.approx(expected) or len(set(shares)) > 2


def test_all_sources_are_pretrained_and_the_followed_one_learns_online(three: Path):
    saved = load_checkpoint(three / "checkpoint.pt")
    assert set(saved["agents"]) == {"source_1", "source_2", "source_3", "target"}
    most = Counter(row["chosen"] for row in choices(three) if row["phase"] == "warm_up_target").most_common(1)[0][0]
    online = {name for p in points(three) if p["phase"] == "train_source" and p["source_steps"] > 3 * 46
              for name in ("source_1", "source_2", "source_3") if f"{name}/model/image_loss" in p}  # fmt: skip
    assert most in online
    updates = {name: agent["behavior_updates"] for name, agent in saved["agents"].items()}
    assert all(updates[name] >= 2 + 20 // 5 for name in ("source_1", "source_2", "source_3"))
    counts = Counter(row["chosen"] for row in choices(three))
    assert saved["selector"]["total_counts"] == [counts[f"source_{i}"] for i in (1, 2, 3)]


def test_resuming_keeps_all_sources(three: Path, dataset: Path, tmp_path: Path):
    with pytest.raises(SystemExit):
        train(dataset, tmp_path, *THREE, stop_at=150)
    train(dataset, tmp_path, *THREE)
    assert_same_results(three, tmp_path)
    assert choices(three) == choices(tmp_path)


def test_the_summary_shows_how_often_each_source_was_followed(
    three: Path, dataset: Path, capsys: pytest.CaptureFixture
):
    train(dataset, three, *THREE)
    table = capsys.readouterr().out
    assert "of 12 target updates" in table and "source_3 dmc_cheetah_run" in table


@pytest.fixture(scope="module")
def one(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one source."""
    logdir = tmp_path_factory.mktemp("one") / "run"
    train(dataset, logdir, "--size", "32,32", "--envs", "0")
    return logdir


@pytest.mark.parametrize("select", ["first", "round_robin"])
def test_one_source_gives_the_same_run_with_any_rule_and_spelling(
    select: str, one: Path, dataset: Path, tmp_path: Path
):
    flags = ("--size", "32,32", "--envs", "0", "--select", select, "--source_task", " dmc_walker_walk ")
    train(dataset, tmp_path, *flags)
    assert_same_results(one, tmp_path)
    assert not (one / "choices.csv").exists() and not (tmp_path / "choices.csv").exists()


def selector(count: int, **flags: object) -> SourceSelector:
    return SourceSelector(tiny(**flags), [f"source_{i + 1}" for i in range(count)])


def with_distances(select: str, count: int) -> SourceSelector:
    """A selector of ``count`` sources that uses the distances in its attribute ``next`` and measures none."""
    made = selector(count, select=select)
    made.measure = lambda target, embeds, batch: torch.tensor(made.next)
    return made


def chosen(made: SourceSelector, distances: list[float]) -> int:
    made.next = distances
    source, target = agents(6, 6)
    return made.select(target, [source] * len(distances), batch()).index


def test_following_one_of_several_sources_equals_following_a_single_source():
    """Bit for bit. The other sources only embed the batch."""
    source, target = agents(6, 6)
    other, copied = SourceAgent(target.config, 6, 6, CPU), TargetAgent(target.config, 6, 6, CPU)
    copied.load_state_dict(target.state_dict())
    torch.manual_seed(7)
    update_target(target, source, batch())
    made = selector(2, select="round_robin")
    made.end_round()
    torch.manual_seed(7)
    selection = made.select(copied, [other, source], batch())
    assert selection.index == 1
    copied.update(batch(), selection.embed, source.value_bound(batch()))
    one, several = ({**weights(a.world), **weights(a.behavior)} for a in (target, copied))
    assert all(torch.equal(several[key], value) for key, value in one.items())


@pytest.mark.parametrize("nearest", [0, 1])
def test_distances_are_the_alignment_losses_on_the_batch(nearest: int):
    source, target = agents(6, 6)
    other = SourceAgent(target.config, 6, 6, CPU)
    sources = [source, other]
    sources[nearest].world.encoder.load_state_dict(target.world.encoder.state_dict())
    with torch.no_grad():
        expected = [models.state_alignment(s.embed(batch()), target.embed(batch())).item() for s in sources]
    selection = selector(2).select(target, sources, batch())
    assert selection.index == nearest and selection.distances == pytest.approx(expected)
    metrics = target.update(batch(), selection.embed)
    assert metrics["state_alignment"].item() == pytest.approx(selection.distances[nearest])
    names = ("distance_a", "distance_b", "follows_a", "follows_b")
    assert [selection.metrics(["a", "b"])[name] for name in names[2:]] == [nearest == 0, nearest == 1]


def test_a_single_source_embeds_the_batch_only_with_state_alignment():
    source, target = agents(6, 6)
    selection = selector(1, state_alignment=False).select(target, [source], batch())
    assert (selection.index, selection.embed, selection.distances) == (0, None, [])
    assert torch.equal(selector(1).select(target, [source], batch()).embed, source.embed(batch()))


def test_the_online_source_of_each_rule():
    nearest, first, turns = (with_distances(select, 3) for select in ("nearest", "first", "round_robin"))
    assert [chosen(nearest, distances) for distances in ([3, 1, 2], [3, 2, 1], [3, 2, 1])] == [1, 2, 2]
    assert (nearest.forced_index(), nearest.online_source(), nearest.total_counts) == (None, 2, [0, 1, 2])
    nearest.end_round()
    assert chosen(nearest, [0.0, 1.0, 2.0]) == 0 == nearest.online_source()
    assert nearest.total_counts == [1, 1, 2]
    assert chosen(first, [3, 2, 1]) == 0 == first.online_source()
    order = []
    for _ in range(4):
        order.append((chosen(turns, [3, 2, 1]), turns.online_source()))
        turns.end_round()
    assert order == [(0, 0), (1, 1), (2, 2), (0, 0)]


def test_a_list_of_sources_in_a_block(tmp_path: Path):
    path = tmp_path / "configs.yaml"
    path.write_text("defaults:\n  source_task: ''\nmany:\n  source_task: [walker_walk, cheetah_run]\n")
    assert settings.merge(settings.read_blocks(path), ["many"], {})["source_task"] == "walker_walk,cheetah_run"


def test_an_unknown_source_task_is_named(dataset: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"--source_task.*walker_wlk.*walker_walk"):
        train(dataset, tmp_path, "--source_task", "cheetah_run,walker_wlk")
    assert tiny(source_task="cheetah_run,walker_walk").source_task == "cheetah_run,walker_walk"


def test_relative_distances_are_divided_by_the_sources_information():
    """An encoder that hardly distinguishes images has a small distance to an untrained one, but little information."""
    source, target = agents(6, 6)
    blind = SourceAgent(target.config, 6, 6, CPU)
    with torch.no_grad():
        for parameter in blind.world.encoder.parameters():
            parameter *= 0.5
    made = selector(2, select="relative")
    made.end_round()  # the first round takes turns
    relative = made.select(target, [source, blind], batch())
    plain = selector(2).select(target, [source, blind], batch())
    for agent, small, large in zip((source, blind), plain.distances, relative.distances, strict=True):
        embed = agent.embed(batch()).softmax(-1)
        mean = embed.mean((0, 1))
        information = (embed * (embed / mean).log()).sum(-1).mean()
        torch.testing.assert_close(models.information(agent.embed(batch())), information, rtol=1e-3, atol=1e-7)
        assert large == pytest.approx(small / information.item(), rel=1e-2)
    assert models.information(torch.ones(2, 3, 4)).item() == pytest.approx(0.0, abs=1e-6)
    assert relative.index == int(relative.distances[1] < relative.distances[0])


def test_relative_selection_begins_with_turns():
    made = with_distances("relative", 2)
    assert [chosen(made, [3.0, 1.0]) for _ in range(4)] == [0, 1, 0, 1]
    assert made.online_source() == 1
    made.end_round()
    assert made.forced_index() is None


def test_the_state_of_a_selector_is_restored():
    made, other = with_distances("nearest", 2), selector(2)
    chosen(made, [3.0, 1.0])
    made.end_round()
    chosen(made, [1.0, 2.0])
    other.load_state_dict(made.state_dict())
    assert (other.total_counts, other.recent_counts, other.round) == ([1, 1], [1, 0], 1)
    assert other.mean_distances == made.mean_distances


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source_task", "cheetah_run,,walker_walk"), "task 2 is empty"),
        (("--source_task", "cheetah_run,"), "task 2 is empty"),
        (("--target_task", "walker_downhill,walker_walk"), "the target is one task"),
        (("--grad_accum", "4"), "more parts than a batch of 3"),
    ],
)
def test_bad_settings_raise_bad_input_before_records_are_written(
    flags: tuple[str, str], message: str, dataset: Path, tmp_path: Path
):
    with pytest.raises(BadInput, match=message):
        train(dataset, tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "scores.csv").exists()


def test_a_list_of_sources_in_the_defaults(tmp_path: Path):
    path = tmp_path / "configs.yaml"
    path.write_text("defaults:\n  source_task: [walker_walk, cheetah_run]\n")
    blocks = settings.read_blocks(path)
    assert settings.merge(blocks, [], {})["source_task"] == "walker_walk,cheetah_run"
    assert settings.merge(blocks, [], {"source_task": "walker_run"})["source_task"] == "walker_run"
