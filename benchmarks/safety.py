"""What safety costs: ``python -m benchmarks.safety``: a run with and without manifest, checksums and leases.

Both in one process, alternating, on the folder store; the best time of each counts, because what disturbs a run only
ever makes it longer.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import captioned_video, write_result
from caption_extents import CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.job import run
from caption_extents.storage import leases, manifest
from caption_extents.training.sample_video import CROP


class _NoDigest:
    def hexdigest(self) -> str:
        return ""


def _without_safety(stack: ExitStack) -> None:
    """Take out the heartbeat, the journal, conditions, the digests of chunks and the manifest."""

    def unsafe_commit(lease: leases.VersionLease, manifest: Any, database: bytes) -> None:
        lease.store.put(lease.keys.database(lease.version), database, "application/gzip")
        lease.is_complete = True

    def unsafe_store(lease: leases.VersionLease, key: str, data: bytes, content_type: str) -> None:
        lease.store.put(key, data, content_type)

    digest = mock.Mock(sha256=lambda data: _NoDigest())
    stack.enter_context(mock.patch.object(manifest, "hashlib", digest))
    stack.enter_context(mock.patch.object(leases.VersionLease, "_keep_alive"))
    stack.enter_context(mock.patch.object(leases.VersionLease, "commit", unsafe_commit))
    stack.enter_context(mock.patch.object(leases.VersionLease, "store_chunk", unsafe_store))
    stack.enter_context(mock.patch.object(run, "content_fingerprint", return_value=""))


def _seconds(video: Path, safe: bool) -> float:
    with tempfile.TemporaryDirectory() as store, ExitStack() as stack:
        if not safe:
            _without_safety(stack)
        result = crop_and_infer_caption_frame_extents(str(video), "b", "b", CropRegion(*CROP), store=store)
        return result.metrics.total_seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video = captioned_video(arguments.minutes)
    hashlib.sha256(video.read_bytes())  # the file is in the page cache for all
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(arguments.repeats + 1):
        for safe, measured in times.items():
            measured.append(_seconds(video, safe))
    best, bare = (min(times[kind][1:]) for kind in (True, False))
    print(f"with safety {best:.2f} s, without {bare:.2f} s: {100 * (best / bare - 1):+.1f}%")
    if arguments.save:
        result = {"with_seconds": times[True][1:], "without_seconds": times[False][1:], "ratio_of_best": best / bare}
        print("written to", write_result("safety", result))


if __name__ == "__main__":
    main()
