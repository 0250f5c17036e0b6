"""The stage that offloads encoding to other machines.

The run packs samples into lossless blocks (:mod:`caption_extents.encoders.blocks`), writes each block to the store
under a temporary prefix, and submits an encoding task for it. It waits for the workers only at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from caption_extents.chunks.encode import ChunkFormat
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.encoders.blocks import BLOCK_SAMPLES, BlockAssembler, SampleBlock, pack
from caption_extents.encoders.tasks import EncodeResult, EncoderWorkers, EncodeTask
from caption_extents.pipeline.clocks import StageClock
from caption_extents.samples import SampleBatch
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import VersionLease
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.storage.store import Store

SENDERS = 2
"""Segments packed at once; one thread packs some 300 MB of samples a second."""

_CONTENT_BLOCK = "video/x-matroska"
_POLL_SECONDS = 0.5


@dataclass
class Offload:
    """The stage that sends blocks to workers and collects what they have stored.

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
        self.block_bytes = 0
        self._assembler = BlockAssembler()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def assemble(self, batch: SampleBatch) -> list[SampleBlock]:
        """Add the next batch; returns the blocks that it completes, and after the last batch the partial last block."""
        blocks = list(self._assembler.add(batch.first_sample, batch.planes))
        if self._assembler.sample_count == self.sample_count:
            blocks += self._assembler.flush()
        return blocks

    def send(self, block: SampleBlock) -> Future[EncodeResult] | None:
        """Write a block to the store and submit its task; returns None if all its chunks are already stored."""
        missing = [plan for plan in block.plans() if plan not in self.done]
        self.encoding_clock.count(samples=len(block) - sum(len(plan.samples) for plan in missing))
        if not missing:
            return None
        lease = self.lease
        key = lease.keys.segment(lease.version, lease.run_id, block.first_sample)
        with self.upload_clock.busy(samples=len(block), items=1):
            data = pack(block)
            lease.store.put(key, data, _CONTENT_BLOCK)
        self.upload_clock.count(nbytes=len(data))
        with self._lock:
            self.block_bytes += len(data)
        return self.workers.submit(self._task(key, block, missing))

    def collect(self, sent: Future[EncodeResult] | None) -> list[ChunkRecord]:
        """Wait until a block is encoded, record its chunks in the lease, and delete the block.

        Returns:
            The records of its chunks; empty if the run was stopped in the meantime, or if ``sent`` is None.
        """
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
        first = min(record.samples[0] for record in records) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self.lease.store.delete([self.lease.keys.segment(self.lease.version, self.lease.run_id, first)])
        return records

    def finish(self) -> None:
        """Stop waiting for workers; called when the run has ended, successfully or not."""
        self._stopping.set()
        if self.encoding_clock.items:
            self.encoding_clock.workers = self.workers.count

    def _task(self, key: str, block: SampleBlock, missing: list[ChunkPlan]) -> EncodeTask:
        lease = self.lease
        return EncodeTask(
            store_address=lease.store.address,
            keys=lease.keys,
            version=lease.version,
            run_id=lease.run_id,
            block_key=key,
            first_sample=block.first_sample,
            sample_count=len(block),
            chunk_keys={
                (plan.level, plan.first_sample): lease.keys.chunk(lease.version, plan.level, plan.first_sample)
                for plan in missing
            },
            preset=self.preset.to_json(),
            form=self.form,
        )

    def _wait(self, sent: Future[EncodeResult]) -> EncodeResult | None:
        while not self._stopping.is_set():
            try:
                return sent.result(timeout=_POLL_SECONDS)
            except TimeoutError:
                # The future may have ended since the wait did; its own TimeoutError is raised by the next look.
                if sent.done():
                    return sent.result()
        return None


def remove_old_blocks(store: Store, keys: VideoKeys, age: timedelta = timedelta(days=1)) -> int:
    """Remove blocks of a video that are older than any run; how many there were."""
    now = datetime.now(UTC)
    old = [found.key for found in store.entries(f"{keys.temporary}/") if now - found.modified > age]
    store.delete(old)
    return len(old)
