"""Noticing that a decoder has stopped coming back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from caption_extents.errors import DecodeError

T = TypeVar("T")


def watched(items: Iterable[T], stall_seconds: float) -> Iterator[T]:
    """The same items, taken by a thread of its own, so that one that never comes can be given up.

    A call into a codec cannot be broken off from outside: a thread that hangs in one is left behind. Where that must
    not be, decode in a process of its own (:mod:`caption_extents.video.isolated`).

    Raises:
        DecodeError: no item came for ``stall_seconds``.
        BaseException: what taking an item raised.
    """
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
    stopped = threading.Event()

    def give(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                results.put((item, error), timeout=0.2)
            except queue.Full:
                continue
            return

    def take() -> None:
        try:
            for item in items:
                give(item, None)
                if stopped.is_set():
                    return
        except BaseException as error:
            give(None, error)
        else:
            give(None, None)

    threading.Thread(target=take, name="decode", daemon=True).start()
    try:
        while True:
            try:
                item, error = results.get(timeout=stall_seconds)
            except queue.Empty:
                raise DecodeError(
                    f"the decoder gave nothing for {stall_seconds:g} s: the video is damaged in a way that makes it "
                    "hang, or this machine is too slow for it; raise stall_seconds, or decode with isolate"
                ) from None
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
