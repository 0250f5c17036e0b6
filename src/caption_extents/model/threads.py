"""Threads in which PyTorch computes with that thread alone.

Beside other work that keeps the cores busy, an operation that is spread over all of them takes until the last one gets
its turn, and the threads that have finished spin meanwhile.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_threaded_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Threads whose operations stay in them; other threads keep their setting."""
    before = torch.get_num_threads()
    ready = threading.Barrier(count)

    def prepare() -> None:
        # The first call in a thread takes over the process-wide setting, and would undo an earlier set_num_threads.
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, name)
    for started in [pool.submit(prepare) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)
    return pool
