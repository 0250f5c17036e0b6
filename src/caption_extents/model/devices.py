"""Choosing the device of a run, and thread pools in which PyTorch operations are single-threaded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from caption_extents.errors import InputError
from caption_extents.options import check_device


def choose_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU if there is one.

    Raises:
        InputError: there is no such device.
    """
    check_device("device", name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return parse_device(name) if name.startswith("cuda") else torch.device(name)


def parse_device(name: str) -> torch.device:
    """``cuda`` or ``cuda:N`` as a device that is there.

    Raises:
        InputError: there is no such device; says which there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name)
    if count == 0:
        raise InputError(
            f"device {name!r} is not there: PyTorch {torch.__version__} finds no CUDA device; "
            "install a driver and a CUDA build of PyTorch, or use 'auto' or 'cpu'"
        )
    index = device.index or 0
    if index >= count:
        raise InputError(f"device {name!r} is not there; this machine has cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


_SETTING = threading.Lock()
"""Held while the process-wide number of threads is temporarily changed."""


def single_threaded_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A thread pool in whose threads PyTorch operations are single-threaded; other threads keep their setting.

    While other work keeps the cores busy, a multi-threaded operation lasts until its last thread has been scheduled,
    and the threads that have finished busy-wait in the meantime.

    Args:
        count: number of threads.
        name: prefix of the threads' names.
    """
    ready = threading.Barrier(count)

    def prepare() -> int:
        # The first call in a thread takes over the process-wide setting, and would undo an earlier set_num_threads.
        process_wide = torch.get_num_threads()
        ready.wait()
        torch.set_num_threads(1)
        return process_wide

    pool = ThreadPoolExecutor(count, name)
    with _SETTING:
        process_wide, *_ = [started.result() for started in [pool.submit(prepare) for _ in range(count)]]
        # Setting it for a thread sets it for the process. Reset it in another thread: this one may be single-threaded.
        with ThreadPoolExecutor(1) as other:
            other.submit(torch.set_num_threads, process_wide).result()
    return pool
