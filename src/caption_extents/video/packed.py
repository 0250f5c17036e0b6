"""A segment's packets as plain bytes, to be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np

from caption_extents.video.segments import Packet, Segment, Span

PACKET_NUMBERS = 4
"""Of each packet: size in bytes, pts, dts, and whether it is a key frame."""

NO_TIME = -(1 << 63)

_HARMLESS = frozenset({"mpegts_stream_id"})
"""Of what goes with a packet beside its data: what decoders do not look at."""


@dataclass(frozen=True)
class PackedSegment:
    """A segment.

    Attributes:
        number, span: as of :class:`~caption_extents.video.segments.Segment`.
        table: int64 (P, 4), :data:`PACKET_NUMBERS` of each packet.
        data: of all packets, one after the other.
    """

    number: int
    span: Span
    table: np.ndarray
    data: bytes | bytearray

    def unpack(self) -> Segment[Packet]:
        """The segment with its packets.

        Their decoder must not have threads of its own: PyAV frees such packets with Python's lock, and holds that lock
        while it waits for a decoder's threads to end.
        """
        view, at = memoryview(self.data), 0
        packets = []
        for size, pts, dts, is_key in self.table.tolist():
            packet: Packet = av.Packet(cast(Any, view[at : at + size]))
            packet.pts, packet.dts = (None if ticks == NO_TIME else ticks for ticks in (pts, dts))
            packet.is_keyframe = bool(is_key)
            packets.append(packet)
            at += size
        return Segment(self.number, self.span, packets)


def pack(segment: Segment[Packet]) -> PackedSegment | None:
    """A segment as bytes; None where a decoder needs more of a packet than data, times and the mark of a key frame."""
    packets = segment.packets
    packets.extend(segment.later)  # and stay there, for who decodes what cannot be sent
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
