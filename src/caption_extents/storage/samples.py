"""Any sample of a stored version."""

from __future__ import annotations

from functools import lru_cache

from caption_extents.chunks.plan import chunk_of
from caption_extents.chunks.read import decode_chunk
from caption_extents.planes import Planes
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import Store

_CHUNKS_KEPT = 12


class SampleReader:
    """Samples of a version, out of its chunks; the latest chunks are kept."""

    def __init__(self, store: Store, keys: VideoKeys, version: int) -> None:
        @lru_cache(_CHUNKS_KEPT)
        def chunk(level: int, first: int) -> list[Planes]:
            return decode_chunk(store.get(keys.chunk(version, level, first)))

        self._chunk = chunk

    def __call__(self, sample: int) -> Planes:
        """Y (H, W), U and V (H/2, W/2) of a sample."""
        level, first, position = chunk_of(sample)
        return self._chunk(level, first)[position]
