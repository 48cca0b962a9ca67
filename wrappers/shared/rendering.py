"""Frames from a MuJoCo model: one renderer kept for each environment, in one of two qualities.

``full`` draws what the model asks for. ``fast`` leaves out the shadow map, multisampling and reflections: in
a 64-pixel frame they are nearly all of the cost when a CPU draws, and little of the picture. The two look
different, so the setting is recorded with the data, and a dataset and its evaluation must be drawn alike.
"""

import atexit
import weakref
from contextlib import contextmanager

import numpy as np

from tools import BadInput, nearest
from wrappers.shared.backend import choose_backend

choose_backend()  # before the import below, which reads the choice

import mujoco  # noqa: E402

QUALITIES = ("full", "fast")
_LEFT_OUT = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)


def camera_id(model: mujoco.MjModel, camera: str | int) -> int:
    """The index of the camera that a name or a number means; -1 is MuJoCo's free camera.

    Raises:
        BadInput: the model has no such camera; the message names those it has.
    """
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera in names:
        return names.index(camera)
    text = str(camera)
    if text.lstrip("-").isdigit() and -1 <= int(text) < len(names):
        return int(text)
    raise BadInput(f"no camera {camera!r} in this task, which has 0 to {len(names) - 1}; {nearest(text, names)}")


def camera_name(model: mujoco.MjModel, camera: str | int) -> str:
    """The name of that camera, or its number as text where it has none."""
    index = camera_id(model, camera)
    return (model.camera(index).name if index >= 0 else "") or str(index)


@contextmanager
def _drawing_settings(model: mujoco.MjModel, size: int, quality: str):
    """Set what MuJoCo reads while it makes a drawing context, then give the model back as it was."""
    visual, screen = model.vis.quality, model.vis.global_
    before = visual.shadowsize, visual.offsamples, screen.offwidth, screen.offheight
    screen.offwidth, screen.offheight = max(screen.offwidth, size), max(screen.offheight, size)
    if quality == "fast":
        visual.shadowsize = visual.offsamples = 0
    try:
        yield
    finally:
        visual.shadowsize, visual.offsamples, screen.offwidth, screen.offheight = before


class FrameRenderer:
    """Draws (size, size, 3) uint8 frames of ``model`` seen by ``camera``.

    It keeps one OpenGL context for its life: use it in the thread that made it, and close it.
    """

    def __init__(self, model: mujoco.MjModel, size: int, camera: str | int | mujoco.MjvCamera, quality: str):
        self._camera = camera if isinstance(camera, mujoco.MjvCamera) else camera_id(model, camera)
        with _drawing_settings(model, size, quality):
            self._renderer = mujoco.Renderer(model, size, size)
        if quality == "fast":
            for flag in _LEFT_OUT:
                self._renderer.scene.flags[flag] = False
        # OpenGL's display is closed at exit too, by the simulators; what runs first is what registered last.
        # A renderer freed after its display prints a traceback.
        atexit.register(_close_if_alive, weakref.ref(self))

    def frame(self, data: mujoco.MjData) -> np.ndarray:
        """The scene of ``data`` as a new (size, size, 3) uint8 array."""
        self._renderer.update_scene(data, self._camera)
        return self._renderer.render()

    def sky(self, data: mujoco.MjData) -> np.ndarray:
        """Where nothing of the scene of ``data`` is, (size, size) bool."""
        self._renderer.update_scene(data, self._camera)
        self._renderer.enable_segmentation_rendering()
        nothing = self._renderer.render()[..., 0] == -1
        self._renderer.disable_segmentation_rendering()
        return nothing

    def close(self) -> None:
        """Free the OpenGL context; closing twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _close_if_alive(reference: "weakref.ref[FrameRenderer]") -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()
