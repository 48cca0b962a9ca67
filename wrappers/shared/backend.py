"""Choose the OpenGL library with which MuJoCo draws, without a screen and without a setting by the user.

MuJoCo and dm_control read ``MUJOCO_GL`` once, on import, so they are imported by `import_with_opengl`.
"""

import importlib
import os
import subprocess
import sys
from types import ModuleType

from tools import BadInput

_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_CHECKED = "COWORLD_GL_CHECKED"  # tells worker processes that the MUJOCO_GL they inherit was tested
_PROBE = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
renderer.render()
renderer.close()
"""


def _works(backend: str) -> bool:
    """Whether ``backend`` draws a frame. Tested in a process of its own, which a broken driver can crash."""
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
    """Set ``MUJOCO_GL`` to a library that works and return it: the user's choice, else EGL, else OSMesa.

    Each candidate is tested by drawing one frame, once for this process and its children. On systems other
    than Linux it returns None and MuJoCo chooses.

    Raises BadInput if the user's choice, or both candidates, cannot draw; it names the Debian package to install.
    """
    if not sys.platform.startswith("linux"):
        return None
    requested = os.environ.get("MUJOCO_GL", "").strip().lower()
    if requested and os.environ.get(_CHECKED) == requested:
        return requested
    candidates = (requested,) if requested else tuple(_PACKAGES)
    backend = next((name for name in candidates if _works(name)), None)
    if backend is None and requested:
        raise BadInput(
            f"MUJOCO_GL={requested} cannot draw here: unset it to let a library be chosen, "
            f"or install one with {_install_hint((requested,) if requested in _PACKAGES else tuple(_PACKAGES))}"
        )
    if backend is None:
        raise BadInput(f"no OpenGL library can draw without a screen here: {_install_hint(tuple(_PACKAGES))}")
    _set_backend(backend)
    return backend


def _set_backend(backend: str) -> None:
    os.environ["MUJOCO_GL"] = os.environ[_CHECKED] = backend
    # Mesa's software renderer uses several threads per frame. For a 64-pixel frame that is slower (0.84 ms with
    # threads, 0.64 ms without), and the threads take cores from other environments.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "mujoco" in sys.modules:  # imported before the choice, perhaps with another library
        importlib.reload(importlib.import_module("mujoco.gl_context"))


def choose_backend_if_possible() -> BadInput | None:
    """`choose_backend`, for simulators that may not need it: its error is returned, not raised."""
    try:
        choose_backend()
    except BadInput as error:
        return error
    return None


def import_with_opengl(module: str) -> ModuleType:
    """Import ``module``, which may import MuJoCo or dm_control, after `choose_backend`. Raises BadInput as it does."""
    choose_backend()
    return importlib.import_module(module)
