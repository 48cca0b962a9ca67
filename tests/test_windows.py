"""Transitions of model-free agents against whole episodes, by a computation of their own."""

from pathlib import Path

import numpy as np
import pytest
from test_replay import fill

from replay import OfflineDataset, OnlineReplay, save_episode
from tools import BadInput

LENGTHS = [7, 2, 12, 4, 3]


def window(episode: dict[str, np.ndarray], t: int, frames: int, nstep: int) -> dict[str, np.ndarray]:
    """The transition from row t to row t + n. Row t + 1 has the action at t."""
    images = [episode["image"][max(t - back, 0)] for back in range(frames - 1, 0, -1)]
    images += [episode["image"][t + step] for step in range(nstep + 1)]
    after = {key: [episode[key][t + 1 + step] for step in range(nstep)] for key in ("reward", "discount")}
    return {"image": np.stack(images), "action": episode["action"][t + 1], **{k: np.array(v) for k, v in after.items()}}


@pytest.mark.parametrize("nstep", [1, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_windows_are_all_those_of_whole_episodes(frames: int, nstep: int, tmp_path: Path):
    episodes = fill(tmp_path, LENGTHS)
    for episode in episodes[::2]:  # their tasks end, one of them twice
        episode["discount"][-1] = 0
    episodes[2]["discount"][5] = 0
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    for number, episode in enumerate(episodes):
        save_episode(tmp_path, episode, id=f"{number:04d}")
    batch = OfflineDataset(tmp_path, size=8).sample_windows(2000, frames, nstep, np.random.default_rng(0))
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (2000, frames + nstep, 8, 8, 3)
    found = set()
    for row in range(2000):
        number, after = divmod(int(batch["reward"][row, 0]), 1000)  # of row t + 1
        found.add((number, after - 1))
        for key, expected in window(episodes[number], after - 1, frames, nstep).items():
            np.testing.assert_array_equal(batch[key][row], expected, err_msg=f"{key} of episode {number}, {after}")
    assert found == {(i, t) for i, rows in enumerate(LENGTHS) for t in range(rows - nstep)}


def test_windows_are_uniform_over_their_starts(tmp_path: Path):
    fill(tmp_path, LENGTHS)
    batch = OfflineDataset(tmp_path, size=8).sample_windows(8000, 3, 2, np.random.default_rng(1))
    _, counts = np.unique(batch["reward"][:, 0], return_counts=True)
    assert len(counts) == 5 + 10 + 2 + 1
    expected = 8000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 40.8  # 99.9th percentile at 17 degrees of freedom


def test_windows_of_other_frames_are_of_the_same_steps(tmp_path: Path):
    """The starts that a sequence length stores are not mixed up between numbers of steps."""
    fill(tmp_path, LENGTHS)
    store = OfflineDataset(tmp_path, size=8, length=2)
    for nstep, most in ((6, 7), (1, 12), (11, 12), (1, 12)):
        after = store.sample_windows(300, 3, nstep, np.random.default_rng(nstep))["reward"] % 1000
        assert after[:, -1].max() == 11 if most == 12 else after[:, -1].max() <= 11
        np.testing.assert_array_equal(np.diff(after), 1)


def test_no_episode_has_a_window(tmp_path: Path):
    fill(tmp_path, [4, 3])
    store = OfflineDataset(tmp_path, size=8)
    assert set(store.sample_windows(8, 3, 3, np.random.default_rng(0))["reward"][:, 0]) == {1}
    with pytest.raises(BadInput, match=r"no episode has 5 rows, which nstep asks for .* lower nstep"):
        store.sample_windows(8, 3, 4, np.random.default_rng(0))
    with pytest.raises(BadInput):
        OnlineReplay(tmp_path / "empty", capacity=10).sample_windows(1, 1, 1, np.random.default_rng(0))
