"""Formats of 10 and 12 bit and of dense chroma on a GPU: ``python -m benchmarks.depths [--minutes 10]``.

Compares the crops of the GPU with those of the CPU, byte by byte, over ``--samples`` samples of each format, and times
HEVC of 8 and of 10 bit, of ``--minutes`` minutes and 1080 lines, as commands that alternate.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.common import CROP, captioned_video, repeated_video, run_cli, transcoded_video, write_result
from caption_extents import CropRegion, open_video

FORMATS = ("yuv420p", "yuv420p10le", "yuv420p12le", "yuv444p", "yuv444p10le", "yuv444p12le")
VP9 = Path(__file__).parent.parent / "tests" / "data" / "vp9-10-bit.webm"
"""VP9 of 10 bit: the libvpx in PyAV's wheel does not encode it."""

_SECONDS = Fraction(20)
"""Of what is encoded, and then repeated."""


def made(pixel_format: str, height: int, minutes: float) -> Path:
    """An HEVC video of a format."""
    return repeated_video(transcoded_video(captioned_video(1), "libx265", _SECONDS, height, pixel_format), minutes)


def digests(video: Path, device: str) -> tuple[str, int, list[str]]:
    """The decoder, how many samples, and the digests of all luma and chroma."""
    sums, count = [hashlib.sha256() for _ in range(3)], 0
    with open_video(video, device=device) as opened:
        decoder = opened.samples(CropRegion.parse(CROP))
        for batch in decoder:
            count += len(batch)
            for total, plane in zip(sums, batch.planes, strict=True):
                total.update(plane.data)
    return decoder.name, count, [total.hexdigest() for total in sums]


def compare(samples: int) -> list[dict[str, Any]]:
    """Compare the crops of both decoders."""
    rows = []
    videos = {f"hevc {name}": made(name, 720, samples / 600) for name in FORMATS}
    videos["vp9 yuv420p10le"] = repeated_video(VP9, samples / 600)
    for name, video in videos.items():
        (gpu, count, there), (_, _, here) = digests(video, "auto"), digests(video, "cpu")
        rows.append({"format": name, "decoder": gpu, "samples": count, "are_equal": there == here})
        print(f"{name}: {gpu}, {count} samples, {'equal' if there == here else 'DIFFERENT'}", flush=True)
    return rows


def time_both(minutes: float, repeats: int) -> dict[str, Any]:
    """Seconds of a run with 8 bits and with 10."""
    seconds: dict[str, list[float]] = {name: [] for name in FORMATS[:2]}
    for repeat in range(repeats):
        for name, found in seconds.items():
            result = run_cli(made(name, 1080, minutes))
            found.append(result["metrics"]["total_seconds"])
            print(f"run {repeat + 1}, {name}: {found[-1]:.2f} s, {result['decoder']}", flush=True)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = medians[FORMATS[1]] / medians[FORMATS[0]]
    print(f"10 bit takes {ratio:.2f} times as long as 8 bit", flush=True)
    return {"seconds": medians, "ratio": ratio}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5000, help="to compare of each format")
    parser.add_argument("--minutes", type=float, default=10, help="of the videos that are timed; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"formats": compare(arguments.samples) if arguments.samples else []}
    if arguments.minutes:
        result["times"] = {"minutes": arguments.minutes, **time_both(arguments.minutes, arguments.repeats)}
    if arguments.save:
        write_result("depths", result)
    if not all(row["are_equal"] for row in result["formats"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
