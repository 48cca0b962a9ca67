"""The curves of a run, read back with TensorBoard's reader and server; its pictures and videos."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from test_bad_input import refused
from test_co_training import metrics

import evaluate
from training import pictures, visuals
from training.logger import CHARTS, CURVES, Logger, curve_name, find_curve


class Events:
    """The events of a run: TensorBoard reads those of the source as another run."""

    def __init__(self, logdir: Path):
        sizes = {"images": 0, "scalars": 0, "tensors": 0}
        self.of_run, self.of_source = (
            EventAccumulator(str(folder), size_guidance=sizes).Reload() for folder in (logdir, logdir / "source")
        )

    def Tags(self) -> dict[str, list[str]]:
        return {kind: [*self.of_run.Tags()[kind], *self.of_source.Tags()[kind]] for kind in ("scalars", "images")}

    def __getattr__(self, name: str) -> Callable[[str], Any]:
        return lambda tag: getattr(self.of_source if tag.startswith("source/") else self.of_run, name)(tag)


@pytest.fixture(scope="module")
def events(finished: Path) -> Events:
    return Events(finished)


def test_every_curve_of_a_run_has_a_group_and_a_description(events: Events):
    tags = [*events.Tags()["scalars"], *events.Tags()["images"]]
    domains, groups, names = (set(parts) for parts in zip(*(tag.split("/") for tag in tags), strict=True))
    assert domains == {"source", "target", "run"} and groups == {*CURVES} - {"offline"} and len(names) > 20
    for tag in tags:
        metadata = events.SummaryMetadata(tag)
        assert metadata.summary_description == find_curve(tag.split("/")[-1])[1] != "", tag
        assert metadata.data_class, tag  # without it the server leaves the description out
    assert "Eq. 3" in events.SummaryMetadata("target/ties/state_alignment").summary_description
    assert events.Scalars("target/eval/return")[-1].step == 127


def test_metrics_jsonl_and_tensorboard_have_the_same_curves(finished: Path, events: Events):
    points = metrics(finished)
    assert {key for point in points for key in point if "/" in key} == set(events.Tags()["scalars"])
    for tag in events.Tags()["scalars"]:
        logged = {point["step"]: point[tag] for point in points if tag in point}
        assert {e.step: pytest.approx(e.value) for e in events.Scalars(tag)} == logged


def test_the_settings_of_a_run_are_text(finished: Path, events: Events):
    (text,) = events.Tensors("run/config/text_summary")[0].tensor_proto.string_val
    settings, about = (finished / "config.yaml").read_text().split("# commit ")
    assert settings in text.decode() and re.fullmatch(
        r"([0-9a-f]{12}(-dirty)?|unknown)\n# dataset: .*\n# data: .*\n# suites: source dmc, target dmc\n", about
    )


def test_the_layout_shows_the_curves_of_both_domains_together(events: Events):
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert [category.title for category in layout.category] == list(CHARTS)
    assert charts["image loss"] == ["^source/model/image_loss$", "^target/model/image_loss$"]
    assert {"^target/eval/return$", "^source/data/episode_return$"} < set(charts["return"])
    assert "success" not in charts  # the walker reports none, so its chart would be empty
    assert all(find_curve(metric)[1] for charts in CHARTS.values() for chart in charts.values() for metric in chart)


def test_a_run_whose_task_reports_success_has_a_chart_of_it(tmp_path: Path):
    logger = Logger(tmp_path)
    logger.describe_run("", ["target"], ties=False, success=True, step=0)
    logger.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    layout = Layout.FromString(read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    titles = [[chart.title for chart in category.chart] for category in layout.category]
    assert titles[0] == ["return", "success"] and "Ties" not in [category.title for category in layout.category]
    assert CHARTS["Returns"].keys() == {"return", "success"}  # not changed


def test_an_unknown_metric_is_in_the_group_other(tmp_path: Path):
    assert curve_name("target", "distance_source_2") == "target/ties/distance_source_2"
    assert curve_name("target", "anything_new") == "target/other/anything_new"
    logger = Logger(tmp_path)
    logger.add("target", {"anything_new": 2.0})
    logger.write(3)
    logger.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert read.Scalars("target/other/anything_new")[0].value == 2.0


def test_rates_are_those_between_two_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = iter([100.0, 102.0, 110.0, 114.0])
    monkeypatch.setattr("training.logger.time.monotonic", lambda: next(now))
    logger = Logger(tmp_path)
    for step, updates, frames in ((1, 10, 50), (2, 16, 50), (3, 16, 50), (4, 18, 70)):
        if step != 3:  # no curves after an evaluation, which ends at 110 s: its time is not counted
            logger.add("target", {"value": 1.0})
        logger.write(step, {"updates": updates, "frames": frames})
    logger.close()
    rates = [
        {key.split("/")[-1]: value for key, value in json.loads(line).items() if key.startswith("run/throughput/")}
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert rates == [{}, {"updates_per_second": 3.0}, {"updates_per_second": 0.5, "frames_per_second": 5.0}]


def test_the_tables_of_curves_have_every_name():
    page = (ROOT / "docs" / "configuration.md").read_text().partition("\n## Curves\n")[2]
    for group, curves in CURVES.items():
        rows = [line for line in page.splitlines() if line.startswith(f"| `{group}` |")]
        assert all(any(f"`{name}" in row for row in rows) for name in curves), group
    readme = (ROOT / "README.md").read_text()
    for tag in ("target/eval/return", "source/data/episode_return", "target/model/image_loss", "source/ties/eta"):
        assert f"`{tag}`" in readme


# Pictures


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on, drawn."""
    figures = []

    def draw(figure: Figure, path: Path) -> None:
        figure.savefig(io.BytesIO(), dpi=100)
        figures.append(figure)

    monkeypatch.setattr(pictures, "save_figure", draw)
    return figures


@pytest.mark.parametrize("domains", [["target"], ["source", "target"], ["source_1", "source_2", "target"]])
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_titles_of_predictions_touch_nothing(domains: list[str], steps: int, monkeypatch: pytest.MonkeyPatch):
    figures = drawn(monkeypatch)
    images = np.zeros((steps, 32, 32, 3), np.uint8)
    pictures.prediction_sheet(dict.fromkeys(domains, (images, images)), 5, Path("predictions.png"))
    axes = figures[0].axes
    assert len(axes) == len(domains) and [axis.get_ylabel() for axis in axes] == domains
    for axis in axes:  # every frame is in the middle below its title, and right of its row's name
        shown = axis.images[0].get_array()
        at = np.array([[shown[int(y), int(x)] for x in axis.get_xticks()] for y in axis.get_yticks()])
        assert at[:2].max() == 0 and (at[2] == 128).all()
        assert [label.get_text() for label in axis.get_yticklabels()] == list(visuals.ROWS)
    panels = [axis.get_window_extent() for axis in axes]
    titles = [label.get_window_extent() for axis in axes for label in axis.get_xticklabels()]
    assert len(titles) == len(domains) * min(steps, 9)
    for title in titles:
        for box in (*panels, *(other for other in titles if other is not title)):
            apart = max(box.x0 - title.x1, title.x0 - box.x1, box.y0 - title.y1, title.y0 - box.y1)
            assert apart > 3, (title, box)
        above = [box.y0 - title.y1 for box in panels if box.y0 >= title.y1 - 3]
        assert not above or min(above) > 8


def test_the_title_of_the_scores_is_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    figures = drawn(monkeypatch)
    rows = [{"phase": "evaluate", "step": step, "mean": 5 * step, "std": 1} for step in (0, 1)]
    for name, title in (("run", "walker"), ("seed0", "seed0"), ("long" * 40, "long" * 40)):
        pictures.score_curve(rows, name, tmp_path / "walker" / name / "scores.png")
        axis = figures[-1].axes[0]
        assert axis.get_title() == title
        extent = axis.title.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= 640 and extent.y1 <= 360


# Videos


def test_videos_of_predictions_have_labels_and_large_images():
    truth, predicted = np.full((2, 7, 32, 32, 3), 100, np.uint8), np.full((2, 7, 32, 32, 3), 120, np.uint8)
    video = visuals.open_loop_video(truth, predicted, context=5, side=128)
    (left, top), gap = visuals.LABELS, 4
    assert video.shape == (7, top + 3 * (128 + gap), left + 2 * (128 + gap), 3)
    for row, grey in enumerate((100, 120, 138)):  # seen, predicted, half the difference on grey
        at = top + row * (128 + gap)
        assert (video[:, at : at + 128, left : left + 128] == grey).all()
        assert (video[:, at : at + 128, :left].min((1, 2, 3)) < 100).all()  # the row's name
    header = video[:, :top, left + 30 :]
    assert (header[0] == header[4]).all() and (header[5] != header[4]).any()  # given, then predicted from actions


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((64, 64), 256, (256, 256)),
        ((64, 64), 250, (250, 250)),
        ((32, 96), 256, (86, 256)),
        ((33, 33), 0, (32, 32)),
        ((300, 200), 256, (300, 200)),
    ],
)
def test_enlarged_frames_keep_their_aspect_and_have_even_sides(
    shape: tuple, size: int, expected: tuple, tmp_path: Path
):
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape, 3)).astype(np.uint8)
    large = visuals.enlarge(frames, size)
    assert large.shape == (3, *expected, 3) and large.dtype == np.uint8
    if shape == expected:
        assert (large == frames).all()
    if expected == (256, 256):
        assert (large[:, ::4, ::4] == frames).all() and (large[:, 3::4, 3::4] == frames).all()
    assert not large.shape[1] % 2 and not large.shape[2] % 2
    if shape == (32, 96):  # one is enough: the encoder takes seconds
        visuals.save_video(tmp_path / "a.mp4", large, fps=20)
        assert imageio.imread(tmp_path / "a.mp4").shape == large.shape


def test_evaluation_videos_have_the_size_asked_for(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (video, *_) = sorted((finished / "videos").glob("target-evaluation-*.gif"))
    assert imageio.imread(video).shape == (13, 64, 64, 3)  # 12 steps, `debug`; the agent's own images have 32 pixels
    for name, flags, size in (("a.mp4", [], 256), ("b.gif", ["--video_size", 80], 80)):
        arguments = ["--logdir", finished, "--episodes", 1, "--video", tmp_path / name, *flags]
        evaluate.main([str(a) for a in arguments])
        assert imageio.imread(tmp_path / name).shape == (13, size, size, 3)
    line = refused(evaluate.main, ["--logdir", finished, "--video_size", -1], capsys)
    assert "--video_size -1: give pixels" in line
