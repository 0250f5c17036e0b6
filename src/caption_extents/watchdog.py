"""One watchdog for everything that waits for foreign code: codecs, demuxers, text readers, child processes.

A call into native code cannot be interrupted from outside. Therefore work that may hang runs in a separate thread
(:meth:`Watchdog.call`, :meth:`Watchdog.items`) or is watched in its own thread (:meth:`Watchdog.watch`), while the
caller waits in Python code that checks whether the time limit has expired. Any progress restarts the limit:
:func:`report_progress` is called for every packet, frame and picture.

After half of the limit, all threads of the process are sent a signal whose handler does nothing. It works around a bug
of glibc 2.27 to 2.40, whose condition variables can lose a wake-up
(https://sourceware.org/bugzilla/show_bug.cgi?id=25847): an FFmpeg decoder then hangs for ever, unless a signal makes
the waiting thread check its condition again.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from caption_extents.errors import StallError

T = TypeVar("T")

log = logging.getLogger(__name__)

DEFAULT_STALL_SECONDS = 120.0
_LOOK_SECONDS = 0.25
_STOPPED_SECONDS = 2.0
"""If more time passes between two checks, the process was suspended or the machine asleep: restart the limits."""
_WAKE_EVERY_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_EXIT_SECONDS = 5.0
_WAKE_SIGNAL = getattr(signal, "SIGURG", None)
"""Ignored by default, and rarely used by other libraries."""

_current = threading.local()


class _AbandonedError(BaseException):
    """Ends a thread whose result is not awaited any more."""


def report_progress() -> None:
    """Report progress of this thread's operation; raises, to end the thread, if its result is no longer needed."""
    operation: _Operation | None = getattr(_current, "operation", None)
    if operation is not None:
        if operation.is_abandoned:
            raise _AbandonedError
        operation.since = time.monotonic()
    if _hook is not None:
        _hook()


def report_progress_for_all() -> None:
    """Report progress for all operations of this process, when something arrives that any of them may wait for."""
    _monitor.renewed_at = time.monotonic()


_hook: Callable[[], None] | None = None


def tell_progress_to(hook: Callable[[], None]) -> None:
    """Have every :func:`report_progress` also call a function; a child process reports to its parent by it."""
    global _hook
    _hook = hook


class _Operation:
    """A watched operation and the time of its last progress."""

    def __init__(self, what: str, limit_seconds: float, thread: threading.Thread) -> None:
        self.what, self.limit_seconds, self.thread = what, limit_seconds, thread
        self.since = time.monotonic()
        self.is_waiting = False
        """Whether it waits for its consumer, which does not count as a stall."""
        self.is_over = False
        self.is_abandoned = False
        """Whether the caller no longer needs the result, after Ctrl-C or an error elsewhere."""
        self.woken_at = 0.0

    def error(self) -> StallError:
        return StallError(
            f"{self.what} gave no sign of life for {self.limit_seconds:g} s and was given up: the file is damaged in a "
            "way that makes it hang, or this machine is too slow for it. Raise stall_seconds, or decode with `isolate`"
        )


class _Monitor:
    """The one thread that looks at all operations of this process, while there are any."""

    def __init__(self) -> None:
        self._operations: set[_Operation] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.renewed_at = 0.0

    def add(self, operation: _Operation) -> None:
        with self._lock:
            self._operations.add(operation)
            if self._thread is None or not self._thread.is_alive():  # as after a fork
                install_waker()
                self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
                self._thread.start()

    def remove(self, operation: _Operation) -> None:
        with self._lock:
            self._operations.discard(operation)

    def _look(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            stopped, last = now - last > _STOPPED_SECONDS, now
            with self._lock:
                if not self._operations:
                    self._thread = None
                    return
                operations = list(self._operations)
            for operation in operations:
                if stopped or operation.is_waiting:
                    operation.since = now
                idle = now - max(operation.since, self.renewed_at)
                if idle > operation.limit_seconds and not operation.is_over:
                    operation.is_over = True
                    _stuck.add(operation.thread)
                    _end_with_the_main_thread()
                elif idle > operation.limit_seconds / 2 and now - operation.woken_at > _WAKE_EVERY_SECONDS:
                    operation.woken_at = now
                    log.debug("%s gives no sign of life; waking all threads", operation.what)
                    wake_threads(os.getpid())


_monitor = _Monitor()


class Watchdog:
    """The watched operations of one run.

    Args:
        stall_seconds: time without progress after which an operation counts as stalled.
    """

    def __init__(self, stall_seconds: float = DEFAULT_STALL_SECONDS) -> None:
        self._stall_seconds = stall_seconds
        self._watched: set[_Operation] = set()
        self._lock = threading.Lock()
        self._given_up_at: float | None = None

    def check(self) -> None:
        """Return if nothing that is watched has been still for too long.

        Raises:
            StallError: something has.
        """
        with self._lock:
            over = next((operation for operation in self._watched if operation.is_over), None)
        if over is not None:
            raise over.error()

    @property
    def has_stalled(self) -> bool:
        """Whether something is over its limit: threads may then never end, and must not be joined."""
        with self._lock:
            return any(operation.is_over for operation in self._watched)

    @contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """Watch an operation of the current thread; other threads notice by :meth:`check` that it has stalled."""
        outer, operation = getattr(_current, "operation", None), self._begin(what)
        _current.operation = operation
        try:
            yield
        finally:
            _current.operation = outer
            self._end(operation)

    def call(self, what: str, function: Callable[[], T], stall_seconds: float | None = None) -> T:
        """Call a function in a separate thread and return its result; the limit is by default that of the watchdog.

        Raises:
            StallError: it gave no sign of life; its thread is left behind.
            BaseException: what it raised.
        """
        items = _Items(self, what, (function() for _ in range(1)), stall_seconds)
        try:
            return next(iter(items))
        except KeyboardInterrupt:
            items.close()
            raise

    def give_up(self) -> None:
        """After Ctrl-C: from now on, wait for threads for at most two seconds."""
        self._given_up_at = time.monotonic()

    def finish(self, function: Callable[[], object]) -> None:
        """Call a function that waits for threads to end; not longer than until something has stalled.

        Raises:
            BaseException: what it raised.
        """
        errors: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call, name="finish", daemon=True)
        thread.start()
        while thread.is_alive() and not self.has_stalled:
            given_up = self._given_up_at
            if given_up is not None and time.monotonic() - given_up > _CLOSE_SECONDS:
                with self._lock:
                    for operation in self._watched:
                        _stuck.add(operation.thread)
                _end_with_the_main_thread()
                return
            thread.join(0.05)
        thread.join(0.0 if thread.is_alive() else None)
        if errors:
            raise errors[0]

    def close(self, what: str, function: Callable[[], None]) -> None:
        """Call a function that closes something; if an operation has stalled, for at most 2 s, and ignoring errors."""
        if not self.has_stalled:
            self.call(f"closing {what}", function)
            return
        with suppress(Exception):
            self.call(f"closing {what}", function, _CLOSE_SECONDS)

    def items(self, what: str, items: Iterable[T]) -> _Items[T]:
        """The same items, taken by a separate thread; iterating raises a StallError when none comes."""
        return _Items(self, what, items)

    @contextmanager
    def entered(self, what: str, manager: AbstractContextManager[T]) -> Iterator[T]:
        """Enter and exit a context manager in separate watched threads, because both may hang."""
        entered = self.call(f"opening {what}", manager.__enter__)
        try:
            yield entered
        finally:
            self.close(what, partial(_leave, manager))

    def _begin(
        self, what: str, stall_seconds: float | None = None, thread: threading.Thread | None = None
    ) -> _Operation:
        operation = _Operation(what, stall_seconds or self._stall_seconds, thread or threading.current_thread())
        with self._lock:
            self._watched.add(operation)
        _monitor.add(operation)
        return operation

    def _end(self, operation: _Operation) -> None:
        _monitor.remove(operation)
        with self._lock:
            if not operation.is_over:
                self._watched.discard(operation)


def _leave(manager: AbstractContextManager[object]) -> None:
    manager.__exit__(None, None, None)


class _Items(Generic[T]):
    """Iterates over items in a separate thread, which is abandoned if it stalls."""

    def __init__(self, watchdog: Watchdog, what: str, items: Iterable[T], stall_seconds: float | None = None) -> None:
        self._watchdog, self._what, self._items, self._stall_seconds = watchdog, what, items, stall_seconds
        self._results: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(1)
        self._stopped = threading.Event()
        self._operation: _Operation | None = None
        self._thread = threading.Thread(target=self._take, name=what, daemon=True)

    def __iter__(self) -> Iterator[T]:
        self._operation = self._watchdog._begin(self._what, self._stall_seconds, self._thread)
        self._thread.start()
        try:
            while True:
                try:
                    found, error = self._results.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    if self._operation.is_over:
                        raise self._operation.error() from None
                    continue
                if error is not None:
                    raise error
                if not found:
                    return
                yield found[0]
        finally:
            self._stopped.set()
            self._operation.is_abandoned = True
            self._watchdog._end(self._operation)

    def close(self) -> None:
        """Take no more, and wait for the thread for a while.

        When the interpreter ends it stops such threads wherever they are, and in C++ code that ends the process.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def _take(self) -> None:
        operation = _current.operation = self._operation
        assert operation is not None
        try:
            for item in self._items:
                operation.is_waiting = True
                self._give([item], None)
                operation.is_waiting = False
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._give([], error)
        else:
            self._give([], None)

    def _give(self, found: list[T], error: BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._results.put((found, error), timeout=0.2)
            except queue.Full:
                continue
            return


def install_waker() -> None:
    """Let the signal with which threads are woken do nothing but wake them."""
    # A handler in C, which any thread may install and which runs in the thread that gets the signal.
    if _WAKE_SIGNAL is not None and hasattr(faulthandler, "register") and not _has_handler():
        with suppress(OSError, RuntimeError, ValueError):
            faulthandler.register(_WAKE_SIGNAL, file=_nowhere(), all_threads=False)
            # A wait that the kernel took up again would not look at its condition.
            signal.siginterrupt(_WAKE_SIGNAL, True)


def _has_handler() -> bool:
    return _WAKE_SIGNAL is not None and callable(signal.getsignal(_WAKE_SIGNAL))


def _nowhere() -> int:
    global _nowhere_file
    if _nowhere_file < 0:
        _nowhere_file = os.open(os.devnull, os.O_WRONLY)
    return _nowhere_file


_nowhere_file = -1


def wake_threads(process_id: int) -> None:
    """Send all threads of a process, those of libraries too, the signal that does nothing but wake them."""
    if _WAKE_SIGNAL is None:
        return
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    with suppress(OSError):
        for thread in Path(f"/proc/{process_id}/task").iterdir():
            if tgkill is not None:
                tgkill(process_id, int(thread.name), int(_WAKE_SIGNAL))


_ending = threading.Lock()
_stuck: set[threading.Thread] = set()
"""Threads that have not come back."""


def _end_with_the_main_thread() -> None:
    """Make this process exit when its main thread has ended, even if stalled threads remain."""
    # A private function, but the only hook that runs before concurrent.futures waits for its threads.
    register = getattr(threading, "_register_atexit", None)
    if register is not None and _ending.acquire(blocking=False):
        with suppress(RuntimeError):  # it is ending already
            register(threading.Thread(target=_end, name="end", daemon=True).start)


def _end() -> None:
    """End the process, if threads are still stuck that it would wait for; others may end first."""
    deadline = time.monotonic() + _EXIT_SECONDS
    ours = {*_stuck, threading.main_thread(), threading.current_thread()}
    while time.monotonic() < deadline and any(not t.daemon and t not in ours for t in threading.enumerate()):
        time.sleep(0.05)
    if not any(thread.is_alive() and not thread.daemon for thread in _stuck):
        return
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)
