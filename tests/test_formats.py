"""Every format: reading, the row convention, bad files, and mutated files."""

import os
import random
import resource
import shutil
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import OTHER_PROGRAMS

from replay import DataMapping, OfflineDataset, reader_process, save_episode
from replay.convert import Part, convert
from replay.data_files import find_data_files
from tools import BadInput
from wrappers import make_env

MINARI = Path(__file__).resolve().parent / "data" / "minari"  # written by Minari 0.5.4 itself
LEROBOT_PARTS = {"rows": "data/**/*.parquet", "video": "videos/*top/**/*.mp4", "list": "meta/episodes/**/*.parquet"}
LEROBOT = MINARI.with_name("lerobot") / "v30"  # written by lerobot

ROWS = (6, 9)


def make_episode(rows: int, size: int = 8) -> dict:
    rng = np.random.default_rng(rows)
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    action[0] = -0.0  # as the release writes it; it must survive conversions bit for bit
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "action": action,
        "reward": np.arange(rows, dtype=np.float32),
        "discount": np.append(np.ones(rows - 1, np.float32), np.float32(0)),
    }


def write_npz(folder: Path, episodes: list[dict]) -> None:
    for number, episode in enumerate(episodes):
        save_episode(folder, episode, id=f"{number:04d}")


def write_vd4rl(folder: Path, episodes: list[dict]) -> None:
    """As V-D4RL's converter: flat arrays, channels first, float64 step types."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = [np.array([0, *[1] * (len(e["reward"]) - 2), 2], np.float64) for e in episodes]
    flat = {key: np.concatenate([e[key] for e in episodes]) for key in ("action", "reward", "discount")}
    flat["observation"] = np.concatenate([e["image"] for e in episodes]).transpose(0, 3, 1, 2)
    flat["step_type"] = np.concatenate(steps)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for key, array in flat.items():
            file.create_dataset(key, data=array, compression="gzip")


def write_minari(folder: Path, episodes: list[dict]) -> None:
    write_npz(folder.with_name(folder.name + "-npz"), episodes)
    convert(find_data_files(folder.with_name(folder.name + "-npz")), [Part(folder, {})], "minari")


WRITERS = {"npz": write_npz, "hdf5": write_vd4rl, "minari": write_minari}


def load_all(folder: Path, *, raw: bool = False) -> list[dict]:
    return [load() for file in find_data_files(folder) for _, load in file.episodes(raw=raw)]


def same_bits(one: dict, other: dict) -> bool:
    def bits(array: np.ndarray) -> tuple:
        return array.dtype, array.shape, array.tobytes()

    return one.keys() == other.keys() and all(bits(one[key]) == bits(other[key]) for key in one)


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_is_recognised_and_read_completely(tmp_path, kind):
    episodes = [make_episode(rows) for rows in ROWS]
    WRITERS[kind](tmp_path / "data", episodes)
    assert {file.format.name for file in find_data_files(tmp_path / "data")} == {kind}
    for expected, found in zip(episodes, load_all(tmp_path / "data"), strict=True):
        assert same_bits(expected, found)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_action_of_a_row_led_to_its_image(tmp_path, kind):
    """Repeating the actions in the simulator, from the same reset, gives the images of their rows."""
    env = make_env("dmc_cheetah_run", size=32, time_limit=8)
    rng = np.random.default_rng(0)
    rows = [(env.reset(seed=5)[0]["image"], np.zeros(6, np.float32), 0.0)]
    for _ in range(6):
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        observation, reward, *_ = env.step(action)
        rows.append((observation["image"], action, reward))
    image, action, reward = (np.stack(column) for column in zip(*rows, strict=True))
    episode = {"image": image, "action": action, "reward": reward, "discount": np.ones(7, np.float32)}
    WRITERS[kind](tmp_path / "data", [episode])
    (read,) = load_all(tmp_path / "data")
    assert np.array_equal(env.reset(seed=5)[0]["image"], read["image"][0])
    for row in range(1, 7):
        observation, reward, *_ = env.step(read["action"][row])
        assert np.array_equal(observation["image"], read["image"][row])
        assert not np.array_equal(observation["image"], read["image"][row - 1])
        assert read["reward"][row] == np.float32(reward)
    env.close()


@pytest.mark.parametrize("storage", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("kind", ["jpeg-dict-v0", "raw-image-v0"])
@pytest.mark.parametrize("below", ["", "data"])
def test_datasets_written_by_minari(storage, kind, below):
    """Observation t was (20 (t + 1), 10 e, 30), action t (t + 1) / 10, reward t + 1 + 10 e; 1 terminates."""
    episodes = load_all(MINARI / storage / kind / below)
    assert len(episodes) == 2
    for number, episode in enumerate(episodes):
        rows = np.arange(6)
        red, green = episode["image"][:, 4, 4, 0], episode["image"][:, 4, 4, 1]
        assert np.abs(red - 20.0 * (rows + 1)).max() <= 3 and np.abs(green - 10.0 * number).max() <= 3
        assert np.allclose(episode["action"], np.stack([rows / 10, -rows / 10], 1))
        assert np.array_equal(episode["reward"], np.where(rows > 0, rows + 10 * number, 0))
        assert np.array_equal(episode["discount"], [1, 1, 1, 1, 1, 1 - number])
    extras = load_all(MINARI / storage / kind / below, raw=True)[0].keys() - {"image", "action", "reward", "discount"}
    assert extras == ({"height"} if "dict" in kind else set())


@pytest.mark.parametrize("name", ["release_npz", "vd4rl_64px_npz", "vd4rl_84px_hdf5", "minari"])
def test_files_of_other_programs(tmp_path, name, capsys):
    data = OfflineDataset(OTHER_PROGRAMS / name, size=64, cache_dir=tmp_path)
    assert data.action_dim == 6 and data.lengths == [24] * (2 if name in ("release_npz", "minari") else 1)
    batch = data.sample(2, 25, np.random.default_rng(0))
    assert batch["image"].shape == (2, 25, 64, 64, 3)
    assert (batch["action"][:, 0] == 0).all() and (batch["reward"][:, 0] == 0).all()
    assert (batch["action"][:, 1:] != 0).all() and (batch["discount"] == 1).all()
    assert ("84x84 are resized to 64x64" in capsys.readouterr().err) == (name == "vd4rl_84px_hdf5")


def test_the_same_episode_in_two_formats_of_vd4rl():
    (small,), (large,) = (load_all(OTHER_PROGRAMS / name) for name in ("vd4rl_64px_npz", "vd4rl_84px_hdf5"))
    assert large["image"].shape == (25, 84, 84, 3)
    for key in ("action", "reward", "discount"):
        assert np.array_equal(small[key], large[key])


@pytest.mark.parametrize("extras", [{}, {"logprob": np.zeros(9, np.float32), "odd": np.arange(4), "flag": np.True_}])
def test_npz_to_minari_to_npz_is_equal_bit_for_bit(tmp_path, extras):
    episodes = [make_episode(6), make_episode(9) | extras]
    episodes[0]["reward"] = episodes[0]["reward"].astype(np.float64)
    episodes[0]["reward"][0] = -0.0
    del episodes[0]["discount"]
    (tmp_path / "a").mkdir()
    for number, episode in enumerate(episodes):
        np.savez(tmp_path / "a" / f"2026-{number}.npz", **episode)
    convert(find_data_files(tmp_path / "a"), [Part(tmp_path / "b", {})], "minari")
    convert(find_data_files(tmp_path / "b"), [Part(tmp_path / "c", {})], "npz")
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in "ac"]
    assert names[0] == names[1]
    for name in names[0]:
        first, last = (dict(np.load(tmp_path / folder / name)) for folder in "ac")
        assert same_bits(first, last)


def test_our_minari_files_are_read_by_minari(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the minari package is not a dependency")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(tmp_path / "ours-v0", [make_episode(9)])
    (episode,) = minari.load_dataset("ours-v0").iterate_episodes()
    assert np.array_equal(episode.observations["image"], make_episode(9)["image"])
    assert np.array_equal(episode.actions, make_episode(9)["action"][1:])


def damaged_vd4rl(folder: Path, change) -> Path:
    write_vd4rl(folder, [make_episode(6), make_episode(9)])
    with h5py.File(folder / "data.hdf5", "a") as file:
        change(file)
    return folder


def replace(key: str, array) -> object:
    def change(file: h5py.File) -> None:
        del file[key]
        file.create_dataset(key, data=array)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("step_type"), "an HDF5 file without step_type"),
        (replace("step_type", np.ones(15)), "step_type does not begin with 0"),
        (replace("reward", np.zeros(9)), "arrays differ in length"),
        (lambda file: file.pop("action"), "no array named action"),
        (lambda file: file.pop("observation"), "no array named observation"),
        (replace("observation", np.zeros((15, 3, 8, 8))), "images are float64"),
        (replace("reward", np.full(15, np.nan)), "NaN or infinite reward"),
        (replace("action", np.full((15, 2), 3.0)), r"action 3 in row 0 is outside \[-1, 1\]"),
    ],
)
def test_bad_hdf5(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        OfflineDataset(damaged_vd4rl(tmp_path, change), size=8)


def test_one_bad_episode_of_an_hdf5_file_is_left_out(tmp_path, capsys):
    def spoil(file: h5py.File) -> None:
        file["reward"][8] = np.nan

    assert OfflineDataset(damaged_vd4rl(tmp_path, spoil), size=8).lengths == [5]
    assert "data.hdf5 episode 1: NaN or infinite reward in row 2" in capsys.readouterr().err


def test_an_array_larger_than_its_file_raises_bad_input(tmp_path):
    """A malicious or damaged file must not fill the memory."""

    def grow(file: h5py.File) -> None:
        del file["observation"]
        file.create_dataset("observation", (15, 3, 60_000, 60_000), np.uint8, chunks=(1, 1, 1000, 1000))

    with pytest.raises(BadInput, match="claims"):
        OfflineDataset(damaged_vd4rl(tmp_path / "hdf5", grow), size=8)
    (tmp_path / "npz").mkdir()
    with zipfile.ZipFile(tmp_path / "npz" / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'shape': (99999999999,64,64,3)}")
    with pytest.raises(BadInput, match="not a readable npz"):
        OfflineDataset(tmp_path / "npz", size=8)


def test_mixed_formats_and_other_wrong_folders(tmp_path):
    both = tmp_path / "both"
    write_npz(both, [make_episode(6)])
    write_vd4rl(both, [make_episode(9)])
    with pytest.raises(BadInput, match=r"two formats mixed \(1 hdf5 and 1 npz files\).*--dataset_format"):
        OfflineDataset(both, size=8)
    assert OfflineDataset(both, size=8, format="hdf5").lengths == [8]
    assert OfflineDataset(both / "data.hdf5", size=8).lengths == [8]
    with pytest.raises(BadInput, match="but in both; give one of these"):
        OfflineDataset(tmp_path, size=8)
    with pytest.raises(BadInput, match="6 Minari datasets below it"):
        OfflineDataset(MINARI, size=8)
    with pytest.raises(BadInput, match="no episodes in it of format npz"):
        OfflineDataset(MINARI / "hdf5" / "raw-image-v0", size=8, format="npz")
    (tmp_path / "table" / "0").mkdir(parents=True)
    (tmp_path / "table" / "0" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="no observation space"):
        OfflineDataset(tmp_path / "table", size=8)


def test_minari_without_images_or_of_wrong_length(tmp_path):
    for name, change, message in [
        ("states", replace("episode_0/observations", np.zeros((6, 4))), "not from pixels"),
        ("no actions", lambda file: file.pop("episode_0/actions"), "episode_0: no array named actions"),
        ("short", replace("episode_0/actions", np.zeros((3, 2))), "observations must be one more"),
    ]:
        shutil.copytree(MINARI / "hdf5" / "raw-image-v0", tmp_path / name)
        with h5py.File(tmp_path / name / "data" / "main_data.hdf5", "a") as file:
            change(file)
        with pytest.raises(BadInput, match=message):
            load_all(tmp_path / name)


def test_an_episode_that_hangs_its_library_is_left_out(tmp_path, monkeypatch, capsys):
    """Zeros in the part of an HDF5 file that stores JPEGs of different lengths put the library into an endless loop."""
    monkeypatch.setattr(reader_process, "SECONDS", 1)
    shutil.copytree(MINARI / "hdf5" / "jpeg-dict-v0", tmp_path / "data")
    path = tmp_path / "data" / "data" / "main_data.hdf5"
    damaged = bytearray(path.read_bytes())
    start = damaged.rfind(b"GCOL") + 200
    damaged[start : start + 600] = bytes(600)
    path.write_bytes(damaged)
    assert OfflineDataset(tmp_path / "data", size=32).episodes == 1
    assert "episode 1: reading it took longer than 1 s, the limit; on a slow disk raise" in capsys.readouterr().err


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: truncated, bytes changed (more often in headers), a block zeroed, repeated or removed."""
    damaged = bytearray(data)
    kind = rng.random()
    reach = len(data) if rng.random() < 0.5 else min(len(data), 2048)
    if kind < 0.15:
        return bytes(damaged[: rng.randrange(len(data))])
    if kind < 0.7:
        for _ in range(rng.choice((1, 2, 4, 16, 64))):
            damaged[rng.randrange(reach)] = rng.choice((0, 127, 128, 255, rng.randrange(256)))
        return bytes(damaged)
    start, length = rng.randrange(reach), rng.randrange(1, 600)
    block = damaged[start : start + length]
    if kind < 0.8:
        damaged[start : start + length] = bytes(len(block))
    elif kind < 0.9:
        damaged[start:start] = block
    else:
        del damaged[start : start + length]
    return bytes(damaged)


def mutated_npz(data: Path, rng: random.Random) -> bytes:
    """Damage inside a valid archive, so that numpy's header parser and our checks are tested too."""
    target = data.with_name("inner.zip")
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        names = source.namelist()
        for name in names:
            content = source.read(name)
            archive.writestr(name, mutated(content, rng) if rng.random() < 0.5 else content)
    return target.read_bytes()


def fuzz_targets(folder: Path) -> dict[str, Path]:
    write_npz(folder / "npz", [make_episode(6)])
    write_vd4rl(folder / "vd4rl", [make_episode(6), make_episode(9)])
    write_minari(folder / "ours", [make_episode(6)])
    targets = {
        "npz": next((folder / "npz").glob("*.npz")),
        "npz inside": next((folder / "npz").glob("*.npz")),
        "vd4rl": folder / "vd4rl" / "data.hdf5",
        "minari": folder / "ours" / "data" / "main_data.hdf5",
    }
    for name in ("hdf5/jpeg-dict-v0", "arrow/jpeg-dict-v0", "arrow/raw-image-v0", "parquet/jpeg-dict-v0"):
        shutil.copytree(MINARI / name, folder / name)
        storage = name.split("/")[0]
        targets[name] = folder / name / ("data/main_data.hdf5" if storage == "hdf5" else f"data/0/part-0.{storage}")
    shutil.copytree(LEROBOT, folder / "lerobot")
    for kind, pattern in LEROBOT_PARTS.items():
        targets[f"lerobot {kind}"] = next((folder / "lerobot").glob(pattern))
    return targets


def fuzzed_dataset(kind: str, path: Path) -> tuple[Path, DataMapping]:
    """What is opened after the file at ``path`` was changed."""
    if kind.startswith("lerobot"):
        root = next(parent for parent in path.parents if (parent / "meta/info.json").exists())
        return root, DataMapping(image_key="observation.images.top", any_actions=True, image_size=16)
    return path, DataMapping()


def peak_memory() -> int:
    """In kB: the larger of this process and its largest child."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


FUZZED = (
    "npz",
    "npz inside",
    "vd4rl",
    "minari",
    "hdf5/jpeg-dict-v0",
    "arrow/jpeg-dict-v0",
    "arrow/raw-image-v0",
    "parquet/jpeg-dict-v0",
    "lerobot rows",
    "lerobot video",
    "lerobot list",
)


@pytest.mark.parametrize("kind", FUZZED)
def test_mutated_files_give_one_line_errors(tmp_path, monkeypatch, kind):
    """More files: ``COWORLD_FUZZ=1000 pytest -k mutated`` reads 1,000 of each kind, and a fifth of LeRobot's."""
    monkeypatch.setattr(reader_process, "SECONDS", 2)  # damaged JPEG storage can hang HDF5
    if kind.startswith(("arrow", "parquet", "lerobot")):
        pytest.importorskip("pyarrow", reason="Arrow and Parquet files need pyarrow")
    path = fuzz_targets(tmp_path)[kind]
    opened, mapping = fuzzed_dataset(kind, path)
    files = int(os.environ.get("COWORLD_FUZZ", 60)) // (5 if kind.startswith("lerobot") else 1)
    good = path.read_bytes()
    rng = random.Random(kind)
    before = peak_memory()
    read, refused = 0, 0
    for number in range(files):
        path.write_bytes(good)
        path.write_bytes(mutated_npz(path, rng) if kind == "npz inside" else mutated(good, rng))
        start = time.monotonic()
        try:
            loaders = [load for file in find_data_files(opened, mapping=mapping) for _, load in file.episodes()]
        except BadInput as error:
            assert "\n" not in str(error), f"mutation {number}"
            refused += 1
            continue
        for load in loaders:
            try:
                load()
                read += 1
            except BadInput as error:
                assert "\n" not in str(error), f"mutation {number}"
                refused += 1
        assert time.monotonic() - start < 5, f"mutation {number}"
    reader_process.stop()
    grown = peak_memory() - before
    assert refused > 0 and grown < 700_000, f"{read} read, {refused} refused, {grown} kB more memory"


def test_the_copies_of_one_format_stay_when_another_of_the_folder_is_opened(tmp_path: Path):
    write_npz(tmp_path, [make_episode(rows) for rows in ROWS])
    first = OfflineDataset(tmp_path, size=8, format="npz")
    write_vd4rl(tmp_path, [make_episode(rows) for rows in ROWS])
    OfflineDataset(tmp_path, size=8, format="hdf5")
    assert first.sample(4, 6, np.random.default_rng(0))["image"].shape == (4, 6, 8, 8, 3)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    assert OfflineDataset(tmp_path, size=8, format="hdf5").lengths == [rows - 1 for rows in ROWS]
