"""Copying boxes out of pictures that are in a GPU's memory to the host, one call of the driver for each.

With tensors the same takes a dozen calls for a sample, each of which gives up Python's lock and takes it back. The
threads of all decoder sessions queue for that lock: it, and not the decode engines, was what limited them.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import ClassVar

from caption_extents.errors import DecodeError

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
    # PyDLL keeps Python's lock: queueing a copy takes microseconds, less than giving up the lock and taking it back.
    return ctypes.PyDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuMemcpy2DAsync_v2


class BoxCopy:
    """Copies one box of rows out of pictures, always the same; not for several threads at once.

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
