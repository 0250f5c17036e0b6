"""The few functions of NVIDIA's driver that decoding needs, called without PyTorch.

A process that only decodes need not import PyTorch, which takes seconds and half a gigabyte. All threads of a process
use the device's primary context, as PyTorch does (CUDA Driver API, Primary Context Management).

A crop is copied from a decoded frame by one driver call. With PyTorch tensors it takes a dozen calls, each of which
releases and reacquires the GIL; the threads of all decoder sessions then wait for the GIL, which limits them more than
the decode engines do.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import ClassVar
from uuid import UUID

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


def device_count() -> int:
    """How many CUDA devices this process may use; 0 without a driver."""
    count = ctypes.c_int()
    try:
        _call("cuInit", 0)
        _call("cuDeviceGetCount", ctypes.byref(count))
    except (OSError, DecodeError):
        return 0
    return count.value


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


def device_uuid(ordinal: int) -> str | None:
    """The UUID of a device as NVIDIA's tools write it; None if the driver does not tell.

    The driver's numbers are not NVML's where CUDA_VISIBLE_DEVICES leaves some out.
    """
    device, uuid = ctypes.c_int(), ctypes.create_string_buffer(16)
    try:
        _call("cuInit", 0)
        _call("cuDeviceGet", ctypes.byref(device), ordinal)
        _call("cuDeviceGetUuid", uuid, device)
    except (OSError, AttributeError, DecodeError):
        return None  # only figures about the GPU are missing
    return f"GPU-{UUID(bytes=uuid.raw)}"


def pin(memory: np.ndarray) -> None:
    """Page-lock host memory, so that the device can copy to it directly."""
    _call("cuMemHostRegister_v2", ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), 0)


def unpin(memory: np.ndarray) -> None:
    """Undo :func:`pin`."""
    _call("cuMemHostUnregister", ctypes.c_void_p(memory.ctypes.data))


def wait() -> None:
    """Return when everything is done that was queued on the default stream of this thread's context."""
    _call("cuStreamSynchronize", None)


_HOST_MEMORY, _DEVICE_MEMORY = 1, 2
_DEFAULT_STREAM = None


class _Copy2D(ctypes.Structure):
    """``CUDA_MEMCPY2D`` of the driver's interface."""

    _fields_: ClassVar = [
        ("source_x_bytes", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_memory", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source", ctypes.c_ulonglong),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x_bytes", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_memory", ctypes.c_uint),
        ("target_host", ctypes.c_void_p),
        ("target", ctypes.c_ulonglong),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width_bytes", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    ]


@cache
def _copy_2d() -> ctypes._NamedFuncPointer:
    # PyDLL keeps the GIL: queueing a copy takes microseconds, less than releasing the GIL and taking it back.
    return ctypes.PyDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuMemcpy2DAsync_v2


class BoxCopy:
    """Copies a rectangle, always the same one, from pictures on the device to host memory; not thread-safe.

    Args:
        left_bytes, top: where the box begins in the picture.
        width_bytes, height: its size; its rows follow each other without a gap where it is copied to.
    """

    def __init__(self, left_bytes: int, top: int, width_bytes: int, height: int) -> None:
        self._copy = _copy_2d()
        self.nbytes = width_bytes * height
        self._what = _Copy2D(
            source_x_bytes=left_bytes,
            source_y=top,
            source_memory=_DEVICE_MEMORY,
            target_memory=_HOST_MEMORY,
            target_pitch=width_bytes,
            width_bytes=width_bytes,
            height=height,
        )
        self._reference = ctypes.byref(self._what)

    def __call__(self, source: int, pitch: int, target: int) -> None:
        """Queue a copy on the default stream of this thread's current device.

        Args:
            source: address of the picture.
            pitch: bytes from one of its rows to the next.
            target: address of room for the box, in the host's memory.

        Raises:
            DecodeError: the driver refused.
        """
        self._what.source, self._what.source_pitch, self._what.target_host = source, pitch, target
        if (status := self._copy(self._reference, _DEFAULT_STREAM)) != 0:
            raise DecodeError(f"the GPU's driver refused to copy a crop (cuMemcpy2DAsync gave {status})")
