"""dataset.py: info is right, convert loses nothing and leaves no half-written file, check names bad files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import OTHER_PROGRAMS, ROOT
from PIL import Image

import dataset
from replay import OfflineDataset, minari_writer, save_episode, summary
from replay.formats import npz
from tools import BadInput


def make_episode(rows: int, action_dim: int = 2) -> dict:
    rng = np.random.default_rng(rows)
    action = rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32)
    action[0] = 0
    reward = rng.uniform(0, 1, rows).astype(np.float32)
    reward[0] = 0
    image = rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    return {"image": image, "action": action, "reward": reward, "discount": np.ones(rows, np.float32)}


def fill(folder: Path, lengths: list[int]) -> list[dict]:
    episodes = [make_episode(rows) for rows in lengths]
    for number, episode in enumerate(episodes):
        save_episode(folder, episode, id=f"{number:04d}")
    return episodes


def facts_of(text: str) -> dict[str, str]:
    """The printed facts by name."""
    return {line[:14].strip(): line[14:].strip() for line in text.splitlines()}


def test_info_is_right(tmp_path, capsys):
    episodes = fill(tmp_path, list(range(5, 25)))
    (tmp_path / "dataset.json").write_text(json.dumps({"task": "dmc_walker_walk", "render": "fast", "seed": 3}))
    assert dataset.main(["info", str(tmp_path)]) == 0
    facts = facts_of(capsys.readouterr().out)
    returns = [episode["reward"].sum(dtype=np.float64) for episode in episodes]
    assert facts["episodes"] == "20, of which 0 end with discount 0"
    assert facts["steps"] == str(sum(range(4, 24)))
    low, median, high = np.quantile(returns, [0.1, 0.5, 0.9])
    assert f"10% {low:.5g} median {median:.5g} 90% {high:.5g}" in facts["return"]
    assert f"mean {np.mean(returns):.5g}" in facts["return"]
    assert facts["length"] == "min 4 10% 5.9 median 13.5 90% 21.1 max 23 mean 13.5"
    actions = np.concatenate([episode["action"][1:] for episode in episodes])
    ranges = [f"[{low:.3f}, {high:.3f}]" for low, high in zip(actions.min(0), actions.max(0), strict=True)]
    assert facts["actions"] == f"2, ranges {' '.join(ranges)}"
    rewards = np.concatenate([episode["reward"][1:] for episode in episodes])
    assert facts["reward"] == f"[{rewards.min():.4g}, {rewards.max():.4g}] a step"
    assert facts["image size"] == "16x16 (20 episodes)"
    assert (facts["task"], facts["render"], facts["seed"]) == ("dmc_walker_walk", "fast", "3")
    assert facts["flip"] == facts["action_repeat"] == "not recorded"
    for name in ("returns.png", "contact_sheet.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 2
    assert OfflineDataset(tmp_path, size=16).episodes == 20, "the pictures do not disturb the dataset"


def test_the_contact_sheet_names_its_episodes_and_has_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures, new_figure = [], summary.new_figure
    monkeypatch.setattr(summary, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    sheet = summary.Summary(frames=[(np.zeros((10, 32, 32, 3), np.uint8), "/data/robot/b.hdf5 episode 3", 12.5)])
    sheet.draw_sheet(tmp_path / "sheet.png")
    (axis,) = figures[0].axes
    assert axis.get_title(loc="left") == "b.hdf5 episode 3: return 12.5"
    title, figure = axis.title.get_window_extent(), figures[0].bbox
    assert figure.x0 <= title.x0 and title.x1 <= figure.x1
    shown = axis.images[0].get_array()[0, :, 0]
    assert len(shown) == 10 * 32 + 9 * 2 and (shown == 255).sum() == 9 * 2


def test_info_of_data_that_may_not_be_written_to(tmp_path, capsys, monkeypatch):
    fill(tmp_path / "data", [9])
    (tmp_path / "data").chmod(0o555)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    dataset.main(["info", str(tmp_path / "data")])
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["contact_sheet.png", "returns.png"]
    (tmp_path / "data").chmod(0o755)


def test_info_of_terminations_within_episodes(tmp_path, capsys):
    episode = make_episode(9)
    save_episode(tmp_path, episode | {"discount": np.where(np.arange(9) == 4, 0, 1).astype(np.float32)}, id="two")
    dataset.main(["info", str(tmp_path)])
    assert "warning: 1 episode(s) with discount 0 before the last row" in capsys.readouterr().err


def test_info_of_episodes_of_different_tasks_names_the_odd_one(tmp_path):
    fill(tmp_path, [9, 12])
    odd = save_episode(tmp_path, make_episode(9, action_dim=4), id="odd")
    with pytest.raises(BadInput, match="actions of size 4, most others have 2") as caught:
        dataset.main(["info", str(tmp_path)])
    assert str(caught.value).startswith(str(odd))


@pytest.mark.parametrize("name", ["release_npz", "vd4rl_64px_npz", "vd4rl_84px_hdf5", "minari"])
def test_info_of_files_of_other_programs(tmp_path, capsys, name):
    dataset.main(["info", str(OTHER_PROGRAMS / name), "--out", str(tmp_path)])
    facts = facts_of(capsys.readouterr().out)
    assert facts["steps"] == {"release_npz": "48", "minari": "48"}.get(name, "24")
    assert facts["image size"].startswith("84x84" if name == "vd4rl_84px_hdf5" else "64x64")
    assert facts["actions"].startswith("6, ")


def test_convert_there_and_back(tmp_path, capsys):
    fill(tmp_path / "a", [9, 12])
    (tmp_path / "a" / "dataset.json").write_text('{"task": "dmc_walker_walk", "background": null}')
    dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b-v0"), "--to", "minari"])
    dataset.main(["convert", str(tmp_path / "b-v0"), str(tmp_path / "c"), "--to", "npz"])
    first, last = (sorted((tmp_path / name).glob("*.npz")) for name in "ac")
    assert [path.name for path in first] == [path.name for path in last]
    for one, other in zip(first, last, strict=True):
        with np.load(one) as before, np.load(other) as after:
            assert set(before) == set(after)
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    for name in ("b-v0", "c"):
        assert OfflineDataset(tmp_path / name, size=16).description == {"task": "dmc_walker_walk"}
        written = (tmp_path / name / "dataset.json").read_text()
        assert json.loads(written) == {"task": "dmc_walker_walk", "background": None} and written.endswith("}\n")


def test_convert_names_bad_files_and_overwrites_nothing(tmp_path, capsys):
    fill(tmp_path / "a", [9, 12])
    (tmp_path / "a" / "bad.npz").write_text("no")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="is not empty"):
        dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "full"), "--to", "npz"])
    assert dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "minari"]) == 0
    assert "bad.npz: not a readable npz file" in capsys.readouterr().err
    assert OfflineDataset(tmp_path / "b", size=16).episodes == 2
    save_episode(tmp_path / "a", make_episode(9, action_dim=4), id="odd")
    with pytest.raises(BadInput, match="keep one task a folder"):
        dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "c"), "--to", "npz"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "full"]


def test_convert_does_not_write_within_its_input(tmp_path, monkeypatch):
    fill(tmp_path / "a", [9])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BadInput, match="is the current folder"):
        dataset.main(["convert", str(tmp_path / "a"), ".", "--to", "npz"])
    with pytest.raises(BadInput, match="lies within the dataset"):
        dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b" / ".." / "a" / "sub"), "--to", "npz"])
    assert len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize(
    ("module", "writer", "format"), [(npz, "write_npz", "npz"), (minari_writer, "_write_group", "minari")]
)
def test_ctrl_c_while_converting_leaves_nothing(tmp_path, monkeypatch, module, writer, format):
    fill(tmp_path / "a", [9, 12, 15])
    written, write = [], getattr(module, writer)

    def interrupted(*args, **kwargs):
        written.append(args)
        os.kill(os.getpid(), signal.SIGINT)
        write(*args, **kwargs)

    monkeypatch.setattr(module, writer, interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", format])
    assert len(written) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("to", ["npz", "minari"])
def test_a_full_disk_while_converting_leaves_nothing(tmp_path, to):
    """A limit on the size of files stands for the full disk: writes beyond it fail in the same way."""
    fill(tmp_path / "a", [60, 3000])
    code = (
        "import resource, sys, dataset, tools\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "tools.exit_on_bad_input(lambda: dataset.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", to]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("converting")]
    assert result.returncode == 2 and len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ") and "free space or choose another place" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_while_drawing_leaves_no_picture(tmp_path, monkeypatch):
    fill(tmp_path / "a", [9])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"cannot write returns.png: No space left"):
        dataset.main(["info", str(tmp_path / "a"), "--out", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def test_check_names_every_bad_file(tmp_path, capsys):
    fill(tmp_path, [9, 12, 9])
    assert dataset.main(["check", str(tmp_path)]) == 0
    (tmp_path / "x.npz").write_text("no")
    np.savez(tmp_path / "y.npz", **make_episode(9) | {"reward": np.full(9, np.nan)})
    odd = save_episode(tmp_path, make_episode(9, action_dim=4), id="odd")
    (tmp_path / "dataset.json").write_text("[]")
    capsys.readouterr()
    assert dataset.main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("bad: ")]
    assert len(bad) == 4 and any("dataset.json" in line for line in bad)
    for name, reason in [("x.npz", "not a readable npz"), ("y.npz", "NaN"), (odd.name, "actions of size 4")]:
        assert any(name in line and reason in line for line in bad)
    assert lines[-1].endswith("6 file(s), 3 good episode(s), 4 problem(s)")


def test_the_digest_of_a_dataset_is_that_of_its_contents(tmp_path, capsys):
    """Not of its file names, its format or its cache. With an earlier version's index the data is prepared again."""
    episodes = fill(tmp_path / "a", [9, 12])
    digest = OfflineDataset(tmp_path / "a", size=16).digest
    dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b-v0"), "--to", "minari"])
    assert OfflineDataset(tmp_path / "b-v0", size=16).digest == digest
    path = tmp_path / "a" / ".coworld-cache" / "16px" / "index.json"
    index = json.loads(path.read_text())
    for entry in index["files"].values():
        for episode in entry["episodes"]:
            del episode["digest"]
    path.write_text(json.dumps({**index, "version": 3}))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (path.parent / f".half.npz.{ended.pid}.tmp").touch()  # of a killed process
    assert OfflineDataset(tmp_path / "a", size=16).digest == digest
    assert not list(path.parent.glob(".*.tmp"))
    assert path.read_text().count('"digest"') == 2
    assert "index format 3, not 5; preparing the data again" in capsys.readouterr().err
    found = {digest}
    for key in ("image", "action", "reward", "discount", "order"):
        changed = [{name: array.copy() for name, array in episode.items()} for episode in episodes]
        if key == "order":
            changed.reverse()
        else:
            changed[1][key].flat[-1] = 0 if key != "image" else changed[1][key].flat[-1] ^ 1
        for number, episode in enumerate(changed):
            save_episode(tmp_path / key, episode, id=f"{number:04d}")
        found.add(OfflineDataset(tmp_path / key, size=16).digest)
    assert len(found) == 6


def test_the_command_line(tmp_path):
    fill(tmp_path / "a", [9])
    run = [sys.executable, "dataset.py"]
    good = subprocess.run([*run, "check", str(tmp_path / "a")], cwd=ROOT, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    for wrong in (["info"], ["inf", "a"], ["convert", "a", "b", "--to", "mp4"]):
        with pytest.raises(BadInput, match="see --help"):
            dataset.main(wrong)
    bad = subprocess.run([*run, "info", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2
    advice = (
        f"give the folder that holds the episodes, or record some: python collect.py --task TASK --out {tmp_path}/none"
    )
    assert bad.stderr == f"error: {tmp_path / 'none'}: no such directory; {advice}\n"


def test_nobody_reads_the_output(tmp_path):
    """As in `dataset.py info DIR | head -1`."""
    fill(tmp_path, [9])
    command = [sys.executable, "dataset.py", "info", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=60) == 141


def test_the_demos_dataset_is_complete(tmp_path: Path):
    folder = ROOT / "examples" / "cheetah_downhill"
    described = json.loads((folder / "dataset.json").read_text())
    data = OfflineDataset(folder, size=32, cache_dir=str(tmp_path))
    assert (data.episodes, data.steps) == (described["episodes"], described["steps"]) == (80, 8000)
    assert sorted(data.returns) == pytest.approx(sorted(described["returns"]), rel=1e-4)
    assert sum(file.stat().st_size for file in folder.glob("*.npz")) < 5e6
