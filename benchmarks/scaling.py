"""How a run's time grows: ``python -m benchmarks.scaling [VIDEO --crop L,T,R,B]``.

With the length of the video, with its resolution, and with the number of encoders. A VIDEO is repeated, or scaled;
everything else stays as it is by default.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.common import CROP, captioned_video, machine, repeated_video, run_cli, transcoded_video, write_result

_BASE_SECONDS = Fraction(40)
"""Of a video that is scaled; the result is repeated."""


def _worker_counts() -> list[int]:
    cores = int(machine()["cores"])
    return sorted({min(2**power, cores) for power in range(9)})


def _row(video: Path, crop: str, options: list[str]) -> dict[str, Any]:
    result = run_cli(video, *options, crop=crop)
    metrics = result["metrics"]
    samples = result["frame_count"]
    row = {
        "samples": samples,
        "total_seconds": metrics["total_seconds"],
        "samples_per_second": samples / metrics["total_seconds"],
        "cpu_ms_per_sample": metrics["cpu_seconds"] / samples * 1e3,
        "bottleneck": metrics["overlap"]["bottleneck"],
        "peak_memory_mib": metrics["peak_memory_bytes"] / 2**20,
    }
    print(
        f"  {row['total_seconds']:.2f} s, {row['samples_per_second']:.0f} samples/s, {row['cpu_ms_per_sample']:.2f} ms "
        f"of CPU a sample, {row['peak_memory_mib']:.0f} MiB; slowest: {row['bottleneck']}",
        flush=True,
    )
    return row


def measure(base: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows by minutes, by height and by number of encoders."""
    options = ["--device", arguments.device, "--preset", arguments.preset]
    most = ["--encoder-workers", str(max(arguments.workers))]
    rows: dict[str, Any] = {"minutes": {}, "height": {}, "encoder_workers": {}}
    for minutes in arguments.minutes:
        print(f"{minutes:g} minutes")
        rows["minutes"][f"{minutes:g}"] = _row(repeated_video(base, minutes), arguments.crop, [*options, *most])
    for height in arguments.heights:
        print(f"{height} lines, {arguments.length:g} minutes")
        scaled = transcoded_video(base, "libx264", _BASE_SECONDS, height)
        row = _row(repeated_video(scaled, arguments.length), arguments.crop, [*options, *most])
        rows["height"][str(height)] = row
    for workers in arguments.workers:
        print(f"{workers} encoders, {arguments.length:g} minutes")
        chosen = [*options, "--encoder-workers", str(workers)]
        rows["encoder_workers"][str(workers)] = _row(repeated_video(base, arguments.length), arguments.crop, chosen)
    return {"video": base.name, "preset": arguments.preset, "minutes_of_the_others": arguments.length, "rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path, help="by default a made 720p video")
    parser.add_argument("--crop", default=CROP)
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 5, 20, 60])
    parser.add_argument("--heights", type=int, nargs="*", default=[360, 720, 1080, 2160])
    parser.add_argument("--workers", type=int, nargs="*", default=_worker_counts(), help="numbers of encoders")
    parser.add_argument("--length", type=float, default=5, help="minutes of video where that is not what varies")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--name", default="scaling", help="name of the result")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    result = measure(arguments.video or captioned_video(1), arguments)
    if arguments.save:
        print("written to", write_result(arguments.name, result))


if __name__ == "__main__":
    main()
