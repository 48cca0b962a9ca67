"""report.py: LaTeX tables, PDF pictures, settings read quickly, and folders that are not searched."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import tiny
from ruamel.yaml import YAML
from test_report import DOWNHILL, listed, run_report, write_run

from analysis.latex import escape
from analysis.report_files import write_report
from analysis.run_settings import parse_yaml, read_settings
from analysis.runs import run_folders
from config import to_yaml
from tools import BadInput


def test_latex_tables_have_the_best_of_each_pair_in_bold(tmp_path: Path):
    root = tmp_path / "runs"
    for seed in (0, 1):
        write_run(root / f"1{seed}", [1, 200 + 100 * seed], seed=seed)
        write_run(root / f"2{seed}", [1, 80], seed=seed, value_constraint="off")
    write_run(root / "3", [1, 90], method="offline_dv2", target_task="walker_uphill")
    write_run(root / "4", [1, 40], target_task="walker_uphill")
    out = run_report(root)
    header, down, up, mean = (
        line.strip("\\ ") for line in (out / "table-return-dmc.tex").read_text().split("\n") if "&" in line
    )
    off = r"\shortstack[r]{coworld, \\ value\_constraint \\ off}"
    assert header == rf" & \shortstack[r]{{random \\ policy}} & coworld & {off} & offline\_dv2".strip()
    pair = r"walker\_walk $\rightarrow$ walker\_downhill"
    assert down == rf"{pair} & 10.0 $\pm$ 0.0 & \textbf{{250}} $\pm$ 71 & 80.0 $\pm$ 0.0 & --"
    assert up.endswith(r"& 10.0 (1) & 40.0 (1) & -- & \textbf{90.0} (1)")  # two seeds are the usual number
    assert mean == r"average & 10.0 & \textbf{145} & 80.0 (1/2) & 90.0 (1/2)"
    document = (out / "report.tex").read_text()
    assert r"\input{table-return-dmc}" in document and "{curves-dmc_walker_downhill.pdf}" in document


def test_latex_compiles(tmp_path: Path):
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    for i, method in enumerate(("coworld", "offline_dv2", "dv2_finetune")):
        write_run(tmp_path / f"runs/{i}", [1, 20 + i], method=method, offline_traindir="a_&%#~^$<>é|{}\\")
        write_run(tmp_path / f"runs/{i}b", [1, 20 + i], method=method, offline_traindir="data/c")
    out = run_report(tmp_path / "runs", "--by", "offline_traindir")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


def test_latex_text():
    assert escape("日é") == "?é"
    assert escape("a_b -> 50% {x} \\") == r"a\_b $\rightarrow$ 50\% \{x\} \textbackslash{}"


def test_the_same_runs_give_the_same_files(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/1{seed}", [1, 20 + seed], seed=seed)
        write_run(tmp_path / f"runs/2{seed}", [1, 30], seed=seed, method="offline_dv2")
    text = write_report([tmp_path / "runs"], tmp_path / "a")
    write_report([tmp_path / "runs"], tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"profiles.pdf", "improvement.pdf", f"curves-{DOWNHILL}.pdf", "table-improvement.tex"} <= names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert str(tmp_path / "a/report.tex") in text and "# Report on 4 runs" in text
    with pytest.raises(BadInput, match="no run has such a setting"):
        write_report([tmp_path / "runs"], tmp_path / "c", by=["nothing"])
    assert not (tmp_path / "c").exists()


def test_a_report_in_the_same_folder_leaves_nothing_of_the_one_before(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"a/1{seed}", [1, 20 + seed], seed=seed)
        write_run(tmp_path / f"a/2{seed}", [1, 30], seed=seed, method="offline_dv2")
    write_run(tmp_path / "b/1", [1, 20], target_task="walker_uphill")
    out = tmp_path / "out"
    write_report([tmp_path / "a"], out)
    (out / "notes.md").write_text("my own")
    (out / "curves-mine.png").write_bytes(b"my own")
    write_report([tmp_path / "b"], out)
    write_report([tmp_path / "b"], tmp_path / "alone")
    found = {path.name for path in out.iterdir()}
    assert found == {path.name for path in (tmp_path / "alone").iterdir()} | {"notes.md", "curves-mine.png"}
    assert not any("downhill" in name or "improvement" in name for name in found)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/table.md").write_text("# Notes\n\n![a.png](a.png)\n")
    (tmp_path / "other/a.png").write_bytes(b"of another program")
    write_report([tmp_path / "b"], tmp_path / "other")
    assert (tmp_path / "other/a.png").exists()


def test_snapshots_of_the_pretraining_are_not_runs(tmp_path: Path):
    run = write_run(tmp_path / "runs/pretrained/1", [1, 2])  # not in a run directory
    write_run(run / "pretrained", [1, 2])
    write_run(run / ".pretrained.partial/contents", [1, 2])
    assert run_folders([tmp_path / "runs"]) == [run]
    write_run(tmp_path / "runs/2", [1, 4], seed=1, source_from=run)
    assert listed(run_report(tmp_path / "runs"), "Notes") == []


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb:\n- 2\n- 3\nc: off\nd: true\ne: ''\nf: 1e-3\ng: x # y\n",
        "# --configs defaults\n\na: long text\n  that goes on\nb: [1, 2]\nc: 0x10\nd: null\ne:\n",
        "a: |\n  x: 1\n  y: 2\nb: 'it''s'\nc: \"two\\nlines\"\n",
        "{a: 1, b: off}\n",
        "---\na: &x 1\nb: *x\n",
    ],
)
def test_settings_are_read_as_yaml(text: str):
    found, expected = parse_yaml(text), YAML().load(text)
    assert found == expected and list(found) == list(expected)
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_settings_of_a_run_keep_their_values_and_types(tmp_path: Path):
    config = tiny(value_constraint="off", logdir=f"{tmp_path}/a folder/{'long ' * 30}end", model_lr=3e-5)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    found = read_settings(tmp_path)
    assert found == {**vars(config), "configs": "dmc debug"}
    assert {key: type(value) for key, value in found.items()} == {
        **{key: type(value) for key, value in vars(config).items()}, "configs": str,
    }  # fmt: skip
