"""Decoding a video's samples on all decode engines of a GPU, segments side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

import numpy as np

from caption_extents.errors import DecodeError
from caption_extents.samples import Planes, SampleBatch, slice_planes
from caption_extents.video.crop import CropPixels
from caption_extents.video.decoders.base import BATCH_SAMPLES, PictureChange
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.video.info import Orientation, VideoFacts
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.capabilities import gpu_cannot_decode
from caption_extents.video.nvdec.scheduler import ParallelSegmentDecoder, SegmentReader
from caption_extents.video.nvdec.segments import Span, merged, plan_spans
from caption_extents.video.nvdec.session import Crops, KeyFrameNotDecodableError, Part, PictureChangesError
from caption_extents.video.nvdec.sessions import Work
from caption_extents.video.timeline import Timeline

_DAMAGED_KEY_FRAMES = 3
"""Key frames that turn out not to be independently decodable before one decoder does the whole video."""

_MAX_BATCH_SAMPLES = 128
"""Maximum samples per batch. A batch causes about a hundred GIL hand-overs, whatever its size; with 32 samples per
batch, these, and not the GPU, were the bottleneck of inference."""

_MAX_BATCH_BYTES = 32 << 20
"""Batches of large crops hold fewer samples, so that the few that wait between stages stay small."""


class Sessions(Protocol):
    """Decoder sessions; see :class:`~caption_extents.video.nvdec.sessions.GpuSessions`."""

    def begin(self, work: Work, remote_reader: SegmentReader | None) -> ParallelSegmentDecoder:
        """Begin to decode."""
        ...

    def close(self) -> None:
        """End everything; closing twice is harmless."""
        ...


class NvdecDecoder:
    """A :class:`~caption_extents.video.decoders.base.SampleDecoder` on all decode engines of a GPU.

    Args:
        facts: facts of a video for which :func:`~caption_extents.video.nvdec.capabilities.why_not_nvdec` returns None.
        timeline: the samples of the video.
        crop: the crop region in pixels.
        sessions: decoder sessions of the GPU; they are closed with the decoder.
        session_count: number of sessions that decode at once; 0 for one per engine plus one spare.
        remote_reader: reads the file's segments in another process; None to read the file in this process.
        only_gpu: whether a picture that changes its size or format, which the CPU crops and converts, is an error.
    """

    def __init__(
        self,
        facts: VideoFacts,
        timeline: Timeline,
        crop: CropPixels,
        sessions: Sessions,
        *,
        session_count: int = 0,
        remote_reader: SegmentReader | None = None,
        only_gpu: bool = False,
    ) -> None:
        self.name = "nvdec"
        self._only_gpu = only_gpu
        self.undecodable_samples: list[int] = []
        self.picture_changes: list[PictureChange] = []
        self._facts, self._timeline, self._crop = facts, timeline, crop
        self._sessions, self._session_count, self._read_there = sessions, session_count, remote_reader
        self._batches = self._decode()
        self._work: ParallelSegmentDecoder | None = None
        self._cpu: CpuDecoder | None = None
        self._closed = False

    def __iter__(self) -> Iterator[SampleBatch]:
        return self._batches

    def close(self) -> None:
        """Stop all sessions; returns when their threads have ended."""
        self._closed = True
        if self._work is not None:
            self._work.close()
        if self._cpu is not None:
            self._cpu.close()
        self._sessions.close()

    def _decode(self) -> Iterator[SampleBatch]:
        spans = plan_spans(self._timeline, segments.SEGMENT_SAMPLES)
        cutter = _BatchCutter(len(self._timeline), batch_samples(self._crop), self._facts.orientation)
        failures = 0
        while True:
            try:
                yield from self._decode_spans(spans, cutter)
                break
            except KeyFrameNotDecodableError as error:
                # This key frame is not independently decodable. Merge its segment into the one before and decode from
                # the start again, without the samples that were given already. With intra refresh no key frame is:
                # after three of them one decoder does the whole video.
                failures += 1
                if failures <= _DAMAGED_KEY_FRAMES:
                    spans = merged(spans, error.segment)
                else:
                    spans = [Span(spans[0].start_pts, None, 0, len(self._timeline))]
            except PictureChangesError:
                yield from self._decode_on_cpu(cutter)
                break
        # Ending processes with a CUDA context takes a while: start now, while later stages are still running.
        self._sessions.close()

    def _decode_spans(self, spans: list[Span], cutter: _BatchCutter) -> Iterator[SampleBatch]:
        work = Work(self._facts, self._timeline, self._crop, spans, self._session_count)
        self._work = running = self._sessions.begin(work, self._read_there)
        try:
            for part in running:
                self.undecodable_samples.extend(number for number in part.undecodable if number >= cutter.taken_samples)
                yield from cutter.add(part)
        finally:
            running.close()

    def _decode_on_cpu(self, cutter: _BatchCutter) -> Iterator[SampleBatch]:
        """The samples that have not been taken yet, and what they are part of.

        Frames of another size are scaled there.
        """
        reason = "the picture changes in mid-file"
        if self._only_gpu:
            raise DecodeError(str(gpu_cannot_decode(self._facts, reason)))
        self.name = f"cpu ({reason})"
        self._sessions.close()
        taken = cutter.taken_samples
        first = taken // BATCH_SAMPLES * BATCH_SAMPLES
        with closing(CpuDecoder(self._facts, self._timeline, self._crop, first_sample=first)) as decoder:
            self._cpu = decoder
            if self._closed:
                return
            for batch in decoder:
                self.undecodable_samples = [number for number in self.undecodable_samples if number < taken]
                self.undecodable_samples += [number for number in decoder.undecodable_samples if number >= taken]
                self.picture_changes[:] = decoder.picture_changes
                yield from cutter.add_planes(batch.first_sample, batch.planes)


def batch_samples(crop: CropPixels) -> int:
    """Samples of a batch, but for the last one."""
    fitting = _MAX_BATCH_BYTES // (crop.width * crop.height * 3 // 2)
    return min(max(fitting, BATCH_SAMPLES), _MAX_BATCH_SAMPLES)


class _BatchCutter:
    """Regroups the parts of segments, which must be added in order, into batches of equal size."""

    def __init__(self, count: int, size: int, orientation: Orientation) -> None:
        self._count, self._size, self._orientation = count, size, orientation
        self._given = 0
        self._parts: list[Planes] = []
        self._held = 0
        self._shown: Planes | None = None

    @property
    def taken_samples(self) -> int:
        """Number of samples added so far."""
        return self._given + self._held

    def add(self, part: Part) -> Iterator[SampleBatch]:
        """Add a part, and yield the batches that it completes. Samples that were added before are skipped."""
        planes = self._planes(part)
        if part.last is not None:
            self._shown = self._to_planes(part.last)
        yield from self.add_planes(part.first_sample, planes)

    def add_planes(self, first_sample: int, planes: Planes) -> Iterator[SampleBatch]:
        """Like :meth:`add`, for samples that are planes already, turned as they are displayed."""
        skipped, count = self.taken_samples - first_sample, len(planes[0])
        if skipped < count:
            self._parts.append(slice_planes(planes, skipped, count))
            self._held += count - skipped
        while self._held >= self._size or (self._held and self.taken_samples == self._count):
            yield self._batch(min(self._size, self._held))

    def _planes(self, part: Part) -> Planes:
        if part.crops is not None:
            return self._to_planes(part.crops)
        if self._shown is None:
            raise DecodeError("no frame at the start of the video could be decoded")
        y, u, v = (np.broadcast_to(plane, (part.count, *plane.shape[1:])) for plane in self._shown)
        return y, u, v

    def _to_planes(self, crops: Crops) -> Planes:
        """Planes as they are displayed; views."""
        y, u, v = map(self._orientation.apply, crops)
        return y, u, v

    def _batch(self, size: int) -> SampleBatch:
        taken, parts = 0, list[Planes]()
        while taken < size:
            planes = self._parts[0]
            count = min(len(planes[0]), size - taken)
            parts.append(slice_planes(planes, 0, count))
            if count == len(planes[0]):
                del self._parts[0]
            else:
                self._parts[0] = slice_planes(planes, count, len(planes[0]))
            taken += count
        batch = SampleBatch(self._given, *(_joined(group) for group in zip(*parts, strict=True)))
        self._held, self._given = self._held - size, self._given + size
        return batch


def _joined(planes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Planes one after the other, in C order whatever the orientation of the parts."""
    joined = np.empty((sum(map(len, planes)), *planes[0].shape[1:]), np.uint8)
    np.concatenate(planes, out=joined)
    return joined
