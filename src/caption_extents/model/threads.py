"""Threads in which PyTorch computes with that thread alone.

Beside other work that keeps the cores busy, an operation that is spread over all of them takes until the last one gets
its turn, and the threads that have finished spin meanwhile.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_SETTING = threading.Lock()
"""Held while the process-wide setting is not what it was."""


def single_threaded_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Threads whose operations stay in them; other threads keep their setting, and new ones get the process's."""
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
