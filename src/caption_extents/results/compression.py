"""gzip by several threads: at the end of a run there is nothing else to do."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

_PART_BYTES = 1 << 20
_MOST_THREADS = 8
_HEADER = bytes([0x1F, 0x8B, zlib.DEFLATED, 0, 0, 0, 0, 0, 0, 0xFF])
"""No name, no time, no system."""


def gzipped(data: bytes, level: int) -> bytes:
    """Data as one gzip member (RFC 1952), the same whatever the number of threads.

    It is compressed in parts that end at a byte, so that they can be put together, as pigz does it (Adler, 2007).

    Args:
        data: to compress.
        level: 1, the fastest, to 9.
    """
    starts = range(0, max(1, len(data)), _PART_BYTES)

    def deflated(start: int) -> bytes:
        compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        end = zlib.Z_FINISH if start == starts[-1] else zlib.Z_SYNC_FLUSH
        return compressor.compress(data[start : start + _PART_BYTES]) + compressor.flush(end)

    with ThreadPoolExecutor(min(len(starts), _MOST_THREADS)) as pool:
        parts = list(pool.map(deflated, starts))
    return b"".join([_HEADER, *parts, struct.pack("<LL", zlib.crc32(data), len(data) & 0xFFFFFFFF)])
