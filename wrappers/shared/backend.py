"""Choose the OpenGL library MuJoCo draws with, so that no screen and no setting is needed.

This module imports no simulator: MuJoCo and dm_control read ``MUJOCO_GL`` once, when they are imported.
"""

import importlib
import os
import subprocess
import sys

from tools import BadInput

_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_CHECKED = "COWORLD_GL_CHECKED"  # tells worker processes that their inherited MUJOCO_GL has been tried
_PROBE = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
renderer.render()
renderer.close()
"""


def _works(backend: str) -> bool:
    """Draw a frame with ``backend`` in a process of its own: a broken driver can crash its process."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        command = [sys.executable, "-c", _PROBE]
        probe = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def _install_hint(backends: tuple[str, ...]) -> str:
    return " or ".join(f"`apt-get install {_PACKAGES[name]}` ({name})" for name in backends)


def choose_backend() -> str | None:
    """Set ``MUJOCO_GL`` to a library that draws here and return it: the user's, else EGL, else OSMesa.

    Off Linux, MuJoCo's own choice stands (None). Each candidate is tried by drawing one frame.

    Raises:
        BadInput: the user's choice, or both candidates, cannot draw; names the Debian package to install.
    """
    if not sys.platform.startswith("linux"):
        return None
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked and os.environ.get(_CHECKED) == asked:
        return asked
    candidates = (asked,) if asked else tuple(_PACKAGES)
    backend = next((name for name in candidates if _works(name)), None)
    if backend is None and asked:
        raise BadInput(
            f"MUJOCO_GL={asked} cannot draw here: unset it to let a library be chosen, "
            f"or install one with {_install_hint((asked,) if asked in _PACKAGES else tuple(_PACKAGES))}"
        )
    if backend is None:
        raise BadInput(f"no OpenGL library can draw without a screen here: {_install_hint(tuple(_PACKAGES))}")
    _adopt(backend)
    return backend


def _adopt(backend: str) -> None:
    os.environ["MUJOCO_GL"] = os.environ[_CHECKED] = backend
    # Mesa's software renderer spreads a frame over threads; for a 64-pixel frame, waking them costs more than
    # they save (0.84 ms a frame with them, 0.64 ms without), and they take cores from other environments.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "mujoco" in sys.modules:  # imported earlier by someone else, with whatever library it found then
        importlib.reload(importlib.import_module("mujoco.gl_context"))
