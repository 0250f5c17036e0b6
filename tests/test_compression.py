from __future__ import annotations

import gzip
import random
import subprocess
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.results import database
from caption_extents.results.database import gzipped


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_every_reader_gets_the_data_back(size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    packed = gzipped(data, 2)
    assert gzip.decompress(packed) == data
    assert subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True).stdout == data
    one = zlib.decompressobj(zlib.MAX_WBITS | 16)
    assert one.decompress(packed) == data
    assert one.eof
    assert one.unused_data == b"", "readers that take one member only would lose the rest"
    assert len(packed) < len(gzip.compress(data, 2)) + 64 + size // 1000


@given(st.binary(max_size=200), st.integers(1, 9))
def test_parts_of_any_size_fit_together(data: bytes, level: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_PART_BYTES", 16)
        packed = gzipped(data, level)
        assert gzip.decompress(packed) == data
        patch.setattr(database, "_MOST_THREADS", 1)
        assert gzipped(data, level) == packed
