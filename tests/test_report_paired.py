"""report.py --reference: differences paired by seed, and the curves of offline figures."""

from pathlib import Path

import pytest
from scipy import stats
from test_bad_input import refused
from test_no_simulator import write_run
from test_report import lines, table

import report
from analysis import offline_curves
from analysis.paired import interval

OFF = "coworld, state_alignment False"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Losses of three seeds with and without alignment, of which two are common, and a third row with one seed."""
    root = tmp_path / "runs"
    for seed, (aligned, off) in enumerate([(8.0, 10.0), (9.0, 10.0)]):
        write_run(root / f"aligned{seed}", "my_robot", [None] * 3, [20.0, 15.0, aligned], seed=seed)
        write_run(root / f"off{seed}", "my_robot", [None] * 3, [20.0, 16.0, off], seed=seed, state_alignment=False)
    write_run(root / "aligned2", "my_robot", [None] * 3, [20.0, 15.0, 1.0], seed=2)
    write_run(root / "brute", "my_robot", [None] * 3, [20.0, 15.0, 2.0], seed=0, value_constraint="brute")
    return root


def test_the_interval_is_scipys():
    values = [1.0, 2.5, 4.0, 0.5]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((2.0, low, high))


def test_differences_are_of_common_seeds(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = {}
    monkeypatch.setattr(offline_curves, "save_figure", lambda figure, path: drawn.update({path.name: figure}))
    report.main([str(runs), "--out", str(tmp_path / "out"), "--reference", OFF])
    found = {line["measure"]: line for line in lines(tmp_path / "out" / "paired.csv")}
    assert found.keys() == {"image_loss", "value_bias"} and {line["row"] for line in found.values()} == {"coworld"}
    assert float(found["image_loss"]["mean"]) == -1.5 and found["image_loss"]["seeds"] == "2"
    assert float(found["image_loss"]["low"]) == pytest.approx(-1.5 - 12.706 * 0.5, abs=1e-3)
    shown = table(tmp_path / "out", f"Differences to {OFF}, paired by seed")
    assert shown["coworld"]["image loss"] == "-1.5 (-7.85 to +4.85; 2)"
    (axis, *_) = drawn["offline-my_robot.png"].axes
    points = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert points["coworld (3 seeds)"] == [20, 15, 6] and points[f"{OFF} (2 seeds)"] == [20, 16, 10]


def test_a_row_that_is_not_there_is_refused(runs: Path, capsys: pytest.CaptureFixture):
    assert f"no row is called so; nearest: {OFF}" in refused(report.main, [runs, "--reference", OFF[:-1]], capsys)


def test_rows_that_cannot_be_compared_are_named(runs: Path, tmp_path: Path):
    """One common seed, and other episodes held out."""
    for seed in (0, 1):
        write_run(runs / f"half{seed}", "my_robot", [None] * 3, [20.0, 15.0, 7.0], seed=seed, holdout=0.5, units=77)
    report.main([str(runs), "--out", str(tmp_path / "out"), "--reference", OFF, "--by", "units"])
    text = (tmp_path / "out" / "table.md").read_text()
    rows = {line["row"] for line in lines(tmp_path / "out" / "paired.csv")}
    assert len(rows) == 1 and "77" not in "".join(rows), "offline figures are of other episodes"
    notes = [line for line in text.splitlines() if "has fewer than two seeds in common with" in line]
    assert len(notes) == 2 and any("brute" in note for note in notes) and any("77" in note for note in notes)
