"""Many videos as a batch: ``python -m benchmarks.many [OTHER/src] [--videos 24] [--minutes 3] [--jobs 2 4]``.

Runs ``caption-extents batch`` over copies of made 720p videos, whose lengths come from ``--minutes`` in turn, with each
number of videos at once, and alternates with another version if its ``src`` is given. Chunks are compared with those of
runs of one video alone. Prints how many times faster than playing the batch is, how busy its busiest resource was (its
share of the floor), and money per hour of video at ``--price``.

With ``--gpus 2 1`` it alternates between so many GPUs of the machine, each with ``--cores`` cores beside it, and
prints what encoding alone takes on those cores: no batch can be faster.

With ``--modal`` it alternates with the function of the Modal app, called in a process of this machine (``.local()``) as
often at once as its container would take inputs.

With ``--damaged`` and ``--kills`` the same list is also run with so many files more that cannot be used, while so many
of its processes are killed: every good video must be done, and every bad one named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import CROP, captioned_video, write_result
from benchmarks.encode import read_crops
from caption_extents import CropRegion, Job, run_job
from caption_extents.chunks.encode import ChunkFormat, encode_chunk
from caption_extents.chunks.plan import ChunkFrames
from caption_extents.chunks.presets import PRESETS
from caption_extents.machine import usable_cores
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest
from caption_extents.video.nvdec.driver import device_count

HERE = Path(__file__).parent.parent / "src"


@dataclass(frozen=True)
class Batch:
    """What a batch says of itself.

    Attributes:
        command_seconds: from the start of its process to its end.
        summary: what it prints.
    """

    command_seconds: float
    summary: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Of the batch."""
        return float(self.summary["seconds"])

    @property
    def times_real_time(self) -> float:
        """How many times as fast as they play."""
        return float(self.summary["video_seconds"]) / self.seconds

    def __str__(self) -> str:
        engines = [max(busy.items(), key=lambda item: item[1]) for busy in self.summary.get("busy", [])]
        told = "".join(f", {name} busy {share:.0%}" for name, share in engines)
        return f"{self.seconds:.2f} s, {self.times_real_time:.0f} times real time{told}"


def write_list(folder: Path, count: int, minutes: list[float], damaged: int = 0) -> Path:
    """A list of copies of videos, of the given lengths in turn, and of files that cannot be used, in between."""
    rng = random.Random(1)
    lines = []
    for number in range(count):
        copy = folder / f"video-{number}.mp4"
        if not copy.exists():
            copy.symlink_to(captioned_video(minutes[number % len(minutes)]))
        lines.append(f'{copy},"{CROP}",video-{number}')
    for number in range(damaged):
        path = folder / f"damaged-{number}.mp4"
        path.write_bytes(_damaged(captioned_video(min(minutes)).read_bytes(), number, rng))
        lines.insert(rng.randrange(len(lines)), f'{path},"{CROP}",damaged-{number}')
    path = folder / f"list-{damaged}.csv"
    path.write_text("\n".join(["video,crop,video_id", *lines]))
    return path


def _damaged(data: bytes, number: int, rng: random.Random) -> bytes:
    """A file that cannot be used: empty, no video, cut off, without its middle, or with noise in place of pictures."""
    third = len(data) // 3
    kinds = (
        b"",
        b"no video at all\n" * 1000,
        data[:third],
        data[:third] + bytes(third) + data[2 * third :],
        data[:5000] + rng.randbytes(2 * third) + data[5000 + 2 * third :],
    )
    return kinds[number % len(kinds)]


def run_batch(
    listed: Path,
    store: Path,
    jobs: int | None = None,
    source: Path = HERE,
    *,
    kills: int = 0,
    every_seconds: float = 4,
    gpus: int = 0,
    cores: int = 16,
) -> Batch:
    """Run the command, while some of its processes are killed, and on so many GPUs if that is asked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
    command = [sys.executable, "-m", "caption_extents", "batch", str(listed), "--store", str(store), "--json"]
    command += ["--journal", str(store.parent / f"{store.name}.journal")]
    command += [] if jobs is None else ["--jobs", str(jobs)]
    started = time.perf_counter()
    with (
        subprocess.Popen(
            ["taskset", "-c", f"0-{gpus * cores - 1}", *command] if gpus else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process,
        _killing(process.pid, kills, every_seconds),
    ):
        printed, _ = process.communicate()
    if not printed:
        raise SystemExit(f"the batch ended with code {process.returncode} and said nothing")
    return Batch(time.perf_counter() - started, json.loads(printed))


@contextmanager
def _killing(parent: int, count: int, every_seconds: float) -> Iterator[None]:
    """Meanwhile, kill processes that a process has started, itself or through others, at random."""
    stopped, rng = threading.Event(), random.Random(2)

    def kill() -> None:
        for _ in range(count):
            if stopped.wait(every_seconds):
                return
            victim = rng.choice(_descendants(parent) or [0])
            with suppress(ProcessLookupError):
                name = Path(f"/proc/{victim}/cmdline").read_bytes().split(b"\0")[3:4] if victim else []
                print("killed", b"".join(name).decode() or "nothing", flush=True)
                os.kill(victim, signal.SIGKILL) if victim else None

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _descendants(parent: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found, level = list[int](), [parent]
    while level := [child for child, above in parents.items() if above in level]:
        found += level
    return found


def _chunks(store: str, video_id: str) -> list[str]:
    opened, keys = open_store(store), VideoKeys("local", video_id)
    versions = (read_manifest(opened, keys, number) for number in range(1, 10) if opened.exists(keys.manifest(number)))
    return [chunk.sha256 for chunk in next(versions).chunks]


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
    found: dict[tuple[str, int], list[Batch]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        listed = write_list(Path(folder), arguments.videos, arguments.minutes)
        for repeat in range(arguments.repeats):
            for name, jobs in kinds:
                batch = run_batch(listed, Path(folder) / f"{name}-{jobs}-{repeat}", jobs, sources[name])
                found[name, jobs].append(batch)
                print(f"{name}, {jobs} at once: {batch}; command {batch.command_seconds:.2f} s", flush=True)
        if not arguments.no_outputs:
            check_outputs(Path(folder) / f"this-{arguments.jobs[0]}-0", arguments.minutes, arguments.videos)
    return {f"{name}, {jobs} at once": _figures(runs, arguments) for (name, jobs), runs in found.items()}


def _figures(runs: list[Batch], arguments: argparse.Namespace) -> dict[str, Any]:
    seconds, video = statistics.median(run.seconds for run in runs), runs[0].summary["video_seconds"]
    return {
        "seconds": seconds,
        "command_seconds": statistics.median(run.command_seconds for run in runs),
        "times_real_time": video / seconds,
        "videos_per_hour": 3600 * arguments.videos / seconds,
        "busy": runs[-1].summary.get("busy", []),
        "money_per_hour_of_video": None if arguments.price is None else arguments.price * seconds / video,
    }


def _told(figures: dict[str, Any], hour: dict[str, float] | None) -> str:
    share = f", {figures['times_real_time'] / hour['times_real_time']:.0%} of the hour's speed" if hour else ""
    money = figures["money_per_hour_of_video"]
    cost = "" if money is None else f", {money:.4f} for an hour of video"
    return (
        f"{figures['seconds']:.2f} s, {figures['times_real_time']:.0f} times real time{share}, "
        f"{figures['videos_per_hour']:.0f} videos an hour{cost}"
    )


_chunks_to_encode = list[ChunkFrames]()


def _become_encoder(chunks: list[ChunkFrames], cores: int) -> None:
    os.sched_setaffinity(0, range(cores))
    _chunks_to_encode[:] = chunks


def _encode_for(seconds: float) -> float:
    """Samples a second of one process."""
    started, samples = time.perf_counter(), 0
    for chunk in itertools.cycle(_chunks_to_encode):
        encode_chunk(chunk, PRESETS["fast"], ChunkFormat(Fraction(10)))
        samples += len(chunk.plan.samples)
        if (taken := time.perf_counter() - started) >= seconds:
            return samples / taken
    raise AssertionError("no chunks")


def encoding_alone(cores: int, seconds: float = 6) -> float:
    """Samples a second that the first ``cores`` cores encode together while nothing else works."""
    chunks, _ = read_crops(captioned_video(1), CropRegion.parse(CROP))
    with get_context("fork").Pool(cores, _become_encoder, (chunks, cores)) as pool:
        return sum(pool.map(_encode_for, [seconds] * cores, chunksize=1))


def measure_gpus(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate between numbers of GPUs."""
    found: dict[int, list[Batch]] = {count: [] for count in arguments.gpus}
    with tempfile.TemporaryDirectory() as folder:
        listed = write_list(Path(folder), arguments.videos, arguments.minutes)
        for repeat in range(arguments.repeats):
            for count, batches in found.items():
                store = Path(folder) / f"{count}-{repeat}"
                batches.append(run_batch(listed, store, gpus=count, cores=arguments.cores))
                print(f"{count} GPUs, {count * arguments.cores} cores: {batches[-1]}", flush=True)
    rows = {}
    for count, batches in found.items():
        samples = batches[0].summary["video_seconds"] * 10
        floor = samples / encoding_alone(count * arguments.cores)
        rows[str(count)] = {"seconds": statistics.median(batch.seconds for batch in batches), "floor_seconds": floor}
    first, last = rows[str(arguments.gpus[0])], rows[str(arguments.gpus[-1])]
    for name, key in (("a batch", "seconds"), ("encoding alone", "floor_seconds")):
        told = ", ".join(f"{row[key]:.2f} s on {count} GPUs" for count, row in rows.items())
        print(f"{name}: {told}; {last[key] / first[key]:.2f} times", flush=True)
    return rows


_AS_A_CONTAINER = """
import csv, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from caption_extents.deploy.modal_app import crop_and_infer_caption_frame_extents as call, settings
listed, store = sys.argv[1:]
started = time.perf_counter()
rows = list(csv.DictReader(open(listed)))
def run(row):
    crop = [float(side) for side in row["crop"].split(",")]
    return call.local(row["video"], "local", row["video_id"], crop, store=store)
with ThreadPoolExecutor(settings.videos_at_once) as pool:
    results = list(pool.map(run, rows))
seconds = time.perf_counter() - started
cold = max(result["cold_start_seconds"] for result in results)
print(json.dumps({"seconds": seconds, "cold_start_seconds": cold}))
"""


def measure_modal(arguments: argparse.Namespace) -> dict[str, Any]:
    """A batch, and the Modal app's function, in turn."""
    found: dict[str, list[float]] = {"batch": [], "modal": []}
    with tempfile.TemporaryDirectory() as folder:
        listed = write_list(Path(folder), arguments.videos, arguments.minutes)
        for repeat in range(arguments.repeats):
            batch = run_batch(listed, Path(folder) / f"batch-{repeat}")
            print(f"batch: {batch}", flush=True)
            store = Path(folder) / f"modal-{repeat}"
            command = [sys.executable, "-c", _AS_A_CONTAINER, str(listed), str(store)]
            variables = {**os.environ, "CAPTION_EXTENTS_MODAL_CPU": str(usable_cores())}
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=variables).stdout)
            told_start = f"the first call after {told['cold_start_seconds']:.2f} s"
            print(f"the Modal app's function: {told['seconds']:.2f} s, {told_start}", flush=True)
            found["batch"].append(batch.seconds)
            found["modal"].append(told["seconds"])
        check_outputs(store, arguments.minutes, arguments.videos)
    return {name: {"seconds": statistics.median(taken)} for name, taken in found.items()}


def measure_disturbed(arguments: argparse.Namespace) -> dict[str, Any]:
    """The list as it is, and with damaged files while processes are killed."""
    with tempfile.TemporaryDirectory() as folder:
        good = write_list(Path(folder), arguments.videos, arguments.minutes)
        mixed = write_list(Path(folder), arguments.videos, arguments.minutes, arguments.damaged)
        quiet = run_batch(good, Path(folder) / "quiet")
        print(f"undisturbed: {quiet}", flush=True)
        every = quiet.seconds / (arguments.kills + 1)
        disturbed = run_batch(mixed, Path(folder) / "disturbed", kills=arguments.kills, every_seconds=every)
        print(f"with {arguments.damaged} damaged files and {arguments.kills} killed processes: {disturbed}", flush=True)
        summary = disturbed.summary
        named = {name for name in summary["reasons"] if name.startswith("damaged")}
        print(f"{summary['done']} done, {summary['failed']} failed, of which {len(named)} are damaged", flush=True)
        check_outputs(Path(folder) / "disturbed", arguments.minutes, arguments.videos)
        if (
            len(named) != summary["failed"]
            or summary["done"] + summary["failed"] < arguments.videos + arguments.damaged
        ):
            raise SystemExit(f"not all good videos were done: {summary['reasons']}")
    ratio = disturbed.times_real_time / quiet.times_real_time
    print(f"{ratio:.0%} of the undisturbed speed", flush=True)
    return {"undisturbed_seconds": quiet.seconds, "disturbed_seconds": disturbed.seconds, "speed_ratio": ratio}


def measure_hour() -> dict[str, float]:
    """One video of an hour: seconds of the run and of the command."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "caption_extents", "run", str(captioned_video(60)), "--crop", CROP]
        command += ["--store", store, "--json"]
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        command_seconds = time.perf_counter() - started
        metrics = json.loads(done.stdout)["metrics"]
        floor = metrics["stages"]["encoding"]["busy_seconds"] / metrics["cpu_count"]
        print(
            f"an hour alone: {metrics['total_seconds']:.2f} s, command {command_seconds:.2f} s; encoding on "
            f"{metrics['cpu_count']} cores takes {floor:.2f} s; first samples after {metrics['startup_seconds']:.2f} s",
            flush=True,
        )
        return {
            "command_seconds": command_seconds,
            "seconds": metrics["total_seconds"],
            "encoding_floor_seconds": floor,
            "startup_seconds": metrics["startup_seconds"],
            "times_real_time": 3600 / metrics["total_seconds"],
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="the src folder of another version")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0], help="lengths, in turn")
    parser.add_argument("--jobs", type=int, nargs="+", default=[4], help="videos at once")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--price", type=float, help="of the machine, for an hour")
    parser.add_argument("--hour", action="store_true", help="also run one video of an hour")
    parser.add_argument("--no-outputs", action="store_true", help="only times")
    parser.add_argument("--gpus", type=int, nargs="+", help="of this machine, at work at once")
    parser.add_argument("--cores", type=int, default=16, help="beside each of them")
    parser.add_argument("--modal", action="store_true", help="alternate with the function of the Modal app")
    parser.add_argument("--damaged", type=int, default=0, help="files that cannot be used, in another batch")
    parser.add_argument("--kills", type=int, default=0, help="processes that are killed in it")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"videos": arguments.videos, "minutes": arguments.minutes}
    if arguments.hour:
        result["hour"] = measure_hour()
    if arguments.gpus:
        result["gpus"] = measure_gpus(arguments)
    elif arguments.modal:
        result["modal"] = measure_modal(arguments)
    elif arguments.damaged or arguments.kills:
        result["disturbed"] = measure_disturbed(arguments)
    else:
        result["runs"] = measure(arguments)
    for kind, figures in result.get("runs", {}).items():
        print(f"{kind}: {_told(figures, result.get('hour'))}")
    if arguments.save:
        kind = next(name for name in ("gpus", "modal", "disturbed", "runs") if name in result)
        print("written to", write_result(f"many-{kind}-{'gpu' if device_count() else 'cpu'}", result))


if __name__ == "__main__":
    main()
