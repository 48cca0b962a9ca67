"""The 50 Meta-World v3 tasks, with goals and objects drawn anew at every reset and the goal observable."""

import numpy as np

from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.rendering import FrameRenderer, camera_name

# Meta-World's renderer reads which OpenGL library to use when it is imported; the import above has chosen it.
# isort: split
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

ACTION_REPEAT = 1
# Upside down against MuJoCo's picture: so mujoco-py drew, and so the paper's datasets hold it. The `corner`
# camera is mounted upside down; flipped, a person sees the scene upright, though mirrored.
FLIP = True
CAMERA = "corner"


def load(name: str) -> SawyerXYZEnv:
    """The Meta-World environment of the task ``name``, e.g. ``door-close``, without its own time limit.

    The ready-made goal-observable classes keep one goal for ever, so this sets up the plain class instead.
    """
    env = ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
    env._set_task_called = True
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True  # draw from its own generator, not from NumPy's global one
    env._partially_observable = False
    # Cached while goals were hidden, with 0 as their bounds: observations would be clipped to a goal of 0.
    del env.sawyer_observation_space
    env.max_path_length = 2**62
    return env


class MetaWorldEnv(PixelEnv):
    """A Meta-World task. Rewards are up to 10 a step, success is the task's own at each, nothing ends it.

    Low-dimensional entry ``state`` (39,): hand and objects now and a step ago, and the goal's position.
    """

    has_success = True

    def __init__(self, name: str, description: dict):
        self._env = load(name)
        self._begin(0)
        camera = CAMERA if description["camera"] is None else description["camera"]
        description = {**description, "camera": camera_name(self._env.model, camera)}
        self._renderer = FrameRenderer(self._env.model, description["size"], camera, description["render"])
        super().__init__(description, self._env.action_space.low, self._env.action_space.high)

    def _begin(self, seed: int) -> None:
        self._env.seed(seed)
        self._state, _ = self._env.reset()

    def _advance(self, action: np.ndarray) -> SimulatorStep:
        self._state, reward, _, _, info = self._env.step(action)
        return SimulatorStep(reward, success=info["success"])

    def _draw(self) -> np.ndarray:
        return self._renderer.frame(self._env.data)

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return {"state": self._state}

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
        self._env.close()


def make(name: str, description: dict) -> MetaWorldEnv:
    """The environment of a task named without its prefix; ``description`` as in `wrappers.make_env`."""
    return MetaWorldEnv(name, description)
