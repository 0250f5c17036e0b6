"""The stages of a run. Both implementations use these very objects and differ in how they connect them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from caption_extents.chunks.encode import CONTENT_TYPE, ChunkFormat, EncodedChunk
from caption_extents.chunks.plan import ChunkAssembler, ChunkFrames, ChunkPlan
from caption_extents.encoders.base import ChunkEncoder
from caption_extents.errors import DecodeError
from caption_extents.labels import Label
from caption_extents.model.opened import PairLabeller
from caption_extents.pipeline.clocks import Activity, StageClock
from caption_extents.pipeline.offload import Offload
from caption_extents.samples import SampleBatch
from caption_extents.storage.leases import VersionLease
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.video.decoders.base import SampleDecoder
from caption_extents.watchdog import Watchdog

LOOSE_END_SECONDS = 10
"""Length of the end of a truncated file in which undecodable samples are tolerated: the last frame is incomplete, and
reference frames may be missing."""


@dataclass(frozen=True)
class Workers:
    """Degrees of parallelism. They do not change any result.

    Attributes:
        encoder: chunks encoded at once.
        upload: objects uploaded at once.
        queue_size: items that wait between two stages.
        starting_batches: batches that may wait for inference until the model is loaded, so that encoding goes on.
    """

    encoder: int = 4
    upload: int = 4
    queue_size: int = 2
    starting_batches: int = 0


@dataclass
class Extraction:
    """Decoding and cropping, with a limit on the share of undecodable samples.

    Raises (while iterating):
        DecodeError: more than the allowed share of the samples could not be decoded.
        StallError: the decoder gave no sign of life.
    """

    decoder: SampleDecoder
    sample_count: int
    max_undecodable_share: float
    watchdog: Watchdog
    clock: StageClock
    loose_end: int = 0
    """Samples at the end that may be undecodable."""
    on_end: Callable[[], None] = lambda: None
    """Called when all samples have been decoded."""

    def __post_init__(self) -> None:
        self._watched = self.watchdog.items("decoding", self.decoder)
        self.first_frame_at: float | None = None
        """When the first samples came, in seconds of :func:`time.perf_counter`."""

    def __iter__(self) -> Iterator[SampleBatch]:
        for batch in self.clock.timed(self._watched, len):
            if self.first_frame_at is None:
                self.first_frame_at = time.perf_counter()
            self._check()
            yield batch
        self._check()
        self.on_end()

    def close(self) -> None:
        """Stop decoding and free everything."""
        self.watchdog.close("the decoder", self.decoder.close)
        self._watched.close()

    def _check(self) -> None:
        # Undecodable samples at the end of a truncated file that is processed with `partial` are tolerated.
        lost = [sample for sample in self.decoder.undecodable_samples if sample < self.sample_count - self.loose_end]
        if len(lost) > self.max_undecodable_share * self.sample_count:
            raise DecodeError(
                f"{len(lost)} of {self.sample_count} samples could not be decoded so far, from sample {lost[0]} on, "
                f"more than the allowed share of {self.max_undecodable_share:g}; the video is damaged. "
                "Raise max_undecodable_share, for example to 0.1, to go on with the last good frame in their place; "
                "captions near them may be cut or wrong"
            )


class Inference:
    """Labels the pairs of consecutive samples. Batches must come in order.

    Args:
        labeller: labels the pairs of the video.
        sample_count: number of samples of the whole video.
        clock: clock of this stage.
        on_pairs: called for consecutive pairs, in order, with the number of the first and their probabilities.
        on_end: called once with the probabilities of all pairs.
    """

    def __init__(
        self,
        labeller: PairLabeller,
        sample_count: int,
        clock: StageClock,
        on_pairs: Callable[[int, np.ndarray], None] = lambda first, probabilities: None,
        on_end: Callable[[np.ndarray], None] = lambda probabilities: None,
    ) -> None:
        self._labeller, self._clock, self._on_pairs, self._on_end = labeller, clock, on_pairs, on_end
        self._sample_count = sample_count
        # Allocated once: many small arrays between large short-lived ones would fragment the heap (1 MiB per batch).
        self.probabilities = np.full((sample_count - 1, 2, len(Label)), np.nan, np.float32)
        """Forward and backward probabilities of all pairs, float32 (P, 2, 5); NaN for pairs not labelled yet."""

    def infer(self, batch: SampleBatch) -> None:
        """Label the pairs that end in this batch; the probabilities of some come with a later batch."""
        is_last = batch.first_sample + len(batch) == self._sample_count
        with self._clock.busy(samples=len(batch), items=len(batch) - (batch.first_sample == 0)):
            for first, found in self._labeller.add(batch, is_last=is_last):
                self.probabilities[first : first + len(found)] = found
                self._on_pairs(first, found)
                if first + len(found) == len(self.probabilities):
                    self._on_end(self.probabilities)


@dataclass
class Encoding:
    """Sorts samples into chunks and encodes those that are not stored yet."""

    encoder: ChunkEncoder
    form: ChunkFormat
    clock: StageClock
    sample_count: int
    done: Mapping[ChunkPlan, ChunkRecord]
    _assembler: ChunkAssembler = field(default_factory=ChunkAssembler)

    def assemble(self, batch: SampleBatch) -> list[ChunkFrames]:
        """Take a batch, in order; the chunks that it completes and that are still to do.

        The video's last batch completes the last, partial chunk of each level.
        """
        chunks = self._assembler.add(batch.first_sample, batch.planes)
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
        chunk, effort = self.encoder.encode(frames, self.form)
        self.clock.worked(effort.seconds, effort.thread_seconds)
        self.clock.count(samples=len(frames.plan.samples), items=1, nbytes=len(chunk.data))
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
            e_tag = lease.store_chunk(key, data, CONTENT_TYPE)
        record = ChunkRecord.of(key, plan, data)
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
    watchdog: Watchdog
    offload: Offload | None = None
    queued: dict[str, Activity] = field(default_factory=dict)
    """How many items the queue before each stage held over time; empty in the sequential implementation."""
