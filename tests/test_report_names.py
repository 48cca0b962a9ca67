"""report.py: rows with names of their own, and learning curves that stay readable with many rows."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_bad_input import refused
from test_report import DOWNHILL, lines, run_report, run_tables, table, write_run

import report
from analysis import curves

TIES = {"state_alignment": "False", "reward_alignment": "False", "value_constraint": "off"}
ALL_OFF = "state_alignment False, reward_alignment False, value_constraint off"
PICTURE = f"curves-{DOWNHILL}.png"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """CoWorld, without ties, and without one; two seeds."""
    for seed in (0, 1):
        write_run(tmp_path / f"runs/all{seed}", [20, 50 + seed], seed=seed)
        write_run(tmp_path / f"runs/none{seed}", [20, 30 + seed], seed=seed, **TIES)
        write_run(tmp_path / f"runs/one{seed}", [20, 40 + seed], seed=seed, value_constraint="off")
    return tmp_path / "runs"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that analysis/curves.py saves from now on, by file name."""
    saved, save = {}, curves.save_figure

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        saved[path.name] = figure

    monkeypatch.setattr(curves, "save_figure", keep)
    return saved


def test_a_named_row_has_its_name_in_tables_and_files(runs: Path):
    plain = table(run_tables(runs), "DeepMind Control: return")
    out = run_tables(runs, "--name", f"{ALL_OFF}=without ties", "--name", "value_constraint off=no constraint")
    named = table(out, "DeepMind Control: return")
    assert set(named) == {"random policy", "coworld", "coworld, without ties", "coworld, no constraint"}
    assert named["coworld, without ties"] == plain[f"coworld, {ALL_OFF}"] != named["coworld, no constraint"]
    rows = {line["row"] for line in lines(out / "cells.csv")} & {line["row"] for line in lines(out / "curves.csv")}
    assert rows == set(named) - {"random policy"}
    assert "without ties" in (out / "table-return-dmc.tex").read_text() + (out / "table-improvement.tex").read_text()


def test_a_name_holds_for_every_method_with_these_settings(runs: Path):
    write_run(runs / "warm", [1, 2], method="coworld_warm_start", value_constraint="off")
    named = table(run_tables(runs, "--name", "value_constraint off=free"), "DeepMind Control: return")
    assert {"coworld, free", "coworld_warm_start, free", f"coworld, {ALL_OFF}"} < set(named)


def test_a_folder_stores_the_names_of_its_rows(runs: Path):
    (runs / "report.args").write_text(f'--name "{ALL_OFF}=without ties"  # all three\n')
    assert "coworld, without ties" in table(run_tables(runs), "DeepMind Control: return")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("value_constraint on=x", "no row has these settings after its method; nearest: value_constraint off"),
        ("coworld=x", "no row has these settings"),
        ("value_constraint off=", "give SETTINGS=NAME"),
        ("no ties", "give SETTINGS=NAME"),
        (f"value_constraint off={ALL_OFF}", "another row is called"),
    ],
)
def test_a_name_without_its_row_is_refused(name: str, message: str, runs: Path, capsys: pytest.CaptureFixture):
    out = runs.parent / "out"
    assert message in refused(report.main, [runs, "--out", out, "--name", name], capsys)
    assert not out.exists()


@pytest.mark.parametrize(("count", "panels"), [(4, [4]), (5, [3, 3]), (7, [4, 4]), (8, [4, 3, 3])])
def test_a_panel_has_at_most_four_rows_and_the_first_is_in_all(
    count: int, panels: list[int], figures: dict[str, Figure], tmp_path: Path
):
    for i in range(count):
        write_run(tmp_path / f"runs/{i}", [i, i + 1], model_lr=i + 1)
    run_report(tmp_path / "runs", "--by", "model_lr")
    axes = [axis for axis in figures[PICTURE].axes if axis.lines]
    names = [[line.get_label() for line in axis.lines][:-1] for axis in axes]  # the last is the random policy
    assert [len(rows) for rows in names] == panels
    assert {rows[0] for rows in names} == {"coworld, model_lr 1.0 (1 seed)"}
    assert len({name for rows in names for name in rows}) == count
    assert len({axis.get_xlim() for axis in axes}) == len({axis.get_ylim() for axis in axes}) == 1
    for axis in axes:  # a legend of the panel's own rows, below its axes and inside the picture
        legend, label = axis.get_legend(), axis.xaxis.label.get_window_extent()
        box = legend.get_window_extent()
        assert len(legend.texts) == len(axis.lines) and box.y1 < label.y0
        assert min(box.x0, box.y0) >= 0 and box.x1 <= figures[PICTURE].bbox.x1


def test_error_bars_are_the_deviation_and_do_not_overlap(figures: dict[str, Figure], tmp_path: Path):
    for seed, scores in enumerate([[10, 20, 60], [30, 20, 100]]):
        write_run(tmp_path / f"runs/a{seed}", scores, seed=seed)
        write_run(tmp_path / f"runs/b{seed}", scores, seed=seed, method="offline_dv2")
    run_report(tmp_path / "runs")
    bars = [np.array(part.get_segments()) for part in figures[PICTURE].axes[0].collections]
    for part in bars:
        np.testing.assert_allclose(part[:, :, 1].mean(1), [20, 20, 80])
        np.testing.assert_allclose(np.ptp(part[:, :, 1], 1) / 2, [200**0.5, 0, 800**0.5], atol=1e-9)
    shift = bars[1][:, 0, 0] - bars[0][:, 0, 0]
    assert (shift > 0).all() and (shift < 0.05 * 200).all()


def test_a_long_curve_has_few_error_bars(figures: dict[str, Figure], tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/a{seed}", [float(i * seed) for i in range(100)], seed=seed)
    run_report(tmp_path / "runs")
    (axis,) = figures[PICTURE].axes
    assert len(axis.lines[0].get_xdata()) == 100 and 6 < len(axis.collections[0].get_segments()) <= curves.BARS
