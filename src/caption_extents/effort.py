"""How much work other threads do for a thread that waits for them, so that its stage can count it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Effort:
    """What other threads did.

    Attributes:
        seconds: wall time, summed over them.
        thread_seconds: their CPU time.
        waited_seconds: how long this thread waited for them.
        threads: how many there are.
    """

    seconds: float = 0.0
    thread_seconds: float = 0.0
    waited_seconds: float = 0.0
    threads: int = 0

    def busy(self, seconds: float) -> float:
        """Time that all threads are taken by work of some wall time: while this thread works itself, none is free."""
        return self.seconds + max(1, self.threads) * max(0.0, seconds - self.waited_seconds)


_here = threading.local()


@contextmanager
def counted() -> Iterator[Effort]:
    """Count what other threads do for this one by :func:`map_counted`."""
    before = getattr(_here, "effort", None)
    _here.effort = Effort()
    try:
        yield _here.effort
    finally:
        _here.effort = before


def map_counted(pool: ThreadPoolExecutor, threads: int, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of a function, computed by a pool of so many threads."""

    def timed(item: T) -> tuple[R, float, float]:
        start, start_thread = time.perf_counter(), time.thread_time()
        result = function(item)
        return result, time.perf_counter() - start, time.thread_time() - start_thread

    began = time.perf_counter()
    done = list(pool.map(timed, items))
    effort: Effort | None = getattr(_here, "effort", None)
    if effort is not None:
        effort.seconds += sum(seconds for _, seconds, _ in done)
        effort.thread_seconds += sum(seconds for _, _, seconds in done)
        effort.waited_seconds += time.perf_counter() - began
        effort.threads = max(effort.threads, threads)
    return [result for result, _, _ in done]
