"""The stages of a run. Both implementations use these very objects and differ in how they connect them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from caption_extents.chunks.assemble import ChunkAssembler, ChunkFrames
from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.encode_process import EncoderProcesses
from caption_extents.chunks.plan import ChunkPlan, plan_chunks
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import DecodeError
from caption_extents.model.interface import ContextModel, LookingModel, PairModel
from caption_extents.model.labels import Label
from caption_extents.pipeline.activity import Activity
from caption_extents.pipeline.metrics import StageClock
from caption_extents.pipeline.offload import CONTENT_WEBM, Offload, chunk_record
from caption_extents.storage.leases import VersionLease
from caption_extents.storage.manifest import ChunkRecord
from caption_extents.video.batch import CropBatch
from caption_extents.video.decoder import SampleDecoder
from caption_extents.watchdog import Watchdog


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

    def __post_init__(self) -> None:
        self._watched = self.watchdog.items("decoding", self.decoder)
        self.first_frame_at: float | None = None
        """When the first sample had been decoded, in seconds of :func:`time.perf_counter`."""

    def __iter__(self) -> Iterator[CropBatch]:
        for batch in self.clock.timed(self._watched, len):
            if self.first_frame_at is None:
                self.first_frame_at = getattr(self.decoder, "first_frame_at", None) or time.perf_counter()
            self._check()
            yield batch

    def close(self) -> None:
        """Stop decoding and free everything."""
        self.watchdog.close("the decoder", self.decoder.close)
        self._watched.close()

    def _check(self) -> None:
        # Those at the end of a file that ends early, and is taken as it is, count for nothing.
        lost = [sample for sample in self.decoder.undecodable_samples if sample < self.sample_count - self.loose_end]
        if len(lost) > self.max_undecodable_share * self.sample_count:
            raise DecodeError(
                f"{len(lost)} of {self.sample_count} samples could not be decoded so far, from sample {lost[0]} on, "
                f"more than the allowed share of {self.max_undecodable_share:g}; the video is damaged. "
                "Raise max_undecodable_share to go on with the last good frame in their place"
            )


class Inference:
    """Embeds each sample, compares it with the one before it, and labels the pairs. Batches must come in order.

    Args:
        model: that does all three.
        sample_count: of the whole video.
        clock: to count with.
        on_pairs: called with the first of some pairs, in order, and the probabilities of these.
        on_end: called with the probabilities of all pairs when the last of them are there.
    """

    def __init__(
        self,
        model: PairModel,
        sample_count: int,
        clock: StageClock,
        on_pairs: Callable[[int, np.ndarray], None] = lambda first, probabilities: None,
        on_end: Callable[[np.ndarray], None] = lambda probabilities: None,
    ) -> None:
        self._model, self._clock, self._on_pairs, self._on_end = model, clock, on_pairs, on_end
        self._label: _InContext | _OnItsOwn
        if isinstance(model, ContextModel):
            self._label = _InContext(model, sample_count)
        else:
            self._label = _OnItsOwn(model)
        self._begun = False
        # All at once: small results kept between large short-lived ones would hold the heap open (1 MiB a batch).
        self.probabilities = np.full((sample_count - 1, 2, len(Label)), np.nan, np.float32)
        """Forward and backward probabilities of every pair; NaN where none was looked at yet."""

    def infer(self, batch: CropBatch) -> None:
        """Label the pairs that end in this batch.

        The probabilities of some pairs come with a later batch, when the pairs after them are known.
        """
        pairs = len(batch) - (not self._begun)
        with self._clock.busy(samples=len(batch), items=pairs):
            embeddings = self._model.embed(*batch.planes)
            for first, probabilities in self._label.add(batch, embeddings):
                found = probabilities.numpy()
                self.probabilities[first : first + len(found)] = found
                self._on_pairs(first, found)
                if first + len(found) == len(self.probabilities):
                    self._on_end(self.probabilities)
            self._begun = True


class _OnItsOwn:
    """Labels each pair by its own samples."""

    def __init__(self, model: PairModel) -> None:
        self._model = model
        self._samples = _Held()

    def add(self, batch: CropBatch, embeddings: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Take the next samples; the first pair that can be labelled now, and the probabilities from it on."""
        samples = self._samples
        samples.add(embeddings)
        if len(samples) > 1:
            yield samples.first, self._model.compare(samples.held[:-1], samples.held[1:])
            samples.keep_from(samples.end - 1)


class _InContext:
    """Labels each pair when the pairs around it are known; some of them twice, where the model can look closely."""

    def __init__(self, model: ContextModel, sample_count: int) -> None:
        self._model, self._sample_count = model, sample_count
        self._samples = _Held()
        self._first_look = _Labelling(model)
        self._second_look = _SecondLook(model, sample_count) if isinstance(model, LookingModel) else None

    def add(self, batch: CropBatch, embeddings: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Take the next samples; the first pair that can be labelled now, and the probabilities from it on."""
        samples, first_pair = self._samples, self._first_look.end
        samples.add(embeddings)
        over = samples.end == self._sample_count
        described = samples.end - (1 if over else 2)
        if self._second_look is not None:
            self._second_look.keep(batch)
        if described <= first_pair:
            return
        around = (samples.part(first_pair + step, described + step) for step in (-1, 0, 1, 2))
        descriptions = self._model.describe(*around)
        samples.keep_from(described - 1)
        for labelled in self._first_look.add(descriptions, over=over):
            if self._second_look is None:
                yield labelled.first, labelled.probabilities
            else:
                yield from self._second_look.add(labelled)


@dataclass(frozen=True)
class _Labelled:
    """Consecutive pairs.

    Attributes:
        first: number of the first.
        descriptions: (P, ...), as the model gives them.
        probabilities: float32 (P, 2, 5), on the CPU.
    """

    first: int
    descriptions: torch.Tensor
    probabilities: torch.Tensor


class _Labelling:
    """Labels pairs when those after them that matter are described."""

    def __init__(self, model: ContextModel) -> None:
        self._model = model
        self._pairs = _Held()
        self._done = 0

    @property
    def end(self) -> int:
        """Number of the first pair that is not described."""
        return self._pairs.end

    def add(self, descriptions: torch.Tensor, *, over: bool) -> Iterator[_Labelled]:
        """Take the next pairs' descriptions, the last ones if it is over; what can be labelled now."""
        pairs, done, reach = self._pairs, self._done, self._model.reach
        pairs.add(descriptions)
        end = pairs.end - (0 if over else reach)
        if end > done:
            found = self._model.label(pairs.held)
            now = slice(done - pairs.first, end - pairs.first)
            yield _Labelled(done, pairs.held[now], found[now])
            self._done = end
            pairs.keep_from(end - reach)


class _SecondLook:
    """Looks closely at those pairs that are worth it, and labels all pairs anew with what it saw of these."""

    def __init__(self, model: LookingModel, sample_count: int) -> None:
        self._model, self._sample_count = model, sample_count
        self._labelling = _Labelling(model)
        self._batches: deque[CropBatch] = deque()

    def keep(self, batch: CropBatch) -> None:
        """Take the next samples, in the host's memory; they are kept until all their pairs have been added."""
        self._batches.append(batch)

    def add(self, pairs: _Labelled) -> Iterator[tuple[int, torch.Tensor]]:
        """Take pairs as they were labelled first, in order; the first that is labelled anew, and the probabilities."""
        descriptions = self._looked_at(pairs)
        end = pairs.first + len(descriptions)
        while self._batches[0].first_sample + len(self._batches[0]) < end:
            self._batches.popleft()
        for labelled in self._labelling.add(descriptions, over=end == self._sample_count - 1):
            yield labelled.first, labelled.probabilities

    def _looked_at(self, pairs: _Labelled) -> torch.Tensor:
        """Their descriptions, those that are worth a look by a closer one."""
        worth = self._model.is_worth_a_look(pairs.probabilities).nonzero()[:, 0]
        if not len(worth):
            return pairs.descriptions
        numbers = torch.stack([pairs.first + worth + step for step in (-1, 0, 1, 2)])
        samples, around = torch.unique(numbers.clamp(0, self._sample_count - 1), return_inverse=True)
        y, u, v = self._planes_of(samples.numpy())
        descriptions = pairs.descriptions.clone()
        descriptions[worth.to(descriptions.device)] = self._model.look_closely(y, u, v, around.unbind())
        return descriptions

    def _planes_of(self, samples: np.ndarray) -> list[torch.Tensor]:
        """Y, U and V of samples, by their numbers in order."""
        # With NumPy: PyTorch would copy with a thread for each core, and wait for cores that encoders have.
        parts = []
        for batch in self._batches:
            inside = samples[(samples >= batch.first_sample) & (samples < batch.first_sample + len(batch))]
            parts.append([plane.numpy()[inside - batch.first_sample] for plane in batch.planes])
        return [torch.from_numpy(np.concatenate(plane)) for plane in zip(*parts, strict=True)]


class _Held:
    """The last few of a sequence that comes in parts."""

    def __init__(self) -> None:
        self.first = self.end = 0
        """Numbers of the first that is held, and of the first that has not come."""
        self.held = torch.empty(0)

    def __len__(self) -> int:
        return self.end - self.first

    def add(self, following: torch.Tensor) -> None:
        """Take the next ones."""
        self.held = torch.cat([self.held, following]) if len(self) else following
        self.end += len(following)

    def part(self, start: int, end: int) -> torch.Tensor:
        """Those from one number up to another; before the first of all that, and after the last the last."""
        start, end = start - self.first, end - self.first
        before, after = max(0, -start), max(0, end - len(self))
        inside = self.held[start + before : end - after]
        if not before and not after:
            return inside
        return torch.cat([*[self.held[:1]] * before, inside, *[self.held[-1:]] * after])

    def keep_from(self, number: int) -> None:
        """Forget those before a number."""
        passed = max(0, number - self.first)
        self.held, self.first = self.held[passed:].clone(), self.first + passed


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

    @property
    def chunks_to_do(self) -> int:
        """How many :meth:`assemble` gives, of the whole video."""
        return sum(chunk not in self.done for chunk in plan_chunks(self.sample_count))

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
        samples = len(frames.plan.samples)
        if self.processes is None:
            with self.clock.busy(samples=samples, items=1):
                chunk = encode_chunk(frames, self.preset, self.form)
        else:
            started = time.thread_time()
            chunk, effort = self.processes.encode(frames, self.preset, self.form)
            self.clock.worked(effort.seconds, effort.thread_seconds + time.thread_time() - started)
            self.clock.count(samples=samples, items=1)
        self.clock.count(nbytes=len(chunk.data))
        return chunk

    def calls(self, encoders: int) -> int:
        """Calls of :meth:`encode` at once that keep so many encoders at work."""
        return encoders if self.processes is None else self.processes.calls


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
            e_tag = lease.store_chunk(key, data, CONTENT_WEBM)
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
    watchdog: Watchdog
    offload: Offload | None = None
    queued: dict[str, Activity] = field(default_factory=dict)
    """What the queue before a stage held; empty where there are none."""
