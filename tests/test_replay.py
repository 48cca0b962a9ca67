"""The offline dataset and the online replay: sampling, capacity, resuming, bad input."""

import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import OTHER_PROGRAMS
from filelock import FileLock

import tools
from replay import OfflineDataset, OnlineReplay, Prefetcher, episode_filename, observations, save_episode
from tools import BadInput


def make_episode(rows: int, number: int = 0, size: int = 8, action_dim: int = 3) -> dict:
    """An episode whose rewards identify its rows: reward = 1000 * number + row."""
    rng = np.random.default_rng(number)
    action = rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32)
    action[0] = 0
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "action": action,
        "reward": (1000 * number + np.arange(rows)).astype(np.float32),
        "discount": np.ones(rows, np.float32),
    }


def fill(directory: Path, lengths: list[int], **kwargs) -> list[dict]:
    episodes = [make_episode(rows, number, **kwargs) for number, rows in enumerate(lengths)]
    for number, episode in enumerate(episodes):
        save_episode(directory, episode, id=f"{number:04d}")
    return episodes


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_a_sequence_is_consecutive_saved_rows_of_one_episode(tmp_path):
    episodes = fill(tmp_path, [12, 30, 7])
    batch = OfflineDataset(tmp_path, size=8).sample(64, 6, np.random.default_rng(0))
    assert batch["image"].shape == (64, 6, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["action"].shape == (64, 6, 3) and batch["action"].dtype == np.float32
    assert batch["reward"].shape == batch["discount"].shape == (64, 6)
    for row in range(64):
        number, first = divmod(int(batch["reward"][row, 0]), 1000)
        for key in batch:
            assert np.array_equal(batch[key][row], episodes[number][key][first : first + 6]), key


def test_starts_are_uniform(tmp_path):
    fill(tmp_path, [12, 30, 7])
    dataset = OfflineDataset(tmp_path, size=8)
    rng = np.random.default_rng(1)
    firsts = np.concatenate([dataset.sample(100, 6, rng)["reward"][:, 0] for _ in range(40)])
    starts, counts = np.unique(firsts, return_counts=True)
    assert len(starts) == 7 + 25 + 2
    expected = len(firsts) / len(starts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63.9  # 99.9th percentile at 33 degrees of freedom


def test_same_seed_same_batch(tmp_path):
    fill(tmp_path, [12, 30])
    first, second = (OfflineDataset(tmp_path, size=8) for _ in range(2))
    assert equal(first.sample(8, 5, np.random.default_rng(3)), second.sample(8, 5, np.random.default_rng(3)))
    assert not equal(first.sample(8, 5, np.random.default_rng(3)), first.sample(8, 5, np.random.default_rng(4)))


def test_sizes_returns_and_description(tmp_path):
    episodes = fill(tmp_path, [12, 30])
    (tmp_path / "dataset.json").write_text(json.dumps({"task": "dmc_walker_walk", "flip": None}))
    dataset = OfflineDataset(tmp_path, size=8)
    assert (dataset.episodes, dataset.steps, dataset.action_dim, dataset.lengths) == (2, 40, 3, [11, 29])
    assert dataset.returns == [float(episode["reward"].sum()) for episode in episodes]
    assert dataset.description == {"task": "dmc_walker_walk"}


def test_missing_discount_is_one_and_extras_are_ignored(tmp_path):
    episode = make_episode(9)
    del episode["discount"]
    np.savez(tmp_path / "a.npz", logprob=np.zeros(9), odd=np.zeros(4), **episode)
    batch = OfflineDataset(tmp_path, size=8).sample(2, 4, np.random.default_rng(0))
    assert set(batch) == {"image", "action", "reward", "discount"} and (batch["discount"] == 1).all()


def test_an_episode_file_is_named_like_those_of_dreamer(tmp_path):
    assert episode_filename(501, datetime(2026, 11, 22, 4, 50, 9), "ab") == "20261122T045009-ab-501.npz"
    first, second = (save_episode(tmp_path / name, make_episode(9), id="ab") for name in "ab")
    assert first.name.endswith("-ab-9.npz") and first.read_bytes() == second.read_bytes()


def test_other_image_sizes_are_resized_once_with_a_note(tmp_path, capsys):
    fill(tmp_path, [12], size=16)
    dataset = OfflineDataset(tmp_path, size=8)
    assert dataset.sample(1, 12, np.random.default_rng(0))["image"].shape == (1, 12, 8, 8, 3)
    assert "images of 16x16 are resized to 8x8" in capsys.readouterr().err


def test_second_opening_reads_no_episode_until_a_file_changes(tmp_path, monkeypatch):
    fill(tmp_path, [12, 30])
    OfflineDataset(tmp_path, size=8)
    reads = []
    original = observations.validate_episode
    monkeypatch.setattr(observations, "validate_episode", lambda *args: reads.append(args[1]) or original(*args))
    OfflineDataset(tmp_path, size=8)
    assert reads == []
    (changed,) = tmp_path.glob("*-0001-30.npz")
    np.savez(changed, **make_episode(30, number=7))
    (gone,) = tmp_path.glob("*-0000-12.npz")
    gone.unlink()
    dataset = OfflineDataset(tmp_path, size=8)
    assert reads == [changed]
    assert dataset.sample(1, 30, np.random.default_rng(0))["reward"][0, 0] == 7000
    assert len(list((tmp_path / ".coworld-cache" / "8px").glob("*.npz"))) == 1


def test_a_directory_without_write_permission_is_not_changed(tmp_path, monkeypatch):
    data = tmp_path / "data"
    fill(data, [12])
    data.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = sorted(data.iterdir())
    assert OfflineDataset(data, size=8).episodes == 1
    assert sorted(data.iterdir()) == before
    assert list((tmp_path / "home" / "coworld").rglob("*.npz"))
    assert OfflineDataset(data, size=8, cache_dir=tmp_path / "mine").episodes == 1
    assert list((tmp_path / "mine").rglob("*.npz"))


def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    fill(tmp_path, [12, 30])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tools.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        OfflineDataset(tmp_path, size=8)
    assert [path.name for path in (tmp_path / ".coworld-cache" / "8px").iterdir()] == ["lock"]
    monkeypatch.undo()
    assert OfflineDataset(tmp_path, size=8).episodes == 2


def test_a_second_process_waits_until_the_copy_is_complete(tmp_path):
    """A thread takes the place of the second process; it opens another lock."""
    fill(tmp_path, [12])
    OfflineDataset(tmp_path, size=8)
    with FileLock(tmp_path / ".coworld-cache" / "8px" / "lock"), ThreadPoolExecutor(1) as pool:
        opening = pool.submit(OfflineDataset, tmp_path, size=8)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.3)
        (tmp_path / ".coworld-cache" / "8px" / "lock").unlink()  # lets it continue before the pool is closed
        assert opening.result(timeout=10).episodes == 1


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    fill(tmp_path, [12])
    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        assert OfflineDataset(tmp_path, size=8).episodes == 1


BAD = {
    "truncated": (lambda path, episode: path.write_bytes(path.read_bytes()[:700]), "not a readable npz"),
    "no zip": (lambda path, episode: path.write_text("hello"), "not a readable npz"),
    "object array": (
        lambda path, episode: np.savez(path, **episode | {"action": np.array([None] * 12)}),
        "never unpickled",
    ),
    "lengths": (
        lambda path, episode: np.savez(path, **episode | {"reward": np.zeros(11)}),
        "differ in length",
    ),
    "nan reward": (
        lambda path, episode: np.savez(path, **episode | {"reward": np.full(12, np.nan)}),
        "NaN or infinite reward in row 0",
    ),
    "nan action": (
        lambda path, episode: np.savez(path, **episode | {"action": np.full((12, 3), np.nan)}),
        "NaN or infinite action",
    ),
    "float image": (
        lambda path, episode: np.savez(path, **episode | {"image": episode["image"] / 255}),
        "images are float64",
    ),
    "action range": (
        lambda path, episode: np.savez(path, **episode | {"action": episode["action"] * 5}),
        r"outside \[-1, 1\]",
    ),
    "discount range": (
        lambda path, episode: np.savez(path, **episode | {"discount": np.full(12, 1.5)}),
        r"discount 1.5 in row 0 is outside \[0, 1\]",
    ),
    "no reward": (
        lambda path, episode: np.savez(path, image=episode["image"], action=episode["action"]),
        r"no rewards \(array reward\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_the_others_are_used(tmp_path, capsys, kind):
    fill(tmp_path, [12, 12])
    damage, message = BAD[kind]
    (path,) = tmp_path.glob("*-0001-12.npz")
    damage(path, make_episode(12, 1))
    for _ in range(2):  # the second opening, from the cache, warns too
        assert OfflineDataset(tmp_path, size=8).episodes == 1
        warning = capsys.readouterr().err
        assert warning.startswith("warning: left out:") and str(path) in warning
    (good,) = tmp_path.glob("*-0000-12.npz")
    good.unlink()
    with pytest.raises(BadInput, match=message):
        OfflineDataset(tmp_path, size=8)


def test_actions_slightly_out_of_range_are_clipped(tmp_path):
    episode = make_episode(9)
    episode["action"][3, 1] = 1.0005
    save_episode(tmp_path, episode, id="a")
    batch = OfflineDataset(tmp_path, size=8).sample(1, 9, np.random.default_rng(0))
    assert batch["action"][0, 3, 1] == 1


def test_bad_directories(tmp_path):
    with pytest.raises(BadInput, match="no such directory"):
        OfflineDataset(tmp_path / "none", size=8)
    with pytest.raises(BadInput, match="no episodes"):
        OfflineDataset(tmp_path, size=8)
    fill(tmp_path, [12])
    with pytest.raises(BadInput, match=r"no episode has 50 rows \(the longest has 12\)"):
        OfflineDataset(tmp_path, size=8).sample(1, 50, np.random.default_rng(0), whole=True)
    with pytest.raises(BadInput, match="format 'nzp' is unknown; nearest: npz"):
        OfflineDataset(tmp_path, size=8, format="nzp")
    save_episode(tmp_path, make_episode(12, action_dim=4), id="odd")
    with pytest.raises(BadInput, match="action sizes differ") as caught:
        OfflineDataset(tmp_path, size=8)
    assert all(f" in {path.name}" in str(caught.value) for path in tmp_path.glob("*.npz")), "the user's own files"
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be made or written to.*give another --dataset_cache"):
        OfflineDataset(tmp_path, size=8, cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"), [("{not", "not JSON"), ("[1]", "not a JSON object"), (None, "cannot be read")]
)
def test_a_bad_description_raises_bad_input(tmp_path, text, message):
    fill(tmp_path, [12])
    path = tmp_path / "dataset.json"
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(BadInput, match=f"dataset.json: .*{message}.*; correct or remove it"):
        OfflineDataset(tmp_path, size=8)


def test_replay_evicts_the_oldest_episodes_above_its_capacity(tmp_path):
    replay = OnlineReplay(tmp_path, capacity=25)
    for number in range(4):
        replay.add_episode(make_episode(11, number))
    assert (replay.episodes, replay.steps) == (2, 20)
    rewards = replay.sample(100, 5, np.random.default_rng(0))["reward"]
    assert set(rewards.ravel() // 1000) == {2, 3}


def test_replay_samples_extra_arrays_by_name(tmp_path):
    replay = OnlineReplay(tmp_path, capacity=100)
    height = np.arange(9, dtype=np.float32)[:, None]
    replay.add_episode(make_episode(9) | {"height": height})
    batch = replay.sample(4, 3, np.random.default_rng(0), keys=("height", "reward"))
    assert batch["height"].shape == (4, 3, 1)
    assert np.array_equal(batch["height"][..., 0], batch["reward"])
    with pytest.raises(BadInput, match="'speed' is not stored"):
        replay.sample(4, 3, np.random.default_rng(0), keys=("speed",))
    with pytest.raises(BadInput, match="height of a new episode is missing"):
        replay.add_episode(make_episode(9))


def test_replay_files_are_plain_episode_files(tmp_path):
    replay = OnlineReplay(tmp_path, capacity=100)
    episode = make_episode(9)
    replay.add_episode(episode)
    (path,) = tmp_path.glob("*-9.npz")
    assert equal(dict(np.load(path, allow_pickle=False)), episode)
    assert OfflineDataset(tmp_path, size=8).steps == replay.steps == 8


def test_a_resumed_replay_gives_the_same_batches_as_an_uninterrupted_one(tmp_path):
    def run(replay: OnlineReplay, numbers: range, rng: np.random.Generator) -> list[dict]:
        batches = []
        for number in numbers:
            replay.add_episode(make_episode(11, number))
            batches.append(replay.sample(4, 5, rng))
        return batches

    straight = OnlineReplay(tmp_path / "straight", capacity=35)
    rng = np.random.default_rng(0)
    run(straight, range(5), rng)
    expected = run(straight, range(5, 9), rng)

    killed = OnlineReplay(tmp_path / "killed", capacity=35)
    rng = np.random.default_rng(0)
    run(killed, range(5), rng)
    saved, generator = json.loads(json.dumps(killed.state_dict())), rng.bit_generator.state
    run(killed, range(5, 8), rng)  # evicts episodes of the saved state, then is killed

    resumed = OnlineReplay(tmp_path / "killed", capacity=35)
    resumed.load_state_dict(saved)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(saved["episodes"])
    rng = np.random.default_rng()
    rng.bit_generator.state = generator
    for one, other in zip(expected, run(resumed, range(5, 9), rng), strict=True):
        assert equal(one, other)


def test_evicted_files_are_deleted_only_after_a_newer_state_was_saved(tmp_path):
    def files() -> int:
        return len(list(tmp_path.glob("*.npz")))

    replay = OnlineReplay(tmp_path, capacity=25)
    for number in range(3):
        replay.add_episode(make_episode(11, number))
    replay.delete_evicted()
    assert files() == 3, "no state was saved since the eviction"
    replay.state_dict()
    replay.add_episode(make_episode(11, 3))
    replay.delete_evicted()
    assert files() == 3, "the file that was evicted after the last state remains"
    replay.state_dict()
    replay.delete_evicted()
    assert files() == 2


def test_bad_input_to_the_replay(tmp_path):
    with pytest.raises(BadInput, match="at least 1"):
        OnlineReplay(tmp_path, capacity=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        OnlineReplay(tmp_path / "file", capacity=10)
    replay = OnlineReplay(tmp_path, capacity=10)
    with pytest.raises(BadInput, match="no episode to sample from; collect one first"):
        replay.sample(1, 5, np.random.default_rng(0))
    with pytest.raises(BadInput, match="is gone"):
        replay.load_state_dict({"episodes": ["x-9.npz"], "added": 1})


@pytest.mark.parametrize("name", ["release_npz", "vd4rl_64px_npz"])
def test_files_of_other_programs(tmp_path, name):
    dataset = OfflineDataset(OTHER_PROGRAMS / name, size=64, cache_dir=tmp_path)
    assert set(dataset.lengths) == {24} and dataset.action_dim == 6
    batch = dataset.sample(3, 25, np.random.default_rng(0))
    assert (batch["action"][:, 0] == 0).all() and (batch["reward"][:, 0] == 0).all()


def test_prefetched_batches_equal_batches_sampled_on_request(tmp_path: Path):
    """Also if episodes are added or the RNG's state is read between the batches."""

    def run(ahead: bool) -> list:
        replay = OnlineReplay(tmp_path / str(ahead), capacity=1000)
        replay.add_episode(make_episode(20))
        rng, seen = np.random.default_rng(3), []
        prefetcher = Prefetcher(lambda: replay.sample(2, 5, rng), rng)
        for i in range(12):
            if i in (4, 5, 9):
                prefetcher.discard_pending()
                replay.add_episode(make_episode(20, i))
            if i in (7, 9):
                prefetcher.discard_pending()
                seen.append(rng.bit_generator.state["state"]["state"])
            batch = prefetcher.next() if ahead else replay.sample(2, 5, rng)
            seen += [batch["reward"].tolist(), batch["image"].sum().item()]
        prefetcher.close()
        return seen

    assert run(True) == run(False)


def test_an_error_while_prefetching_is_raised_by_next(tmp_path: Path):
    replay, rng = OnlineReplay(tmp_path, capacity=1000), np.random.default_rng(0)
    prefetcher = Prefetcher(lambda: replay.sample(2, 5, rng), rng)
    for _ in range(2):
        with pytest.raises(BadInput, match="no episode to sample from"):
            prefetcher.next()
    prefetcher.close()
