"""The pipelined implementation: every stage runs at once, in its own threads, connected by bounded queues.

Each batch is passed both to inference and to the encoders, which do not wait for each other: for example, samples are
already encoded while the GPU's libraries are loaded for the first inference. The first failure stops all stages.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from caption_extents.encoders.tasks import MAX_IN_FLIGHT
from caption_extents.pipeline.clocks import ENCODING, EXTRACTION, INFERENCE, UPLOAD, Activity, StageClock
from caption_extents.pipeline.offload import SENDERS, Offload
from caption_extents.pipeline.stages import Stages
from caption_extents.samples import SampleBatch
from caption_extents.storage.manifest import ChunkRecord

_LOOK_SECONDS = 0.25

_INFERENCE_QUEUE_FACTOR = 4
"""Factor by which the queue before inference is longer than the others; it holds about half a second of batches."""


def run_pipelined(stages: Stages) -> list[ChunkRecord]:
    """Run all stages at once.

    Raises:
        Exception: what the failing stage raised; every other stage has stopped by then.
    """
    run, records = _Run(stages), list[ChunkRecord]()
    try:
        inference, gather = run.inference(), run.output(records)
        for batch in stages.extraction:
            inference.put(batch)
            gather.put(batch)
        run.end()
    except BaseException as error:
        run.fail(error)
        if isinstance(error, KeyboardInterrupt):
            stages.watchdog.give_up()
        raise
    finally:
        run.stop()
    return records


class _Run:
    """The steps of one pipelined run, in order, and the first error that occurred in any of them."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self._steps: list[_Step] = []
        self._unblock: Callable[[], None] = lambda: None

    def inference(self) -> _Step:
        """Create the step that labels the batches from extraction."""
        clocks, size = self.stages.clocks, self.stages.workers.queue_size * _INFERENCE_QUEUE_FACTOR
        infer = self.stages.inference.infer
        return self._step("infer", 1, infer, size, producer=clocks[EXTRACTION], consumer=clocks[INFERENCE])

    def output(self, records: list[ChunkRecord]) -> _Step:
        """Create the steps that turn batches into stored chunks, and append their records to ``records``.

        With local encoding, batches are gathered into chunks, which are encoded and then uploaded. With offloading,
        they are gathered into blocks, which are uploaded and then encoded on other machines.
        """
        stages, workers = self.stages, self.stages.workers
        encoding, upload = stages.clocks[ENCODING], stages.clocks[UPLOAD]
        assemble: Callable[[SampleBatch], Iterable[Any]]
        if stages.offload is None:
            encoding.workers, upload.workers = workers.encoder, workers.upload
            assemble, calls = stages.encoding.assemble, stages.encoding.encoder.calls
            last = self._step("upload", workers.upload, stages.upload.upload, producer=encoding, consumer=upload)
            first = self._step("encode", calls, self._watched(stages.encoding.encode), consumer=encoding, to=last.put)
        else:
            offload: Offload = stages.offload
            upload.workers, self._unblock = SENDERS, offload.finish
            assemble = offload.assemble
            last = self._step("collect", MAX_IN_FLIGHT, offload.collect, producer=upload, consumer=encoding)
            first = self._step("send", SENDERS, offload.send, consumer=upload, to=last.put)
        last.to = records.extend

        def put_all(items: Iterable[Any]) -> None:
            for item in items:
                first.put(item)

        return self._step("gather", 1, assemble, producer=stages.clocks[EXTRACTION], to=put_all)

    def _watched(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def watched(item: Any) -> Any:
            with self.stages.watchdog.watch("encoding"):
                return function(item)

        return watched

    def _step(self, name: str, threads: int, function: Callable[[Any], Any], size: int = 0, **ends: Any) -> _Step:
        step = _Step(self, name, threads, function, size or self.stages.workers.queue_size, **ends)
        self._steps.insert(0, step)
        return step

    def check(self) -> None:
        """Return if nothing has failed or stalled.

        Raises:
            BaseException: what has failed first.
        """
        if self.error is not None:
            raise self.error
        self.stages.watchdog.check()

    def fail(self, error: BaseException) -> None:
        """Record the first error and stop all steps, including those that wait for other machines."""
        self.error = self.error or error
        self.stopped.set()
        self._unblock()

    def end(self) -> None:
        """Return when everything that was put in has been done.

        Raises:
            BaseException: a step has failed.
        """
        for step in self._steps:
            step.end()
        self.check()

    def stop(self) -> None:
        """Wait until all threads have ended, except those that the watchdog has found stalled."""
        self.stopped.set()
        self._unblock()
        for step in self._steps:
            step.wake()
        for step in self._steps:
            self.stages.watchdog.finish(step.join)


class _Step:
    """A bounded queue with worker threads that apply a function to each item and pass on the result.

    Args:
        run: the run that the step belongs to.
        name: prefix of the threads' names.
        threads: maximum number of threads; they are started on demand.
        function: applied to each item.
        size: capacity of the queue.
        producer: clock that counts how long :meth:`put` waits for room.
        consumer: clock that counts how long the threads wait for items.
        to: called with each result of the function.
    """

    def __init__(
        self,
        run: _Run,
        name: str,
        threads: int,
        function: Callable[[Any], Any],
        size: int,
        *,
        producer: StageClock | None = None,
        consumer: StageClock | None = None,
        to: Callable[[Any], object] = lambda result: None,
    ) -> None:
        self.to = to
        self._run, self._name, self._count, self._function = run, name, threads, function
        self._producer, self._consumer = producer, consumer
        self._items: queue.Queue[tuple[Any] | None] = queue.Queue(size)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._changing = threading.Lock()
        self._held = None if consumer is None else _Occupancy(run.stages, consumer)

    def put(self, item: Any) -> None:
        """Add an item to the queue; waits until there is room.

        Raises:
            BaseException: a step has failed.
        """
        with self._changing:
            if self._idle <= self._items.qsize() and len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                self._idle += 1
                thread.start()
        start = time.perf_counter()
        self._put((item,))
        self._note()
        if self._producer is not None:
            self._producer.waited(for_room=time.perf_counter() - start)

    def _put(self, item: tuple[Any] | None) -> None:
        while True:
            self._run.check()
            try:
                self._items.put(item, timeout=_LOOK_SECONDS)
                return
            except queue.Full:
                continue

    def end(self) -> None:
        """Return when all items have been done."""
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_LOOK_SECONDS)
                self._run.check()

    def wake(self) -> None:
        """The run has stopped: let a thread that waits for items see it; it wakes the next one."""
        with suppress(queue.Full):
            self._items.put_nowait(None)

    def join(self) -> None:
        """Return when the threads have ended."""
        for thread in self._threads:
            thread.join()

    def _note(self) -> None:
        if self._held is not None:
            self._held.changed(self._items.qsize())

    def _work(self) -> None:
        while not self._run.stopped.is_set():
            start = time.perf_counter()
            item = self._items.get()
            self._note()
            if self._run.stopped.is_set():
                self.wake()
                return
            if item is None:
                return
            if self._consumer is not None:
                self._consumer.waited(for_input=time.perf_counter() - start)
            with self._changing:
                self._idle -= 1
            try:
                self.to(self._function(item[0]))
            except BaseException as error:
                self._run.fail(error)
                return
            with self._changing:
                self._idle += 1


class _Occupancy:
    """What the queue before a stage holds over time."""

    def __init__(self, stages: Stages, clock: StageClock) -> None:
        self._activity = stages.queued[clock.name] = Activity(clock.activity.origin)
        self._lock = threading.Lock()
        self._since, self._size = time.perf_counter(), 0

    def changed(self, size: int) -> None:
        """Count what was held until now; from now on it is this many."""
        with self._lock:
            now = time.perf_counter()
            self._activity.add(self._since, now, self._size)
            self._since, self._size = now, size
