"""The pipelined implementation: every stage runs at once, connected by bounded queues.

The engine is SPDL's: a thread for the source, a pool for the other stages, queues that block when full, and a stop of
everything at the first failure. What this module adds is the wiring and the measuring of waits.

A batch goes two ways, to inference and to the encoders, and neither waits for the other: while a GPU's libraries are
loaded for the first batch, the samples that have come are encoded already.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from spdl.pipeline import AsyncQueue, Pipeline, PipelineBuilder, PipelineFailure, StageInfo

from caption_extents.errors import CaptionExtentsError
from caption_extents.pipeline.activity import Activity
from caption_extents.pipeline.metrics import ENCODING, EXTRACTION, INFERENCE, UPLOAD, StageClock
from caption_extents.pipeline.offload import MAX_IN_FLIGHT, SENDERS, Offload
from caption_extents.pipeline.stages import Encoding, Stages
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.video.batch import CropBatch
from caption_extents.watchdog import Watchdog

_STOP_TIMEOUT_SECONDS = 60.0
_LOOK_SECONDS = 0.25

_BATCHES_BEHIND = 4
"""Batches that wait for inference, for each item that waits between other stages: as many as come in half a second."""

# The engine logs a traceback for every stage that a failure stops; here the failure itself is raised, once.
logging.getLogger("spdl.pipeline").setLevel(logging.CRITICAL)


def run_pipelined(stages: Stages) -> list[ChunkRecord]:
    """Run all stages at once.

    Raises:
        Exception: what the failing stage raised; every other stage has stopped by then.
    """
    output = _offloading_steps(stages, stages.offload) if stages.offload else _local_steps(stages)
    try:
        with _InferenceThread(stages) as inference, ExitStack() as engine:
            source = _Source(stages, inference, output.stop)
            pipeline = _build(stages, source, output, engine)
            engine.callback(_stop, pipeline, stages.watchdog)
            try:
                records = _records(pipeline, source, stages.encoding.chunks_to_do, stages.watchdog)
            except KeyboardInterrupt:
                stages.watchdog.give_up()
                raise
            finally:
                output.stop()
            # The engine looks ten times a second whether it is to stop; nobody needs to wait for that.
            threading.Thread(target=engine.pop_all().close, name="stop-engine").start()
            return records
    except PipelineFailure as failure:
        raise _cause(failure) from failure


def _records(
    pipeline: Pipeline[list[ChunkRecord]], source: _Source, expected: int, watchdog: Watchdog
) -> list[ChunkRecord]:
    """What comes out, until nothing more can come.

    Raises:
        StallError: something that is watched does not come back.
    """
    records = list[ChunkRecord]()
    # That all are there the engine says itself up to a tenth of a second later.
    while not (source.is_over and len(records) >= expected):
        try:
            records += pipeline.get_item(timeout=_LOOK_SECONDS)
        except TimeoutError:
            watchdog.check()
        except EOFError:
            break
    return records


def _stop(pipeline: Pipeline[list[ChunkRecord]], watchdog: Watchdog) -> None:
    """Stop the engine; threads that never end are not waited for."""
    try:
        watchdog.finish(partial(pipeline.stop, timeout=_STOP_TIMEOUT_SECONDS))
    except TimeoutError:
        if not watchdog.has_stalled:
            raise


@dataclass(frozen=True)
class _Step:
    """A stage that several threads do at once."""

    name: str
    function: Callable[[Any], Any]
    calls: int
    clock: StageClock


@dataclass(frozen=True)
class _Output:
    """What becomes of samples after inference: gathered into work items, which pass two steps."""

    gather: Encoding | Offload
    steps: tuple[_Step, _Step]
    stop: Callable[[], None] = lambda: None
    """Called when a stage fails: the engine waits for what runs, and some of it waits for other machines."""


def _local_steps(stages: Stages) -> _Output:
    """Chunks are encoded here, then stored."""
    workers, encoding, upload = stages.workers, stages.clocks[ENCODING], stages.clocks[UPLOAD]
    encoding.workers, upload.workers = workers.encoder, workers.upload
    return _Output(
        stages.encoding,
        (
            _Step(
                "encode",
                _watched(stages.encoding.encode, "encoding", stages.watchdog),
                stages.encoding.calls(workers.encoder),
                encoding,
            ),
            _Step("upload", stages.upload.upload, workers.upload, upload),
        ),
    )


def _offloading_steps(stages: Stages, offload: Offload) -> _Output:
    """Segments are stored, then encoded by others."""
    encoding, upload = stages.clocks[ENCODING], stages.clocks[UPLOAD]
    upload.workers = SENDERS
    return _Output(
        offload,
        (_Step("send", offload.send, SENDERS, upload), _Step("collect", offload.collect, MAX_IN_FLIGHT, encoding)),
        offload.finish,
    )


def _watched(function: Callable[[Any], Any], what: str, watchdog: Watchdog) -> Callable[[Any], Any]:
    def watched(item: Any) -> Any:
        with watchdog.watch(what):
            return function(item)

    return watched


def _or_stop(function: Callable[[Any], Any], stop: Callable[[], None]) -> Callable[[Any], Any]:
    def guarded(item: Any) -> Any:
        try:
            return function(item)
        except BaseException:
            stop()
            raise

    return guarded


class _Source:
    """Batches, for the engine; each goes to inference too."""

    def __init__(self, stages: Stages, inference: _InferenceThread, stop: Callable[[], None]) -> None:
        self._extraction, self._inference, self._stop = stages.extraction, inference, stop
        self.is_over = False
        """All batches have come."""

    def __iter__(self) -> Iterator[CropBatch]:
        try:
            for batch in self._extraction:
                self._inference.put(batch)
                yield batch
            self.is_over = True
        except Exception:
            self._stop()
            raise


def _build(stages: Stages, source: _Source, output: _Output, executors: ExitStack) -> Pipeline[list[ChunkRecord]]:

    def threads(name: str, count: int) -> ThreadPoolExecutor:
        # Threads of its own for each stage: one that does a bit of everything keeps the memory of the largest of it.
        pool = ThreadPoolExecutor(count, name)
        executors.callback(stages.watchdog.finish, partial(pool.shutdown, cancel_futures=True))
        return pool

    builder = (
        PipelineBuilder[CropBatch, list[ChunkRecord]]()
        .add_source(source)
        .pipe(_or_stop(output.gather.assemble, output.stop), executor=threads("gather", 1), name="gather")
        .disaggregate()
    )
    for step in output.steps:
        function, executor = _or_stop(step.function, output.stop), threads(step.name, step.calls)
        builder.pipe(function, concurrency=step.calls, executor=executor, name=step.name)
    return builder.add_sink(output.steps[-1].calls).build(
        num_threads=1,
        max_failures=0,
        queue_class=_timed_queues(stages, output.steps),
        task_hook_factory=lambda _: [],
    )


def _timed_queues(stages: Stages, steps: tuple[_Step, _Step]) -> type[AsyncQueue]:
    """A queue class for this run: each queue tells the stages at its ends how long they waited.

    A queue is named after the stage that fills it.
    """
    clocks, (first, second) = stages.clocks, steps
    ends: dict[str, tuple[StageClock | None, StageClock | None]] = {
        "src": (clocks[EXTRACTION], None),
        "disaggregate": (None, first.clock),
        first.name: (first.clock, second.clock),
        second.name: (second.clock, None),
    }
    held = {"disaggregate": _occupancy(stages, first.clock), first.name: _occupancy(stages, second.clock)}

    class TimedQueue(AsyncQueue):
        def __init__(self, info: StageInfo, *, buffer_size: int = 1) -> None:
            super().__init__(info, buffer_size=max(1, stages.workers.queue_size) if buffer_size > 0 else 0)
            self._producer, self._consumer = ends.get(info.stage_name, (None, None))
            self._held = held.get(info.stage_name)

        def _note(self) -> None:
            if self._held is not None:
                self._held.changed(self.qsize())

        async def put(self, item: Any) -> None:
            start = time.perf_counter()
            await super().put(item)
            self._note()
            if self._producer is not None:
                self._producer.waited(for_room=time.perf_counter() - start)

        async def get(self) -> Any:
            start = time.perf_counter()
            item = await super().get()
            self._note()
            if self._consumer is not None:
                self._consumer.waited(for_input=time.perf_counter() - start)
            return item

    return TimedQueue


class _Occupancy:
    """What a queue holds over time."""

    def __init__(self, activity: Activity) -> None:
        self._activity, self._lock = activity, threading.Lock()
        self._since, self._size = time.perf_counter(), 0

    def changed(self, size: int) -> None:
        """Count what was held until now; from now on it is this many."""
        with self._lock:
            now = time.perf_counter()
            self._activity.add(self._since, now, self._size)
            self._since, self._size = now, size


def _occupancy(stages: Stages, clock: StageClock) -> _Occupancy:
    """Of the queue before a stage."""
    activity = stages.queued[clock.name] = Activity(clock.activity.origin)
    return _Occupancy(activity)


class _InferenceThread:
    """Inference, in a thread of its own, some batches behind the other stages at most.

    A context manager: it is left when all batches are done, or at once where there was an error.
    """

    def __init__(self, stages: Stages) -> None:
        self._infer, self._clock = stages.inference.infer, stages.clocks[INFERENCE]
        self._extraction = stages.clocks[EXTRACTION]
        self._batches: queue.Queue[CropBatch | None] = queue.Queue(_BATCHES_BEHIND * max(1, stages.workers.queue_size))
        self._held = _occupancy(stages, self._clock)
        self._error: BaseException | None = None
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name="infer", daemon=True)

    def __enter__(self) -> _InferenceThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_given_up = error is not None
        self._batches.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def put(self, batch: CropBatch) -> None:
        """Have a batch's pairs labelled; waits while too many batches do.

        Raises:
            Exception: what labelling an earlier batch has raised.
        """
        start = time.perf_counter()
        self._batches.put(batch)
        self._held.changed(self._batches.qsize())
        self._extraction.waited(for_room=time.perf_counter() - start)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            start = time.perf_counter()
            batch = self._batches.get()
            self._held.changed(self._batches.qsize())
            self._clock.waited(for_input=time.perf_counter() - start)
            if batch is None:
                return
            # After a failure batches are taken and dropped, so that nobody waits for room.
            if self._error is None and not self._is_given_up:
                try:
                    self._infer(batch)
                except BaseException as error:
                    self._error = error


def _cause(failure: BaseException) -> BaseException:
    """The error that stopped the pipeline, out of the engine's wrapping: a known one if there is one."""
    errors = list(_unwrap(failure))
    return next((error for error in errors if isinstance(error, CaptionExtentsError)), errors[-1])


def _unwrap(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the members of groups included."""
    yield error
    inner = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else [error.__cause__]
    for cause in inner:
        if cause is not None:
            yield from _unwrap(cause)
