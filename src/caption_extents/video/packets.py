"""Detection of non-reference frames, which need not be decoded unless a sample shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import av

if TYPE_CHECKING:
    AnyPacket = av.Packet[Any]
    NonReferenceTest = Callable[[AnyPacket], bool]


def _length_prefixed_units(data: memoryview, prefix_bytes: int) -> Iterator[int]:
    """Offsets of the NAL units of an MP4 or MKV packet."""
    at, end = 0, len(data)
    while at + prefix_bytes < end:
        size = int.from_bytes(data[at : at + prefix_bytes], "big")
        at += prefix_bytes
        if size <= 0 or at + size > end:
            raise ValueError("NAL unit runs past its packet")
        yield at
        at += size


def _start_code_units(data: bytes) -> Iterator[int]:
    """Offsets of the NAL units of an Annex B packet (MPEG-TS, raw streams)."""
    at = data.find(b"\0\0\1")
    while at >= 0 and at + 3 < len(data):
        yield at + 3
        at = data.find(b"\0\0\1", at + 3)


class _NalReader:
    """Offsets of NAL units in either packaging, told apart by the stream's extradata."""

    def __init__(self, extradata: bytes | None, length_size_at: int) -> None:
        # avcC and hvcC start with version 1; Annex B parameter sets start with zeros.
        configured = extradata is not None and len(extradata) > length_size_at and extradata[0] == 1
        self._prefix_bytes = (extradata[length_size_at] & 3) + 1 if configured and extradata is not None else 0

    def units(self, data: memoryview) -> Iterator[memoryview]:
        """The first two bytes of every NAL unit."""
        starts = (
            _length_prefixed_units(data, self._prefix_bytes) if self._prefix_bytes else _start_code_units(bytes(data))
        )
        for start in starts:
            yield data[start : start + 2]


def _h264_test(extradata: bytes | None) -> NonReferenceTest:
    reader = _NalReader(extradata, 4)

    def is_non_reference(packet: AnyPacket) -> bool:
        """Every slice has nal_ref_idc 0 (ITU-T H.264, 7.4.1)."""
        slices = 0
        for header in reader.units(memoryview(packet)):
            if header[0] & 0x1F in {1, 2, 3, 4, 5}:
                if header[0] & 0x60:
                    return False
                slices += 1
        return slices > 0

    return is_non_reference


def _hevc_test(extradata: bytes | None) -> NonReferenceTest:
    reader = _NalReader(extradata, 21)

    def is_non_reference(packet: AnyPacket) -> bool:
        """Every slice is of a sub-layer non-reference type (ITU-T H.265, table 7-1).

        Such a picture may still be used by pictures of a higher temporal sub-layer, so streams with sub-layers are
        left alone: only temporal id 0 counts, and :class:`NonReferenceFinder` gives up at the first other one.
        """
        slices = 0
        for header in reader.units(memoryview(packet)):
            kind = header[0] >> 1 & 0x3F
            if kind < 32:
                if header[1] & 7 != 1:
                    raise ValueError("the stream has temporal sub-layers")
                if kind >= 16 or kind % 2:
                    return False
                slices += 1
        return slices > 0

    return is_non_reference


class NonReferenceFinder:
    """Decides for each packet whether its frame is certainly a non-reference frame.

    If it is not certain, the answer is False, which only costs decoding time. After a packet that cannot be parsed, or
    if the stream uses features that the test does not support, :attr:`reliable` is False, and earlier answers must not
    be used.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.reliable = True
        make = {"h264": _h264_test, "hevc": _hevc_test}.get(codec)
        self._test = make(extradata) if make else None

    def __call__(self, packet: AnyPacket) -> bool:
        """Whether this packet can be left out when no sample shows its frame."""
        if self._test is None or not self.reliable:
            return False
        try:
            return self._test(packet)
        except (ValueError, IndexError):
            self.reliable = False
            return False
