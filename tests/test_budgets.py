"""One budget for all methods: the updates of real runs, of the schedules, and of the table in docs/budgets.md."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from conftest import ROOT, MethodRun, tiny
from test_agents import batch
from updates import built

import co_training as program
import config as settings
from config import Config
from training.checkpoint import load_checkpoint
from training.methods import METHODS, PhaseKind

OWN_UPDATES = ("bc", "drq_bc", "cql", "curl", "lompo")  # their schedules have phases TRAIN_OFFLINE
COLUMNS = ("online_steps", "source_updates", "world_model_updates", "behavior_updates")


def defaults(*blocks: str, **flags: object) -> Config:
    values = settings.merge(settings.read_blocks(), ["defaults", *blocks], {k: str(v) for k, v in flags.items()})
    return Config(**values, configs=list(blocks))


def budget(name: str, config: Config) -> dict[str, int]:
    """Agent steps in a simulator, updates of source agents, and of the target's world model and behavior."""
    method, counts, iterations = METHODS[name], dict.fromkeys(COLUMNS, 0), 0
    for phase in method.schedule(program.algorithm_1(config), config):
        steps = counts["online_steps"]
        if phase.kind in (PhaseKind.PREFILL, PhaseKind.TRAIN_SOURCE):
            counts["online_steps"] += phase.iterations
        if phase.kind in (PhaseKind.PRETRAIN_SOURCE, PhaseKind.TRAIN_SOURCE):
            new = phase.iterations
            if phase.kind == PhaseKind.TRAIN_SOURCE:
                new = counts["online_steps"] // config.train_every - steps // config.train_every
            done, share = counts["source_updates"], phase.world_model_share
            counts["source_updates"] += new
            if method.online == "target":
                counts["world_model_updates"] += new
                counts["behavior_updates"] += new
            elif method.shared_world_model:
                counts["world_model_updates"] += math.ceil((done + new) * share) - math.ceil(done * share)
        elif phase.kind == PhaseKind.WARM_UP_TARGET:
            counts["world_model_updates"] += phase.iterations
        elif phase.kind == PhaseKind.TRAIN_TARGET:
            iterations += phase.iterations
            new = iterations // config.train_every - (iterations - phase.iterations) // config.train_every
            counts["world_model_updates"] += new
            counts["behavior_updates"] += new
        elif phase.kind == PhaseKind.TRAIN_OFFLINE:
            iterations += phase.iterations
            counts["behavior_updates"] += phase.iterations // config.train_every
    if method.online == "target":
        counts["source_updates"] = 0
    return counts


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OWN_UPDATES])
def test_the_targets_world_model_gets_as_many_updates_as_coworlds(method: str, method_run: Callable[[str], MethodRun]):
    counted = method_run(method).updates
    assert counted["world_model_updates"] == 12  # 4 in the warm-up, 2 x 20 iterations, an update every 5
    assert counted == budget(method, tiny())
    if method != "online_dv2":
        assert counted["behavior_updates"] == 8


@pytest.mark.parametrize("blocks", ["", "metaworld", "robodesk", "dmc", "dmc small", "dmc demo", "dmc debug"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"rounds": 1}, {"warmup_rounds": 0}, {"warmup_updates": 100_000}, {"pretrain": 0, "pretrain_steps": 0}],
    ids=str,
)
def test_every_method_has_coworlds_budget_in_every_schedule(blocks: str, flags: dict):
    config = defaults(*blocks.split(), **flags)
    coworlds = budget("coworld", config)
    for method in METHODS:
        ours = budget(method, config)
        if method in OWN_UPDATES:
            warm_up = coworlds["world_model_updates"] - coworlds["behavior_updates"]
            updates = ours["world_model_updates"], ours["behavior_updates"]
            lompos, model_free = (warm_up, coworlds["behavior_updates"]), (0, coworlds["world_model_updates"])
            assert updates == (lompos if method == "lompo" else model_free), method
            continue
        assert ours["world_model_updates"] == coworlds["world_model_updates"], method
        if method != "online_dv2":
            assert ours["behavior_updates"] == coworlds["behavior_updates"], method
        if method not in ("online_dv2", "offline_dv2"):
            assert [ours[key] for key in COLUMNS[:2]] == [coworlds[key] for key in COLUMNS[:2]], method


def test_the_budgets_of_the_page_are_those_of_the_schedules():
    page = (ROOT / "docs" / "budgets.md").read_text()
    rows = {name: cells.split("|") for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)}
    assert list(rows) == list(METHODS)
    for name, cells in rows.items():
        expected = [budget(name, defaults(block, method=name)) for block in ("metaworld", "dmc")]
        assert [cell.strip() for cell in cells] == [" / ".join(f"{b[key]:,}" for b in expected) for key in COLUMNS]
        assert budget(name, defaults("robodesk", method=name)) == expected[0]
    totals = {}
    for block in ("metaworld", "dmc"):
        phases = program.algorithm_1(defaults(block))
        for kind in PhaseKind:
            totals[block, kind] = sum(phase.iterations for phase in phases if phase.kind == kind)
    for block, name in (("metaworld", "Meta-World and RoboDesk"), ("dmc", "DMC")):
        online = totals[block, PhaseKind.PREFILL] + totals[block, PhaseKind.TRAIN_SOURCE]
        line = (
            f"{name}: {online:,} source agent steps, {totals[block, PhaseKind.WARM_UP_TARGET]:,} warm-up updates and "
        )
        assert f"{line}{totals[block, PhaseKind.TRAIN_TARGET]:,} target iterations" in " ".join(page.split())


def test_the_updates_of_the_shared_model_are_spread_over_the_sources_first_updates():
    config = tiny(pretrain=10, warmup_updates=6)
    phases = METHODS["multitask_dv2"].schedule(program.algorithm_1(config), config)
    shares = {phase.world_model_share for phase in phases if phase.kind == "train_source" and not phase.round}
    (share,) = shares  # 10 updates, then 35 steps from step 26, an update every 5
    assert share * (10 + 7) == 6
    trains = [math.ceil((n + 1) * share) > math.ceil(n * share) for n in range(17)]
    assert sum(trains) == 6 and trains[0] and max(map(len, "".join("01"[t] for t in trains).split("1"))) <= 2
    assert all(not p.aligned and p.world_model_share == 0 for p in phases if p.kind == "train_source" and p.round)


def test_inferred_posteriors_are_those_of_an_update_and_change_nothing():
    source = built("multitask_dv2")["source"]
    before = [p.clone() for p in source.world.parameters()]
    torch.manual_seed(0)
    post = source.infer_posterior(batch(4))
    assert all(torch.equal(old, new) for old, new in zip(before, source.world.parameters(), strict=True))
    assert all(not value.requires_grad for value in post.values())
    torch.manual_seed(0)
    updated, _ = source.update_world_model(batch(4), batch(5, seed=1))
    assert post.keys() == updated.keys() and all(post[k].shape == updated[k].shape for k in post)
    torch.testing.assert_close(post["deter"][:, 0], updated["deter"][:, 0])


@pytest.mark.parametrize("method", OWN_UPDATES)
def test_agents_with_updates_of_their_own_get_the_budget_in_a_run(method: str, method_run: Callable[[str], MethodRun]):
    saved = load_checkpoint(method_run(method).logdir / "checkpoint.pt")
    expected = budget(method, tiny(method=method))
    assert saved["progress"]["target_updates"] == expected["world_model_updates"] + expected["behavior_updates"]
    agent = saved["agents"]["target"]
    own = agent["behavior_updates"] if method == "lompo" else agent["updates"]
    assert own == expected["behavior_updates"] == (20 if method == "lompo" else 24)
