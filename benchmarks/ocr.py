"""What reading text costs: ``python -m benchmarks.ocr``.

The same film twice, in one process each: the job with one reading for each caption, and a reading of every sample's
crop, as tools do that know captions by their text alone (without the decoding and comparing that they need besides).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import captioned_video, write_result
from caption_extents import CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.ocr.captions import store_texts
from caption_extents.ocr.reader import RapidReader, ReadText
from caption_extents.pictures import to_picture
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.training.sample_video import CROP
from caption_extents.video.video import open_video

REGION = CropRegion(*CROP)


class _Counting:
    """A reader that counts."""

    def __init__(self) -> None:
        self._reader = RapidReader()
        self.calls = 0

    def read(self, picture: np.ndarray) -> ReadText | None:
        self.calls += 1
        return self._reader.read(picture)


def _once_a_caption(video: Path, reader: _Counting) -> None:
    with tempfile.TemporaryDirectory() as folder:
        crop_and_infer_caption_frame_extents(str(video), "b", "b", REGION, store=folder)
        store_texts(open_store(folder), VideoKeys("b", "b"), reader)


def _every_sample(video: Path, reader: _Counting) -> None:
    with open_video(video, device="cpu") as opened:
        for batch in opened.samples(REGION):
            for y, u, v in zip(*batch.planes, strict=True):
                reader.read(to_picture((y, u, v), (batch.height, batch.width)))


def _measure(work: Callable[[Path, _Counting], None], video: Path) -> dict[str, float]:
    reader = _Counting()
    reader.read(np.zeros((48, 320, 3), np.uint8))  # models are loaded with the first reading
    reader.calls = 0
    started, started_cpu = time.perf_counter(), time.process_time()
    work(video, reader)
    return {
        "calls": reader.calls,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video = captioned_video(arguments.minutes)
    rows = {
        "job, and one reading a caption": _measure(_once_a_caption, video),
        "a reading of every sample": _measure(_every_sample, video),
    }
    for name, row in rows.items():
        print(f"{name}: {row['calls']} readings, {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of CPU")
    if arguments.save:
        write_result("ocr", {"minutes": arguments.minutes, "rows": rows})


if __name__ == "__main__":
    main()
