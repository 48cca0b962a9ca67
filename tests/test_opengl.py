"""The choice of an OpenGL library and of the GPU on which it draws, by the user's variables."""

import os
import subprocess
import sys

import pytest
from rollouts import run_python

from tools import BadInput
from wrappers.shared import backend, gpus

VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", gpus.EGL_DEVICE, "CUDA_VISIBLE_DEVICES", "COWORLD_GL_CHECKED")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, and what a test sets is removed after it."""
    for name in (*VARIABLES, "COWORLD_EGL_DEVICE_FOR", *backend._MAY_PREVENT):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(backend, "_set_backend", lambda name: None)


def only(monkeypatch: pytest.MonkeyPatch, *libraries: str, broken_by: dict[str, str] | None = None) -> None:
    """These libraries draw, each unless the variable of ``broken_by`` is set."""

    def works(name: str, without: tuple[str, ...] = ()) -> bool:
        variable = (broken_by or {}).get(name, "")
        return name in libraries and (variable in without or variable not in os.environ)

    monkeypatch.setattr(backend, "_works", works)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"PYOPENGL_PLATFORM": "glx"}, "PYOPENGL_PLATFORM=glx cannot draw without a screen"),
        ({"PYOPENGL_PLATFORM": "Wayland", "MUJOCO_GL": "egl"}, "PYOPENGL_PLATFORM=wayland cannot draw"),
        (
            {"PYOPENGL_PLATFORM": "osmesa", "MUJOCO_GL": "egl"},
            "PYOPENGL_PLATFORM=osmesa contradicts MUJOCO_GL=egl: unset one of the two",
        ),
        ({"PYOPENGL_PLATFORM": "egl", "MUJOCO_GL": "osmesa"}, "PYOPENGL_PLATFORM=egl contradicts MUJOCO_GL=osmesa"),
        ({"MUJOCO_GL": "off"}, "MUJOCO_GL=off switches drawing off"),
        ({"MUJOCO_GL": "elg"}, r"MUJOCO_GL=elg is no OpenGL library of MuJoCo; .*nearest: egl"),
    ],
)
def test_variables_that_contradict_each_other(given: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=message):
        backend.choose_backend()


@pytest.mark.parametrize(
    ("given", "works", "chosen"),
    [
        ({}, ("egl", "osmesa"), "egl"),
        ({}, ("osmesa",), "osmesa"),
        ({"MUJOCO_GL": " EGL "}, ("egl",), "egl"),
        ({"MUJOCO_GL": "on"}, ("egl",), "egl"),
        ({"MUJOCO_GL": "glx"}, ("egl", "glfw"), "glfw"),
        ({"MUJOCO_GL": "glfw", "PYOPENGL_PLATFORM": "glx"}, ("egl", "glfw"), "glfw"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, ("egl", "osmesa"), "osmesa"),
        ({"PYOPENGL_PLATFORM": "EGL", "MUJOCO_GL": "egl"}, ("egl",), "egl"),
        ({"MUJOCO_GL": "osmesa", gpus.EGL_DEVICE: "7"}, ("osmesa",), "osmesa"),
        ({gpus.EGL_DEVICE: ""}, ("egl",), "egl"),
    ],
)
def test_what_is_chosen(given: dict, works: tuple, chosen: str, monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, *works)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert backend.choose_backend() == chosen
    assert os.environ.get(gpus.EGL_DEVICE) != ""  # MuJoCo would read it as a number


@pytest.mark.parametrize(
    ("given", "broken_by", "message"),
    [
        ({}, {}, r"no OpenGL library can draw .*libegl1.*libosmesa6"),
        ({"MUJOCO_GL": "egl"}, {}, "MUJOCO_GL=egl cannot draw here: unset it .*libegl1"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, {}, "PYOPENGL_PLATFORM=osmesa cannot draw here: unset it .*libosmesa6"),
        ({"MUJOCO_GL": "glfw"}, {}, "MUJOCO_GL=glfw cannot draw here, it needs a screen"),
        ({"EGL_PLATFORM": "x11"}, {"egl": "EGL_PLATFORM"}, "EGL_PLATFORM=x11: with it, egl cannot draw here: unset it"),
        (
            {"GALLIUM_DRIVER": "zink", "EGL_PLATFORM": "x11"},
            {"egl": "GALLIUM_DRIVER"},
            "^GALLIUM_DRIVER=zink: with it, egl cannot",
        ),
    ],
)
def test_the_cause_is_named(given: dict, broken_by: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, *broken_by, broken_by=broken_by)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=message):
        backend.choose_backend()


def test_a_platform_of_pyopengl_is_followed_with_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    only(monkeypatch, "egl", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert backend.choose_backend() == "osmesa"
    assert capsys.readouterr().err == "note: drawing with osmesa, as PYOPENGL_PLATFORM says\n"


@pytest.mark.parametrize("number", ["7", "-1", "abc"])
def test_a_device_that_egl_does_not_have(number: str):
    """In a new process: MuJoCo reads the variable once."""
    code = "from tools import exit_on_bad_input; from wrappers import make_env\n"
    code += "exit_on_bad_input(lambda: make_env('walker_walk'))"
    done = run_python(code, MUJOCO_EGL_DEVICE_ID=number)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: MUJOCO_EGL_DEVICE_ID={number}: EGL cannot draw on this device (EGL has ")


def test_drivers_that_are_hidden_are_no_missing_package():
    """Without the list of vendors, the EGL loader finds no driver. The worker process gives the same line."""
    code = "from tools import exit_on_bad_input; from wrappers.shared.vector import ProcessEnv\n"
    code += "exit_on_bad_input(lambda: ProcessEnv('walker_walk').wait_until_made())"
    done = run_python(code, MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_DIRS="/nowhere")
    assert done.returncode == 2
    assert done.stderr == "error: __EGL_VENDOR_LIBRARY_DIRS=/nowhere: with it, egl cannot draw here: unset it\n"


# The GPU

BUS = [f"0000:{bus:02x}:00.0" for bus in (0x17, 0x65, 0xB3)]


@pytest.mark.parametrize(
    ("egl", "visible", "expected"),
    [
        ([0, 1, 2, None], [BUS[1]], 1),
        ([0, 1, 2, None], [BUS[2], BUS[0]], 2),
        ([2, None, 0, 1], [BUS[0]], 2),  # EGL's order is another
        ([None, 1, 2], [BUS[0]], None),  # EGL does not have it
        ([0, 1, 2], ["0000:ff:00.0"], None),
        ([0, 1, 2], [], None),  # CUDA_VISIBLE_DEVICES names none that exists
        ([0, None], [BUS[0]], None),  # nothing to choose
        ([], [BUS[0]], None),
        ([0, 9], [BUS[0]], None),
    ],
)
def test_the_number_that_egl_gives_of_a_gpu(egl: list, visible: list, expected: int | None):
    assert gpus.match_device(egl, BUS, visible) == expected


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs, which EGL has in another order; CUDA reads CUDA_VISIBLE_DEVICES, also UUIDs."""
    names = {"0": BUS[0], "1": BUS[1], "2": BUS[2], "GPU-8a": BUS[2]}

    def read_devices(without: set[str] = frozenset()) -> dict:
        text = "0,1,2" if "CUDA_VISIBLE_DEVICES" in without else os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2")
        return {"egl": [1, 2, 0, None], "cuda": [names[name] for name in text.split(",")]}

    monkeypatch.setattr(gpus, "read_devices", read_devices)
    only(monkeypatch, "egl")


@pytest.mark.parametrize(("visible", "device"), [("0", "2"), ("1", "0"), ("2,0", "1"), ("GPU-8a", "1"), ("", None)])
def test_a_run_draws_on_its_own_gpu(
    three_gpus: None, visible: str, device: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert backend.choose_backend() == "egl" and os.environ.get(gpus.EGL_DEVICE) == device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as Ray does, in a process that inherits the choice
    assert backend.choose_backend() == "egl" and os.environ.get(gpus.EGL_DEVICE) == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert backend.choose_backend() == "egl" and gpus.EGL_DEVICE not in os.environ


def test_a_users_device_stays(three_gpus: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(gpus.EGL_DEVICE, "3")
    for visible in ("1", "2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        backend.choose_backend()
        assert os.environ[gpus.EGL_DEVICE] == "3"


def test_a_gpu_that_cannot_draw_is_left_out(three_gpus: None, monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "egl", broken_by={"egl": gpus.EGL_DEVICE})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert backend.choose_backend() == "egl" and gpus.EGL_DEVICE not in os.environ
    del os.environ["COWORLD_EGL_DEVICE_FOR"]
    monkeypatch.setenv(gpus.EGL_DEVICE, "1")
    with pytest.raises(BadInput, match=r"MUJOCO_EGL_DEVICE_ID=1: EGL cannot draw on this device \(EGL has 4 devices"):
        backend.choose_backend()


def test_the_devices_of_this_machine():
    """EGL's are as many as MuJoCo counts."""
    code = "from mujoco.egl import egl_ext as EGL; print(len(EGL.eglQueryDevicesEXT()))"
    environment = {**os.environ, "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    counted = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if counted.returncode:
        pytest.skip("EGL is not installed here")
    devices = gpus.read_devices()
    assert len(devices["egl"]) == int(counted.stdout)
    assert all(number is None or number < len(devices["cuda"]) for number in devices["egl"])


def test_a_test_that_does_not_end_does_not_blame_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "PROBE_SECONDS", 0.01)
    with pytest.raises(
        BadInput, match=r"with egl took more than 0.01 s: .* busy.*start again later, or with MUJOCO_GL="
    ):
        backend.choose_backend()
