"""The stages of a run. Both implementations use these very objects and differ in how they connect them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from caption_extents.chunks.assemble import ChunkAssembler, ChunkFrames
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.encode_process import EncoderProcesses
from caption_extents.chunks.plan import ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import DecodeError
from caption_extents.model.interface import PairModel
from caption_extents.model.labels import Label
from caption_extents.pipeline.activity import Activity
from caption_extents.pipeline.metrics import StageClock
from caption_extents.pipeline.offload import CONTENT_WEBM, Offload, chunk_record
from caption_extents.pipeline.watchdog import Watched
from caption_extents.storage.leases import VersionLease
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.video.batch import CropBatch
from caption_extents.video.decoder import SampleDecoder


@dataclass(frozen=True)
class Workers:
    """How much runs at once between stages. None of it changes any result.

    Attributes:
        encoder: chunks encoded at once.
        upload: objects uploaded at once.
        queue_size: items that wait between two stages.
    """

    encoder: int = 4
    upload: int = 4
    queue_size: int = 2


@dataclass
class Extraction:
    """Decoding and cropping, with a limit on what may be missing.

    Raises (while iterating):
        DecodeError: more than the allowed share of the samples could not be decoded, or the decoder gave nothing for
            ``stall_seconds``.
    """

    decoder: SampleDecoder
    sample_count: int
    max_undecodable_share: float
    stall_seconds: float
    clock: StageClock

    def __post_init__(self) -> None:
        self._watched = Watched(self.decoder, self.stall_seconds)

    def __iter__(self) -> Iterator[CropBatch]:
        for batch in self.clock.timed(self._watched, len):
            self._check()
            yield batch

    def close(self) -> None:
        """Stop decoding and free everything."""
        self.decoder.close()
        self._watched.close()

    def _check(self) -> None:
        lost = self.decoder.undecodable_samples
        if len(lost) > self.max_undecodable_share * self.sample_count:
            raise DecodeError(
                f"{len(lost)} of {self.sample_count} samples could not be decoded so far, from sample {lost[0]} on, "
                f"more than the allowed share of {self.max_undecodable_share:g}; the video is damaged. "
                "Raise max_undecodable_share to go on with the last good frame in their place"
            )


class Inference:
    """Embeds each sample and compares it with the one before it. Batches must come in order.

    Args:
        model: that does both.
        sample_count: of the whole video.
        clock: to count with.
        on_pairs: called with the first pair of each batch and its pairs' probabilities.
    """

    def __init__(
        self,
        model: PairModel,
        sample_count: int,
        clock: StageClock,
        on_pairs: Callable[[int, np.ndarray], None] = lambda first, probabilities: None,
    ) -> None:
        self._model, self._clock, self._on_pairs = model, clock, on_pairs
        self._last: torch.Tensor | None = None
        # All at once: small results kept between large short-lived ones would hold the heap open (1 MiB a batch).
        self.probabilities = np.full((sample_count - 1, 2, len(Label)), np.nan, np.float32)
        """Forward and backward probabilities of every pair; NaN where none was looked at yet."""

    def infer(self, batch: CropBatch) -> CropBatch:
        """Keep the probabilities of the pairs that end in this batch, and give the batch on, in host memory."""
        pairs = len(batch) - (self._last is None)
        with self._clock.busy(samples=len(batch), items=pairs):
            host = batch.to_host()
            later = self._model.embed(*batch.planes)
            if pairs:
                earlier = torch.cat([later[:0] if self._last is None else self._last, later[:-1]])
                first = batch.first_sample + len(batch) - pairs - 1
                found = self._model.compare(earlier, later[-pairs:]).numpy()
                self.probabilities[first : first + pairs] = found
                self._on_pairs(first, found)
            self._last = later[-1:].clone()
            if later.is_cuda:
                # The copy of the batch was queued before: it has come when this stream is done.
                torch.cuda.current_stream(later.device).synchronize()
        return host


@dataclass
class Encoding:
    """Sorts samples into chunks and encodes those that are not stored yet."""

    preset: EncoderPreset
    form: ChunkFormat
    clock: StageClock
    sample_count: int
    done: Mapping[ChunkPlan, ChunkRecord]
    processes: EncoderProcesses | None = None
    """Where to encode, if not in this process."""
    _assembler: ChunkAssembler = field(default_factory=ChunkAssembler)

    def assemble(self, batch: CropBatch) -> list[ChunkFrames]:
        """Take a batch, in order; the chunks that it completes and that are still to do.

        The video's last batch completes the last, partial chunk of each level.
        """
        y, u, v = (plane.numpy() for plane in batch.planes)
        chunks = self._assembler.add(batch.first_sample, (y, u, v))
        if self._assembler.sample_count == self.sample_count:
            chunks += self._assembler.flush()
        return self._missing(chunks)

    def _missing(self, chunks: list[ChunkFrames]) -> list[ChunkFrames]:
        missing = []
        for chunk in chunks:
            if chunk.plan in self.done:
                self.clock.count(samples=len(chunk.plan.samples))
            else:
                missing.append(chunk)
        return missing

    def encode(self, frames: ChunkFrames) -> EncodedChunk:
        """Encode a chunk, at once with others."""
        with self.clock.busy(samples=len(frames.plan.samples), items=1):
            chunk = self._encode(frames)
        self.clock.count(nbytes=len(chunk.data))
        return chunk

    def _encode(self, frames: ChunkFrames) -> EncodedChunk:
        if self.processes is None:
            return encode_chunk(frames, self.preset, self.form)
        chunk, thread_seconds = self.processes.encode(frames, self.preset, self.form)
        self.clock.count(thread_seconds=thread_seconds)
        return chunk


@dataclass
class Upload:
    """Writes chunks to the store, and remembers what was written."""

    lease: VersionLease
    clock: StageClock

    def upload(self, chunk: EncodedChunk) -> list[ChunkRecord]:
        """Write a chunk, at once with others; the one record of what was written."""
        plan, data, lease = chunk.plan, chunk.data, self.lease
        key = lease.keys.chunk(lease.version, plan.level, plan.first_sample)
        with self.clock.busy(samples=len(plan.samples), items=1, nbytes=len(data)):
            e_tag = lease.store.put(key, data, CONTENT_WEBM)
        record = chunk_record(key, plan, data)
        lease.record(record, e_tag)
        return [record]


@dataclass
class Stages:
    """All stages of one run.

    The two implementations drive them through the same calls, so nothing is decoded, encoded or decided in two places.
    Where ``offload`` is given it takes the place of ``encoding`` and ``upload``.
    """

    extraction: Extraction
    inference: Inference
    encoding: Encoding
    upload: Upload
    workers: Workers
    clocks: dict[str, StageClock]
    offload: Offload | None = None
    queued: dict[str, Activity] = field(default_factory=dict)
    """What queues between stages held; empty where there are none."""
