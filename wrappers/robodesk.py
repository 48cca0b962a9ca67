"""RoboDesk: a robot arm at a desk, seen from above.

Its rewards and its success function are used as they are shipped. One oddity of theirs to know: RoboDesk
keeps a live view of the blocks' positions as their "original" ones, so its "did not move" terms are always
full, and "pushed" and "lifted" terms always zero. The paper's numbers were made with that, so it stays.
"""

import importlib

import mujoco
import numpy as np
from PIL import Image

from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.patches import NumpyWith
from wrappers.shared.rendering import FrameRenderer, camera_name


def _import_robodesk():
    """Import the package without the notice that gym, which it needs, prints on import."""
    import gym_notices.notices as gym_notices

    shown, gym_notices.notices = gym_notices.notices, {}
    try:
        return importlib.import_module("robodesk.robodesk")
    finally:
        gym_notices.notices = shown


robodesk = _import_robodesk()

ACTION_REPEAT = 1
FLIP = False
CAMERA = "top"
# RoboDesk draws 120 pixels from above, cuts out the desk and shrinks that to its 64.
_DRAWN, _CUT, _SHOWN = 120, (16.75, 25.0, 105.0, 88.75), 64


def top_camera() -> mujoco.MjvCamera:
    """RoboDesk's own view, which it sets in code."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.distance, camera.azimuth, camera.elevation = 1.8, 90, -60
    camera.lookat[:] = 0, 0.535, 1.1
    return camera


class Desk(robodesk.RoboDesk):
    """RoboDesk with its own random numbers, one camera kept, and observations without a picture in each."""

    def __init__(self, task: str, size: int, camera: str | int, quality: str):
        super().__init__(task=task, reward="dense", action_repeat=1, episode_length=None, image_size=size)
        self.random = np.random.RandomState()
        self._cut_out = camera == CAMERA
        # Frames above 64 pixels are drawn larger in proportion, so that they are not blurred.
        self._scale = max(1.0, size / _SHOWN) if self._cut_out else 1.0
        view = top_camera() if self._cut_out else camera
        drawn = round(_DRAWN * self._scale) if self._cut_out else size
        self._renderer = FrameRenderer(self.physics.model.ptr, drawn, view, quality)

    def reset(self) -> dict[str, np.ndarray]:
        """As RoboDesk's, with this object's random numbers where it takes NumPy's global ones."""
        before = robodesk.np
        robodesk.np = NumpyWith(random=self.random)
        try:
            return super().reset()
        finally:
            robodesk.np = before

    def render(self, mode: str = "rgb_array", resize: bool = True) -> np.ndarray:
        """The frame, (size, size, 3) uint8; RoboDesk's own method needs a Pillow older than 10."""
        image = self._renderer.frame(self.physics.data.ptr)
        if not (resize and self._cut_out):
            return image
        cut = Image.fromarray(image).crop([edge * self._scale for edge in _CUT])
        return np.array(cut.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS))

    def succeeded(self) -> float:
        """RoboDesk's own success function, 0 or 1, for the present state."""
        return float(np.asarray(self._get_task_reward(self.task, "success")).item())

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

    def _get_obs(self) -> dict[str, np.ndarray]:
        # RoboDesk's `qpos_objects` holds the velocities once more; here it holds the positions.
        data, joints = self.physics.data, self.num_joints
        return {
            "qpos_robot": data.qpos[:joints].copy(),
            "qvel_robot": data.qvel[:joints].copy(),
            "end_effector": self.physics.named.data.site_xpos["end_effector"].copy(),
            "qpos_objects": data.qpos[joints:].copy(),
            "qvel_objects": data.qvel[joints:].copy(),
        }


class RoboDeskEnv(PixelEnv):
    """A RoboDesk task: dense rewards in [0, 1], success by its own function; nothing but time ends it."""

    has_success = True

    def __init__(self, name: str, description: dict):
        camera = CAMERA if description["camera"] is None else description["camera"]
        self._desk = Desk(name, description["size"], camera, description["render"])
        if camera != CAMERA:
            camera = camera_name(self._desk.physics.model.ptr, camera)
        self._begin(0)
        bound = np.ones(self._desk.action_dim)
        super().__init__({**description, "camera": camera}, -bound, bound)

    def _begin(self, seed: int) -> None:
        self._desk.random.seed(seed)
        self._observed = self._desk.reset()

    def _advance(self, action: np.ndarray) -> SimulatorStep:
        self._observed, reward, _, _ = self._desk.step(action)
        return SimulatorStep(float(reward), success=self._desk.succeeded())

    def _draw(self) -> np.ndarray:
        return self._desk.render()

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return self._observed

    def close(self) -> None:
        """Free the renderer."""
        self._desk.close()


def make(name: str, description: dict) -> RoboDeskEnv:
    """The environment of a task named without its prefix; ``description`` as in `wrappers.make_env`."""
    return RoboDeskEnv(name, description)
