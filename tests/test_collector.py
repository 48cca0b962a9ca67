"""Collection and evaluation on a real simulator."""

import numpy as np
import pytest
import torch

from training.collector import Collector, episode_seed
from training.evaluator import evaluate
from training.policies import Policy, RandomPolicy, noisy
from wrappers import make_env
from wrappers.shared.vector import SyncEnv, make_envs


@pytest.fixture(scope="module")
def env():
    env = make_env("walker_walk", size=16, time_limit=5)
    yield env
    env.close()


def collected(env, steps: int, policy: Policy | None = None) -> list[dict]:
    episodes: list[dict] = []
    collector = Collector([SyncEnv(env)], episodes.append, seed=3)
    for _ in range(steps):
        collector.step(policy)
    return episodes


def test_row_t_has_the_action_that_led_to_image_t(env):
    (episode,) = collected(env, 5)
    assert {len(v) for v in episode.values()} == {6}
    assert not episode["action"][0].any() and episode["reward"][0] == 0
    observation, _ = env.reset(seed=episode_seed(3, 0))
    np.testing.assert_array_equal(observation["image"], episode["image"][0])
    for t in range(1, 6):
        observation, reward, *_ = env.step(episode["action"][t])
        np.testing.assert_array_equal(observation["image"], episode["image"][t])
        assert episode["reward"][t] == np.float32(reward)
    assert (episode["discount"] == 1).all()  # truncated by the time limit, not terminated


def test_episodes_differ_and_are_reproducible(env):
    first, again = collected(env, 10), collected(env, 10)
    assert len(first) == 2 and (first[0]["image"][0] != first[1]["image"][0]).any()
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["action"], other["action"])


def test_a_policy_gets_its_last_state_and_a_flag_where_episodes_begin(env):
    calls = []

    def policy(observation, state, first):
        calls.append((observation["image"].shape, bool(first[0]), state))
        return np.zeros((1, 6), np.float32), (state or 0) + 1

    collected(env, 7, policy)
    assert calls[0] == ((1, 16, 16, 3), True, None)
    assert [first for _, first, _ in calls] == [True] + [False] * 4 + [True, False]
    assert [state for _, _, state in calls] == [None, 1, 2, 3, 4, 5, 6]


def test_a_restored_collector_continues_in_the_middle_of_an_episode(env):
    whole: list[dict] = []
    collector = Collector([SyncEnv(env)], whole.append, seed=3)
    for _ in range(3):
        collector.step()
    state = collector.state_dict()
    for _ in range(7):
        collector.step()
    resumed: list[dict] = []
    other = Collector([SyncEnv(env)], resumed.append, seed=3)
    other.load_state_dict(state)
    for _ in range(7):
        other.step()
    for one, two in zip(whole, resumed, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def test_without_action_noise_no_noise_is_drawn(env):
    collector = Collector([SyncEnv(env)], lambda episode: None, seed=3, action_noise=0.0)
    before = collector.noise_rng.bit_generator.state
    for _ in range(3):
        collector.step()
    assert collector.noise_rng.bit_generator.state == before


def test_the_state_of_a_policy_with_noise_has_the_executed_action():
    def policy(observation, state, first):
        return np.full((2, 3), 0.5, np.float32), {"deter": torch.ones(2, 4), "action": torch.full((2, 3), 0.5)}

    action, state = noisy(policy, 0.4, np.random.default_rng(0))({}, None, np.array([True, True]))
    assert (action != 0.5).all() and state["deter"].eq(1).all()
    torch.testing.assert_close(state["action"], torch.from_numpy(action))


@pytest.fixture(scope="module")
def two():
    """Two simulators in processes."""
    envs = make_envs("walker_walk", 2, size=16, time_limit=5)
    yield envs
    for env in envs:
        env.close()


def test_simulators_in_processes_collect_the_same_as_one_in_this_process(env, two):
    """Two simulators run episodes 0 and 1, one each; the single one runs them one after the other."""
    separate = collected(env, 10, lambda observation, state, first: (np.full((1, 6), 0.3, np.float32), None))
    together: list[dict] = []
    collector = Collector(two, together.append, seed=3)
    for _ in range(5):
        collector.start(lambda observation, state, first: (np.full((2, 6), 0.3, np.float32), None))
        collector.finish()
    assert len(collector) == len(together) == 2
    for one, other in zip(separate, together, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["reward"], other["reward"])


def test_an_evaluation_is_reproducible_and_changes_no_rng_state(env):
    def random(observation, state, first):
        return torch.rand(1, 6).numpy() * 2 - 1, state

    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = (evaluate(random, [SyncEnv(env)], 2, seed) for seed in (1, 1, 2))
    assert one.returns == two.returns != other.returns
    assert torch.equal(torch.get_rng_state(), before)
    assert one.frames.shape == (6, 16, 16, 3)
    assert one.success is None
    assert (one.mean, one.std) == pytest.approx((np.mean(one.returns), np.std(one.returns)))


def test_parallel_evaluation_equals_sequential_evaluation(env, two):
    """With a deterministic policy. Two simulators run three episodes, so the third runs alone."""

    def policy(observation, state, first):
        state = np.where(first, 0.0, 0.0 if state is None else state) + observation["image"].mean((1, 2, 3)) / 255
        return np.repeat(np.sin(9 * state)[:, None], 6, 1).astype(np.float32), state

    steps: list[int] = []
    one = evaluate(policy, [SyncEnv(env)], 3, seed=5)
    both = evaluate(policy, two, 3, 5, steps.append)
    assert len(one.returns) == 3 and one.returns == both.returns
    np.testing.assert_array_equal(one.frames, both.frames)
    assert sum(steps) == 15


def test_a_finished_episode_is_not_stepped_while_others_run(env):
    class Short(SyncEnv):
        def reset_async(self, seed=None):
            super().reset_async(seed=seed)
            self.left = 2

        def step_wait(self):
            self.left -= 1
            assert self.left >= 0, "stepped after its end"
            observation, reward, _, truncated, info = super().step_wait()
            return observation, reward, self.left == 0, truncated, info

    other = make_env("walker_walk", size=16, time_limit=5)
    policy = RandomPolicy(env.action_space, np.random.default_rng(0))
    scores = evaluate(policy, [Short(env), SyncEnv(other)], 2, seed=0)
    other.close()
    assert scores.frames.shape == (3, 16, 16, 3) and len(scores.returns) == 2
