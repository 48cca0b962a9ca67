"""What is logged of the source: correlations of its critic's values on held-out episodes, alignment's gradient."""

from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_agents import agents, batch
from test_co_training import assert_same_results, metrics, scores, train

from agents.coworld import SourceAgent, TargetAgent
from replay import OfflineDataset
from senses import Senses
from training.logger import OFFLINE_COLUMNS, SCORES, Logger, read_scores
from training.offline_figures import OfflineFigures

NAMES = {"source_return_correlation", "source_own_return_correlation", "source_latents_correlation"}
SHARE = "target/ties/alignment_gradient_share"


# Figures of held-out episodes


@pytest.fixture(scope="module")
def pair() -> tuple[SourceAgent, TargetAgent]:
    torch.manual_seed(0)
    return agents()


@pytest.fixture
def offline(dataset: Path) -> OfflineFigures:
    return OfflineFigures(OfflineDataset(dataset, size=32), 0.9, seed=3)


def test_the_sources_values_on_its_own_latents_are_those_of_its_own_figures(pair: tuple, offline: OfflineFigures):
    source, target = pair
    found = offline.compute(target, source)
    assert found["source_own_return_correlation"] == pytest.approx(offline.compute(source)["value_correlation"])
    assert abs(found["source_latents_correlation"]) < 0.99


def test_the_sources_values_on_the_targets_latents_are_those_of_its_critic(pair: tuple, offline: OfflineFigures):
    source, target = pair
    other = TargetAgent(target.config, 6, 6, target.device)
    other.world.load_state_dict(target.world.state_dict())
    other.behavior.critic.load_state_dict(source.behavior.critic.state_dict())
    found = offline.compute(target, source)["source_return_correlation"]
    assert found == pytest.approx(offline.compute(other)["value_correlation"])


def test_both_latents_of_a_copy_have_the_same_values(pair: tuple, offline: OfflineFigures):
    source, target = pair
    copy = TargetAgent(target.config, 6, 6, target.device)
    copy.world.load_state_dict(source.world.state_dict())
    found = offline.compute(copy, source)
    assert found["source_latents_correlation"] == pytest.approx(1)
    assert found["source_return_correlation"] == pytest.approx(found["source_own_return_correlation"])


def test_the_other_figures_and_the_rng_do_not_depend_on_the_source(pair: tuple, offline: OfflineFigures):
    source, target = pair
    state = torch.get_rng_state()
    found = offline.compute(target, source)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.keys() >= NAMES
    assert {name: value for name, value in found.items() if name not in NAMES} == offline.compute(target)


def test_a_source_on_states_has_no_latents_of_its_own(pair: tuple, offline: OfflineFigures):
    on_states = SourceAgent(tiny(size="32,32"), 6, 6, torch.device("cpu"), Senses(0, {"position": 3}))
    assert offline.compute(pair[1], on_states).keys() & NAMES == {"source_return_correlation"}


def test_scores_with_the_columns_of_an_older_version_are_continued(tmp_path: Path):
    old = [*SCORES, *OFFLINE_COLUMNS[: -len(NAMES)]]
    row = dict.fromkeys(SCORES, "1") | {"domain": "target", "phase": "evaluate", "offline_action_distance": "0.5"}
    text = ",".join(old) + "\n" + ",".join(row.get(key, "") for key in old) + "\n"
    (tmp_path / "scores.csv").write_text(text)
    logger = Logger(tmp_path, {"scores.csv": len(text)}, step=1, offline=True)
    new = row | {
        "mean": 1.0,
        "success": "",
        "step": 2,
        "round": 2,
        "offline_action_distance": 0.25,
        "offline_source_latents_correlation": 0.75,
    }
    logger.score(**new)
    logger.close()
    rows = read_scores(tmp_path)
    assert [r["offline_action_distance"] for r in rows] == ["0.5", "0.25"] and list(rows[1]) == old
    assert metrics(tmp_path)[-1]["target/offline/source_latents_correlation"] == 0.75


# Alignment's share of the gradient


def model_gradient(target: TargetAgent, data: dict, noise: torch.Tensor, embed: torch.Tensor | None) -> torch.Tensor:
    loss = target.world_model_loss(data, noise, embed)[0]
    gradients = torch.autograd.grad(loss, list(target.world.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.parametrize("parts", [1, 2])
def test_the_norm_is_that_of_what_alignment_adds_to_the_gradient(parts: int):
    source, target = agents(state_alignment_scale=50, grad_accum=parts)
    data = batch()
    embed, noise = source.embed(data), target.noise(data)
    whole, without = (model_gradient(target, data, noise, e) for e in (embed, None))
    expected = (whole - without).norm()
    torch.testing.assert_close(target.alignment_gradient_norm(data, embed), expected, rtol=1e-3, atol=1e-5)
    torch.manual_seed(1)
    updated = target.update_world_model(data, embed, measured=True)[1]
    assert updated["alignment_gradient_share"] == pytest.approx(
        (expected / updated["model_grad_norm"]).item(), rel=1e-3
    )
    assert "alignment_gradient_share" not in target.update_world_model(data, None, measured=True)[1]


# Whole runs

FLAGS = ("--constraint_latents", "source", "--target_task", "my_robot", "--holdout", "0.4", "--video_every", "0")


@pytest.mark.usefixtures("dots", "no_pictures")
@pytest.mark.parametrize(
    ("method", "sources"), [("coworld", "dots_to_left,dots_to_right"), ("coworld_warm_start", "dots_to_left")]
)
def test_a_resumed_run_in_the_sources_latents_equals_an_uninterrupted_one(
    method: str, sources: str, dots_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped after 9 iterations of the first offline phase, and before a point of the curves. Then once more without
    the measurements of this file, which change no result."""
    flags = (*FLAGS, "--method", method, "--source_task", sources)
    train(dots_dataset, tmp_path / "whole", *flags)
    stop_at = (26 + 2 + 20) * len(sources.split(",")) + 4 + 15 + 9
    with pytest.raises(SystemExit):
        train(dots_dataset, tmp_path / "parts", *flags, stop_at=stop_at)
    train(dots_dataset, tmp_path / "parts", *flags)
    assert_same_results(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (metrics(tmp_path / name) for name in ("whole", "parts"))
    shares = [point[SHARE] for point in whole if SHARE in point]
    assert shares == [point[SHARE] for point in parts if SHARE in point]
    assert len(shares) == sum("target/ties/state_alignment" in point for point in whole)
    assert all(0 < share < 2 for share in shares)
    assert all(row["offline_source_latents_correlation"] for row in scores(tmp_path / "whole"))
    monkeypatch.setattr(Logger, "lacks", lambda *_: False)
    monkeypatch.setattr("training.trainer.OfflineFigures.compute", lambda *_: {"image_loss": 1.0})
    train(dots_dataset, tmp_path / "plain", *flags)
    assert_same_results(tmp_path / "whole", tmp_path / "plain", but_scores=True)
    assert not any(SHARE in point for point in metrics(tmp_path / "plain"))
