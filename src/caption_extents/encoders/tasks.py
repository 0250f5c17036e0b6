"""Encoding tasks for other machines: a block of samples in the store becomes stored chunks.

Tasks are plain data, and doing one twice writes the same objects again, so workers may die and be replaced. Chunks have
the bytes that local encoding would have given.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from caption_extents.chunks.encode import CONTENT_TYPE, ChunkFormat, encode_chunk
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.encoders.blocks import unpack
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import store_for_run
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.storage.store import open_store

MAX_IN_FLIGHT = 256
"""Maximum number of blocks that wait for workers (3.6 hours of video at ten samples per second); then the run waits."""


@dataclass(frozen=True)
class EncodeTask:
    """A block to be encoded, as plain data.

    Attributes:
        store_address: address of the store; the worker uses its own credentials.
        keys, version, run_id: keys of the video, version number and run id of the run that sent the task.
        block_key: key of the packed block.
        first_sample, sample_count: the samples of the block.
        chunk_keys: keys of the chunks to encode and store, by level and first sample.
        preset: encoder settings as returned by :meth:`EncoderPreset.to_json`.
        form: frame rate and colour description that all chunks share.
    """

    store_address: str
    keys: VideoKeys
    version: int
    run_id: str
    block_key: str
    first_sample: int
    sample_count: int
    chunk_keys: dict[tuple[int, int], str]
    preset: dict[str, Any]
    form: ChunkFormat


@dataclass(frozen=True)
class EncodeResult:
    """What a worker has done.

    Attributes:
        stored: each chunk's record, and the tag that the store gave it.
        seconds, cpu_seconds: of the whole task.
    """

    stored: list[tuple[ChunkRecord, str | None]]
    seconds: float
    cpu_seconds: float


def run_encode_task(task: EncodeTask) -> EncodeResult:
    """Execute a task: read its block, and encode and store its chunks.

    Raises:
        ProcessingError: the block cannot be read or encoded, or a chunk cannot be written.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    store = open_store(task.store_address)
    preset = EncoderPreset.from_json(task.preset)
    block = unpack(store.get(task.block_key), task.first_sample, task.sample_count)
    stored = []
    for frames in block.chunks():
        key = task.chunk_keys.get((frames.plan.level, frames.plan.first_sample))
        if key is not None:
            data = encode_chunk(frames, preset, task.form).data
            tag = store_for_run(store, task.keys, task.version, task.run_id, key, data, CONTENT_TYPE)
            stored.append((ChunkRecord.of(key, frames.plan, data), tag.get("e_tag")))
    return EncodeResult(stored, time.perf_counter() - started, time.process_time() - started_cpu)


class EncoderWorkers(Protocol):
    """A pool of workers that execute encoding tasks."""

    name: str

    @property
    def count(self) -> int:
        """Number of tasks that are executed at once, as far as it is known."""
        ...

    def submit(self, task: EncodeTask) -> Future[EncodeResult]:
        """Submit a task; if its worker dies, the task is retried. The future raises ``ProcessingError`` on failure."""
        ...

    def close(self) -> None:
        """Give up what is not done, and let the workers go."""
        ...
