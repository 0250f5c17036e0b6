"""Many videos as a batch: ``python -m benchmarks.many [OTHER/src] [--videos 24] [--minutes 3] [--jobs 1 2 3]``.

Runs ``caption-extents batch`` over copies of made 720p videos, whose lengths come from ``--minutes`` in turn, with each
number of videos at once, and alternates with another version if its ``src`` is given. Chunks are compared with those of
a run of one video alone. Prints how many times faster than playing the batch is, what share that is of the speed of
one video of an hour (``--hour``), and money per hour of video at ``--price``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import CROP, captioned_video, write_result
from caption_extents import CropRegion, Job, run_job
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest

HERE = Path(__file__).parent.parent / "src"


def write_list(folder: Path, count: int, minutes: list[float]) -> Path:
    """A list of copies of videos, of the given lengths in turn."""
    lines = ["video,crop,video_id"]
    for number in range(count):
        source = captioned_video(minutes[number % len(minutes)])
        copy = folder / f"video-{number}.mp4"
        copy.symlink_to(source)
        lines.append(f'{copy},"{CROP}",video-{number}')
    path = folder / "list.csv"
    path.write_text("\n".join(lines))
    return path


def run_batch(listed: Path, jobs: int, source: Path, store: Path) -> dict[str, float]:
    """Seconds of the batch, as it says itself, and of the command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "caption_extents", "batch", str(listed), "--store", str(store), "--json"]
    command += ["--jobs", str(jobs), "--journal", str(store.parent / f"{store.name}.journal")]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    summary = json.loads(done.stdout)
    return {"command": time.perf_counter() - started, "batch": summary["seconds"], "video": summary["video_seconds"], "busy": summary.get("busy", [])}


def _chunks(store: str, video_id: str) -> list[str]:
    return [chunk.sha256 for chunk in read_manifest(open_store(store), VideoKeys("local", video_id), 1).chunks]


def check_outputs(store: Path, minutes: list[float], count: int) -> None:
    """Raise SystemExit unless the chunks of a batch are those of single runs."""
    with tempfile.TemporaryDirectory() as alone:
        for number, length in enumerate(minutes[:count]):
            run_job(Job(str(captioned_video(length)), "local", f"alone-{number}", CropRegion.parse(CROP), store=alone))
        for number in range(count):
            expected = _chunks(alone, f"alone-{number % len(minutes)}")
            if _chunks(str(store), f"video-{number}") != expected:
                raise SystemExit(f"video {number} has other chunks than alone")
    print(f"chunks of all {count} videos as of single runs", flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate versions and numbers of videos at once."""
    sources = {"this": HERE, **({"other": arguments.other} if arguments.other else {})}
    kinds = [(name, jobs) for jobs in arguments.jobs for name in sources]
    seconds: dict[tuple[str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        listed = write_list(Path(folder), arguments.videos, arguments.minutes)
        for repeat in range(arguments.repeats):
            for name, jobs in kinds:
                store = Path(folder) / f"{name}-{jobs}-{repeat}"
                seconds[name, jobs].append(run_batch(listed, jobs, sources[name], store))
                last = seconds[name, jobs][-1]
                print(
                    f"{name}, {jobs} at once: {last['batch']:.2f} s, {last['video'] / last['batch']:.0f} times as fast "
                    f"as they play; command {last['command']:.2f} s",
                    flush=True,
                )
        if not arguments.no_outputs:
            first = Path(folder) / f"this-{arguments.jobs[0]}-0"
            check_outputs(first, arguments.minutes, arguments.videos)
    found: dict[str, Any] = {"videos": arguments.videos, "minutes": arguments.minutes, "runs": {}}
    for (name, jobs), runs in seconds.items():
        batch = statistics.median(run["batch"] for run in runs)
        video = runs[0]["video"]
        money = None if arguments.price is None else arguments.price * batch / video
        found["runs"][f"{name}, {jobs} at once"] = {
            "seconds": batch,
            "command_seconds": statistics.median(run["command"] for run in runs),
            "times_real_time": video / batch,
            "videos_per_hour": 3600 * arguments.videos / batch,
            "money_per_hour_of_video": money,
        }
    return found


def measure_hour() -> dict[str, float]:
    """One video of an hour: seconds of the run and of the command."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "caption_extents", "run", str(captioned_video(60)), "--crop", CROP]
        command += ["--store", store, "--json"]
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        seconds = json.loads(done.stdout)["metrics"]["total_seconds"]
        print(f"an hour alone: {seconds:.2f} s, command {time.perf_counter() - started:.2f} s", flush=True)
        return {"seconds": seconds, "times_real_time": 3600 / seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="the src folder of another version")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0], help="lengths, in turn")
    parser.add_argument("--jobs", type=int, nargs="+", default=[3], help="videos at once")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--price", type=float, help="of the machine, for an hour")
    parser.add_argument("--hour", action="store_true", help="also run one video of an hour")
    parser.add_argument("--no-outputs", action="store_true", help="only times")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    hour = measure_hour() if arguments.hour else None
    found = measure(arguments)
    for kind, figures in found["runs"].items():
        share = f", {figures['times_real_time'] / hour['times_real_time']:.0%} of the hour's speed" if hour else ""
        money = figures["money_per_hour_of_video"]
        cost = "" if money is None else f", {money:.4f} for an hour of video"
        print(
            f"{kind}: {figures['seconds']:.2f} s, {figures['times_real_time']:.0f} times as fast as they play{share}, "
            f"{figures['videos_per_hour']:.0f} videos an hour{cost}"
        )
    if arguments.save:
        write_result("many", {**found, "hour": hour})


if __name__ == "__main__":
    main()
