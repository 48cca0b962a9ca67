"""Frames of a MuJoCo model: one renderer per environment, in one of two qualities.

``full`` draws what the model asks for. ``fast`` omits the shadow map, multisampling and reflections: on a CPU
they are nearly all of the cost of a 64-pixel frame. Frames of the two qualities differ, so the setting is
recorded with the data, and a dataset and its evaluation must use the same.
"""

import atexit
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tools import BadInput, nearest
from wrappers.shared.backend import import_with_opengl
from wrappers.shared.cameras import beside_each_other, split_cameras

if TYPE_CHECKING:
    import mujoco

_drawings: weakref.WeakSet = weakref.WeakSet()  # what `close_at_exit` was given


def camera_id(model: "mujoco.MjModel", camera: str | int) -> int:
    """The index of the camera with that name or number; -1 is MuJoCo's free camera.

    Raises BadInput if the model has no such camera; the message names the cameras it has.
    """
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera in names:
        return names.index(camera)
    text = str(camera)
    if text.lstrip("-").isdigit() and -1 <= int(text) < len(names):
        return int(text)
    raise BadInput(f"no camera {camera!r} in this task, which has 0 to {len(names) - 1}; {nearest(text, names)}")


def camera_name(model: "mujoco.MjModel", camera: str | int) -> str:
    """The name of that camera, or its number as text if it has none. Raises BadInput as `camera_id` does."""
    index = camera_id(model, camera)
    return (model.camera(index).name if index >= 0 else "") or str(index)


@contextmanager
def _drawing_settings(model: "mujoco.MjModel", size: int, quality: str):
    """Set the model's values that MuJoCo reads while it makes a drawing context, and restore them afterwards."""
    visual, screen = model.vis.quality, model.vis.global_
    before = visual.shadowsize, visual.offsamples, screen.offwidth, screen.offheight
    screen.offwidth, screen.offheight = max(screen.offwidth, size), max(screen.offheight, size)
    if quality == "fast":
        visual.shadowsize = visual.offsamples = 0
    try:
        yield
    finally:
        visual.shadowsize, visual.offsamples, screen.offwidth, screen.offheight = before


def camera_names(model: "mujoco.MjModel", cameras: str | int) -> str:
    """`camera_name` of each of several cameras, which commas separate."""
    return ",".join(camera_name(model, camera) for camera in split_cameras(cameras))


class FrameRenderer:
    """Draws (size, size, 3) uint8 frames of ``model`` from ``camera``; ``quality`` is full or fast.

    Of several cameras, which commas separate, the frames are side by side along the last axis, (size, size, 3 K).
    It has one OpenGL context: use it in the thread that made it, and close it.
    """

    def __init__(self, model: "mujoco.MjModel", size: int, camera: "str | int | mujoco.MjvCamera", quality: str):
        mujoco = import_with_opengl("mujoco")
        if isinstance(camera, mujoco.MjvCamera):
            self._cameras = [camera]
        else:
            self._cameras = [camera_id(model, name) for name in split_cameras(camera)]
        with _drawing_settings(model, size, quality):
            self._renderer = mujoco.Renderer(model, size, size)
        if quality == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = False
        close_at_exit(self)

    def frame(self, data: "mujoco.MjData") -> np.ndarray:
        """The scene of ``data`` as a new (size, size, 3 K) uint8 array."""
        return beside_each_other([self._frame(data, camera) for camera in self._cameras])

    def _frame(self, data: "mujoco.MjData", camera: "int | mujoco.MjvCamera") -> np.ndarray:
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def sky(self, data: "mujoco.MjData") -> np.ndarray:
        """Pixels without any object of the scene of ``data``, (size, size, K) bool."""
        self._renderer.enable_segmentation_rendering()
        sky = np.stack([self._frame(data, camera)[..., 0] == -1 for camera in self._cameras], -1)
        self._renderer.disable_segmentation_rendering()
        return sky

    def close(self) -> None:
        """Free the OpenGL context; closing twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def close_at_exit(drawing: Any) -> None:
    """Call ``drawing.close()`` when Python exits, unless it is gone by then. Use it once ``drawing`` has its context.

    The simulators close OpenGL's display at exit. A renderer freed after its display prints a traceback; atexit calls
    the function registered last first, so ours is registered again after every simulator.
    """
    _drawings.add(drawing)
    atexit.unregister(_close_drawings)
    atexit.register(_close_drawings)


def _close_drawings() -> None:
    for drawing in list(_drawings):
        drawing.close()
