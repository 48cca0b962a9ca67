"""Reading data files: what failed is read again, slices and their memory, several cameras."""

import errno
import fcntl
import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import dataset
from replay import DataMapping, OfflineDataset, reader_process, save_episode, slices
from replay.data_files import find_data_files
from replay.hdf5 import sliced_hdf5
from replay.safe_read import safe_read
from tools import BadInput, resize_images

DATA = Path(__file__).resolve().parent / "data"


def make_episode(rows: int, size: int = 8) -> dict:
    rng = np.random.default_rng(rows)
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    action[0] = 0
    image = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    reward, discount = np.arange(rows, dtype=np.float32), np.ones(rows, np.float32)
    return {"image": image, "action": action, "reward": reward, "discount": discount}


def write_flat(path: Path, episodes: list[dict], **options) -> None:
    """An HDF5 file of V-D4RL's layout, channels last."""
    steps = [np.array([0, *[1] * (len(e["reward"]) - 2), 2]) for e in episodes]
    arrays = {key: np.concatenate([e[key] for e in episodes]) for key in ("action", "reward", "discount")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("observation", data=np.concatenate([e["image"] for e in episodes]), **options)
        for key, array in (arrays | {"step_type": np.concatenate(steps)}).items():
            file[key] = array


def write_minari(path: Path, observations: dict[str, object], steps: int) -> None:
    """One episode in Minari's HDF5 layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in observations.items():
            if isinstance(array, list):
                encoded = file.create_dataset(f"episode_0/{name}", len(array), h5py.vlen_dtype(np.uint8))
                for index, data in enumerate(array):
                    encoded[index] = np.frombuffer(data, np.uint8)
            else:
                file.create_dataset(f"episode_0/{name}", data=array, chunks=(1, *array.shape[1:]), compression=1)
        file["episode_0/actions"] = np.zeros((steps, 2), np.float32)
        file["episode_0/rewards"] = np.ones(steps, np.float32)
        for name in ("terminations", "truncations"):
            file[f"episode_0/{name}"] = np.zeros(steps, bool)


def jpeg(frame: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=95)
    return data.getvalue()


def changed(path: Path, change) -> None:
    """Change a file's bytes; its size and time stay."""
    state = path.stat()
    path.write_bytes(change(path.read_bytes()))
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


# What failed is read again


def test_a_file_that_another_program_had_locked_is_read_at_the_next_start(tmp_path: Path, capsys):
    for name in "ab":
        write_flat(tmp_path / f"{name}.hdf5", [make_episode(6), make_episode(9)])
    with (tmp_path / "b.hdf5").open("rb") as recorder:
        fcntl.flock(recorder, fcntl.LOCK_EX)
        assert OfflineDataset(tmp_path, size=8).lengths == [5, 8]
        left_out, total = capsys.readouterr().err.splitlines()
        assert "b.hdf5: locked by another program (" in left_out and "copy it again" not in left_out
        assert "2 episode(s) are used, 1 episode(s) or file(s) are left out" in total
    assert OfflineDataset(tmp_path, size=8).lengths == [5, 8, 5, 8]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_a_bad_read_of_an_unchanged_file_is_not_remembered(tmp_path: Path, capsys, kind: str):
    if kind == "npz":
        paths = [save_episode(tmp_path, make_episode(rows), id=str(rows)) for rows in (6, 9)]
    else:
        paths = [tmp_path / f"{rows}.hdf5" for rows in (6, 9)]
        for path, rows in zip(paths, (6, 9), strict=True):
            write_flat(path, [make_episode(rows)])
    good = paths[1].read_bytes()
    changed(paths[1], lambda data: bytes(100) + data[100:-100] + bytes(100))
    for _ in range(2):
        assert OfflineDataset(tmp_path, size=8).lengths == [5]
        assert "if it is still being written, start again later" in capsys.readouterr().err
    changed(paths[1], lambda _: good)
    assert OfflineDataset(tmp_path, size=8).lengths == [5, 8]


def test_the_reading_process_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch):
    """Such as another clone of this project, from which a script is started."""
    write_flat(tmp_path / "data" / "a.hdf5", [make_episode(6)])
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    reader_process.stop()
    assert OfflineDataset(tmp_path / "data", size=8).lengths == [5]


def test_only_the_bad_episodes_of_a_file_are_read_again(tmp_path: Path):
    episodes = [make_episode(rows) for rows in (6, 9, 7)]
    episodes[1]["reward"][3] = np.nan
    path = tmp_path / "a.hdf5"
    write_flat(path, episodes)
    assert OfflineDataset(tmp_path, size=8).lengths == [5, 6]
    copies = {p.name: p.stat().st_ino for p in (tmp_path / ".coworld-cache" / "8px").glob("*.npz")}
    assert OfflineDataset(tmp_path, size=8).lengths == [5, 6]
    state = path.stat()
    with h5py.File(path, "a") as file:
        file["reward"][9] = 3
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    data = OfflineDataset(tmp_path, size=8)
    assert data.lengths == [5, 8, 6] and np.array_equal(data.read(1)["image"], episodes[1]["image"])
    now = {p.name: p.stat().st_ino for p in (tmp_path / ".coworld-cache" / "8px").glob("*.npz")}
    assert copies.items() < now.items() and len(now) == 3


def test_links_that_lead_nowhere_are_named_until_they_lead_somewhere(tmp_path: Path, capsys):
    save_episode(tmp_path / "data", make_episode(6), id="a")
    (tmp_path / "data" / "b.npz").symlink_to(tmp_path / "disk" / "b.npz")
    assert OfflineDataset(tmp_path / "data", size=8).lengths == [5]
    assert "b.npz: the file, or what the link points to, is gone" in capsys.readouterr().err
    save_episode(tmp_path / "disk", make_episode(9), id="b").rename(tmp_path / "disk" / "b.npz")
    assert OfflineDataset(tmp_path / "data", size=8).lengths == [5, 8]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_read_when_it_is_given(tmp_path: Path, capsys):
    paths = [save_episode(tmp_path, make_episode(rows), id=str(rows)) for rows in (6, 9)]
    paths[1].chmod(0)
    assert OfflineDataset(tmp_path, size=8).lengths == [5]
    assert "no permission to read it" in capsys.readouterr().err
    paths[1].chmod(0o600)
    assert OfflineDataset(tmp_path, size=8).lengths == [5, 8]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), r"no permission to read it .*chmod u\+r"),
        (OSError(errno.ESTALE, "Stale file handle"), "does not answer .*the file may be good: check the mount"),
        (OSError("Can't read data (errno = 5, error message = 'Input/output error')"), "does not answer"),
        (OSError("unable to lock file, errno = 11, 'Resource temporarily unavailable'"), "locked by another program"),
        (OSError("file is already open for write (may use <h5clear file>)"), "still open for writing"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files .*ulimit -n"),
        (MemoryError(), "needs more than 2 GiB of memory, the limit; raise it with --read_memory"),
        (zipfile.BadZipFile("Bad magic number"), r"not a readable npz file \(Bad magic number\); copy it again or"),
    ],
)
def test_the_advice_fits_the_cause(error: Exception, message: str):
    with pytest.raises(BadInput, match=message), safe_read("data/a.npz", "npz"):
        raise error


# Slices


@pytest.mark.parametrize("rows_of_a_slice", [1, 3, 100])
def test_slices_give_what_the_file_has(tmp_path: Path, monkeypatch, rows_of_a_slice: int):
    """At their own size and resized; HDF5 chunks and episodes begin at other rows than slices."""
    monkeypatch.setattr(slices, "SLICE_BYTES", rows_of_a_slice * 12 * 12 * 3)
    episodes = [make_episode(rows, 12) for rows in (7, 10)]
    for number, episode in enumerate(episodes):
        save_episode(tmp_path / "npz", episode, id=str(number))
    np.savez(tmp_path / "npz" / "z.npz", **episodes[0] | {"image": np.asfortranarray(episodes[0]["image"])})
    write_flat(tmp_path / "hdf5" / "a.hdf5", episodes, chunks=(4, 5, 12, 2), compression="gzip")
    write_minari(tmp_path / "minari" / "main_data.hdf5", {"observations/image": episodes[0]["image"]}, 6)
    expected = {"npz": [*episodes, episodes[0]], "hdf5": episodes, "minari": episodes[:1]}
    for kind, images in ((kind, [e["image"] for e in found]) for kind, found in expected.items()):
        for size in (None, 5):
            files = find_data_files(tmp_path / kind, mapping=DataMapping(image_size=size))
            # in this process, where slices are that small
            loaded = [load() for f in files for _, load in f.format.episodes(f.path, False, f.mapping)]
            assert [e["image"].shape[1] for e in loaded] == [size or 12] * len(images)
            for one, image in zip(loaded, images, strict=True):
                assert np.array_equal(np.asarray(one["image"]), resize_images(image, size) if size else image)
        data = OfflineDataset(tmp_path / kind, size=5)
        assert data.image_shape == (12, 12, 3)
        assert np.array_equal(data.read(0)["image"], resize_images(images[0], 5))


@pytest.mark.parametrize("place", ["minari/arrow/raw-image-v0", "minari/parquet/jpeg-dict-v0", "lerobot/v30"])
def test_slices_of_tables_and_videos(monkeypatch, place: str):
    mapping = DataMapping(image_key="observation.images.top" if "lerobot" in place else "", any_actions=True)
    file = find_data_files(DATA / place, mapping=mapping)[0]
    whole = file.episodes()[0][1]()["image"]
    monkeypatch.setattr(slices, "SLICE_BYTES", 2 * whole[0].nbytes)
    monkeypatch.setattr("replay.formats.minari.ENCODED_ROWS", 2)
    ((_, load), *_) = file.format.episodes(file.path, False, mapping)  # in this process, where slices are that small
    pieces = list(load()["image"])
    assert {len(piece) for piece in pieces} <= {1, 2} and np.array_equal(np.concatenate(pieces), whole)


def test_memory_follows_the_slice(tmp_path: Path):
    """400 frames of 480x640, 370 MB, in a small file."""
    frames = np.zeros((25, 480, 640, 3), np.uint8)
    frames[:, :240] = 200
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (400, 480, 640, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(16):
                file.write(frames)
        for key, array in make_episode(400).items():
            if key != "image":
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
    tracemalloc.start()
    data = OfflineDataset(tmp_path, size=16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.lengths == [399] and peak < 100e6
    image = data.read(0, 398, 2)["image"]
    assert (image[:, :8] == 200).all() and not image[:, 8:].any()


@pytest.mark.parametrize("encoded", [True, False])
def test_small_files_of_compressible_images_are_valid(tmp_path: Path, encoded: bool):
    """300 frames of 400x600: 216 MB, of which the file has a five-hundredth."""
    frame = np.full((400, 600, 3), 90, np.uint8)
    images = [jpeg(frame)] * 300 if encoded else np.broadcast_to(frame, (300, *frame.shape))
    path = tmp_path / "toy-v0" / "data" / "main_data.hdf5"
    write_minari(path, {"observations": images}, 299)
    mapping = DataMapping(read_memory=0.25)
    data = OfflineDataset(tmp_path, size=16, mapping=mapping)
    assert data.lengths == [299] and data.image_shape == (400, 600, 3)
    assert np.abs(data.read(0)["image"].astype(int) - 90).max() <= 1


def test_what_does_not_fit_the_memory_names_limit_and_option(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in (make_episode(9) | {"reward": np.zeros(3 << 20)}).items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    (file,) = find_data_files(tmp_path, mapping=DataMapping(read_memory=0.02))
    with pytest.raises(BadInput, match=r"a.npz: 0.0 GiB at once are more than 0.02 GiB.*raise it with --read_memory"):
        file.episodes()[0][1]()
    with h5py.File(tmp_path / "chunk.hdf5", "w") as file:
        file.create_dataset(
            "image", data=np.zeros((90, 256, 256, 3), np.uint8), chunks=(90, 256, 256, 3), compression=1
        )
        with pytest.raises(BadInput, match="--read_memory"), safe_read("chunk.hdf5", "HDF5"):
            sliced_hdf5(tmp_path / "chunk.hdf5", file["image"], "", 0.01)


def test_damage_within_the_images_leaves_one_episode_out(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(slices, "SLICE_BYTES", 1000)
    paths = [save_episode(tmp_path / "data", make_episode(rows), id=str(rows)) for rows in (60, 90)]
    data = bytearray(paths[1].read_bytes())
    data[8000:8010] = bytes(10)
    paths[1].write_bytes(data)
    assert OfflineDataset(tmp_path / "data", size=8).lengths == [59]
    assert f"left out: {paths[1]}: not a readable npz file" in capsys.readouterr().err
    assert len(list((tmp_path / "data" / ".coworld-cache" / "8px").glob("*.npz"))) == 1
    assert dataset.main(["check", str(tmp_path / "data")]) == 1
    assert dataset.main(["info", str(tmp_path / "data")]) == 0
    assert "episodes      1," in capsys.readouterr().out
    assert dataset.main(["convert", str(tmp_path / "data"), str(tmp_path / "out"), "--to", "minari"]) == 0
    assert OfflineDataset(tmp_path / "out", size=8).lengths == [59]


@pytest.mark.parametrize("to", ["npz", "minari"])
def test_convert_writes_large_arrays_in_slices(tmp_path: Path, monkeypatch, to: str):
    monkeypatch.setattr(slices, "SLICE_BYTES", 7 * 192)
    monkeypatch.setattr("replay.convert.WHOLE_BYTES", 0)
    episode = make_episode(60) | {"second": np.arange(60 * 64, dtype=np.int64).reshape(60, 64)}
    save_episode(tmp_path / "a", episode, id="a")
    assert dataset.main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", to]) == 0
    (file,) = find_data_files(tmp_path / "b")
    ((_, load),) = file.episodes(raw=True)
    found = load()
    assert found.keys() == episode.keys()
    assert all(np.array_equal(found[key], episode[key]) and found[key].dtype == episode[key].dtype for key in episode)


# Several cameras


def npz_of(folder: Path, **arrays: np.ndarray) -> None:
    folder.mkdir()
    np.savez(folder / "a.npz", **make_episode(9) | arrays)


def flat_of(folder: Path, **arrays: np.ndarray) -> None:
    write_flat(folder / "a.hdf5", [make_episode(9)])
    with h5py.File(folder / "a.hdf5", "a") as file:
        for name, array in arrays.items():
            file[name] = array


def minari_of(folder: Path, **arrays: np.ndarray) -> None:
    images = {"image": make_episode(9)["image"]} | arrays
    write_minari(folder / "main_data.hdf5", {f"observations/{name}": array for name, array in images.items()}, 8)


def jpegs_of(folder: Path, **arrays: np.ndarray) -> None:
    images = {"image": make_episode(9)["image"]} | arrays
    observations = {f"observations/{name}": [jpeg(frame) for frame in array] for name, array in images.items()}
    write_minari(folder / "main_data.hdf5", observations, 8)


@pytest.mark.parametrize("write", [npz_of, flat_of, minari_of, jpegs_of])
def test_two_cameras_need_a_choice(tmp_path: Path, write):
    write(tmp_path / "data", wrist=255 - make_episode(9, 16)["image"])
    own = "observation" if write is flat_of else "image"
    with pytest.raises(BadInput, match=rf"2 arrays of images; choose one with --image_key: {own}, wrist"):
        OfflineDataset(tmp_path / "data", size=8)
    for name, side in ((own, 8), ("wrist", 16)):
        mapping = DataMapping(image_key=name)
        assert OfflineDataset(tmp_path / "data", size=8, mapping=mapping).image_shape == (side, side, 3)


@pytest.mark.parametrize("write", [npz_of, flat_of, minari_of])
def test_a_mask_beside_the_images_is_no_camera(tmp_path: Path, write):
    write(tmp_path / "data", mask=make_episode(9)["image"][..., 0])
    assert np.array_equal(OfflineDataset(tmp_path / "data", size=8).read(0)["image"], make_episode(9)["image"])


def test_cameras_of_one_name_in_two_groups(tmp_path: Path):
    images = {
        f"observations/{name}/rgb": np.full((9, 8, 8, 3), value, np.uint8) for name, value in (("a", 3), ("b", 5))
    }
    write_minari(tmp_path / "main_data.hdf5", images, 8)
    with pytest.raises(BadInput, match="2 arrays of images; choose one with --image_key: a/rgb, b/rgb"):
        OfflineDataset(tmp_path, size=8)
    data = OfflineDataset(tmp_path, size=8, mapping=DataMapping(image_key="b/rgb"))
    assert (data.read(0)["image"] == 5).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--read_memory", "0", "0.25 or more"), ("--read_memory", "nan", "0.25 or more"), ("--read_seconds", "x", "1 or")],
)
def test_wrong_limits_are_one_line(tmp_path: Path, option: str, value: str, message: str):
    with pytest.raises(BadInput, match=f"{option}.*{value}: give {message}"):
        dataset.main(["check", str(tmp_path), option, value])
