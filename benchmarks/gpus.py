"""Many videos over the GPUs of one machine: ``python -m benchmarks.gpus [VIDEO] --videos 4 --minutes 30``.

The same list of videos with ``caption-extents batch``, one GPU at work and then all, each video with its share of the
cores to encode with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import add_video_arguments, chosen_video, write_result


def run_batch(video: Path, crop: str, videos: int, jobs: int) -> dict[str, Any]:
    """Seconds that a list of copies of a video takes, so many at once, each on its own GPU if there are enough."""
    with tempfile.TemporaryDirectory() as folder:
        entries = [{"video": str(video.absolute()), "video_id": f"v{number}", "crop": crop} for number in range(videos)]
        listed = Path(folder, "videos.jsonl")
        listed.write_text("\n".join(map(json.dumps, entries)))
        command = [sys.executable, "-m", "caption_extents", "batch", str(listed), "--store", f"{folder}/store"]
        command += ["--jobs", str(jobs), "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    summary: dict[str, Any] = json.loads(done.stdout)
    speed = summary["video_seconds"] / summary["seconds"]
    print(f"{jobs} at once: {summary['seconds']:.2f} s, {speed:.0f} seconds of video a second", flush=True)
    return summary


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_video_arguments(parser)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=30, help="length of each")
    parser.add_argument("--jobs", type=int, nargs="*", default=[1, max(1, torch.cuda.device_count())])
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video, crop = chosen_video(arguments)
    runs = {str(jobs): run_batch(video, crop, arguments.videos, jobs) for jobs in sorted(set(arguments.jobs))}
    result = {"video": video.name, "minutes": arguments.minutes, "videos": arguments.videos, "runs": runs}
    if arguments.save:
        print("written to", write_result("gpus", result))


if __name__ == "__main__":
    main()
