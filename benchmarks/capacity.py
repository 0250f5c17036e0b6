"""How many machines so many hours of video need: ``python -m benchmarks.capacity``.

A model from measured rates (CPU seconds from ``docs/results/throughput.json``, GPU seconds from
``docs/results/hour.json``), and a simulation that plays it through: videos of an hour arrive at random, each holds a
GPU, then its segments wait for encoder cores. The model's machines are right if the simulation's are as busy as it says
and nobody waits for long.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from dataclasses import asdict, dataclass

from benchmarks.common import RESULTS, write_result
from caption_extents.chunks.plan import CHUNK_SAMPLES
from caption_extents.encoders.blocks import BLOCK_SAMPLES

SAMPLES = 36_000
"""Of an hour of video."""

BUSY = 0.7
"""Share of the time that machines are planned to work; the rest absorbs chance."""

REQUESTS_BESIDE_CHUNKS = 40
"""Claim, heartbeats, journal, manifest, databases, listings."""

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Rates:
    """What an hour of video takes."""

    gpu_seconds: float
    encoding_core_seconds: float
    requests: float
    nbytes: float


@dataclass(frozen=True)
class Capacity:
    """What so many hours of video a day need."""

    hours_a_day: float
    gpus: int
    encoder_cores: int
    requests_a_second: float
    gigabytes_a_day: float
    objects_a_day: float


def measured_rates() -> Rates:
    """From the last results."""
    sequential = json.loads((RESULTS / "throughput.json").read_text())["sequential"]
    encoding = sequential["stages"]["encoding"]
    hour = json.loads((RESULTS / "hour.json").read_text())
    share = SAMPLES / encoding["samples"]
    chunks = SAMPLES / CHUNK_SAMPLES
    segments = 2 * math.ceil(SAMPLES / BLOCK_SAMPLES)
    return Rates(
        gpu_seconds=hour["runs"]["fast"]["metrics"]["total_seconds"],
        encoding_core_seconds=encoding["cpu_seconds"] * share,
        requests=chunks + REQUESTS_BESIDE_CHUNKS + segments,
        nbytes=encoding["nbytes"] * share,
    )


def capacity(rates: Rates, hours_a_day: float) -> Capacity:
    """Machines that are busy for the planned share of the time."""
    a_second = hours_a_day / _SECONDS_A_DAY
    return Capacity(
        hours_a_day=hours_a_day,
        gpus=math.ceil(a_second * rates.gpu_seconds / BUSY),
        encoder_cores=math.ceil(a_second * rates.encoding_core_seconds / BUSY),
        requests_a_second=a_second * rates.requests,
        gigabytes_a_day=hours_a_day * rates.nbytes / 1e9,
        objects_a_day=hours_a_day * SAMPLES / CHUNK_SAMPLES,
    )


class _Pool:
    """Machines that do one thing at a time, each in the order of asking."""

    def __init__(self, count: int) -> None:
        self._free_at = [0.0] * count
        self.busy_seconds = 0.0

    def work(self, ready: float, seconds: float) -> tuple[float, float]:
        """Start and end of work that is ready at a time; calls must come in the order of ``ready``."""
        start = max(ready, heapq.heappop(self._free_at))
        heapq.heappush(self._free_at, start + seconds)
        self.busy_seconds += seconds
        return start, start + seconds


def simulate(rates: Rates, plan: Capacity, videos: int, seed: int = 1) -> dict[str, float]:
    """Play a stream of videos through the planned machines."""
    rng = random.Random(seed)
    gpus, cores = _Pool(plan.gpus), _Pool(plan.encoder_cores)
    segments = math.ceil(SAMPLES / BLOCK_SAMPLES)
    arrival, tasks, arrivals = 0.0, [], []
    for video in range(videos):
        arrival += rng.expovariate(plan.hours_a_day / _SECONDS_A_DAY)
        arrivals.append(arrival)
        start, _ = gpus.work(arrival, rates.gpu_seconds)
        tasks += [(start + rates.gpu_seconds * (n + 1) / segments, video) for n in range(segments)]
    ends = [0.0] * videos
    for ready, video in sorted(tasks):
        # Contents differ: some segments take twice as long as others.
        seconds = rates.encoding_core_seconds / segments * rng.uniform(0.5, 1.5)
        ends[video] = max(ends[video], cores.work(ready, seconds)[1])
    turnaround = sorted(end - begin for end, begin in zip(ends, arrivals, strict=True))
    span = max(ends)
    return {
        "gpu_busy": gpus.busy_seconds / plan.gpus / span,
        "core_busy": cores.busy_seconds / plan.encoder_cores / span,
        "median_seconds": turnaround[videos // 2],
        "p95_seconds": turnaround[videos * 95 // 100],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=20_000, help="videos of an hour to simulate")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    rates = measured_rates()
    print(
        f"an hour of video: {rates.gpu_seconds:.1f} GPU s, {rates.encoding_core_seconds:.0f} core s of encoding, "
        f"{rates.requests:.0f} requests, {rates.nbytes / 1e6:.0f} MB"
    )
    rows = []
    for hours in (100.0, 1e3, 1e4, 1e5, 1e6):
        plan = capacity(rates, hours)
        seen = simulate(rates, plan, min(arguments.videos, max(2000, int(hours))))
        rows.append({**asdict(plan), **seen})
        print(
            f"{hours:>9,.0f} h a day: {plan.gpus} GPUs ({seen['gpu_busy']:.0%} busy), "
            f"{plan.encoder_cores} encoder cores ({seen['core_busy']:.0%}), {plan.requests_a_second:,.1f} "
            f"requests/s, {plan.gigabytes_a_day:,.0f} GB and "
            f"{plan.objects_a_day:,.0f} objects a day; a video takes {seen['median_seconds']:.0f} s, "
            f"p95 {seen['p95_seconds']:.0f} s"
        )
    if arguments.save:
        write_result("capacity", {"rates": asdict(rates), "busy": BUSY, "rows": rows})


if __name__ == "__main__":
    main()
