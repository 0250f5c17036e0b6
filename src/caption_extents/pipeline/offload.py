"""Encoding on other machines: samples go to the store as lossless segments, workers turn them into stored chunks.

The run packs each segment (:mod:`caption_extents.chunks.segment`), writes it under a temporary prefix and hands a task
to the workers; it waits for them only at the end. Tasks are plain data, and doing one twice writes the same objects
again, so workers may die and be replaced. Chunks have the bytes that local encoding would have given.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from caption_extents.chunks.encode import ChunkFormat, encode_chunk
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.chunks.segment import SEGMENT_SAMPLES, Segment, SegmentAssembler, pack, unpack
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import store_for_run
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.storage.store import Store, open_store

if TYPE_CHECKING:
    from caption_extents.pipeline.metrics import StageClock
    from caption_extents.storage.leases import VersionLease
    from caption_extents.video.batch import CropBatch

SENDERS = 2
"""Segments packed at once; one thread packs some 300 MB of samples a second."""

MAX_IN_FLIGHT = 256
"""Segments that may wait for workers: three and a half hours of video. Beyond that the run waits for them."""

CONTENT_WEBM = "video/webm"
_CONTENT_SEGMENT = "video/x-matroska"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class EncodeTask:
    """A segment to be encoded, as plain data.

    Attributes:
        store_address: where to read and write; credentials are the worker's own.
        keys, version, run_id: of the run for which it is done.
        segment_key: of the packed samples.
        first_sample, sample_count: which samples they are.
        chunk_keys: of the chunks to make, by level and first sample.
        preset_name, preset_threads, preset_options: the encoder's settings.
        form: what all chunks share.
    """

    store_address: str
    keys: VideoKeys
    version: int
    run_id: str
    segment_key: str
    first_sample: int
    sample_count: int
    chunk_keys: dict[tuple[int, int], str]
    preset_name: str
    preset_threads: int
    preset_options: dict[str, str]
    form: ChunkFormat


@dataclass(frozen=True)
class EncodeReport:
    """What a worker has done.

    Attributes:
        stored: each chunk's record, and the tag that the store gave it.
        seconds, cpu_seconds: of the whole task.
    """

    stored: list[tuple[ChunkRecord, str | None]]
    seconds: float
    cpu_seconds: float


def run_encode_task(task: EncodeTask) -> EncodeReport:
    """Do a task, wherever this is.

    Raises:
        ProcessingError: the segment cannot be read or encoded, or a chunk cannot be written.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    store = open_store(task.store_address)
    preset = EncoderPreset(task.preset_name, task.preset_threads, task.preset_options)
    segment = unpack(store.get(task.segment_key), task.first_sample, task.sample_count)
    stored = []
    for frames in segment.chunks():
        key = task.chunk_keys.get((frames.plan.level, frames.plan.first_sample))
        if key is not None:
            data = encode_chunk(frames, preset, task.form).data
            tag = store_for_run(store, task.keys, task.version, task.run_id, key, data, CONTENT_WEBM)
            stored.append((chunk_record(key, frames.plan, data), tag.get("e_tag")))
    return EncodeReport(stored, time.perf_counter() - started, time.process_time() - started_cpu)


def chunk_record(key: str, plan: ChunkPlan, data: bytes) -> ChunkRecord:
    """What the manifest says of a stored chunk."""
    return ChunkRecord(key, plan.level, plan.samples, len(data), hashlib.sha256(data).hexdigest())


class EncoderWorkers(Protocol):
    """Where encoding tasks are done."""

    name: str

    @property
    def count(self) -> int:
        """How many are done at once, as far as that is known."""
        ...

    def submit(self, task: EncodeTask) -> Future[EncodeReport]:
        """Have a task done; a worker that dies is replaced. The future fails with a ``ProcessingError``."""
        ...

    def close(self) -> None:
        """Give up what is not done, and let the workers go."""
        ...


@dataclass
class Offload:
    """The stage that sends segments to workers and collects what they have stored.

    It takes the place of encoding and upload: :meth:`send` is counted as upload, :meth:`collect` as encoding.
    """

    workers: EncoderWorkers
    lease: VersionLease
    preset: EncoderPreset
    form: ChunkFormat
    sample_count: int
    done: Mapping[ChunkPlan, ChunkRecord]
    encoding_clock: StageClock
    upload_clock: StageClock

    def __post_init__(self) -> None:
        self.worker_cpu_seconds = 0.0
        self.segment_bytes = 0
        self._assembler = SegmentAssembler()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def assemble(self, batch: CropBatch) -> list[Segment]:
        """Take a batch, in order; the segments that it completes, the last one too if it is the last batch."""
        y, u, v = (plane.numpy() for plane in batch.planes)
        segments = list(self._assembler.add(batch.first_sample, (y, u, v)))
        if self._assembler.sample_count == self.sample_count:
            segments += self._assembler.flush()
        return segments

    def send(self, segment: Segment) -> Future[EncodeReport] | None:
        """Write a segment to the store and have it encoded; None if all its chunks are stored already."""
        missing = [plan for plan in segment.plans() if plan not in self.done]
        self.encoding_clock.count(samples=len(segment) - sum(len(plan.samples) for plan in missing))
        if not missing:
            return None
        lease = self.lease
        key = lease.keys.segment(lease.version, lease.run_id, segment.first_sample)
        with self.upload_clock.busy(samples=len(segment), items=1):
            data = pack(segment)
            lease.store.put(key, data, _CONTENT_SEGMENT)
        self.upload_clock.count(nbytes=len(data))
        with self._lock:
            self.segment_bytes += len(data)
        return self.workers.submit(self._task(key, segment, missing))

    def collect(self, sent: Future[EncodeReport] | None) -> list[ChunkRecord]:
        """Wait until a segment is encoded, note its chunks, and remove it; none when the run has stopped meanwhile."""
        report = self._wait(sent) if sent is not None else None
        if report is None:
            return []
        for record, e_tag in report.stored:
            self.lease.record(record, e_tag)
        records = [record for record, _ in report.stored]
        self.encoding_clock.worked(report.seconds)
        self.encoding_clock.count(
            samples=sum(len(record.samples) for record in records),
            items=len(records),
            nbytes=sum(record.size_bytes for record in records),
        )
        with self._lock:
            self.worker_cpu_seconds += report.cpu_seconds
        first = min(record.samples[0] for record in records) // SEGMENT_SAMPLES * SEGMENT_SAMPLES
        self.lease.store.delete([self.lease.keys.segment(self.lease.version, self.lease.run_id, first)])
        return records

    def finish(self) -> None:
        """The run is over, in whatever way: let nothing wait for workers any longer."""
        self._stopping.set()
        if self.encoding_clock.items:
            self.encoding_clock.workers = self.workers.count

    def _task(self, key: str, segment: Segment, missing: list[ChunkPlan]) -> EncodeTask:
        lease, preset = self.lease, self.preset
        return EncodeTask(
            store_address=lease.store.address,
            keys=lease.keys,
            version=lease.version,
            run_id=lease.run_id,
            segment_key=key,
            first_sample=segment.first_sample,
            sample_count=len(segment),
            chunk_keys={
                (plan.level, plan.first_sample): lease.keys.chunk(lease.version, plan.level, plan.first_sample)
                for plan in missing
            },
            preset_name=preset.name,
            preset_threads=preset.threads,
            preset_options=dict(preset.options),
            form=self.form,
        )

    def _wait(self, sent: Future[EncodeReport]) -> EncodeReport | None:
        while not self._stopping.is_set():
            try:
                return sent.result(timeout=_POLL_SECONDS)
            except TimeoutError:
                # The future may have ended since the wait did; its own TimeoutError is raised by the next look.
                if sent.done():
                    return sent.result()
        return None


def remove_old_segments(store: Store, keys: VideoKeys, age: timedelta = timedelta(days=1)) -> int:
    """Remove segments of a video that are older than any run; how many there were."""
    now = datetime.now(UTC)
    old = [found.key for found in store.entries(f"{keys.temporary}/") if now - found.modified > age]
    store.delete(old)
    return len(old)


def open_workers(name: str, count: int) -> EncoderWorkers:
    """Workers by the name of their kind: ``ray`` or ``modal``.

    Args:
        name: of the kind.
        count: how many a cluster that is started for this run has.

    Raises:
        InputError: the extra of that name is not installed.
        ProcessingError: they cannot be reached.
    """
    kinds: dict[str, Callable[[int], EncoderWorkers]] = {"ray": _ray_workers, "modal": _modal_workers}
    return kinds[name](count)


def _ray_workers(count: int) -> EncoderWorkers:
    from caption_extents.deploy.ray_cluster import RayEncoderWorkers

    return RayEncoderWorkers(count)


def _modal_workers(count: int) -> EncoderWorkers:
    from caption_extents.deploy.modal_workers import ModalEncoderWorkers

    return ModalEncoderWorkers(count)
