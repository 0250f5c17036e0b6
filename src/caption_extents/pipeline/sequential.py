"""The reference implementation: all of one stage, then all of the next.

It is what the pipelined implementation is compared with, for results and for time, and what a deployment rolls back to.
Samples and chunks wait on disk between the stages, so memory does not grow with the video.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from caption_extents.chunks.encode import EncodedChunk
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.pipeline.clocks import ENCODING, EXTRACTION, INFERENCE, UPLOAD
from caption_extents.pipeline.stages import Stages
from caption_extents.samples import SampleBatch, empty_planes
from caption_extents.storage.manifest import ChunkRecord


def run_sequential(stages: Stages) -> list[ChunkRecord]:
    """Run all stages one after the other: one batch, one chunk, one object at a time.

    Decoder and encoder still use the threads that they have of their own.
    """
    clocks = stages.clocks
    with TemporaryDirectory(prefix="caption-extents-") as folder:
        crops, chunks = _CropSpool(Path(folder) / "crops.yuv"), _ChunkSpool(Path(folder) / "chunks.bin")
        with clocks[EXTRACTION].whole_process():
            for batch in stages.extraction:
                crops.write(batch)
        _return_free_memory()
        with clocks[INFERENCE].whole_process():
            for batch in crops.read():
                stages.inference.infer(batch)
        _return_free_memory()
        with clocks[ENCODING].whole_process():
            for batch in crops.read():
                for frames in stages.encoding.assemble(batch):
                    chunks.write(stages.watchdog.call("encoding", partial(stages.encoding.encode, frames)))
        with clocks[UPLOAD].whole_process():
            return [record for chunk in chunks.read() for record in stages.upload.upload(chunk)]


def _return_free_memory() -> None:
    """Return freed memory to the operating system (malloc_trim), so that it does not add to the next stage's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _CropSpool:
    """Batches on disk, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shapes: list[tuple[int, int, int, int]] = []

    def write(self, batch: SampleBatch) -> None:
        with self._path.open("ab") as file:
            for plane in batch.planes:
                file.write(np.ascontiguousarray(plane).data)
        self._shapes.append((batch.first_sample, len(batch), batch.height, batch.width))

    def read(self) -> Iterator[SampleBatch]:
        with self._path.open("rb", buffering=0) as file:
            for first, count, height, width in self._shapes:
                planes = empty_planes(count, height, width)
                for plane in planes:
                    view = memoryview(cast(Any, plane.reshape(-1)))
                    while view:
                        view = view[file.readinto(view) :]
                yield SampleBatch(first, *planes)


class _ChunkSpool:
    """Encoded chunks on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()  # there may be no chunk: another run has stored them all
        self._chunks: list[tuple[ChunkPlan, int]] = []

    def write(self, chunk: EncodedChunk) -> None:
        with self._path.open("ab") as file:
            file.write(chunk.data)
        self._chunks.append((chunk.plan, len(chunk.data)))

    def read(self) -> Iterator[EncodedChunk]:
        with self._path.open("rb") as file:
            for plan, size in self._chunks:
                yield EncodedChunk(plan, file.read(size))
