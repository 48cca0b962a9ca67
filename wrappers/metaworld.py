"""The 50 Meta-World v3 tasks. Goals and objects are random at every reset, and the goal is observable."""

from typing import TYPE_CHECKING

import numpy as np

from wrappers.shared.backend import import_with_opengl
from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.rendering import FrameRenderer, camera_names
from wrappers.shared.suites import Suite

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv


def load(name: str) -> "SawyerXYZEnv":
    """The Meta-World environment of the task ``name``, e.g. ``door-close``, without its own time limit.

    Meta-World's goal-observable classes never change their goal, so this configures the plain class instead.
    """
    env = import_with_opengl("metaworld.env_dict").ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
    env._set_task_called = True
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True  # use the environment's own RNG, not NumPy's global one
    env._partially_observable = False
    # Computed while goals were hidden, with bounds of 0 for them: observed goals would be clipped to 0.
    del env.sawyer_observation_space
    env.max_path_length = 2**62
    return env


class MetaWorldEnv(PixelEnv):
    """A Meta-World task. Rewards are at most 10 a step, success is per step, and the task never terminates.

    Low-dimensional entry ``state`` (39,): hand and objects at this step and the previous one, and the goal.
    """

    def __init__(self, name: str, description: dict):
        """Make the task ``name`` (without prefix); ``description`` as in `wrappers.make_env`."""
        self._env = load(name)
        self._reset_simulator(0)
        camera = description["camera"]
        self._renderer = FrameRenderer(self._env.model, description["size"], camera, description["render"])
        description = {**description, "camera": camera_names(self._env.model, camera)}
        super().__init__(description, self._env.action_space.low, self._env.action_space.high)

    def _reset_simulator(self, seed: int) -> None:
        self._env.seed(seed)
        self._state, _ = self._env.reset()

    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
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


SUITE = Suite(
    name="metaworld",
    title="Meta-World",
    # Meta-World's names without "-v3"; a test compares the list with the package.
    tasks=tuple(
        """
        assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall
        button-press button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble
        door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close faucet-open
        hammer hand-insert handle-press-side handle-press handle-pull-side handle-pull lever-pull
        peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
        plate-slide-back-side plate-slide-back plate-slide-side plate-slide push-back push push-wall
        reach reach-wall shelf-place soccer stick-pull stick-push sweep-into sweep window-close
        window-open""".split()
    ),
    make=MetaWorldEnv,
    # The camera `corner` is mounted upside down. mujoco-py returned frames upside down, so the paper's datasets
    # show the scene upright, though mirrored; flip does the same to MuJoCo's frames.
    settings={"action_repeat": 1, "camera": "corner", "flip": True},
    has_success=True,
    max_return=5000,  # 500 steps of at most 10
    # The paper's best target returns (CoWorld, its Table 2).
    max_returns={
        "door-close": 3967,
        "button-press": 3623,
        "window-close": 4521,
        "handle-press": 4570,
        "drawer-close": 4845,
        "button-press-topdown": 3889,
    },
)
