"""report.py: which runs are in the tables, in which row, and which differences between them are noted."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from test_bad_input import refused
from test_report import DOWNHILL, UPHILL, lines, listed, run_tables, table, write_run

import report
from analysis.conditions import stage_b_steps
from co_training import algorithm_1
from training.resolve import aligned_steps
from training.runs import dataset_line

COLUMN = "walker_walk -> walker_downhill"
RETURN = "DeepMind Control: return"


def rows(out: Path, column: str = COLUMN) -> dict[str, str]:
    """Row -> text in a column of the table of returns, without the random policy and empty cells."""
    cells = {row: cells[column] for row, cells in table(out, RETURN).items() if row != "random policy"}
    return {row: text for row, text in cells.items() if text != "-"}


def data_run(folder: Path, score: float, data: str, figures: tuple | None = None, **flags: object) -> Path:
    """A run on the dataset ``data``, with its episodes, steps and sum of returns in its record."""
    write_run(folder, [1, score], offline_traindir=data, **flags)
    if figures:
        with (folder / "config.yaml").open("a") as file:
            file.write(dataset_line(figures))
    return folder


# Datasets


def test_runs_on_two_datasets_are_in_two_rows(tmp_path: Path):
    root = tmp_path / "runs"
    data_run(root / "1", 10, "data/expert/walker_downhill", seed=0)
    data_run(root / "2", 30, "data/replay/walker_downhill", seed=1)
    data_run(root / "3", 20, "./data/expert/../expert/walker_downhill/", seed=2)  # another spelling of the first
    data_run(root / "4", 5, "data/replay/walker_downhill", method="offline_dv2")
    data_run(root / "5", 50, "", method="online_dv2")
    data_run(root / "6", 7, "data/expert/walker_uphill", target_task="walker_uphill")  # the only one of its target
    out = run_tables(root)
    assert rows(out) == {
        "coworld, data expert": "15.0 +- 7.1 (2)",
        "coworld, data replay": "30.0 (1)",
        "offline_dv2, data replay": "5.0 (1)",
        "online_dv2": "50.0 (1)",
    }
    assert rows(out, "walker_walk -> walker_uphill") == {"coworld, data expert": "7.0 (1)"}
    assert listed(out, "Notes") == []


@pytest.mark.parametrize(
    ("data", "other", "names"),
    [
        ("data/expert", "data/replay", ["expert", "replay"]),
        ("data/downhill_expert", "data/downhill_medium-replay", ["expert", "medium-replay"]),
        ("data/medium", "data/medium-replay", ["medium", "medium-replay"]),
        ("/home/ann/data/expert", "/scratch/data/expert", []),  # one dataset on two machines, as far as one can know
        ("/home/ann/data/expert", "/scratch/copies/expert", ["home/ann/data", "scratch/copies"]),
    ],
)
def test_datasets_are_told_apart_by_the_last_two_folders(data: str, other: str, names: list[str], tmp_path: Path):
    data_run(tmp_path / "runs/1", 10, data, seed=0)
    data_run(tmp_path / "runs/2", 30, other, seed=1)
    expected = [f"coworld, data {name}" for name in names] or ["coworld"]
    assert list(rows(run_tables(tmp_path / "runs"))) == expected


@pytest.mark.parametrize(
    ("data", "figures", "other", "others", "names"),
    [
        ("/home/ann/data/expert", (20, 500, 3.5), "/scratch/copies/expert", (20, 500, 3.5), []),  # a copy
        ("/home/ann/data/expert", (20, 500, 3.5), "/scratch/data/expert", (20, 500, 4), ["home/ann", "scratch"]),
        ("data/expert", (20, 500, 3.5), "data/expert", (9, 225, 1), ["data/expert (20 episodes)", "(9 episodes)"]),
        ("vd4rl/expert/84px", (20, 500, 3.5), "vd4rl/expert/64px", (20, 500, 3.5), ["84px", "64px"]),
    ],
)
def test_datasets_are_told_apart_by_the_figures_in_the_records(
    data: str, figures: tuple, other: str, others: tuple, names: list[str], tmp_path: Path
):
    data_run(tmp_path / "runs/1", 10, data, figures, seed=0)
    data_run(tmp_path / "runs/2", 30, other, others, seed=1)
    found = rows(run_tables(tmp_path / "runs"))
    assert len(found) == max(len(names), 1)
    assert all(any(row.endswith(name) for row in found) for name in names)


# Stopping points


@pytest.mark.parametrize(
    ("flags", "others", "names"),
    [
        ({"target_iterations": 20}, {"target_iterations": 60}, ["target_iterations 20", "target_iterations 60"]),
        ({}, {"scores": [1, 2, 3, 30]}, ["rounds 1", "rounds 3"]),
    ],
)
def test_runs_of_two_lengths_are_in_two_rows(flags: dict, others: dict, names: list[str], tmp_path: Path):
    write_run(tmp_path / "runs/1", **{"scores": [1, 10], "seed": 0, **flags})
    write_run(tmp_path / "runs/2", **{"scores": [1, 30], "seed": 1, **others})
    out = run_tables(tmp_path / "runs")
    assert rows(out) == {f"coworld, {names[0]}": "10.0 (1)", f"coworld, {names[1]}": "30.0 (1)"}
    assert listed(out, "Notes") == []


def test_a_length_that_only_the_config_claims_does_not_count(tmp_path: Path):
    write_run(tmp_path / "runs/1", [1, 10], seed=0)
    scores = write_run(tmp_path / "runs/2", [1, 30], seed=1) / "scores.csv"
    assert scores.read_text().count(",20,30,") == 1
    scores.write_text(scores.read_text().replace(",20,30,", ",60,30,"))  # target updates of the last evaluation
    expected = {"coworld, 20 target updates": "10.0 (1)", "coworld, 60 target updates": "30.0 (1)"}
    assert rows(run_tables(tmp_path / "runs")) == expected


def test_unfinished_runs_are_averaged_with_those_in_the_same_round(tmp_path: Path):
    for seed, (scores, finished) in enumerate([([1, 2, 100], True), ([1, 20, 0], False), ([1, 40, 0], False)]):
        write_run(tmp_path / f"runs/{seed}", scores, seed=seed, finished=finished)
    write_run(tmp_path / "runs/3", [7, 0], seed=3, finished=False, rounds=2)
    assert rows(run_tables(tmp_path / "runs", "--unfinished")) == {
        "coworld": "100 (1)",
        "coworld, unfinished (round 1 of 2)": "7.0 (1)",
        "coworld, unfinished (round 2 of 2)": "30.0 +- 14.1 (2)",
    }


# Other settings


def test_two_runs_of_one_cell_and_seed_are_refused_or_separated(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "runs"
    one = write_run(root / "one", [1, 2], value_constraint_scale=1)
    other = write_run(root / "other", [1, 4], value_constraint_scale=3)
    line = refused(report.main, [root, "--out", tmp_path / "out"], capsys)
    assert str(one) in line and str(other) in line and "--by value_constraint_scale" in line
    assert not (tmp_path / "out").exists()
    out = run_tables(root, "--by", "value_constraint_scale")
    assert list(rows(out)) == [f"coworld, value_constraint_scale {v}.0" for v in (1, 3)]
    assert "nearest" in refused(report.main, [root, "--by", "value_constrain_scale"], capsys)


def test_seeds_of_a_cell_and_rows_of_a_target_that_differ_are_noted(tmp_path: Path):
    write_run(tmp_path / "runs/1", [1, 2], model_lr=1e-3, source_task="walker_run")
    write_run(tmp_path / "runs/2", [1, 2], model_lr=2e-3, source_task="walker_run", seed=1)
    write_run(tmp_path / "runs/3", [1, 2], model_lr=1e-3, method="offline_dv2", source_task="", time_limit=24)
    assert listed(run_tables(tmp_path / "runs"), "Notes") == [
        "coworld, walker_run -> walker_downhill: seeds differ: model_lr 0.001 in seed 0; model_lr 0.002 in seed 1",
        f"{DOWNHILL}: rows differ: model_lr 0.001/0.002, time_limit 12 in coworld; "
        "model_lr 0.001, time_limit 24 in offline_dv2",
    ]


def test_rows_with_other_batches_networks_or_warm_ups_are_noted(tmp_path: Path):
    for target in ("walker_downhill", "walker_uphill"):
        write_run(tmp_path / f"runs/{target}1", [1, 2], target_task=target)
        other = {"batch_size": 5, "units": 32, "warmup_updates": 9, "precision": "bfloat16", "size": "32,32"}
        write_run(tmp_path / f"runs/{target}2", [1, 2], target_task=target, method="offline_dv2", **other)
        write_run(tmp_path / f"runs/{target}3", [1, 2], target_task=target, method="dv2_finetune")
    assert listed(run_tables(tmp_path / "runs"), "Notes") == [
        f"{DOWNHILL}, {UPHILL}: rows differ: batch_size 5, precision bfloat16, size [32, 32], units 32, "
        "warmup_updates 9 in offline_dv2; batch_size 3, precision float32, size [64, 64], units 16, "
        "warmup_updates 4 in coworld and dv2_finetune"
    ]


def test_notes_stay_short_with_many_rows_or_settings(tmp_path: Path):
    for method in ("coworld", "offline_dv2", "dv2_finetune", "multitask_dv2"):
        write_run(tmp_path / f"runs/{method}", [1, 2], method=method, units=32 if method == "coworld" else 16)
    place = f"{DOWNHILL}: rows differ: "
    assert listed(run_tables(tmp_path / "runs"), "Notes") == [f"{place}units 32 in coworld; units 16 in the others"]
    keys = ["cnn_depth", "dyn_deter", "dyn_hidden", "dyn_stoch", "imag_horizon", "reward_layers", "time_limit", "units"]
    write_run(tmp_path / "more/1", [1, 2], method="offline_dv2")
    write_run(tmp_path / "more/2", [1, 2], method="online_dv2", batch_size=9, **dict.fromkeys(keys, 9))
    names = ", ".join(["batch_size", *keys])
    expected = f"{place}9 settings ({names}) between offline_dv2; online_dv2"
    assert listed(run_tables(tmp_path / "more"), "Notes") == [expected]


def test_the_steps_of_eta_are_noted_only_if_they_were_given(tmp_path: Path):
    """Not given, they follow from lengths, as here from the number of rounds, which is in the rows' labels."""
    for rounds in (0, 1, 2, 5):
        config = tiny(rounds=rounds, warmup_rounds=2)
        assert stage_b_steps(vars(config)) == aligned_steps(algorithm_1(config))
    for scores in ([1, 2, 3], [1, 2, 3, 4]):
        steps = stage_b_steps(vars(tiny(rounds=len(scores) - 1)))
        write_run(tmp_path / "runs" / str(len(scores)), scores, eta_steps=steps)
    assert listed(run_tables(tmp_path / "runs"), "Notes") == []
    write_run(tmp_path / "runs" / "given", [1, 2, 3], eta_steps=7, seed=1)
    assert any(
        "eta_steps 0 in seed 0; eta_steps 7 in seed 1" in n for n in listed(run_tables(tmp_path / "runs"), "Notes")
    )


def test_settings_without_an_effect_on_a_row_are_not_noted(tmp_path: Path):
    root = tmp_path / "runs"
    own = {"state_alignment_scale": 5, "eta_steps": 7, "ewc_scale": 3, "pretrain_steps": 9, "disagreement_scale": 2}
    write_run(root / "1", [1, 2], state_alignment_scale=2, device="cuda", envs=0, log_every=1, seed=1)
    write_run(root / "2", [1, 2], state_alignment=False, **own | {"pretrain_steps": 20, "eta_steps": 0})
    write_run(root / "3", [1, 2], method="offline_dv2", **own, robodesk_action_repeat=4)
    write_run(root / "4", [1, 2], method="dv2_finetune_ewc", ewc_batches=7, ensemble=9, eta_start=0.5)
    write_run(root / "5", [1, 2], method="online_dv2", warmup_steps=7)
    assert listed(run_tables(root), "Notes") == []
    write_run(root / "6", [1, 2], source_task="robodesk_push_green", robodesk_action_repeat=2)
    write_run(root / "7", [1, 2], source_task="robodesk_push_red", robodesk_action_repeat=3, state_alignment_scale=2)
    write_run(root / "8", [1, 2], method="dv2_finetune_ewc", ewc_scale=7, seed=1)
    notes = listed(run_tables(root), "Notes")
    assert any("robodesk_action_repeat 2 in coworld, push_green ->" in note for note in notes)
    assert any(note.startswith("dv2_finetune_ewc, walker_walk -> walker_downhill: seeds differ:") for note in notes)
    assert not any("offline" in note or "online" in note for note in notes)


# Demo and debug runs


def test_demo_and_debug_runs_are_left_out_unless_they_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "runs"
    write_run(root / "real", [1, 40], configs=("dmc",), actor_layers=4)
    demo = write_run(root / "demo/run", [1, 9], configs=("dmc", "demo"), actor_layers=2)
    for name in ("a", "b"):
        write_run(root / f"debug-{name}", [1, 8], configs=("dmc", "debug"), batch_size=4 + (name == "b"))
    note = "left out 3 demo, quick or debug runs, too short to compare methods; give their own folder to include them"
    out = run_tables(root)
    assert rows(out) == {"coworld": "40.0 (1)"} and listed(out, "Notes") == [note]
    assert f"warning: {note}" in capsys.readouterr().err and len(lines(out / "cells.csv")) == 1
    for folder in (demo, demo.parent):  # itself; or there is no other kind of run below the folder
        out = run_tables(folder)
        assert rows(out) == {"coworld": "9.0 (1)"} and listed(out, "Notes") == []
        capsys.readouterr()
    line = refused(report.main, [root, demo], capsys)  # named, beside a real run
    assert f"{root / 'real'}" in line and "add --by configs or --by actor_layers to separate them" in line
    report.main([str(a) for a in (root, demo, "--by", "configs", "--out", tmp_path / "out")])
    assert rows(tmp_path / "out") == {"coworld, configs dmc": "40.0 (1)", "coworld, configs dmc demo": "9.0 (1)"}


def test_an_error_suggests_only_settings_that_differ_and_matter(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "runs"
    write_run(root / "1", [1, 2], method="offline_dv2", ewc_scale=1, eval_every=3, pretrain_steps=5, batch_size=4)
    write_run(root / "2", [1, 2], method="offline_dv2", ewc_scale=2, eval_every=4, pretrain_steps=6, batch_size=5)
    line = refused(report.main, [root], capsys)
    assert "add --by batch_size to separate them" in line
    write_run(root / "same/1", [1, 2])
    write_run(root / "same/2", [1, 2], ewc_scale=2, configs=("dmc", "small", "debug"))
    line = refused(report.main, [root / "same"], capsys)
    assert "--by" not in line and "move one of them away" in line


def test_demo_runs_of_a_folder_of_their_own_stay_in_beside_other_folders(tmp_path: Path):
    write_run(tmp_path / "runs/real", [1, 40], configs=("dmc",))
    for seed in (0, 1):
        write_run(tmp_path / f"short/{seed}", [1, 9], seed=seed, configs=("dmc", "demo"), value_constraint="off")
    run_tables(tmp_path / "runs")
    report.main([str(tmp_path / name) for name in ("runs", "short")] + ["--out", str(tmp_path / "out")])
    assert rows(tmp_path / "out") == {"coworld": "40.0 (1)", "coworld, value_constraint off": "9.0 +- 0.0 (2)"}


# Names


def test_runs_with_equal_settings_have_equal_names_in_all_suites(tmp_path: Path):
    root, door = tmp_path / "runs", {"source_task": "metaworld_drawer-close", "target_task": "metaworld_door-close"}
    write_run(root / "1", [1, 2], target_iterations=20)
    write_run(root / "2", [1, 2], target_iterations=40, seed=1)
    write_run(root / "3", [1, 2], target_iterations=20, **door)
    write_run(root / "4", [1, 2], target_iterations=20, method="offline_dv2", **door)
    labels = {Path(line["folder"]).name: line["row"] for line in lines(run_tables(root) / "cells.csv")}
    assert labels["1"] == labels["3"] == "coworld, target_iterations 20"
    assert labels["2"] == "coworld, target_iterations 40" and labels["4"] == "offline_dv2"


# Scores


def test_a_score_can_be_the_mean_of_the_last_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_run(tmp_path / "runs/0", [1, 10, 30], seed=0)
    write_run(tmp_path / "runs/1", [1, 20, 60], seed=1)
    assert rows(run_tables(tmp_path / "runs")) == {"coworld": "45.0 +- 21.2 (2)"}
    out = run_tables(tmp_path / "runs", "--last", "2")
    assert rows(out) == {"coworld": "30.0 +- 14.1 (2)"}
    first = next(line for line in lines(out / "cells.csv") if line["seed"] == "0")
    assert (float(first["mean"]), int(first["episodes"])) == (20, 4)
    assert float(first["std"]) == pytest.approx(np.std([9, 11, 29, 31]))  # of two episodes 1 from each mean
    for last, problem in [("4", "has only 3 evaluations"), ("0", "give 1 or more")]:
        assert problem in refused(report.main, [tmp_path / "runs", "--last", last], capsys)


def test_a_folder_can_store_its_options(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "runs"
    write_run(root / "0", [1, 10, 30], model_lr=1e-4)
    write_run(root / "1", [1, 20, 60], model_lr=1e-3)
    (root / "report.args").write_text("# the protocol\n--last 2 --by model_lr\n")
    assert rows(run_tables(root)) == {"coworld, model_lr 0.0001": "20.0 (1)", "coworld, model_lr 0.001": "40.0 (1)"}
    assert f"options of {root / 'report.args'}: --last 2 --by model_lr" in capsys.readouterr().err
    out = run_tables(root, "--last", "1")  # of the command line
    assert rows(out) == {"coworld, model_lr 0.0001": "30.0 (1)", "coworld, model_lr 0.001": "60.0 (1)"}


def test_stored_options_are_not_used_for_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/report.args").write_text("--last 2")
    assert report.parse([str(tmp_path / "b")]).last == 2
    assert report.parse([str(tmp_path / "a"), str(tmp_path / "b")]).last == 1
    assert f"note: {tmp_path / 'b/report.args'} is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"--last two", "invalid int value: 'two'"),
        (b"--lst 2", "unrecognized arguments: --lst 2"),
        (b"other --last 2", "other is not an option"),
        (b"--by 'model_lr", "No closing quotation"),
        (b"\xff", "can't decode byte"),
    ],
)
def test_wrong_stored_options_are_refused(text: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_run(tmp_path / "0", [1, 2])
    (tmp_path / "report.args").write_bytes(text)
    line = refused(report.main, [tmp_path, "--out", tmp_path / "out"], capsys)
    assert line.startswith(f"error: {tmp_path / 'report.args'}: ") and message in line
