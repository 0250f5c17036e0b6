"""Orderly termination of a process: on a signal, or when its parent process has died."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import parent_process
from typing import Any

_GRACE_SECONDS = 10.0
"""Time that a process has for cleaning up after its parent has died; then it exits."""


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end; what is open is closed as at Ctrl-C.

    Attributes:
        signal_number: of the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def interrupt_on_signals() -> None:
    """Let the main thread end at SIGTERM and SIGHUP as it does at Ctrl-C; a second signal ends the process at once."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number)

    for number in _signals():
        signal.signal(number, interrupt)


def exit_past_threads(code: int) -> None:
    """End the process here and now if threads are still at work; otherwise return, and let the interpreter end.

    A thread that comes back from a codec or from PyTorch while the interpreter is being taken down makes the process
    abort (https://github.com/python/cpython/issues/87135). All that was open has been closed by now.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def _signals() -> list[signal.Signals]:
    """Signals that ask a process to end, but for those that are ignored, as the hang-up under ``nohup``."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class WorkerOfPool:
    """Makes a worker process of a pool end when its parent tells it to by SIGTERM, and when its parent has died.

    Python's pools do neither: a worker whose parent was killed waits for work for ever. Ctrl-C is left to the parent,
    since a terminal sends it to all of its processes.
    """

    def __init__(self) -> None:
        self._works = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in _signals():
            signal.signal(number, self._end)
        threading.Thread(target=self._end_with_parent, name="parent", daemon=True).start()

    def __enter__(self) -> None:
        self._works = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._works = False
        if kind is not None and issubclass(kind, Interrupted):
            # The interrupted job has cleaned up. Exit here: the pool would start the next queued job.
            os._exit(128 + signal.SIGTERM)

    def _end(self, number: int, frame: Any) -> None:
        if not self._works:
            os._exit(128 + number)
        for other in _signals():
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    def _end_with_parent(self) -> None:
        parent = parent_process()
        if parent is None:
            return
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)
