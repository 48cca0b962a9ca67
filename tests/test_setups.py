"""The paper's harder setups in the environment: sparse reward, moving backgrounds."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from rollouts import assert_same, in_worker, rollout

from tools import BadInput
from wrappers import make_env


def test_sparse_reward_is_500_on_the_success_step_and_0_elsewhere():
    env = make_env("robodesk_push_green", size=8, sparse_reward=True, time_limit=30)
    env.unwrapped._draw = lambda: np.zeros((8, 8, 3), np.uint8)
    assert env.get_wrapper_attr("description")["sparse_reward"] is True
    data = env.unwrapped._desk.physics.named.data
    for _ in range(2):  # the second episode is paid too
        env.reset(seed=0)
        data.qpos["ball"][:3] = data.xpos["green_button"] + (0, 0, 0.06)  # it falls on the button
        steps = [env.step(np.zeros(5)) for _ in range(30)]
        success = np.array([info["success"] for *_, info in steps])
        first = int(np.argmax(success))
        assert first > 0 and success[first:].sum() > 1  # several successful steps, one reward
        assert [reward for _, reward, *_ in steps] == [0.0] * first + [500.0] + [0.0] * (29 - first)
        assert [terminated or truncated for _, _, terminated, truncated, _ in steps] == [False] * 29 + [True]
    env.close()


def test_sparse_reward_needs_a_suite_with_success():
    with pytest.raises(BadInput, match="sparse_reward: dmc_walker_walk defines no success"):
        make_env("walker_walk", sparse_reward=True)


@pytest.fixture
def clips(tmp_path):
    """An animation whose five frames are plain shades of red, and two still pictures in green."""
    frames = [Image.new("RGB", (90, 60), (40 * shade + 20, 0, 0)) for shade in range(5)]
    frames[0].save(tmp_path / "red.gif", save_all=True, append_images=frames[1:])
    for name, green in (("a.png", 100), ("b.jpg", 200)):
        Image.new("RGB", (50, 80), (0, green, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_moving_background_replaces_only_the_sky(clips):
    plain = rollout("walker_walk", 0, steps=6)["image"]
    behind = rollout("walker_walk", 0, steps=6, background=str(clips))["image"]
    changed = (plain != behind).any(-1)
    assert 0.3 < changed.mean() < 0.8
    assert changed[:, 0].all() and not changed[:, -1].any()  # the sky is above, the floor below
    for frame, at in zip(behind, changed, strict=True):
        assert len(np.unique(frame[at], axis=0)) == 1  # the colour of one frame, not mixed
    shades = [tuple(map(int, frame[0, 0])) for frame in behind]
    assert shades[0] != shades[1]
    period = 5 if shades[0][0] else 2  # the animation's frames, or the two pictures'
    assert shades[period:] == shades[: len(shades) - period]


def test_the_seed_determines_the_background_in_this_process_and_in_a_worker(clips):
    def sky(seed):
        return tuple(rollout("cheetah_run", seed, steps=0, background=str(clips))["image"][0, 0, 0])

    skies = {sky(seed) for seed in range(8)}
    assert any(red for red, _, _ in skies) and any(green > 50 for _, green, _ in skies)
    moving = partial(rollout, "cheetah_run", 3, steps=4, background=str(clips))
    assert_same(moving(), in_worker(moving))


def test_render_does_not_move_the_background(clips):
    env = make_env("walker_walk", background=str(clips))
    image = env.reset(seed=0)[0]["image"]
    np.testing.assert_array_equal(env.render(), image)
    np.testing.assert_array_equal(env.render(), image)
    assert env.get_wrapper_attr("description")["background"] == str(clips)
    env.close()


@pytest.mark.filterwarnings("ignore:ImageIO")  # from its readers
def test_bad_backgrounds(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        make_env("walker_walk", background=str(tmp_path / "none"))
    with pytest.raises(BadInput, match="no images, GIFs or videos"):
        make_env("walker_walk", background=str(tmp_path))
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    with pytest.raises(BadInput, match=r"broken.gif: cannot be read as a picture"):
        make_env("walker_walk", background=str(tmp_path))
    (tmp_path / "broken.gif").rename(tmp_path / "broken.mp4")
    with pytest.raises(BadInput, match=r"broken.mp4: cannot be read as a video"):
        make_env("walker_walk", background=str(tmp_path))
    with pytest.raises(BadInput, match="background: metaworld_door-close has no sky"):
        make_env("door-close", background=str(tmp_path))
