"""report.py: its numbers on run directories that the tests write, and on those of real runs."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from PIL import Image
from test_bad_input import refused
from test_co_training import train

import co_training as program
import report
from analysis import report_files
from analysis.cells import compute_results
from analysis.heatmap import choose_baseline, heatmap_values
from analysis.interquartile import interquartile_mean
from analysis.rows import set_labels
from analysis.runs import read_run, read_settings, run_folders
from config import to_yaml
from training.logger import Logger
from training.methods import METHODS, Method
from wrappers import SUITES, Suite

DOWNHILL, UPHILL = "dmc_walker_downhill", "dmc_walker_uphill"


def write_run(
    folder: Path, scores: list[float], *, random: float = 10.0, success: float | None = None, finished: bool = True,
    configs: tuple[str, ...] = ("dmc", "debug"), start: int = 0, **flags: object,
) -> Path:  # fmt: skip
    """A run directory as co_training.py writes it, with an evaluation before each round and one at the end.

    Its settings are those of `debug`, whatever ``configs`` says. ``start`` is the step of the first evaluation.
    """
    flags = {"source_task": "walker_walk", "target_task": "walker_downhill", "rounds": len(scores) - 1, **flags}
    config = tiny(logdir=folder, **flags).replace(configs=list(configs))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    logger = Logger(folder)
    rounds = [0, *range(1, config.rounds + 1), config.rounds]
    for i, mean in enumerate([random, *scores] if finished else [random, *scores][:-1]):
        logger.score(
            step=start + 100 * i, domain="target", phase="evaluate" if i else "evaluate_random", round=rounds[i],
            source_steps=50 * i, target_updates=10 * i, mean=mean, std=1.0, episodes=2,
            success="" if success is None else success * i / len(scores),
        )  # fmt: skip
    logger.close()
    return folder


def run_report(root: Path, *arguments: object) -> Path:
    """Run the command on ``root``. Returns the folder with its output."""
    out = root.parent / "out"
    report.main([str(a) for a in (root, "--out", out, *arguments)])
    return out


def run_tables(root: Path, *arguments: object) -> Path:
    """`run_report` without pictures, which take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_files, "draw_pictures", lambda *results: [])
        return run_report(root, *arguments)


def table(out: Path, title: str) -> dict[str, dict[str, str]]:
    """The table under ``title`` in table.md: row -> column -> text."""
    section = (out / "table.md").read_text().split(f"## {title}")[1].split("\n## ")[0]
    header, _, *rows = ([c.strip() for c in x.strip("|").split("|")] for x in section.split("\n") if x.startswith("|"))
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows if len(row) == len(header)}


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def listed(out: Path, title: str) -> list[str]:
    """The bullets under ``title`` in table.md."""
    parts = (out / "table.md").read_text().split(f"## {title}")
    return [line[2:] for line in parts[1].split("\n## ")[0].split("\n") if line.startswith("- ")] if parts[1:] else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two targets, an ablation and a run with two sources: 8 runs in nested folders."""
    root = tmp_path_factory.mktemp("report") / "runs"
    for seed, (down, up) in enumerate([(100, 40), (200, 60)]):
        write_run(root / f"a/down{seed}", [20, 50, down], seed=seed, random=10 + 2 * seed)
        write_run(root / f"b/c/up{seed}", [20, 30, up], seed=seed, target_task="walker_uphill")
        write_run(root / f"offline{seed}", [5, 6, down / 2], seed=seed, random=10 + 2 * seed, method="offline_dv2")
    write_run(root / "off", [20, 50, 80], value_constraint="off", random=10)
    write_run(root / "two", [20, 50, 90], source_task="walker_walk,walker_run", random=10, select="nearest")
    return root


def test_cells_are_means_over_seeds_of_the_last_evaluation(runs: Path, capsys: pytest.CaptureFixture):
    out = run_tables(runs)
    returns = table(out, "DeepMind Control: return")
    down, up = "walker_walk -> walker_downhill", "walker_walk -> walker_uphill"
    # sample deviations: |100 - 200| / sqrt 2 = 70.7, |40 - 60| / sqrt 2 = 14.1
    assert returns["coworld"] == {down: "150 +- 71 (2)", up: "50.0 +- 14.1 (2)", "average": "100"}
    assert returns["offline_dv2"] == {down: "75.0 +- 35.4 (2)", up: "-", "average": "75.0 (1 of 2 tasks)"}
    assert returns["coworld, value_constraint off"][down] == "80.0 (1)"
    assert returns["coworld, 2 sources"][down] == "90.0 (1)"
    assert returns["random policy"] == {down: "11.0 +- 1.4 (2)", up: "10.0 +- 0.0 (2)", "average": "10.5"}
    names = ["random policy", "coworld", "coworld, 2 sources", "coworld, value_constraint off", "offline_dv2"]
    assert list(returns) == names
    assert "success" not in (out / "table.md").read_text()
    assert returns["coworld"][down] in capsys.readouterr().out


def test_csv_files_hold_the_runs_and_the_cells(runs: Path):
    out = run_tables(runs)
    cells = lines(out / "cells.csv")
    assert len(cells) == 8
    first = next(row for row in cells if row["folder"].endswith("down1"))
    expected = ("coworld", "dmc_walker_walk", DOWNHILL, "1")
    assert (first["row"], first["sources"], first["target"], first["seed"]) == expected
    assert (first["mean"], first["random"], first["round"], first["target_updates"]) == ("200.0", "12.0", "2", "30")
    assert float(first["normalised"]) == pytest.approx((200 - 11) / (848 - 11))
    found = {(r["measure"], r["row"], r["column"]): r for r in lines(out / "table.csv")}
    cell = found["return", "coworld", "walker_walk -> walker_downhill"]
    assert (float(cell["mean"]), float(cell["std"]), cell["seeds"]) == (150, pytest.approx(5000**0.5), "2")
    assert float(found["return", "coworld", "average"]["mean"]) == 100


def test_interquartile_mean_of_normalised_scores(runs: Path):
    out = run_tables(runs, "--max_score", 1010, "--max_score", f"{DOWNHILL}=211")
    # downhill: (s - 11) / 200 = 0.445, 0.945; uphill: (s - 10) / 1000 = 0.03, 0.05; the middle two of four
    iqm = table(out, "Normalised score")["coworld"]
    assert iqm["IQM"] == "0.247" and (iqm["tasks"], iqm["runs"]) == ("2", "4")  # (0.05 + 0.445) / 2
    # a resample has two seeds of each task; its middle two are the larger uphill and the smaller downhill
    assert iqm["95% interval"] == "0.237 to 0.497"  # (0.03 + 0.445) / 2 and (0.05 + 0.945) / 2
    assert table(out, "Normalised score")["coworld, value_constraint off"]["95% interval"] == "needs 2 seeds a task"
    text = (out / "table.md").read_text()
    run_tables(runs, "--max_score", 1010, "--max_score", f"{DOWNHILL}=211")
    assert (out / "table.md").read_text() == text


def test_each_resample_keeps_every_tasks_number_of_seeds():
    """Scores differ between tasks and not between seeds, so the interval is a point."""
    mean = interquartile_mean([np.array([0.0, 0.0]), np.array([1.0, 1.0]), np.array([5.0, 5.0])])
    assert (mean.iqm, mean.low, mean.high) == (1.75, 1.75, 1.75)  # of 0 0 1 1 5 5, one is removed at each end


def test_what_is_missing(runs: Path):
    out = run_tables(runs)
    missing = table(out, "Missing")
    down, up = "walker_walk -> walker_downhill", "walker_walk -> walker_uphill"
    assert missing == {
        "coworld, 2 sources": {down: "1/2 (has 0)", up: "0/2"},
        "coworld, value_constraint off": {down: "1/2 (has 0)", up: "0/2"},
        "offline_dv2": {down: "-", up: "0/2"},
    }
    assert "With all seeds on all 2 pairs: coworld." in (out / "table.md").read_text()


def test_unfinished_runs_are_listed_and_left_out_unless_wanted(tmp_path: Path):
    root = tmp_path / "runs"
    write_run(root / "whole", [20, 50, 100], seed=0)
    write_run(root / "cut", [20, 60, 999], seed=1, finished=False)  # has round 2's evaluation, not the last
    out = run_tables(root)
    column = "walker_walk -> walker_downhill"
    assert table(out, "DeepMind Control: return")["coworld"][column] == "100 (1)"
    assert listed(out, "Not finished") == [f"{root / 'cut'}: last evaluation in round 2 of 2, not the one at the end"]
    assert [row["in_tables"] for row in lines(out / "cells.csv")] == ["True", "False"]
    out = run_tables(root, "--unfinished")
    returns = table(out, "DeepMind Control: return")  # not averaged with the finished run
    assert returns["coworld"][column] == "100 (1)"
    assert returns["coworld, unfinished (round 2 of 2)"][column] == "60.0 (1)"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_run_is_finished_after_the_last_evaluation_of_its_schedule(method: str, number: int, tmp_path: Path):
    phases = METHODS[method].schedule(program.algorithm_1(tiny(rounds=number)), tiny(rounds=number))
    rounds = [phase.round for phase in phases if phase.kind == "evaluate"]
    run = read_run(write_run(tmp_path / "run", [20] * len(rounds), rounds=number, method=method))
    assert [score.round for score in run.scores] == rounds and run.finished
    run.scores.pop()  # the last but one is not enough
    assert not run.finished


def test_a_registered_suite_and_method_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    suite = Suite("farm", "Farm World", ("sow", "reap", "dig"), make=dict, max_returns={"reap": 90})
    monkeypatch.setitem(SUITES, "farm", suite)
    monkeypatch.setitem(METHODS, "aligned", Method(dict, online="sources", aligned_with_sources=True))
    monkeypatch.setitem(METHODS, "lonely", Method(dict, online=""))
    root, tasks = tmp_path / "runs", {"source_task": "farm_sow", "target_task": "farm_reap"}
    for seed in (0, 1):
        write_run(root / f"aligned{seed}", [20, 50 + 10 * seed], method="aligned", seed=seed, **tasks)
        write_run(root / f"lonely{seed}", [20, 30], method="lonely", seed=seed, **tasks)  # the source has no effect
    write_run(root / "ablation", [20, 40], method="aligned", state_alignment=False, **tasks)
    write_run(root / "dig", [20, 30], method="aligned", source_task="sow", target_task="dig")
    write_run(root / "coworld", [20, 35], **tasks)
    out = run_report(root)
    returns = table(out, "Farm World: return")
    pair, dig = "sow -> reap", "sow -> dig"
    assert list(returns) == ["random policy", "coworld", "aligned", "aligned, state_alignment False", "lonely"]
    assert list(returns["aligned"]) == [pair, dig, "average"]  # as in the suite
    assert returns["aligned"][pair] == "55.0 +- 7.1 (2)" and returns["aligned"][dig] == "30.0 (1)"
    assert returns["lonely"] == {pair: "30.0 +- 0.0 (2)", dig: "-", "average": "30.0 (1 of 2 tasks)"}
    iqm = table(out, "Normalised score")
    assert (iqm["aligned"]["IQM"], iqm["aligned"]["runs"]) == ("0.562", "2")  # (50 - 10) / 80 and (60 - 10) / 80
    notes = listed(out, "Notes")
    assert len(notes) == 1 and notes[0].startswith("farm_dig: not in the normalised scores")
    assert "--max_score farm_dig=RETURN" in notes[0]
    assert {path.name for path in out.glob("*.png")} == {
        *("curves-farm_reap.png", "curves-farm_dig.png"),
        *("profiles.png", "improvement.png"),
    }
    out = run_tables(root, "--max_score", "farm_dig=110")
    assert not listed(out, "Notes") and table(out, "Normalised score")["aligned"]["runs"] == "3"
    out = run_tables(root / "dig")  # no target has a maximum
    assert "Normalised score" not in (out / "table.md").read_text()
    assert lines(out / "cells.csv")[0]["normalised"] == ""


def test_a_method_of_another_version_is_the_last_row_and_uses_its_sources(tmp_path: Path):
    write_run(tmp_path / "runs/1", [1, 2], method="older")
    write_run(tmp_path / "runs/2", [1, 2], method="online_dv2")
    returns = table(run_tables(tmp_path / "runs"), "DeepMind Control: return")
    assert list(returns) == ["random policy", "online_dv2", "older"]
    assert "walker_walk -> walker_downhill" in returns["older"]


@pytest.mark.parametrize("text", ["", "header"])
def test_a_run_that_has_just_begun_is_not_finished(text: str, tmp_path: Path):
    path = write_run(tmp_path / "run", [20, 30]) / "scores.csv"
    path.write_text(path.read_text().split("\n")[0] + "\n" if text else "")
    run = read_run(tmp_path / "run")
    assert not run.finished and run.last_evaluation == "no evaluation of its agent yet"


def test_success_where_the_suite_has_it(tmp_path: Path):
    root = tmp_path / "runs"
    tasks = {"source_task": "metaworld_button-press", "target_task": "robodesk_push_green"}
    for seed, success in enumerate((0.4, 0.8)):
        write_run(root / f"{seed}", [100, 300], seed=seed, success=success, **tasks)
    write_run(root / "down", [20, 30])
    out = run_tables(root)
    assert table(out, "RoboDesk: success rate, %") == {
        "random policy": {"button-press -> push_green": "0 +- 0 (2)", "average": "0"},
        "coworld": {"button-press -> push_green": "60 +- 28 (2)", "average": "60"},
    }
    assert "DeepMind Control: success" not in (out / "table.md").read_text()


def test_labels_name_the_settings_that_are_not_the_default(tmp_path: Path):
    root = tmp_path / "runs"
    write_run(root / "1", [1, 2], state_alignment=False, sparse_reward=True)
    write_run(root / "2", [1, 2], select="first", source_task="walker_walk,walker_run")
    write_run(root / "3", [1, 2], source_task="walker_run,walker_stand")
    write_run(root / "4", [1, 2], method="offline_dv2", source_task="", value_constraint="off")  # has no effect
    write_run(root / "5", [1, 2], source_task="walker_stand,walker_walk")
    run_tables(root)
    rows = {row["folder"][-1]: row["row"] for row in lines(tmp_path / "out/cells.csv")}
    assert rows == {
        "1": "coworld, state_alignment False, sparse_reward True",
        "2": "coworld, 2 sources, select first",
        "3": "coworld, 2 sources (walker_stand, walker_run)",
        "4": "offline_dv2",
        "5": "coworld, 2 sources (walker_stand, walker_walk)",
    }


def test_the_value_constraint_off_is_read_as_written(tmp_path: Path):
    folder = write_run(tmp_path / "run", [1, 2], value_constraint="off")  # YAML 1.1 reads `off` as False
    assert read_settings(folder)["value_constraint"] == "off"


def test_a_folder_given_twice_or_through_a_link_counts_once(tmp_path: Path):
    write_run(tmp_path / "runs/a/one", [1, 2])
    (tmp_path / "runs/b").symlink_to(tmp_path / "runs/a")
    (tmp_path / "runs/a/circle").symlink_to(tmp_path / "runs")
    assert len(run_folders([tmp_path / "runs", tmp_path / "runs/a", tmp_path / "runs/b/one"])) == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("scores.csv", "step,domain,phase,round\n1,target,evaluate,1\n", "damaged"),
        ("scores.csv", None, "scores.csv is damaged"),  # its last line cut short
        ("scores.csv", "\0\1\n", "scores.csv"),
        ("config.yaml", "seed: [", "cannot be read"),
        ("config.yaml", "target_task: walker_downhil\n", "nearest: walker_downhill"),
        ("config.yaml", "target_task: walker_downhill\nseed: x\n", "seed: 'x' is not a whole number"),
        ("config.yaml", "just text", "has no target_task"),
    ],
)
def test_a_damaged_run_is_left_out_with_its_name(
    file: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    bad = write_run(tmp_path / "runs/bad", [1, 2], seed=1) / file
    bad.write_text(text if text is not None else bad.read_text()[:-8])
    line = refused(report.main, [tmp_path / "runs"], capsys)
    assert str(bad) in line and message in line  # the only run
    write_run(tmp_path / "runs/good", [1, 2])
    out = run_tables(tmp_path / "runs")
    warning = capsys.readouterr().err
    assert str(bad) in warning and message in warning and "Traceback" not in warning
    assert len(listed(out, "Notes")) == 1 and len(lines(out / "cells.csv")) == 1


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "no run under" in refused(report.main, [tmp_path], capsys)
    assert "is not a folder" in refused(report.main, [tmp_path / "nowhere"], capsys)
    write_run(tmp_path / "collected", [1, 2], target_task="")
    assert "collections" in refused(report.main, [tmp_path], capsys)
    write_run(tmp_path / "cut", [1, 2], finished=False)
    assert "--unfinished includes" in refused(report.main, [tmp_path], capsys)
    write_run(tmp_path / "nan", [1, float("nan")])
    assert "not finite" in refused(report.main, [tmp_path / "nan"], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_score", "much"], "much"),
        (["--max_score", "-3"], "positive"),
        (["--max_score", "cheetah_run=3"], "no run has that target"),
        (["--max_score", "10"], "is not over the random policy's 11.0"),
        (["--out", "configs.yaml"], "configs.yaml"),
        (["--heatmap", "both"], "invalid choice"),
    ],
)
def test_flags_refused(flags: list[str], message: str, runs: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs.yaml").touch()
    assert message in refused(report.main, [runs, *flags], capsys)


def test_pictures(runs: Path):
    out = run_report(runs, "--x", "target_updates")
    names = {path.name for path in out.glob("*.png")}
    assert names == {f"curves-{DOWNHILL}.png", f"curves-{UPHILL}.png", "heatmap.png", "profiles.png", "improvement.png"}
    assert {path.name for path in out.glob("*.pdf")} == {name.replace(".png", ".pdf") for name in names}
    for name in names:
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert (out / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert pixels.std() > 10 and f"![{name}]({name})" in (out / "table.md").read_text()


def test_the_heat_map_shows_a_ratio_where_the_baseline_is_complete(runs: Path, tmp_path: Path, capsys):
    read = [read_run(folder) for folder in run_folders([runs])]
    set_labels(read, [])
    results = compute_results(read, [])
    assert choose_baseline(results, None) is None  # offline_dv2 has no run on uphill
    assert heatmap_values(results, None) == dict(zip(results.columns, (150, 50), strict=True))
    assert choose_baseline(results, "improvement") == "offline_dv2"
    assert heatmap_values(results, "offline_dv2") == {results.columns[0]: 2.0}  # 150 / 75
    for run in read:
        if run.settings["method"] == "offline_dv2":
            run.scores = [replace(score, mean=14.9) for score in run.scores]  # near 0: below a tenth of coworld's 150
    assert heatmap_values(compute_results(read, []), "offline_dv2") == {}
    read = [read_run(folder) for folder in run_folders([runs])]
    set_labels(read, [])
    down = compute_results([run for run in read if str(run.target) == DOWNHILL], [])
    assert choose_baseline(down, None) == "offline_dv2" and choose_baseline(down, "return") is None
    write_run(tmp_path / "alone", [1, 2])
    line = refused(report.main, [tmp_path, "--heatmap", "improvement"], capsys)
    assert "no run of offline_dv2 or dv2_finetune" in line


@pytest.mark.usefixtures("no_pictures")
def test_real_runs(dataset: Path, tmp_path: Path):
    """The command reads what the program writes."""
    root = tmp_path / "runs"
    short = ("--pretrain_steps", "5", "--warmup_rounds", "0", "--rounds", "1", "--video_every", "0")
    short += ("--eval_episodes", "1")
    train(dataset, root / "two", *short, "--source_task", "walker_walk,cheetah_run")
    train(dataset, root / "offline", *short, "--method", "offline_dv2")
    train(dataset, root / "online", *short, "--method", "online_dv2")
    with pytest.raises(SystemExit):
        train(dataset, root / "cut", *short, "--rounds", "2", stop_at=60)  # of 93 iterations
    out = run_report(root)
    found = {Path(row["folder"]).name: row for row in lines(out / "cells.csv")}
    assert {name: (row["row"], row["sources"], row["finished"]) for name, row in found.items()} == {
        "two": ("coworld, 2 sources", "dmc_cheetah_run,dmc_walker_walk", "True"),
        "offline": ("offline_dv2", "", "True"),
        "online": ("online_dv2", "", "True"),  # though the command named a source
        "cut": ("coworld", "dmc_walker_walk", "False"),
    }
    assert listed(out, "Not finished") == [f"{root / 'cut'}: last evaluation in round 1 of 2, not the one at the end"]
    returns = table(out, "DeepMind Control: return")
    assert list(returns) == ["random policy", "coworld, 2 sources", "offline_dv2", "online_dv2"]
    for name in ("two", "offline", "online"):
        last = lines(root / name / "scores.csv")[-1]["mean"]
        assert found[name]["mean"] == last
        assert returns[found[name]["row"]]["walker_downhill"] == f"{float(last):.1f} (1)"
