"""Several sources: which one is followed, which one learns online, and that one source is what it was."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_agents import CPU, agents, batch, weights
from test_co_training import assert_same_results, train

import config as settings
import models
import tools
from agents.agent import SourceAgent, TargetAgent
from tools import BadInput
from training.selector import Choices

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
    found = [p for p in points(three) if "target/distance_source_2" in p]
    assert found
    for point in found:
        shares = [point[f"target/follows_source_{i}"] for i in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1.0)
        assert (
            point["target/state_alignment"]
            == pytest.approx(
                sum(point[f"target/distance_source_{i}"] * share for i, share in zip((1, 2, 3), shares, strict=True))
            )
            or len(set(shares)) > 2
        )


def test_all_sources_are_pretrained_and_the_followed_one_learns_online(three: Path):
    saved = tools.load_checkpoint(three / "checkpoint.pt")
    assert set(saved["agents"]) == {"source_1", "source_2", "source_3", "target"}
    most = Counter(row["chosen"] for row in choices(three) if row["phase"] == "target_model").most_common(1)[0][0]
    online = {name for p in points(three) if p["phase"] == "source" and p["source_steps"] > 3 * 46
              for name in ("source_1", "source_2", "source_3") if f"{name}/image_loss" in p}  # fmt: skip
    assert most in online
    updates = {name: agent["behaviour_updates"] for name, agent in saved["agents"].items()}
    assert all(updates[name] >= 2 + 20 // 5 for name in ("source_1", "source_2", "source_3"))
    assert saved["choices"]["won"] == [sum(row["chosen"] == f"source_{i}" for row in choices(three)) for i in (1, 2, 3)]


def test_resuming_keeps_all_sources(three: Path, dataset: Path, tmp_path: Path):
    with pytest.raises(SystemExit):
        train(dataset, tmp_path, *THREE, stop_at=150)
    train(dataset, tmp_path, *THREE)
    assert_same_results(three, tmp_path)
    assert choices(three) == choices(tmp_path)


def test_the_end_table_tells_how_often_each_source_was_followed(
    three: Path, dataset: Path, capsys: pytest.CaptureFixture
):
    train(dataset, three, *THREE)
    table = capsys.readouterr().out
    assert "of 12 target updates" in table and "source_3 dmc_cheetah_run" in table


@pytest.mark.parametrize("select", ["first", "round_robin"])
def test_one_source_is_the_same_run_however_it_is_named(select: str, dataset: Path, tmp_path: Path):
    flags = ("--size", "32,32", "--envs", "0")
    train(dataset, tmp_path / "one", *flags)
    train(dataset, tmp_path / "same", *flags, "--select", select, "--source_task", " dmc_walker_walk ")
    assert_same_results(tmp_path / "one", tmp_path / "same")
    assert not (tmp_path / "one" / "choices.csv").exists()


def test_one_of_several_sources_followed_gives_the_update_of_that_one_alone():
    """Bit for bit: the others' encoders are read, and nothing else of them."""
    source, target = agents(6, 6)
    other, copied = SourceAgent(target.config, 6, 6, CPU), TargetAgent(target.config, 6, 6, CPU)
    copied.load_state_dict(target.state_dict())
    torch.manual_seed(7)
    target.update(batch(), [source])
    torch.manual_seed(7)
    metrics = copied.update(batch(), [other, source], chosen=1)
    assert int(metrics["chosen"]) == 1
    one, several = ({**weights(a.world), **weights(a.behaviour)} for a in (target, copied))
    assert all(torch.equal(several[key], value) for key, value in one.items())


@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("nearest", [0, 1])
def test_the_nearest_is_measured_on_the_same_batch(nearest: int, grad_accum: int):
    source, target = agents(6, 6, grad_accum=grad_accum)
    other = SourceAgent(target.config, 6, 6, CPU)
    sources = [source, other]
    sources[nearest].world.encoder.load_state_dict(target.world.encoder.state_dict())
    with torch.no_grad():
        expected = [models.state_alignment(s.embed(batch()), target.embed(batch())) for s in sources]
    metrics = target.update(batch(), sources)
    assert int(metrics["chosen"]) == nearest
    torch.testing.assert_close(torch.stack([metrics["distance_1"], metrics["distance_2"]]), torch.stack(expected))
    assert metrics["state_alignment"] == metrics[f"distance_{nearest + 1}"]


def test_the_choice_is_a_whole_number_however_a_batch_is_cut():
    """The mean of 1 over eight parts of twelve sequences falls just short of 1 in float32."""
    source, target = agents(6, 6, grad_accum=8, batch_size=12, state_alignment_scale=1.0)
    data = {key: value[:, :3].repeat_interleave(4, 0) for key, value in batch().items()}
    metrics = target.update(data, [source, source], chosen=1)
    assert int(metrics["chosen"]) == 1


def test_who_learns_online():
    nearest, first, turns = (Choices(["a", "b", "c"], select) for select in ("nearest", "first", "round_robin"))
    for chosen in (1, 2, 2):
        nearest.count({"chosen": torch.tensor(chosen), "distance_1": 3.0, "distance_2": 1.0, "distance_3": 2.0})
    assert (nearest.fixed(), nearest.online(), nearest.won) == (None, 2, [0, 1, 2])
    nearest.next_turn()
    nearest.count({"chosen": torch.tensor(0), "distance_1": 0.0, "distance_2": 1.0, "distance_3": 2.0})
    assert nearest.online() == 0
    assert (first.fixed(), first.online()) == (0, 0)
    order = []
    for _ in range(4):
        order.append((turns.fixed(), turns.online()))
        turns.next_turn()
    assert order == [(0, 0), (1, 1), (2, 2), (0, 0)]


def test_a_list_in_the_settings_is_several_sources(tmp_path: Path):
    path = tmp_path / "configs.yaml"
    path.write_text("defaults:\n  source_task: ''\nmany:\n  source_task: [walker_walk, cheetah_run]\n")
    assert settings.merge(settings.read_blocks(path), ["many"], {})["source_task"] == "walker_walk,cheetah_run"


def test_a_source_that_is_not_known_is_named(dataset: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"--source_task.*walker_wlk.*walker_walk"):
        train(dataset, tmp_path, "--source_task", "cheetah_run,walker_wlk")
    assert tiny(source_task="cheetah_run,walker_walk").source_task == "cheetah_run,walker_walk"


def test_relative_distances_are_in_units_of_what_a_source_tells_of_the_images():
    """An encoder that answers all images alike is near to an untrained one, and yet no one to follow."""
    source, target = agents(6, 6, select="relative")
    blind = SourceAgent(target.config, 6, 6, CPU)
    with torch.no_grad():
        for parameter in blind.world.encoder.parameters():
            parameter *= 0.5
    metrics = target.update(batch(), [source, blind])
    for agent in (source, blind):
        embed = agent.embed(batch()).softmax(-1)
        mean = embed.mean((0, 1))
        tells = (embed * (embed / mean).log()).sum(-1).mean()
        torch.testing.assert_close(models.information(agent.embed(batch())), tells, rtol=1e-3, atol=1e-7)
    assert models.information(torch.ones(2, 3, 4)).item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["distance_1"] > metrics["state_alignment"]
    assert int(metrics["chosen"]) == int(metrics["distance_2"] < metrics["distance_1"])


def test_relative_choices_begin_with_every_source_in_turn():
    choices, order = Choices(["a", "b"], "relative"), []
    for _ in range(4):
        order.append(choices.fixed())
        choices.count({"chosen": torch.tensor(order[-1]), "distance_1": 3.0, "distance_2": 1.0})
    assert order == [0, 1, 0, 1] and choices.online() == 1
    choices.next_turn()
    assert choices.fixed() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source_task", "cheetah_run,,walker_walk"), "task 2 is empty"),
        (("--source_task", "cheetah_run,"), "task 2 is empty"),
        (("--target_task", "walker_downhill,walker_walk"), "the target is one task"),
        (("--grad_accum", "4"), "more parts than a batch of 3"),
    ],
)
def test_what_is_refused_before_anything_is_made(flags: tuple[str, str], message: str, dataset: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=message):
        train(dataset, tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "scores.csv").exists()


def test_a_list_may_stand_in_the_defaults_too(tmp_path: Path):
    path = tmp_path / "configs.yaml"
    path.write_text("defaults:\n  source_task: [walker_walk, cheetah_run]\n")
    blocks = settings.read_blocks(path)
    assert settings.merge(blocks, [], {})["source_task"] == "walker_walk,cheetah_run"
    assert settings.merge(blocks, [], {"source_task": "walker_run"})["source_task"] == "walker_run"
