"""How busy something was over a run's time, in few numbers however long the run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

MAX_BUCKETS = 240
_FIRST_BUCKET_SECONDS = 1 / 64


class Activity:
    """Adds up intervals in buckets of time. When there are too many buckets, two become one.

    Args:
        origin: the time at which the first bucket begins.
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
        """The mean amount in each bucket of this length, which must be one that buckets have grown to or may yet."""
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


@dataclass(frozen=True)
class RunTimeline:
    """What was busy when.

    Attributes:
        bucket_seconds: length of a bucket; the first begins with the run.
        busy: for each stage, how many of its workers were at work, on average, in each bucket.
        queued: how many items the queue before a stage held.
        gpu: what its driver says of the GPU, by name: shares in 0..1, bytes, bytes a second; empty without one.
    """

    bucket_seconds: float
    busy: dict[str, list[float]]
    queued: dict[str, list[float]]
    gpu: dict[str, list[float]]

    @classmethod
    def of(
        cls, busy: Mapping[str, Activity], queued: Mapping[str, Activity], gpu: Mapping[str, Activity]
    ) -> RunTimeline:
        """All activities in buckets of one length."""
        groups = busy, queued, gpu
        length = max((activity.bucket_seconds for group in groups for activity in group.values()), default=1.0)
        return cls(length, *({name: activity.means(length) for name, activity in group.items()} for group in groups))
