"""Choose the OpenGL library with which MuJoCo draws, without a screen and without a setting by the user.

MuJoCo and dm_control read ``MUJOCO_GL`` once, on import, so they are imported by `import_with_opengl`.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable
from types import ModuleType

from tools import BadInput, nearest
from wrappers.shared.gpus import EGL_DEVICE, choose_gpu, chosen_here, egl_devices

_LIBRARY, _PLATFORM = "MUJOCO_GL", "PYOPENGL_PLATFORM"  # of MuJoCo, and of PyOpenGL, by which it loads the library
_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_ANY = ("enable", "enabled", "on", "true", "1")
_NONE = ("disable", "disabled", "off", "false", "0", "no_render")
_CHECKED = "COWORLD_GL_CHECKED"  # tells child processes that the library and the device they inherit were tested
_MAY_PREVENT = (  # variables by which a library that is installed may fail
    *(EGL_DEVICE, "__EGL_VENDOR_LIBRARY_FILENAMES", "__EGL_VENDOR_LIBRARY_DIRS", "EGL_PLATFORM", "LIBGL_DRIVERS_PATH"),
    *("GALLIUM_DRIVER", "MESA_LOADER_DRIVER_OVERRIDE", "MESA_GL_VERSION_OVERRIDE", "LIBGL_ALWAYS_SOFTWARE"),
)
PROBE_SECONDS = 300  # on an idle machine it takes 2
_PROBE = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
renderer.render()
renderer.close()
"""


def _works(backend: str, without: Iterable[str] = ()) -> bool:
    """Whether ``backend`` draws a frame. Tested in a process of its own, which a broken driver can crash.

    ``without``: variables that the process does not get. Raises BadInput if it does not end: nothing is known then.
    """
    environment = {**os.environ, _LIBRARY: backend}
    for name in (_PLATFORM, *without):
        environment.pop(name, None)
    try:
        command = [sys.executable, "-c", _PROBE]
        probe = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        other = next(name for name in _PACKAGES if name != backend)
        raise BadInput(
            f"drawing one frame with {backend} took more than {PROBE_SECONDS} s: the machine is too busy, or the "
            f"driver does not answer; start again later, or with {_LIBRARY}={other}"
        ) from None
    return probe.returncode == 0


def _install_hint(backends: tuple[str, ...]) -> str:
    return " or ".join(f"`apt-get install {_PACKAGES[name]}` ({name})" for name in backends)


def _requested() -> str:
    """The library that the user's variables ask for; "" if they leave the choice to this program.

    Raises BadInput if they contradict each other, or ask for something that cannot be used.
    """
    library, platform = (os.environ.get(name, "").strip().lower() for name in (_LIBRARY, _PLATFORM))
    if library in _NONE:
        raise BadInput(f"{_LIBRARY}={library} switches drawing off, and this task draws images: unset it")
    library = {"glx": "glfw", **dict.fromkeys(_ANY, "")}.get(library, library)
    if library == "glfw":
        return library  # it is not loaded by way of PyOpenGL
    if library not in ("", *_PACKAGES):
        known = nearest(library, (*_PACKAGES, "glfw"))
        raise BadInput(f"{_LIBRARY}={library} is no OpenGL library of MuJoCo; unset it, or give one ({known})")
    if platform not in ("", *_PACKAGES):
        raise BadInput(f"{_PLATFORM}={platform} cannot draw without a screen, only egl and osmesa can: unset it")
    if library and platform not in ("", library):
        raise BadInput(f"{_PLATFORM}={platform} contradicts {_LIBRARY}={library}: unset one of the two")
    return library or platform


def choose_backend() -> str | None:
    """Set ``MUJOCO_GL`` to a library that works and return it: the user's choice, else EGL, else OSMesa.

    Each candidate is tested by drawing one frame, once for this process and its children. EGL draws on the GPU of
    ``MUJOCO_EGL_DEVICE_ID``, else on the first one of ``CUDA_VISIBLE_DEVICES``. On systems other than Linux it returns
    None and MuJoCo chooses.

    Raises BadInput if the user's choice, or both candidates, cannot draw; it names the variable that prevents it, or
    the Debian package to install.
    """
    if not sys.platform.startswith("linux"):
        return None
    requested = _requested()
    if requested in ("", "egl"):
        choose_gpu()
    if requested and os.environ.get(_CHECKED) == _tested(requested):
        return requested
    candidates = (requested,) if requested else tuple(_PACKAGES)
    backend = next((name for name in candidates if _can_draw(name)), None)
    if backend is None:
        _raise_cause(requested, candidates)
    if not os.environ.get(_LIBRARY) and requested:
        print(f"note: drawing with {requested}, as {_PLATFORM} says", file=sys.stderr)
    _set_backend(backend)
    return backend


def _tested(backend: str) -> str:
    """What `_CHECKED` holds after a test of ``backend``."""
    return f"{backend} {os.environ.get(EGL_DEVICE, '')}" if backend == "egl" else backend


def _can_draw(name: str) -> bool:
    """`_works`. A GPU that this program chose and that cannot draw is left out; a user's is an error.

    Raises BadInput if EGL draws, but not on the device of the user's ``MUJOCO_EGL_DEVICE_ID``.
    """
    if _works(name):
        return True
    if name != "egl" or EGL_DEVICE not in os.environ or not _works(name, [EGL_DEVICE]):
        return False
    if chosen_here():
        del os.environ[EGL_DEVICE]
        return True
    number, devices = os.environ[EGL_DEVICE], egl_devices()
    numbers = f"EGL has {devices} here, numbered from 0" if devices else "EGL does not say which it has"
    raise BadInput(f"{EGL_DEVICE}={number}: EGL cannot draw on this device ({numbers}): unset it, or give another")


def _raise_cause(requested: str, candidates: tuple[str, ...]) -> None:
    """Raise the BadInput of ``candidates`` that all fail. Those that draw without a variable blame the variable."""
    names = [name for name in _MAY_PREVENT if os.environ.get(name)]
    for backend in candidates:
        for without in [[name] for name in names] + ([names] if len(names) > 1 else []):
            if _works(backend, without):
                blamed = " ".join(f"{name}={os.environ[name]}" for name in without)
                raise BadInput(f"{blamed}: with it, {backend} cannot draw here: unset it")
    variable = _LIBRARY if os.environ.get(_LIBRARY) else _PLATFORM
    if requested == "glfw":
        raise BadInput(f"{_LIBRARY}=glfw cannot draw here, it needs a screen (DISPLAY): unset it")
    if requested:
        raise BadInput(
            f"{variable}={requested} cannot draw here: unset it to let a library be chosen, "
            f"or install it with {_install_hint(candidates)}"
        )
    raise BadInput(f"no OpenGL library can draw without a screen here: {_install_hint(candidates)}")


def _set_backend(backend: str) -> None:
    os.environ[_LIBRARY], os.environ[_CHECKED] = backend, _tested(backend)
    if backend in _PACKAGES:
        os.environ[_PLATFORM] = backend  # PyOpenGL does not know the name in capitals
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
