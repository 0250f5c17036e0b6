"""The few functions of NVIDIA's driver that decoding needs, called without PyTorch.

A process that only decodes need not import PyTorch, which takes seconds and half a gigabyte. All of them share the
device's primary context, as PyTorch does (CUDA Driver API, Primary Context Management).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import numpy as np

from caption_extents.errors import DecodeError

_NAME_BYTES = 256


@cache
def _library() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        OSError: there is none.
    """
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def is_there() -> bool:
    """Whether this machine has a driver."""
    try:
        _library()
    except OSError:
        return False
    return True


def _call(name: str, *arguments: object) -> None:
    if (status := getattr(_library(), name)(*arguments)) != 0:
        raise DecodeError(f"the GPU's driver refused: {name} gave {status}")


@cache
def _primary_context(ordinal: int) -> ctypes.c_void_p:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context


def enter(ordinal: int) -> None:
    """Make a device's primary context the current one of this thread.

    Raises:
        DecodeError: the driver refuses.
        OSError: there is no driver.
    """
    _call("cuCtxSetCurrent", _primary_context(ordinal))


def device_name(ordinal: int) -> str:
    """What the device is called."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    _call("cuDeviceGetName", name, _NAME_BYTES, device)
    return name.value.decode(errors="replace")


def pin(memory: np.ndarray) -> None:
    """Lock memory into place, so that the device copies to it without a detour; until the process ends."""
    _call("cuMemHostRegister_v2", ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), 0)


def wait() -> None:
    """Return when everything is done that was queued on the default stream of this thread's context."""
    _call("cuStreamSynchronize", None)
