"""The pipelined implementation: every stage runs at once, connected by bounded queues.

The engine is SPDL's: a thread for the source, a pool for the other stages, queues that block when full, and a stop of
everything at the first failure. What this module adds is the wiring and the measuring of waits.
"""

from __future__ import annotations

import time
from typing import Any

from spdl.pipeline import AsyncQueue, Pipeline, PipelineBuilder, PipelineFailure, StageInfo
from spdl.pipeline.defs import Aggregator

from caption_extents.chunks.assemble import ChunkFrames
from caption_extents.errors import CaptionExtentsError, ProcessingError
from caption_extents.pipeline.metrics import ENCODING, EXTRACTION, INFERENCE, UPLOAD, StageClock
from caption_extents.pipeline.stages import Encoding, Stages
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.video.batch import CropBatch

_STOP_TIMEOUT_SECONDS = 60.0

_BATCHES_EMBEDDED_AT_ONCE = 2
"""While one batch's last slices are computed, the next one's first can start."""


def run_pipelined(stages: Stages) -> list[ChunkRecord]:
    """Run all stages at once.

    Raises:
        CaptionExtentsError: what the failing stage raised; every other stage has stopped by then.
        ProcessingError: a stage failed in an unforeseen way; the cause is attached.
    """
    for name, workers in ((INFERENCE, _BATCHES_EMBEDDED_AT_ONCE), (ENCODING, stages.workers.encoder), (UPLOAD, stages.workers.upload)):
        stages.clocks[name].workers = workers
    pipeline = _build(stages)
    try:
        with pipeline.auto_stop(timeout=_STOP_TIMEOUT_SECONDS):
            return list(pipeline.get_iterator())
    except PipelineFailure as failure:
        raise _cause(failure) from failure


def _build(stages: Stages) -> Pipeline[ChunkRecord]:
    workers, inference, encoding = stages.workers, stages.inference, stages.encoding
    return (
        PipelineBuilder[CropBatch, ChunkRecord]()
        .add_source(stages.extraction)
        .pipe(inference.embed, concurrency=_BATCHES_EMBEDDED_AT_ONCE, output_order="input", name="embed")
        .pipe(inference.compare, name="compare")
        .aggregate(_Assembly(encoding))
        .disaggregate()
        .pipe(encoding.encode, concurrency=workers.encoder, name="encode")
        .pipe(stages.upload.upload, concurrency=workers.upload, name="upload")
        .add_sink(workers.upload)
        .build(
            num_threads=_BATCHES_EMBEDDED_AT_ONCE + 1 + workers.encoder + workers.upload,
            max_failures=0,
            queue_class=_timed_queues(stages),
            task_hook_factory=lambda _: [],
        )
    )


def _timed_queues(stages: Stages) -> type[AsyncQueue]:
    """A queue class for this run: each queue tells the stages at its ends how long they waited.

    A queue is named after the stage that fills it.
    """
    clocks = stages.clocks
    ends: dict[str, tuple[StageClock | None, StageClock | None]] = {
        "source": (clocks[EXTRACTION], clocks[INFERENCE]),
        "embed": (clocks[INFERENCE], None),
        "compare": (clocks[INFERENCE], None),
        "disaggregate": (None, clocks[ENCODING]),
        "encode": (clocks[ENCODING], clocks[UPLOAD]),
        "upload": (clocks[UPLOAD], None),
    }

    class TimedQueue(AsyncQueue):
        def __init__(self, info: StageInfo, *, buffer_size: int = 1) -> None:
            super().__init__(info, buffer_size=max(1, stages.workers.queue_size) if buffer_size > 0 else 0)
            self._producer, self._consumer = ends.get(info.stage_name, (None, None))

        async def put(self, item: Any) -> None:
            start = time.perf_counter()
            await super().put(item)
            if self._producer is not None:
                self._producer.waited(for_room=time.perf_counter() - start)

        async def get(self) -> Any:
            start = time.perf_counter()
            item = await super().get()
            if self._consumer is not None:
                self._consumer.waited(for_input=time.perf_counter() - start)
            return item

    return TimedQueue


class _Assembly(Aggregator):  # type: ignore[type-arg]
    """The chunk assembler in the engine's terms."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def accumulate(self, item: CropBatch) -> list[ChunkFrames] | None:
        return self._encoding.assemble(item) or None

    def flush(self) -> list[ChunkFrames] | None:
        return self._encoding.flush() or None


def _cause(failure: BaseException) -> CaptionExtentsError:
    """The error that stopped the pipeline, out of the engine's wrapping."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [failure]
    while pending:
        error = pending.pop(0)
        if error is None or error in found:
            continue
        found.append(error)
        pending += error.exceptions if isinstance(error, BaseExceptionGroup) else [error.__cause__]
    for error in found:
        if isinstance(error, CaptionExtentsError):
            return error
    root = found[-1]
    return ProcessingError(f"a stage failed: {type(root).__name__}: {root}")
