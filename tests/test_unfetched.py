"""Data that is not there: pointers of Git LFS in every format, and archives that are not unpacked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from replay import DataMapping, OfflineDataset, save_episode
from replay.data_files import find_data_files, first_image_shape
from tools import BadInput

DATA = Path(__file__).resolve().parent / "data"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 12345\n"
EPISODE = {"image": np.zeros((9, 8, 8, 3), np.uint8), "action": np.zeros((9, 2)), "reward": np.zeros(9)}


def lerobot_with_pointer(pattern: str):
    def make(folder: Path) -> Path:
        shutil.copytree(DATA / "lerobot" / "v30", folder)
        path = next(folder.glob(pattern))
        path.write_text(POINTER)
        return path.parent

    return make


def pointer_at(name: str):
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(POINTER)
        return path.parent

    return make


POINTERS = {
    "npz": pointer_at("a.npz"),
    "hdf5": pointer_at("a.hdf5"),
    "minari": pointer_at("toy-v0/data/main_data.hdf5"),
    "arrow": pointer_at("toy-v0/data/0/part-0.arrow"),
    "parquet": pointer_at("toy-v0/data/0/part-0.parquet"),
    "lerobot rows": lerobot_with_pointer("data/*/*.parquet"),
    "lerobot video": lerobot_with_pointer("videos/*top/*/*.mp4"),
    "lerobot list": lerobot_with_pointer("meta/episodes/*/*.parquet"),
    "lerobot info": lerobot_with_pointer("meta/info.json"),
    "no format": pointer_at("walker.zarr/image/0.0.0"),
    "an archive": pointer_at("data.tar"),
}


@pytest.mark.parametrize("kind", POINTERS)
def test_git_lfs_pointers(tmp_path: Path, kind: str):
    place = POINTERS[kind](tmp_path / "data")
    place = tmp_path / "data" if kind in ("no format", "an archive") else place
    mapping = DataMapping(image_key="observation.images.top") if "lerobot" in kind else DataMapping()
    with pytest.raises(BadInput, match=rf"Git LFS pointer.*run: cd {place} && git lfs pull"):
        OfflineDataset(tmp_path / "data", size=8, mapping=mapping, action_range="data" if mapping.keys else "")


def test_pointers_among_good_files_are_left_out(tmp_path: Path, capsys):
    save_episode(tmp_path, EPISODE, id="a")
    (tmp_path / "b.npz").write_text(POINTER)
    assert OfflineDataset(tmp_path, size=8).lengths == [8]
    assert f"b.npz: a Git LFS pointer, the file itself is not there; run: cd {tmp_path}" in capsys.readouterr().err
    assert first_image_shape(tmp_path) == (8, 8, 3)


ARCHIVES = ("a.zip", "a.tar", "A.TAR.GZ", "a.tgz", "a.7z", "a.tar.zst", "a.rar", "a.tar.xz", "a.bz2", "a.zip.001",
            "a.part1.rar", "a.tar.gz.aa", "deep/er/a.tar.lz4", "ep.npz.gz")  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_not_unpacked(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.md").touch()
    with pytest.raises(BadInput, match=f"archives that are not unpacked: unpack {name} and give the unpacked folder"):
        find_data_files(tmp_path)
    with pytest.raises(BadInput, match=f"not unpacked: unpack {Path(name).name} "):
        find_data_files(tmp_path / name)


def test_a_folder_without_archives_has_the_other_hint(tmp_path: Path):
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(BadInput, match=r"collect some with collect\.py"):
        find_data_files(tmp_path)
