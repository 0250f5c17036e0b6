"""Orderly termination of a process: on a signal, or when its parent process has died."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any


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
