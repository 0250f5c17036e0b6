"""Noticing that a decoder has stopped coming back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from caption_extents.errors import DecodeError

T = TypeVar("T")

_CLOSE_SECONDS = 2.0


class Watched(Generic[T]):
    """The same items, taken by a thread of its own, so that one that never comes can be given up.

    A call into a codec cannot be broken off from outside: a thread that hangs in one is left behind. Where that must
    not be, decode in a process of its own (:mod:`caption_extents.video.isolated`).

    Args:
        items: may be iterated once.
        stall_seconds: how long to wait for one.

    Raises (while iterating):
        DecodeError: no item came for ``stall_seconds``.
        BaseException: what taking an item raised.
    """

    def __init__(self, items: Iterable[T], stall_seconds: float) -> None:
        self._items, self._stall_seconds = items, stall_seconds
        self._results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._take, name="decode", daemon=True)

    def __iter__(self) -> Iterator[T]:
        self._thread.start()
        try:
            while True:
                try:
                    item, error = self._results.get(timeout=self._stall_seconds)
                except queue.Empty:
                    raise DecodeError(
                        f"the decoder gave nothing for {self._stall_seconds:g} s: the video is damaged in a way that "
                        "makes it hang, or this machine is too slow for it; raise stall_seconds, or decode with isolate"
                    ) from None
                if error is not None:
                    raise error
                if item is None:
                    return
                yield item
        finally:
            self._stopped.set()

    def close(self) -> None:
        """Take no more, and wait for the thread for a while.

        When the interpreter ends it stops such threads wherever they are, and in C++ code that ends the process.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def _take(self) -> None:
        try:
            for item in self._items:
                self._give(item, None)
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._give(None, error)
        else:
            self._give(None, None)

    def _give(self, item: T | None, error: BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._results.put((item, error), timeout=0.2)
            except queue.Full:
                continue
            return
