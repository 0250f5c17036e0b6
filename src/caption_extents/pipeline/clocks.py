"""Counters of the stages while they run: busy and waiting times, numbers of results, and activity over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from caption_extents.effort import counted

T = TypeVar("T")


EXTRACTION, INFERENCE, ENCODING, UPLOAD = "extraction", "inference", "encoding", "upload"

STAGE_NAMES = (EXTRACTION, INFERENCE, ENCODING, UPLOAD)


MAX_BUCKETS = 240

_FIRST_BUCKET_SECONDS = 1 / 64


@dataclass(frozen=True)
class Progress:
    """How far a stage is: ``done`` of ``total`` samples, or MiB in the stage ``download`` of a video in a store."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


class Activity:
    """A histogram of activity over time. When there are too many buckets, adjacent buckets are merged.

    Args:
        origin: start of the first bucket, on the clock of ``time.perf_counter``.
    """

    def __init__(self, origin: float) -> None:
        self.origin = origin
        self._seconds = _FIRST_BUCKET_SECONDS
        self._buckets: list[float] = []
        self._lock = threading.Lock()

    def add(self, start: float, end: float, amount: float = 1.0) -> None:
        """Count ``amount`` (of workers, of items in a queue) from ``start`` to ``end``."""
        start, end = max(0.0, start - self.origin), end - self.origin
        with self._lock:
            while end >= self._seconds * MAX_BUCKETS:
                self._halve()
            while start < end:
                bucket = int(start / self._seconds)
                stop = min(end, (bucket + 1) * self._seconds)
                if stop <= start:
                    break
                self._buckets += [0.0] * (bucket + 1 - len(self._buckets))
                self._buckets[bucket] += (stop - start) * amount
                start = stop

    def means(self, bucket_seconds: float) -> list[float]:
        """The mean amount in each bucket after merging buckets up to the given length.

        Args:
            bucket_seconds: the current length of a bucket, or that times a power of two.
        """
        with self._lock:
            while self._seconds < bucket_seconds:
                self._halve()
            return [round(amount / self._seconds, 3) for amount in self._buckets]

    @property
    def bucket_seconds(self) -> float:
        """Length of a bucket so far."""
        return self._seconds

    def _halve(self) -> None:
        self._seconds *= 2
        pairs = [*self._buckets, 0.0] if len(self._buckets) % 2 else self._buckets
        self._buckets = [pairs[at] + pairs[at + 1] for at in range(0, len(pairs), 2)]


class StageClock:
    """Adds up what one stage does. May be used from several threads at once."""

    def __init__(
        self,
        name: str,
        workers: int = 1,
        on_samples: Callable[[str, int], None] | None = None,
        origin: float | None = None,
    ) -> None:
        self.name = name
        self.workers = workers
        self.activity = Activity(time.perf_counter() if origin is None else origin)
        self.busy_seconds = 0.0
        self.thread_seconds = 0.0
        self.wait_input_seconds = 0.0
        self.wait_room_seconds = 0.0
        self.cpu_seconds: float | None = None
        self.samples = 0
        self.items = 0
        self.nbytes = 0
        self.first_start: float | None = None
        self.first_item: float | None = None
        self.last_end = 0.0
        self._lock = threading.Lock()
        self._on_samples = on_samples

    @contextmanager
    def busy(self, samples: int = 0, items: int = 0, nbytes: int = 0) -> Iterator[None]:
        """Count the time in the ``with`` block as busy, and if it succeeds, add the given numbers of results.

        If other threads do the work meanwhile (:mod:`caption_extents.effort`), their time counts.
        """
        start, start_thread = time.perf_counter(), time.thread_time()
        try:
            with counted() as others:
                yield
        finally:
            end = time.perf_counter()
            busy = others.busy(end - start)
            with self._lock:
                self.workers = max(self.workers, others.threads)
                self.busy_seconds += busy
                self.thread_seconds += time.thread_time() - start_thread + others.thread_seconds
                self.activity.add(start, end, busy / (end - start) if end > start else 1.0)
                self.first_start = start if self.first_start is None else min(self.first_start, start)
                self.last_end = max(self.last_end, end)
        self.count(samples, items, nbytes)

    def worked(self, seconds: float, thread_seconds: float = 0.0) -> None:
        """Count work that was done in another thread or process and has just ended, and the CPU time of its threads."""
        end = time.perf_counter()
        with self._lock:
            self.busy_seconds += seconds
            self.thread_seconds += thread_seconds
            self.activity.add(end - seconds, end)
            self.first_start = min(end - seconds, self.first_start or end)
            self.last_end = end

    def count(self, samples: int = 0, items: int = 0, nbytes: int = 0) -> None:
        """Add to what the stage has yielded."""
        with self._lock:
            self.samples += samples
            if items and not self.items:
                self.first_item = time.perf_counter()
            self.items += items
            self.nbytes += nbytes
            total = self.samples
        if samples and self._on_samples:
            self._on_samples(self.name, total)

    def waited(self, *, for_input: float = 0.0, for_room: float = 0.0) -> None:
        """Add time spent idle."""
        with self._lock:
            self.wait_input_seconds += for_input
            self.wait_room_seconds += for_room

    def timed(self, items: Iterable[T], samples: Callable[[T], int]) -> Iterator[T]:
        """Iterate, counting as work the time that each item takes to come."""
        iterator = iter(items)
        try:
            while True:
                with self.busy():
                    item = next(iterator, None)
                if item is None:
                    return
                self.count(samples=samples(item), items=1)
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close:
                close()

    @contextmanager
    def whole_process(self) -> Iterator[None]:
        """Count the CPU time of the whole process as this stage's, for stages that run alone."""
        start = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds = (self.cpu_seconds or 0.0) + time.process_time() - start


def make_clocks(
    sample_count: int, progress: ProgressCallback | None, origin: float | None = None, stored: int = 0
) -> dict[str, StageClock]:
    """A clock for each stage; each tells the callback how far its stage is.

    Args:
        sample_count: of the video.
        progress: told how far a stage is.
        origin: when the run started.
        stored: samples that an earlier run has uploaded.
    """

    def on_samples(stage: str, done: int) -> None:
        if progress is not None:
            progress(Progress(stage, done + (stored if stage == UPLOAD else 0), sample_count))

    return {name: StageClock(name, on_samples=on_samples, origin=origin) for name in STAGE_NAMES}
