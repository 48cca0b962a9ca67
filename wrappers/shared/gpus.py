"""The GPU on which EGL draws: that on which the process computes.

EGL numbers all GPUs of the machine in an order of its own and knows nothing of ``CUDA_VISIBLE_DEVICES``. Without a
choice every process draws on its first one. So EGL's devices are compared with CUDA's by their PCI addresses.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"  # read by MuJoCo and dm_control: a number in EGL's order
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CHOSEN_FOR = "COWORLD_EGL_DEVICE_FOR"  # the CUDA_VISIBLE_DEVICES for which `choose_gpu` has chosen the device
# Prints CUDA's numbers of EGL's devices (null: not CUDA's), by EGL_NV_device_cuda, and addresses of CUDA's devices.
_DEVICES = """
import ctypes, json
from ctypes import byref, c_char_p, c_int, c_ssize_t, c_uint, c_void_p, POINTER

def egl():
    library = ctypes.CDLL("libEGL.so.1")
    library.eglGetProcAddress.restype, library.eglGetProcAddress.argtypes = c_void_p, [c_char_p]
    def function(name, *types):
        return ctypes.CFUNCTYPE(c_uint, *types)(library.eglGetProcAddress(name))
    query = function(b"eglQueryDevicesEXT", c_int, POINTER(c_void_p), POINTER(c_int))
    attribute = function(b"eglQueryDeviceAttribEXT", c_void_p, c_int, POINTER(c_ssize_t))
    devices, count, numbers = (c_void_p * 64)(), c_int(), []
    if not query(64, devices, byref(count)):
        return []
    for device in devices[:count.value]:
        number = c_ssize_t(-1)
        known = attribute(device, 0x323A, byref(number)) and number.value >= 0  # EGL_CUDA_DEVICE_NV
        numbers.append(number.value if known else None)
    return numbers

def cuda():
    library, count, addresses = ctypes.CDLL("libcuda.so.1"), c_int(), []
    if library.cuInit(0) or library.cuDeviceGetCount(byref(count)):
        return []
    for number in range(count.value):
        address, device = ctypes.create_string_buffer(64), c_int()
        library.cuDeviceGet(byref(device), number)
        library.cuDeviceGetPCIBusId(address, 64, device)
        addresses.append(address.value.decode().lower())
    return addresses

found = {}
for part in (egl, cuda):
    try:
        found[part.__name__] = part()
    except (OSError, AttributeError, TypeError):
        found[part.__name__] = []
print(json.dumps(found))
"""


def choose_gpu() -> None:
    """Set ``MUJOCO_EGL_DEVICE_ID`` to the first GPU of ``CUDA_VISIBLE_DEVICES``, if the user has set it to nothing.

    Does nothing if no GPU is named, or if EGL or CUDA does not say which is which.
    """
    visible = os.environ.get(_VISIBLE, "")
    if os.environ.get(_CHOSEN_FOR) == visible:
        return
    if chosen_here() or not os.environ.get(EGL_DEVICE, "").strip():
        os.environ.pop(EGL_DEVICE, None)
    else:
        return
    os.environ[_CHOSEN_FOR] = visible
    if visible:
        everything = read_devices({_VISIBLE})
        device = match_device(everything["egl"], everything["cuda"], read_devices()["cuda"])
        if device is not None:
            os.environ[EGL_DEVICE] = str(device)


def chosen_here() -> bool:
    """Whether ``MUJOCO_EGL_DEVICE_ID`` is a choice of `choose_gpu`, in this process or the one that started it."""
    return _CHOSEN_FOR in os.environ


def match_device(egl: Sequence[int | None], machine: Sequence[str], visible: Sequence[str]) -> int | None:
    """EGL's number of the first GPU that the process may compute on; None if it cannot be told.

    Args:
        egl: CUDA's number of each of EGL's devices, None for one that is not CUDA's.
        machine: addresses of the GPUs in the order of these numbers, so without ``CUDA_VISIBLE_DEVICES``.
        visible: addresses of the GPUs that it may compute on, in its order.
    """
    wanted = visible[0] if visible else None
    known = {machine[number]: index for index, number in enumerate(egl) if number is not None and number < len(machine)}
    return known.get(wanted) if len(known) > 1 else None  # with one GPU there is no choice


def egl_devices() -> str:
    """``1 device``, or how many EGL has; "" if it does not say."""
    count = len(read_devices()["egl"])
    return f"{count} device{'s' * (count > 1)}" if count else ""


def read_devices(without: set[str] = frozenset()) -> dict[str, list[Any]]:
    """EGL's and CUDA's devices, see `match_device`, as a process without the variables ``without`` sees them."""
    environment = {name: value for name, value in os.environ.items() if name not in without}
    try:
        command = [sys.executable, "-c", _DEVICES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return {"egl": [], "cuda": []}
