"""Decoding alone: ``python -m benchmarks.decode [--device cuda]``.

Source frames a second by number of sessions, with and without the packets that no sample needs, and whether the crops
of the GPU are those of the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import CROP, captioned_video, opened_video, transcoded_video, write_result
from caption_extents import CropRegion
from caption_extents.model.devices import choose_device
from caption_extents.samples import Planes
from caption_extents.video.decoders.base import SampleDecoder
from caption_extents.video.info import probe
from caption_extents.video.nvdec.capabilities import decode_engines, why_not_nvdec
from caption_extents.video.nvdec.sessions import SPARE_SESSIONS
from caption_extents.video.timeline import build_timeline
from caption_extents.video.video import Decoding, Video

_ALL, _NEEDED = "all packets", "needed packets"


def measure(video: Path, region: CropRegion, device: torch.device, sessions: list[int]) -> dict[str, Any]:
    """Frames a second for each number of sessions, from when the sessions of a GPU have started."""
    started = time.perf_counter()
    facts = probe(video)
    timeline = build_timeline(facts, Fraction(10))
    index_seconds = time.perf_counter() - started
    every = replace(timeline, skippable_pts=np.empty(0, np.int64))
    seconds = float(len(timeline) / timeline.frame_rate)
    frames = round(seconds * float(facts.average_rate or 0))
    rows = []
    for count in sessions:
        for name, used in ((_ALL, every), (_NEEDED, timeline)):
            gpu = device.index or 0 if device.type == "cuda" else None
            alone = Video(facts, used, Decoding(gpu, threads=count))  # a process that reads gives needed packets only
            with alone if name == _ALL else opened_video(video, device, count) as opened:
                decoder = opened.samples(region)
                start = time.perf_counter()
                samples = sum(map(len, decoder))
                took = time.perf_counter() - start
            rows.append({"sessions": count, "packets": name, "seconds": took, "source_fps": frames / took})
            print(
                f"{count} sessions, {name}: {frames / took:.0f} source fps, {samples / took:.0f} samples/s", flush=True
            )
    return {
        "video": video.name,
        "frames": frames,
        "skippable_share": len(timeline.skippable_pts) / frames,
        "index_seconds": index_seconds,
        "rows": rows,
    }


def _samples(decoder: SampleDecoder) -> Iterator[Planes]:
    """One by one, on the CPU; decoders differ in how many they put into a batch."""
    for batch in decoder:
        yield from zip(*batch.planes, strict=True)


def count_other_bytes(video: Path, region: CropRegion, device: torch.device, rate: Fraction) -> dict[str, Any]:
    """Samples whose crop differs between GPU and CPU."""
    facts = probe(video)
    reason = why_not_nvdec(facts, device.index or 0)
    if reason is not None:
        return {"video": video.name, "codec": facts.codec, "refused": reason}
    timeline = build_timeline(facts, rate)
    other = samples = 0
    with (
        Video(facts, timeline, Decoding()) as cpu,
        Video(facts, timeline, Decoding(device.index or 0, only_gpu=True)) as gpu,
    ):
        for a, b in zip(_samples(cpu.samples(region)), _samples(gpu.samples(region)), strict=True):
            samples += 1
            other += any(not np.array_equal(one, two) for one, two in zip(a, b, strict=True))
    return {"video": video.name, "codec": facts.codec, "samples": samples, "samples_with_other_bytes": other}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path, help="by default a made 720p video")
    parser.add_argument("--crop", default=CROP)
    parser.add_argument("--minutes", type=float, default=5, help="length of the made video")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--sessions", type=int, nargs="*", help="by default 1 and what a run uses: one for each engine and one more"
    )
    parser.add_argument("--compare", type=Path, nargs="*", default=[], help="videos to compare byte for byte as well")
    parser.add_argument("--codecs", nargs="*", default=[], help="encode the video with these and compare them too")
    parser.add_argument("--compare-seconds", type=Fraction, default=Fraction(45), help="how much of the video")
    parser.add_argument("--compare-rate", type=Fraction, default=Fraction(30), help="samples a second to compare")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video, device = arguments.video or captioned_video(arguments.minutes), choose_device(arguments.device)
    region = CropRegion.parse(arguments.crop)
    engines = decode_engines("h264", device.index or 0) if device.type == "cuda" else None
    sessions = arguments.sessions or sorted({1, engines.count + SPARE_SESSIONS if engines else 2})
    result: dict[str, Any] = {"device": str(device), "engines": engines.count if engines else 0}
    result |= measure(video, region, device, sessions)
    encoded = [transcoded_video(video, codec, arguments.compare_seconds) for codec in arguments.codecs]
    compared = [*arguments.compare, *encoded]
    result["compared"] = [count_other_bytes(path, region, device, arguments.compare_rate) for path in compared]
    for row in result["compared"]:
        print(row)
    if arguments.save:
        print("written to", write_result(f"decode-{device.type}", result))


if __name__ == "__main__":
    main()
