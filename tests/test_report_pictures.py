"""report.py: learning curves as pictures and as CSV, and the heat map."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report import DOWNHILL, UPHILL, lines, run_report, write_run

from analysis import curves
from analysis.curves import mean_curve
from analysis.runs import read_run

PICTURE = f"curves-{DOWNHILL}.png"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that analysis/curves.py saved, by file name."""
    found, save = {}, curves.save_figure

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        found[path.name] = figure

    monkeypatch.setattr(curves, "save_figure", keep)
    return found


def test_curves_interpolate_between_the_evaluations_of_a_seed(tmp_path: Path):
    write_run(tmp_path / "1", [0, 100, 200], seed=0)  # at 100, 200, 300
    write_run(tmp_path / "2", [0, 300], seed=1)  # at 100, 200
    runs = [read_run(tmp_path / name) for name in ("1", "2")]
    where, mean, std = mean_curve(runs, "step")
    assert where.tolist() == [100, 200, 300] and mean.tolist() == [0, 200, 200]
    np.testing.assert_allclose(std, [0, 200 / 2**0.5, 0])
    assert mean_curve(runs, "target_updates")[0].tolist() == [10, 20, 30]


def test_curves_are_written_as_csv(tmp_path: Path):
    root = tmp_path / "runs"
    write_run(root / "1", [20, 50, 100], success=0.5)
    write_run(root / "2", [5, 6, 0], seed=1, method="offline_dv2", source_task="", finished=False)
    found = lines(run_report(root) / "curves.csv")
    assert len(found) == 3 + 2
    assert found[1] == {
        "row": "coworld", "method": "coworld", "sources": "dmc_walker_walk", "target": DOWNHILL, "seed": "0",
        "round": "2", "step": "200", "target_updates": "20", "mean": "50.0", "std": "1.0",
        "success": str(0.5 * 2 / 3), "in_tables": "True",
    }  # fmt: skip
    offline = [(row["method"], row["sources"], row["seed"], row["mean"], row["in_tables"]) for row in found[3:]]
    assert offline == [("offline_dv2", "", "1", mean, "False") for mean in ("5.0", "6.0")]


@pytest.mark.parametrize("count", [2, 6])
def test_the_legend_is_outside_the_curves(count: int, figures: dict[str, Figure], tmp_path: Path):
    for i in range(count):
        write_run(tmp_path / f"runs/{i}", [900 + i] * 3, model_lr=i + 1)
    run_report(tmp_path / "runs", "--by", "model_lr")
    (figure,) = figures.values()
    axis = figure.axes[0]
    legend = axis.get_legend() or figure.legends[0]
    assert not legend.get_window_extent().overlaps(axis.get_window_extent())
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.x1
    assert all(0 < axis.transData.transform((0, line.get_ydata()[-1]))[1] < axis.bbox.y1 - 8 for line in axis.lines)


@pytest.mark.parametrize("count", [8, 12])
def test_only_the_random_policy_is_grey(count: int, figures: dict[str, Figure], tmp_path: Path):
    for i in range(count):
        write_run(tmp_path / f"runs/{i}", [i, i + 1], model_lr=i + 1)
    run_report(tmp_path / "runs", "--by", "model_lr")
    panels = [axis.lines for axis in figures[PICTURE].axes if axis.lines]
    assert all(lines[-1].get_color() == "gray" for lines in panels)
    methods = list({line.get_label(): line for lines in panels for line in lines[:-1]}.values())
    assert len(methods) == count
    assert all(len(set(line.get_color())) > 1 for line in methods)  # in a grey, red, green and blue are equal
    assert len({line.get_color() for line in methods}) == count


def test_curves_without_a_common_step_are_drawn_against_target_updates(figures: dict[str, Figure], tmp_path: Path):
    root = tmp_path / "runs"
    write_run(root / "1", [1, 2], method="offline_dv2")  # at steps 100 and 200
    write_run(root / "2", [1, 2], method="dv2_finetune", start=1000)
    write_run(root / "3", [1, 2], target_task="walker_uphill")
    run_report(root)
    axis = figures[PICTURE].axes[0]
    assert axis.get_xlabel() == curves.AXES["target_updates"]
    assert figures[f"curves-{UPHILL}.png"].axes[0].get_xlabel() == curves.AXES["step"]
    run_report(root, "--x", "step")
    axis = figures[PICTURE].axes[0]
    assert axis.get_xlabel() == curves.AXES["step"] and "no steps in common" in axis.get_title()


def test_many_curves_of_several_sources_have_a_panel_a_source(figures: dict[str, Figure], tmp_path: Path):
    for scale in (1, 2):
        for source in ("walker_walk", "walker_run"):
            name, flags = f"runs/{source}{scale}", {"source_task": source, "model_lr": scale}
            write_run(tmp_path / name, [1, 2], **flags)
    run_report(tmp_path / "runs", "--by", "model_lr")
    assert len(figures[PICTURE].axes) == 1  # four curves
    write_run(tmp_path / "runs/offline", [1, 2], method="offline_dv2")
    write_run(tmp_path / "runs/seed", [1, 3], source_task="walker_run", model_lr=2, seed=1)
    run_report(tmp_path / "runs", "--by", "model_lr")
    walk, run = figures[PICTURE].axes
    assert [axis.get_title() for axis in (walk, run)] == ["from walker_walk", "from walker_run"]
    names = [[line.get_label() for line in axis.lines] for axis in (walk, run)]
    assert names[0] == names[1] and len(names[0]) == 4  # with the offline method and the random policy
    assert "coworld, model_lr 2.0 (1-2 seeds)" in names[0]


def test_a_heat_map_of_one_cell_is_left_out(tmp_path: Path):
    write_run(tmp_path / "runs/1", [1, 2])
    out = run_report(tmp_path / "runs")
    assert not (out / "heatmap.png").exists() and "heatmap" not in (out / "table.md").read_text()
    write_run(tmp_path / "runs/2", [1, 2], source_task="walker_run")
    write_run(tmp_path / "runs/3", [1, 2], target_task="robodesk_push_green")  # the only pair of its suite
    assert (run_report(tmp_path / "runs") / "heatmap.png").exists()
