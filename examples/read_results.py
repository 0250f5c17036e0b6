"""Read a run's results back: ``python examples/read_results.py STORE TENANT VIDEO_ID [SAMPLE]``.

Prints the captions, and the mean brightness of one sample, read out of its WebM chunk.
"""

from __future__ import annotations

import sys

from caption_extents.chunks.encode import decode_chunk
from caption_extents.chunks.plan import chunk_of
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest


def main(address: str, tenant_id: str, video_id: str, sample: int = 0) -> None:
    """Print the newest version's captions and one sample."""
    store, keys = open_store(address), VideoKeys(tenant_id, video_id)
    manifest = read_manifest(store, keys)
    database = open_database(store.get(keys.database(manifest.version)))
    for caption in database.execute("SELECT * FROM captions ORDER BY caption_index"):
        start, end, confidence = caption["start_seconds"], caption["end_seconds"], caption["confidence"]
        print(f"{start:8.1f} s to {end:.1f} s, confidence {confidence:.2f}")

    level, first, position = chunk_of(sample)
    y, _u, _v = decode_chunk(store.get(keys.chunk(manifest.version, level, first)))[position]
    print(f"sample {sample}: {y.shape[1]}x{y.shape[0]} pixels, mean brightness {y.mean():.1f}")


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
