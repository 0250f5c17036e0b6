"""A decoder of samples whose segments are decoded side by side (:mod:`caption_extents.video.side_by_side`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch

from caption_extents.errors import DecodeError
from caption_extents.video import segments
from caption_extents.video.batch import CropBatch, Planes
from caption_extents.video.decoder import BATCH_SAMPLES
from caption_extents.video.segments import Span, merged, plan_spans
from caption_extents.video.session import Crops, DependentError, Part
from caption_extents.video.side_by_side import SideBySide
from caption_extents.video.timeline import Timeline

_DAMAGED_KEY_FRAMES = 3
"""So many are decoded with what is before them; where there are more, one decoder does the whole film."""

Begin: TypeAlias = Callable[[list[Span]], SideBySide]
"""Begins to decode the given spans."""


class SegmentedDecoder:
    """A :class:`~caption_extents.video.decoder.SampleDecoder` that decodes segments side by side.

    Args:
        name: see the protocol.
        timeline: samples of the video.
        begin: begins the work.
        to_planes: crops as an engine lays them out, as they are displayed.
        batch_samples: samples in a batch.
        free: called when the work is over, more than once.
    """

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        begin: Begin,
        to_planes: Callable[[Crops], Planes],
        batch_samples: int = BATCH_SAMPLES,
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.undecodable_samples: list[int] = []
        self.first_frame_at: float | None = None
        """When the first samples had been decoded, in seconds of :func:`time.perf_counter`."""
        self._timeline, self._begin, self._to_planes, self._free = timeline, begin, to_planes, free
        self._batch_samples = batch_samples
        self._batches = self._decode()
        self._work: SideBySide | None = None

    def __iter__(self) -> Iterator[CropBatch]:
        return self._batches

    def close(self) -> None:
        """Stop all sessions; returns when their threads have ended."""
        if self._work is not None:
            self._work.close()
        self._free()

    def _decode(self) -> Iterator[CropBatch]:
        spans = plan_spans(self._timeline, segments.SEGMENT_SAMPLES)
        cutter = _BatchCutter(len(self._timeline), self._batch_samples, self._to_planes)
        failures = 0
        while True:
            try:
                yield from self._decode_spans(spans, cutter)
                break
            except DependentError as error:
                # Once more from the start, past what is given already, without a cut at this key frame: it is damaged.
                # With intra refresh all of them are none: one decoder then.
                failures += 1
                if failures <= _DAMAGED_KEY_FRAMES:
                    spans = merged(spans, error.segment)
                else:
                    spans = [Span(spans[0].start_pts, None, 0, len(self._timeline))]
        # While later stages are still at work: it takes a GPU's processes a while to end.
        self._free()

    def _decode_spans(self, spans: list[Span], cutter: _BatchCutter) -> Iterator[CropBatch]:
        self._work = work = self._begin(spans)
        try:
            for part in work:
                self.first_frame_at = self.first_frame_at or work.first_part_at
                self.undecodable_samples.extend(number for number in part.undecodable if number >= cutter.taken_samples)
                yield from cutter.add(part)
        finally:
            work.close()


class _BatchCutter:
    """Cuts parts, which come in order, into batches of a size."""

    def __init__(self, count: int, batch_samples: int, to_planes: Callable[[Crops], Planes]) -> None:
        self._count, self._size, self._to_planes = count, batch_samples, to_planes
        self._given = 0
        self._parts: list[Planes] = []
        self._held = 0
        self._shown: Planes | None = None

    @property
    def taken_samples(self) -> int:
        """Samples that came in so far."""
        return self._given + self._held

    def add(self, part: Part) -> Iterator[CropBatch]:
        """The batches that a part completes. Samples that came in before are passed over."""
        planes = self._planes(part)
        if part.last is not None:
            self._shown = self._to_planes(part.last)
        passed = self.taken_samples - part.first_sample
        if passed < part.count:
            self._parts.append(_slice(planes, passed, part.count))
            self._held += part.count - passed
        while self._held >= self._size or (self._held and self.taken_samples == self._count):
            yield self._batch(min(self._size, self._held))

    def _planes(self, part: Part) -> Planes:
        if part.crops is not None:
            return self._to_planes(part.crops)
        if self._shown is None:
            raise DecodeError("no frame at the start of the video could be decoded")
        y, u, v = (plane.expand(part.count, -1, -1) for plane in self._shown)
        return y, u, v

    def _batch(self, size: int) -> CropBatch:
        taken, parts = 0, list[Planes]()
        while taken < size:
            planes = self._parts[0]
            count = min(len(planes[0]), size - taken)
            parts.append(_slice(planes, 0, count))
            if count == len(planes[0]):
                del self._parts[0]
            else:
                self._parts[0] = _slice(planes, count, len(planes[0]))
            taken += count
        batch = CropBatch(self._given, *(_joined(group) for group in zip(*parts, strict=True)))
        self._held, self._given = self._held - size, self._given + size
        return batch


def _slice(planes: Planes, start: int, end: int) -> Planes:
    y, u, v = planes
    return y[start:end], u[start:end], v[start:end]


def _joined(planes: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other, (n, H, W) each. PyTorch would spread the copy over all cores, which have other work."""
    return torch.from_numpy(np.concatenate([plane.numpy() for plane in planes]))
