"""RoboDesk: a robot arm at a desk, seen from above.

Rewards and the success function are those of the package, with one known defect: RoboDesk stores views of the
blocks' current positions as their original ones, so its "did not move" terms are always full, and its "pushed"
and "lifted" terms always zero. The paper's numbers were measured with it, so it is not fixed here.
"""

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wrappers.shared.backend import choose_backend, import_with_opengl
from wrappers.shared.base import PixelEnv, SimulatorStep
from wrappers.shared.cameras import beside_each_other, split_cameras
from wrappers.shared.patches import NumpyWith, import_without_gym_notice
from wrappers.shared.rendering import FrameRenderer, camera_name
from wrappers.shared.suites import Suite

if TYPE_CHECKING:
    import mujoco

TOP_CAMERA = "top"
# RoboDesk draws 120 pixels from above, crops to the desk and resizes the crop to 64.
_DRAWN, _CROP, _SHOWN = 120, (16.75, 25.0, 105.0, 88.75), 64


@cache
def robodesk_package() -> ModuleType:
    """The module ``robodesk.robodesk``."""
    choose_backend()
    return import_without_gym_notice("robodesk.robodesk")


def top_camera() -> "mujoco.MjvCamera":
    """RoboDesk's own camera, which is not part of its model."""
    mujoco = import_with_opengl("mujoco")
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.distance, camera.azimuth, camera.elevation = 1.8, 90, -60
    camera.lookat[:] = 0, 0.535, 1.1
    return camera


class DeskOverrides:
    """Methods that replace those of RoboDesk: an RNG of its own, one renderer, observations without an image."""

    def __init__(self, task: str, size: int, cameras: list[str | int], quality: str):
        super().__init__(task=task, reward="dense", action_repeat=1, episode_length=None, image_size=size)
        self.random = np.random.RandomState()
        # Above 64 pixels the drawing is enlarged in proportion, so that the crop is not blurred.
        self._scale = max(1.0, size / _SHOWN)
        self._renderers = {camera: self._renderer(camera, quality) for camera in cameras}

    def _renderer(self, camera: str | int, quality: str) -> FrameRenderer:
        from_top = camera == TOP_CAMERA
        drawn = round(_DRAWN * self._scale) if from_top else self.image_size
        return FrameRenderer(self.physics.model.ptr, drawn, top_camera() if from_top else camera, quality)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset as RoboDesk does, with this object's RNG in place of NumPy's global one."""
        package = robodesk_package()
        before = package.np
        package.np = NumpyWith(random=self.random)
        try:
            return super().reset()
        finally:
            package.np = before

    def render(self) -> np.ndarray:
        """The frame, (size, size, 3 for each camera) uint8. RoboDesk's own method fails with Pillow 10 and later."""
        data = self.physics.data.ptr
        frames = {camera: renderer.frame(data) for camera, renderer in self._renderers.items()}
        if TOP_CAMERA in frames:
            crop = Image.fromarray(frames[TOP_CAMERA]).crop([edge * self._scale for edge in _CROP])
            frames[TOP_CAMERA] = np.array(crop.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS))
        return beside_each_other(list(frames.values()))

    def succeeded(self) -> float:
        """RoboDesk's success function for the current state, 0 or 1."""
        return float(np.asarray(self._get_task_reward(self.task, "success")).item())

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()

    def _get_obs(self) -> dict[str, np.ndarray]:
        # RoboDesk's own `qpos_objects` contains the velocities by mistake; here it contains the positions.
        data, joints = self.physics.data, self.num_joints
        return {
            "qpos_robot": data.qpos[:joints].copy(),
            "qvel_robot": data.qvel[:joints].copy(),
            "end_effector": self.physics.named.data.site_xpos["end_effector"].copy(),
            "qpos_objects": data.qpos[joints:].copy(),
            "qvel_objects": data.qvel[joints:].copy(),
        }


@cache
def desk_class() -> type:
    """RoboDesk's class with `DeskOverrides`; made here because its base class needs the package."""
    return type("Desk", (DeskOverrides, robodesk_package().RoboDesk), {})


class RoboDeskEnv(PixelEnv):
    """A RoboDesk task. Rewards are in [0, 1] a step, success is per step, and the task never terminates."""

    def __init__(self, name: str, description: dict):
        """Make the task ``name`` (without prefix); ``description`` as in `wrappers.make_env`."""
        cameras = split_cameras(TOP_CAMERA if description["camera"] is None else description["camera"])
        self._desk = desk_class()(name, description["size"], cameras, description["render"])
        model = self._desk.physics.model.ptr
        names = [camera if camera == TOP_CAMERA else camera_name(model, camera) for camera in cameras]
        self._reset_simulator(0)
        bound = np.ones(self._desk.action_dim)
        super().__init__({**description, "camera": ",".join(names)}, -bound, bound)

    def _reset_simulator(self, seed: int) -> None:
        self._desk.random.seed(seed)
        self._observed = self._desk.reset()

    def _step_simulator(self, action: np.ndarray) -> SimulatorStep:
        self._observed, reward, _, _ = self._desk.step(action)
        return SimulatorStep(float(reward), success=self._desk.succeeded())

    def _draw(self) -> np.ndarray:
        return self._desk.render()

    def _low_dimensional(self) -> dict[str, np.ndarray]:
        return self._observed

    def close(self) -> None:
        """Free the renderer."""
        self._desk.close()


SUITE = Suite(
    name="robodesk",
    title="RoboDesk",
    # A test compares the list with the package.
    tasks=tuple(
        """
        open_slide open_drawer push_green stack upright_block_off_table flat_block_in_bin
        flat_block_in_shelf lift_upright_block lift_ball push_blue push_red flat_block_off_table
        ball_off_table upright_block_in_bin ball_in_bin upright_block_in_shelf ball_in_shelf
        lift_flat_block""".split()
    ),
    make=RoboDeskEnv,
    settings={"action_repeat": 1, "camera": ""},
    has_success=True,
    max_return=500,  # 500 steps of at most 1
    max_returns={"push_green": 428, "open_slide": 202},  # the paper's best target returns (CoWorld, from Meta-World)
)
