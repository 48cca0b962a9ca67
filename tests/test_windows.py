"""Transitions of model-free agents against whole episodes, by a computation of their own."""

from pathlib import Path

import numpy as np
import pytest
from test_replay import fill, make_episode

from replay import OfflineDataset, OnlineReplay, save_episode
from tools import BadInput

LENGTHS = [7, 5, 12, 4, 6]  # rows; each episode has a transition of three steps
SHORT = [7, 2, 12, 4, 3]


def save(folder: Path, lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Episodes of these rows in a folder. The tasks of some end, that of one of them twice."""
    episodes = [make_episode(rows, number) for number, rows in enumerate(lengths)]
    for episode in episodes[::2]:
        episode["discount"][-1] = 0
    episodes[2]["discount"][5] = 0
    for number, episode in enumerate(episodes):
        save_episode(folder, episode, id=f"{number:04d}")
    return episodes


def window(episode: dict[str, np.ndarray], t: int, frames: int, nstep: int) -> dict[str, np.ndarray]:
    """The transition from row t to row t + n. Row t + 1 has the action at t."""
    images = [episode["image"][max(t - back, 0)] for back in range(frames - 1, 0, -1)]
    images += [episode["image"][t + step] for step in range(nstep + 1)]
    after = {key: [episode[key][t + 1 + step] for step in range(nstep)] for key in ("reward", "discount")}
    return {"image": np.stack(images), "action": episode["action"][t + 1], **{k: np.array(v) for k, v in after.items()}}


@pytest.mark.parametrize("nstep", [1, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_windows_are_all_those_of_whole_episodes(frames: int, nstep: int, tmp_path: Path):
    episodes = save(tmp_path, LENGTHS)
    batch = OfflineDataset(tmp_path, size=8).sample_windows(2000, frames, nstep, np.random.default_rng(0))
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (2000, frames + nstep, 8, 8, 3)
    found = set()
    for row in range(2000):
        number, after = divmod(int(batch["reward"][row, 0]), 1000)  # of row t + 1
        found.add((number, after - 1))
        for key, expected in window(episodes[number], after - 1, frames, nstep).items():
            np.testing.assert_array_equal(batch[key][row], expected, err_msg=f"{key} of episode {number}, {after}")
    assert found == {(i, t) for i, rows in enumerate(LENGTHS) for t in range(rows - nstep)}


@pytest.mark.parametrize("sample_ends", ["off", "on"])
@pytest.mark.parametrize("frames", [1, 3])
def test_windows_of_short_episodes_end_with_them(frames: int, sample_ends: str, tmp_path: Path):
    """With ``sample_ends`` those of all episodes do."""
    nstep, episodes = 3, save(tmp_path, SHORT)
    data = OfflineDataset(tmp_path, size=8, sample_ends=sample_ends)
    batch = data.sample_windows(3000, frames, nstep, np.random.default_rng(0))
    assert batch["image"].shape == (3000, 2 * frames, 8, 8, 3)
    found: dict[tuple[int, int], int] = {}
    for row in range(3000):
        number, after = divmod(int(batch["reward"][row, 0]), 1000)
        t, steps = after - 1, int(batch["steps"][row])
        episode = episodes[number]
        assert steps == min(nstep, SHORT[number] - 1 - t)
        assert np.array_equal(batch["action"][row], episode["action"][t + 1])
        for image, last in zip(batch["image"][row].reshape(2, frames, 8, 8, 3), (t, t + steps), strict=True):
            rows = [max(last - back, 0) for back in range(frames - 1, -1, -1)]
            assert np.array_equal(image, episode["image"][rows])
        for key, rest in (("reward", 0), ("discount", 1)):
            expected = [*episode[key][t + 1 : t + 1 + steps], *[rest] * (nstep - steps)]
            assert batch[key][row].tolist() == expected, key
        found[number, t] = found.get((number, t), 0) + 1
    cut = [sample_ends == "on" or rows - 1 < nstep for rows in SHORT]
    assert found.keys() == {(i, t) for i, rows in enumerate(SHORT) for t in range(rows - 1 if cut[i] else rows - nstep)}
    expected = 3000 / len(found)
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 51.2  # 99.9 % at 23 degrees


def test_windows_are_uniform_over_their_starts(tmp_path: Path):
    fill(tmp_path, [7, 3, 12, 4])
    batch = OfflineDataset(tmp_path, size=8).sample_windows(8000, 3, 2, np.random.default_rng(1))
    _, counts = np.unique(batch["reward"][:, 0], return_counts=True)
    assert len(counts) == 5 + 10 + 2 + 1
    expected = 8000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 40.8  # 99.9th percentile at 17 degrees of freedom


def test_windows_of_other_frames_are_of_the_same_steps(tmp_path: Path):
    """The starts that a sequence length stores are not mixed up between numbers of steps."""
    fill(tmp_path, [12, 12, 12])
    store = OfflineDataset(tmp_path, size=8)
    for nstep in (6, 1, 11, 1):
        after = store.sample_windows(300, 3, nstep, np.random.default_rng(nstep))["reward"] % 1000
        assert after[:, -1].max() == 11 and after[:, 0].min() == 1
        np.testing.assert_array_equal(np.diff(after), 1)


def test_an_empty_store_has_no_window(tmp_path: Path):
    with pytest.raises(BadInput, match="no episode to sample from"):
        OnlineReplay(tmp_path / "empty", capacity=10).sample_windows(1, 1, 1, np.random.default_rng(0))
