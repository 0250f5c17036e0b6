"""What this package's processes need that work beside each other."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterable

import numpy as np


def child_environment() -> dict[str, str]:
    """The environment for a child that multiplies no matrices, and whose threads do all the same.

    NumPy's threads for that, one for each core, would spin before they find that there are none. With one heap for all
    threads (glibc's ``M_ARENA_MAX``), what one thread's encoder gives back is there for the next thread's: four
    encoders with 25 frames of lookahead then hold 190 and not 230 MiB.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def receive(end: socket.socket, size: int) -> bytearray:
    """So many bytes of a stream.

    Raises:
        EOFError: the other end has closed.
    """
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = end.recv_into(view)
        if got == 0:
            raise EOFError("the other end has closed")
        view = view[got:]
    return data


def mapped(file: int, size: int) -> np.ndarray:
    """The first bytes of a file, by its number, as memory that all who map it share; uint8 (size,)."""
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


def arrays_in(memory: np.ndarray, shapes: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    """Arrays of bytes that stand one after the other in memory, uint8 (size,)."""
    arrays, at = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(memory[at : at + size].reshape(shape))
        at += size
    return arrays
