"""A video cut at key frames into segments that decoders can work on side by side.

A segment is what is *shown* from one key frame up to, not including, another. With open groups of pictures some frames
that are shown before a key frame are stored after it and refer to it, so a segment's packets go past its end: the
next key frame and those leading pictures belong to both sides (ITU-T H.265, 3.67).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import av
import av.error
import numpy as np

from caption_extents.video.demux import open_container, read_packets
from caption_extents.video.info import VideoFacts
from caption_extents.video.timeline import Timeline

SEGMENT_SAMPLES = 64
"""Minimum number of samples in a segment. More samples mean less overhead, because a session is drained at the end of
each segment; fewer samples mean less memory, and that all sessions have work soon after the start."""

BEGINNING_PACKETS = 48
"""Packets of a film's beginning with which decoders get ready: a few groups of B frames."""

_MOST_BEGINNING_BYTES = 16 << 20

Packet: TypeAlias = "av.Packet[Any]"


class TimedPacket(Protocol):
    """The properties of a packet that are used to cut segments; ``pts`` is in ticks."""

    @property
    def pts(self) -> int | None:
        """When its frame is shown."""
        ...

    @property
    def is_keyframe(self) -> bool:
        """Whether the container marks it as a key frame."""
        ...


P = TypeVar("P", bound=TimedPacket)


@dataclass(frozen=True)
class Span:
    """The samples of a segment.

    Attributes:
        start_pts: its first frame, in ticks.
        end_pts: the first frame of the next segment; None for the last segment.
        first_sample, last_sample: half-open range of the samples whose frames it holds.
    """

    start_pts: int
    end_pts: int | None
    first_sample: int
    last_sample: int

    def __len__(self) -> int:
        return self.last_sample - self.first_sample


@dataclass
class Segment(Generic[P]):
    """A span and the packets that it takes, in decoding order.

    Attributes:
        number: place among the spans.
        span: its samples.
        packets: all of them, or the first.
        later: the remaining packets, read on demand, because a film of one segment does not fit into memory.
    """

    number: int
    span: Span
    packets: list[P] = field(default_factory=list)
    later: Iterator[P] = field(default_factory=lambda: iter(()))


def plan_spans(timeline: Timeline, min_samples: int) -> list[Span]:
    """Cut a timeline at key frames into segments of at least ``min_samples`` samples; the last may have fewer."""
    sample_pts = timeline.sample_pts
    starts, firsts = [int(sample_pts[0])], [0]
    at_sample = np.searchsorted(sample_pts, timeline.key_pts)
    for pts, sample in zip(timeline.key_pts.tolist(), at_sample.tolist(), strict=True):
        if sample - firsts[-1] >= min_samples and sample < len(sample_pts):
            starts.append(pts)
            firsts.append(sample)
    ends: list[int | None] = [*starts[1:], None]
    lasts = [*firsts[1:], len(sample_pts)]
    return [Span(*bounds) for bounds in zip(starts, ends, firsts, lasts, strict=True)]


def cut_segments(packets: Iterable[P], spans: list[Span]) -> Iterator[Segment[P]]:
    """Sort packets in decoding order into segments, each given out when its last packet has come."""
    current: Segment[P] = Segment(0, spans[0])
    before: Segment[P] | None = None
    """The segment before the current one, as long as leading pictures may come for it."""
    key: P | None = None
    for packet in packets:
        following = current.number + 1
        if following < len(spans) and packet.is_keyframe and packet.pts == spans[following].start_pts:
            if before is not None:
                yield before
            before, current, key = current, Segment(following, spans[following]), packet
        elif before is not None:
            if packet.pts is None or packet.pts > current.span.start_pts:
                yield before
                before = None
            else:
                before.packets.extend([packet] if key is None else [key, packet])
                key = None
        current.packets.append(packet)
    if before is not None:
        yield before
    yield current


def read_segments(
    facts: VideoFacts, timeline: Timeline, spans: list[Span], stopped: Callable[[], bool] = lambda: False
) -> Iterator[Segment[Packet]]:
    """Read the segments of a file, without packets that are not needed; reading ends early if the file is damaged."""
    packets = _needed_packets(facts, frozenset(timeline.skippable_pts.tolist()), stopped)
    return iter([Segment(0, spans[0], later=packets)]) if len(spans) == 1 else cut_segments(packets, spans)


def read_beginning(facts: VideoFacts) -> PackedSegment | None:
    """The first packets of a file, with which a decoder can get ready; None if they cannot be sent, or are large."""
    first, size = list[Packet](), 0
    for packet in itertools.islice(_needed_packets(facts, frozenset(), lambda: False), BEGINNING_PACKETS):
        first.append(packet)
        size += packet.size
        if size > _MOST_BEGINNING_BYTES:
            return None
    return pack(Segment(0, Span(facts.first_pts, None, 0, 0), first))


def merged(spans: list[Span], number: int) -> list[Span]:
    """Merge span ``number``, which must not be the first, into the span before it; returns the new list."""
    before, after = spans[number - 1], spans[number]
    joined = Span(before.start_pts, after.end_pts, before.first_sample, after.last_sample)
    return [*spans[: number - 1], joined, *spans[number + 1 :]]


def _needed_packets(facts: VideoFacts, skippable: frozenset[int], stopped: Callable[[], bool]) -> Iterator[Packet]:
    with open_container(facts.path, facts.stream_index) as (container, stream):
        try:
            for packet in read_packets(container, stream):
                if stopped():
                    return
                if packet.size and packet.pts not in skippable:
                    yield packet
        except av.error.FFmpegError:
            # The file ends in damage. What follows cannot be read, and its samples are listed.
            return


PACKET_NUMBERS = 4
"""Number of table columns per packet: size in bytes, pts, dts, and 1 for a key frame."""

NO_TIME = -(1 << 63)

_HARMLESS = frozenset({"mpegts_stream_id"})
"""Kinds of packet side data that decoders ignore."""


@dataclass(frozen=True)
class PackedSegment:
    """A segment as plain arrays, to be sent to another process.

    Attributes:
        number, span: see :class:`Segment`.
        table: int64 (P, 4), one row per packet; see :data:`PACKET_NUMBERS`.
        data: concatenated data of all packets.
    """

    number: int
    span: Span
    table: np.ndarray
    data: bytes | np.ndarray

    def unpack(self) -> Segment[Packet]:
        """The segment with its packets.

        Their decoder must be single-threaded: PyAV takes the GIL to free such packets, and holds the GIL while it waits
        for a decoder's threads to end.
        """
        view, at = memoryview(cast(Any, self.data)), 0
        packets = []
        for size, pts, dts, is_key in self.table.tolist():
            packet: Packet = av.Packet(cast(Any, view[at : at + size]))
            packet.pts, packet.dts = (None if ticks == NO_TIME else ticks for ticks in (pts, dts))
            packet.is_keyframe = bool(is_key)
            packets.append(packet)
            at += size
        return Segment(self.number, self.span, packets)


def pack(segment: Segment[Packet]) -> PackedSegment | None:
    """Pack a segment into plain arrays; None if a packet has side data or flags that the decoder needs too."""
    packets = segment.packets
    packets.extend(segment.later)  # kept in the segment, which is decoded in this process if it cannot be sent
    if not all(map(_is_plain, packets)):
        return None
    numbers = [
        [packet.size, *(NO_TIME if t is None else t for t in (packet.pts, packet.dts)), packet.is_keyframe]
        for packet in packets
    ]
    table = np.asarray(numbers, np.int64).reshape(len(packets), PACKET_NUMBERS)
    return PackedSegment(segment.number, segment.span, table, b"".join(map(bytes, cast(Any, packets))))


def _is_plain(packet: Packet) -> bool:
    return not (packet.is_discard or packet.is_corrupt) and all(
        extra.data_type in _HARMLESS for extra in packet.iter_sidedata()
    )
