"""Short episodes of real simulators, for tests to compare; importable by a spawned worker process."""

import numpy as np

from wrappers import make_env


def rollout(task: str, seed: int, steps: int = 50, size: int = 64, **settings) -> dict[str, np.ndarray]:
    """An episode of seeded random actions: image (steps + 1, size, size, 3), reward (steps,) and the rest."""
    env = make_env(task, size=size, **settings)
    rng = np.random.default_rng(7)
    observation, info = env.reset(seed=seed)
    rows, rewards, success = [observation], [], [info.get("success", 0.0)]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        rows.append(observation)
        rewards.append(reward)
        success.append(info.get("success", 0.0))
    env.close()
    episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**episode, "reward": np.array(rewards), "success": np.array(success)}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Both episodes are equal bit for bit."""
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
