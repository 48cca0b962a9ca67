"""Episodes shorter than a sequence, and the ends of episodes: how they are sampled, and runs on them."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from falling_suite import FALLING
from test_co_training import ONE_ROUND, assert_same_results, metrics, train
from test_replay import equal, fill, make_episode

import dataset as dataset_command
import wrappers
from replay import OfflineDataset, OnlineReplay, SequenceStore, save_episode
from replay.endings import Ending, ends_matter
from training.data_notes import data_notes, row_counts
from training.methods import METHODS
from training.pictures import prediction_sheet

LENGTH = 6
KINDS = pytest.mark.parametrize("kind", [OfflineDataset, OnlineReplay])


def store_of(kind: type[SequenceStore], folder: Path, lengths: list[int], sample_ends: str = "off") -> SequenceStore:
    """A store of episodes of so many rows each, whose rewards identify their rows."""
    if kind is OfflineDataset:
        fill(folder, lengths)
        return OfflineDataset(folder, size=8, sample_ends=sample_ends)
    replay = OnlineReplay(folder, capacity=10_000, sample_ends=sample_ends)
    for number, rows in enumerate(lengths):
        replay.add_episode(make_episode(rows, number))
    return replay


def times_sampled(batch: dict[str, np.ndarray]) -> dict[int, int]:
    """How often each row, by its reward, is in a batch."""
    rows, counts = np.unique(batch["reward"].astype(int), return_counts=True)
    return dict(zip(rows.tolist(), counts.tolist(), strict=True))


# Sampling


@KINDS
@pytest.mark.parametrize("lengths", [[LENGTH] * 3, [12, 6, 30]])
def test_long_episodes_are_sampled_by_the_former_rule(kind: type[SequenceStore], lengths: list[int], tmp_path: Path):
    """The same random numbers give the same rows, and nothing says where an episode begins."""
    store = store_of(kind, tmp_path, lengths, "auto")
    batch = store.sample(40, LENGTH, np.random.default_rng(5))
    ends = np.cumsum([rows - LENGTH + 1 for rows in lengths])
    starts = np.random.default_rng(5).integers(ends[-1], size=40)
    expected = []
    for start in starts:
        number = int(np.searchsorted(ends, start, side="right"))
        first = int(start - (0 if number == 0 else ends[number - 1]))
        expected.append(
            {key: array[first : first + LENGTH] for key, array in make_episode(lengths[number], number).items()}
        )
    assert equal(batch, {key: np.stack([rows[key] for rows in expected]) for key in expected[0]})


@KINDS
def test_every_row_of_short_episodes_is_sampled_as_often_as_one_in_the_middle_of_a_long_one(
    kind: type[SequenceStore], tmp_path: Path
):
    lengths = [4, 40, 2, 5]
    counts = times_sampled(store_of(kind, tmp_path, lengths).sample(6000, LENGTH, np.random.default_rng(0)))
    short = [1000 * number + row for number in (0, 2, 3) for row in range(lengths[number])]
    middle = [1000 + row for row in range(LENGTH - 1, 40 - LENGTH + 1)]
    assert counts.keys() == {1000 * i + row for i, rows in enumerate(lengths) for row in range(rows)}
    expected = 6000 * LENGTH / (11 + 35)  # a row is in the sequences of LENGTH starts; there are 11 + 35 starts
    for row in (*short, *middle):
        assert abs(counts[row] - expected) < 5 * np.sqrt(expected), row
    assert counts[1000] < expected / 3 and counts[1039] < expected / 3


@KINDS
def test_sequences_of_short_episodes_hold_whole_episodes_in_their_order(kind: type[SequenceStore], tmp_path: Path):
    """After the last one comes the first. Sequences of the long one, the second, hold no other."""
    lengths = [4, 9, 2, 5]
    batch = store_of(kind, tmp_path, lengths).sample(200, LENGTH, np.random.default_rng(0))
    following = {0: 2, 2: 3, 3: 0}
    assert batch["is_first"].dtype == bool and set(batch) == {"image", "action", "reward", "discount", "is_first"}
    for sequence in range(200):
        numbers, rows = np.divmod(batch["reward"][sequence].astype(int), 1000)
        assert np.array_equal(batch["is_first"][sequence], rows == 0)
        for t in range(1, LENGTH):
            goes_on = (numbers[t], rows[t]) == (numbers[t - 1], rows[t - 1] + 1)
            ended = rows[t - 1] == lengths[numbers[t - 1]] - 1
            assert goes_on or (ended and (numbers[t], rows[t]) == (following[numbers[t - 1]], 0))
        for key in ("image", "action"):
            stored = [make_episode(lengths[i], i)[key][row] for i, row in zip(numbers, rows, strict=True)]
            assert np.array_equal(batch[key][sequence], np.stack(stored))


def test_one_short_episode_is_repeated(tmp_path: Path):
    batch = store_of(OfflineDataset, tmp_path, [2]).sample(20, 5, np.random.default_rng(0))
    assert {tuple(rewards) for rewards in batch["reward"].tolist()} == {(0, 1, 0, 1, 0), (1, 0, 1, 0, 1)}


@KINDS
def test_with_sample_ends_every_row_is_sampled_equally_often(kind: type[SequenceStore], tmp_path: Path):
    counts = times_sampled(store_of(kind, tmp_path, [20, 8, 13], "on").sample(4000, LENGTH, np.random.default_rng(0)))
    expected = 4000 * LENGTH / (20 + 8 + 13)
    assert len(counts) == 20 + 8 + 13
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts.values())


def test_whole_sequences_cross_no_end(tmp_path: Path):
    store = store_of(OfflineDataset, tmp_path, [4, 9, 2], "on")
    batch = store.sample(50, LENGTH, np.random.default_rng(0), whole=True)
    assert set(batch) == {"image", "action", "reward", "discount"} and (np.diff(batch["reward"]) == 1).all()
    assert store.longest == 9 and store.shorter_than(5) == (2, 6) and store.rows == 15


@pytest.mark.parametrize(
    ("terminated", "rewards", "matter"),
    [
        (True, [1.0] * 9, True),  # one of the episodes ends
        (False, [1.0] * 9, False),
        (False, [0.0] * 9, False),  # no reward at all
        (False, [0.0] * 8 + [-1.0], True),
        (False, [0.1] * 8 + [1.0], True),
        (False, [0.0] * 7 + [1.0, 0.0], False),  # sparse, but not at the end
    ],
)
def test_auto_samples_ends_where_they_matter(terminated: bool, rewards: list[float], matter: bool, tmp_path: Path):
    for number in range(3):
        episode = make_episode(9, number) | {"reward": np.array(rewards, np.float32)}
        episode["discount"][-1] = 1 - (terminated and number == 1)
        save_episode(tmp_path, episode, id=f"{number:04d}")
    batch = OfflineDataset(tmp_path, size=8, sample_ends="auto").sample(4, LENGTH, np.random.default_rng(0))
    assert ("is_first" in batch) == matter
    assert ends_matter([Ending.of(np.array(rewards), np.array([0.0 if terminated else 1.0]))]) == matter


def test_a_replay_that_gets_a_short_or_a_last_long_episode_changes_its_batches(tmp_path: Path):
    """What is chosen follows the episodes that are stored now."""
    replay = OnlineReplay(tmp_path, capacity=30, sample_ends="auto")
    held = []
    for number, (rows, discount) in enumerate([(12, 1), (4, 1), (12, 0), (12, 1), (12, 1), (12, 1)]):
        episode = make_episode(rows, number)
        episode["discount"][-1] = discount
        replay.add_episode(episode)
        held.append("is_first" in replay.sample(2, LENGTH, np.random.default_rng(0)))
    assert held == [False, True, True, True, False, False]


def test_a_resumed_replay_of_short_episodes_gives_the_same_batches(tmp_path: Path):
    replay, rng = OnlineReplay(tmp_path, capacity=25, sample_ends="auto"), np.random.default_rng(0)
    for number in range(9):
        replay.add_episode(make_episode(3 + number % 4, number))
    replay.sample(4, LENGTH, rng)
    saved, state = json.loads(json.dumps(replay.state_dict())), rng.bit_generator.state
    expected = [replay.sample(4, LENGTH, rng) for _ in range(3)]
    resumed, again = OnlineReplay(tmp_path, capacity=25, sample_ends="auto"), np.random.default_rng()
    resumed.load_state_dict(saved)
    again.bit_generator.state = state
    assert all(equal(batch, resumed.sample(4, LENGTH, again)) for batch in expected)


# What the user is told


def test_notes_count_the_short_episodes_and_name_the_choice(tmp_path: Path):
    store = store_of(OfflineDataset, tmp_path, [4, 9, 2], "auto")
    assert data_notes("target", store, tiny(batch_length=6), METHODS["coworld"]) == [
        "note: target: 2 of 3 episodes (6 of 15 rows) are shorter than batch_length 6 and are joined into sequences, "
        "so that every row is used",
        "sample_ends: off for target (no episode terminates, and 23% of the reward is in last rows)",  # 3012 of 13043
    ]
    store.sample_ends = "on"
    assert data_notes("target", store, tiny(batch_length=2), METHODS["coworld"]) == []


def test_held_out_rows_are_counted_as_unused(tmp_path: Path):
    store = store_of(OfflineDataset, tmp_path, [4, 9, 3, 4])
    held_out = store.hold_out(0.25, np.random.default_rng(0))
    counts = row_counts(store, tiny(batch_length=6), METHODS["offline_dv2"], held_out)
    rows = [episode.rows for episode in store.stored]
    assert counts == {"used_rows": sum(rows), "unused_rows": 20 - sum(rows), "short_rows": sum(rows) - 9 * (9 in rows)}


def test_info_counts_the_rows_of_short_episodes(tmp_path: Path, capsys: pytest.CaptureFixture):
    episodes = [make_episode(rows, number, size=16) for number, rows in enumerate([4, 9, 2])]
    episodes[1]["discount"][-1] = 0
    for number, episode in enumerate(episodes):
        save_episode(tmp_path, episode, id=f"{number:04d}")
    assert dataset_command.main(["info", str(tmp_path), "--batch_length", "6"]) == 0
    text = capsys.readouterr().out
    assert "rows used     15 of 15, 6 in 2 episodes shorter than batch_length 6, which are joined\n" in text
    assert "ends          sampled as often as other rows: 1 of 3 episodes terminate\n" in text
    dataset_command.main(["info", str(tmp_path), "--batch_length", "2"])
    assert "rows used     15 of 15\n" in capsys.readouterr().out


# Runs


FALL = ("--source_task", "falling_to_left", "--target_task", "falling_to_right", "--pred_discount", "True")
PICTURES = ("--video_every", "10", "--rounds", "1")


@pytest.fixture(scope="module")
def falling() -> Iterator[None]:
    wrappers.register(FALLING)
    yield
    del wrappers.SUITES[FALLING.name]


@pytest.fixture(scope="module")
def short_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 3 to 6 rows, the tasks of which end. Sequences of `debug` have 8."""
    folder = tmp_path_factory.mktemp("short")
    for number in range(6):
        episode = make_episode(3 + number % 4, number, size=32, action_dim=2)
        episode["reward"] /= 10_000
        episode["discount"][-1] = 0
        save_episode(folder, episode, id=f"{number:04d}")
    return folder


@pytest.fixture(scope="module")
def fallen(falling: None, short_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CoWorld in which no episode is as long as a sequence, with pictures also while it only prefills."""
    logdir = tmp_path_factory.mktemp("fallen") / "run"
    train(short_data, logdir, *FALL, *PICTURES)
    return logdir


def test_a_run_learns_from_episodes_all_shorter_than_a_sequence(fallen: Path):
    points = metrics(fallen)
    assert all(np.isfinite(value) for point in points for value in point.values() if not isinstance(value, str))
    for domain in ("source", "target"):
        last = [point for point in points if f"{domain}/data/used_rows" in point][-1]
        assert last[f"{domain}/data/short_rows"] == last[f"{domain}/data/used_rows"] > 0
        assert last[f"{domain}/data/unused_rows"] == 0
    assert {"predictions.png", "scores.png"} <= {path.name for path in fallen.iterdir()}
    assert (fallen / "videos" / "source-open_loop-0000010.gif").exists(), "a picture while the run prefills"


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_on_short_episodes_equals_an_uninterrupted_one(
    fallen: Path, short_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as stopped:  # while the source learns from both domains' data
        train(short_data, tmp_path, *FALL, *PICTURES, stop_at=26 + 2 + 20 + 4 + 7)
    assert stopped.value.code == 128 + signal.SIGTERM
    errors = capsys.readouterr().err
    assert "note: target: 6 of 6 episodes (25 of 25 rows) are shorter than batch_length 8 and are joined" in errors
    assert "sample_ends: on for target (6 of 6 episodes terminate)" in errors
    assert re.search(r"note: source: (\d+) of \1 episodes \((\d+) of \2 rows\) are shorter than batch_length 8", errors)
    assert re.search(r"sample_ends: on for source \((\d+) of \1 episodes terminate\)", errors)
    train(short_data, tmp_path, *FALL, *PICTURES)
    assert_same_results(fallen, tmp_path)


@pytest.mark.usefixtures("no_pictures", "falling")
@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("dv2_finetune_ewc", ()),
        ("multitask_dv2", ("--grad_accum", "2")),
        ("coworld", ("--source_observation", "state", "--dyn_discrete", "0", "--prefill", "36", "--envs", "2")),
    ],
)
def test_other_methods_learn_from_short_episodes(method: str, flags: tuple, short_data: Path, tmp_path: Path):
    train(short_data, tmp_path, *FALL, *ONE_ROUND, "--target_iterations", "10", "--method", method, *flags)
    counts = [point["target/data/short_rows"] for point in metrics(tmp_path) if "target/data/short_rows" in point]
    assert counts and set(counts) == {25}


def test_without_pred_discount_the_source_says_that_its_task_ends(
    falling: None, short_data: Path, tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture
):
    train(short_data, tmp_path, *FALL[:4], *ONE_ROUND[:4], "--pretrain_steps", "1", "--target_iterations", "1")
    assert re.search(
        r"note: source: (\d+) of \1 episodes end with discount 0; .* --pred_discount", capsys.readouterr().err
    )


def test_a_sheet_shows_domains_of_different_lengths(tmp_path: Path):
    images = {rows: np.zeros((rows, 8, 8, 3), np.uint8) for rows in (2, 30)}
    prediction_sheet({f"{rows} frames": (image, image) for rows, image in images.items()}, 5, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
