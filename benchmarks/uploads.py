"""Whether uploads slow the encoders: ``python -m benchmarks.uploads``.

The same run on a folder, and on a folder whose every write takes as long as a distant store's, alternating; the best
time of each counts. An upload waits for the store in a thread of its own, so encoders should not notice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import captioned_video, write_result
from caption_extents import CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.pipeline.metrics import RunMetrics
from caption_extents.storage.folder import FolderObjects
from caption_extents.storage.objects import Tag
from caption_extents.training.sample_video import CROP


def _run(video: Path, latency: float) -> RunMetrics:
    put = FolderObjects.put

    def distant_put(store: FolderObjects, key: str, *arguments: Any) -> Tag:
        time.sleep(latency)
        return put(store, key, *arguments)

    distant = mock.patch.object(FolderObjects, "put", distant_put) if latency else nullcontext()
    with tempfile.TemporaryDirectory() as store, distant:
        return crop_and_infer_caption_frame_extents(str(video), "b", "b", CropRegion(*CROP), store=store).metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that every write takes")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video = captioned_video(arguments.minutes)
    runs: dict[float, list[RunMetrics]] = {0.0: [], arguments.latency: []}
    for _ in range(arguments.repeats):
        for latency, results in runs.items():
            results.append(_run(video, latency))
    rows: dict[str, dict[str, Any]] = {}
    for latency, results in runs.items():
        best = min(results, key=lambda metrics: metrics.stages["encoding"].time_seconds)
        encoding, upload = best.stages["encoding"], best.stages["upload"]
        rows[f"{latency:g}"] = {
            "encoding_seconds": encoding.time_seconds,
            "encoders_waited_for_room_seconds": encoding.wait_room_seconds,
            "upload_busy_seconds": upload.busy_seconds,
            "total_seconds": min(metrics.total_seconds for metrics in results),
        }
        print(
            f"writes {latency:g} s slower: encoding {encoding.time_seconds:.2f} s, encoders waited "
            f"{encoding.wait_room_seconds:.2f} s for room, uploads busy {upload.busy_seconds:.2f} s, total "
            f"{rows[f'{latency:g}']['total_seconds']:.2f} s"
        )
    near, far = rows["0"], rows[f"{arguments.latency:g}"]
    ratio = far["encoding_seconds"] / near["encoding_seconds"]
    print(f"encoding with the distant store takes {ratio:.3f} times as long")
    if arguments.save:
        result = {"minutes": arguments.minutes, "latency_seconds": rows, "encoding_ratio": ratio}
        print("written to", write_result("uploads", result))


if __name__ == "__main__":
    main()
