"""Whether offloaded encoding takes as long as forecast: ``python -m benchmarks.offload``.

A machine of two cores plays two machines: the job has core 0, a Ray cluster of two encoding workers has core 1. The
run that encodes by itself on core 0 says how long the offloaded one will take; then that is measured. The same once
more where job and workers share both cores, which cannot pay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.common import captioned_video, run_cli, write_result
from caption_extents.pipeline.forecast import Work

WORKERS = 2
CROP = "0,0.6,1,1"
"""Large, so that encoding is what takes longest."""
_PORT = 26379


@contextmanager
def _cluster(cores: set[int]) -> Iterator[None]:
    """A Ray cluster of two workers on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    # It listens on this machine only and lives for minutes.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    start = [
        *ray,
        "start",
        "--head",
        f"--port={_PORT}",
        f"--num-cpus={WORKERS}",
        "--include-dashboard=false",
        "--node-ip-address=127.0.0.1",
    ]
    subprocess.run([*start, "--disable-usage-stats"], check=True, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(0, before)
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{_PORT}"
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        subprocess.run([*ray, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _compare(name: str, minutes: float, job_cores: set[int], worker_cores: set[int]) -> dict[str, Any]:
    video, short = captioned_video(minutes), captioned_video(0.5)
    with _on_cores(job_cores):
        here = run_cli(video, "--encoder-workers", str(WORKERS), crop=CROP)
    work = Work(**here["metrics"]["work"])
    shared = bool(job_cores & worker_cores)
    forecast = work.seconds_sharing() if shared else work.seconds_offloaded(len(worker_cores))
    with _cluster(worker_cores), _on_cores(job_cores):
        # Workers import what they need with their first task.
        run_cli(short, "--encoder", "ray", crop=CROP)
        there = run_cli(video, "--encoder", "ray", crop=CROP)
    row = {
        "here_seconds": here["metrics"]["total_seconds"],
        "forecast_seconds": forecast,
        "offloaded_seconds": there["metrics"]["total_seconds"],
        "advice": here["metrics"]["overlap"]["advice"],
        "worker_cpu_seconds": there["metrics"]["offload"]["worker_cpu_seconds"],
        "segment_bytes": there["metrics"]["offload"]["segment_bytes"],
    }
    error = row["forecast_seconds"] / row["offloaded_seconds"] - 1
    print(
        f"{name}: {row['here_seconds']:.1f} s here, forecast {row['forecast_seconds']:.1f} s offloaded, "
        f"measured {row['offloaded_seconds']:.1f} s ({error:+.0%})\n  {row['advice']}"
    )
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    rows = {
        "two machines": _compare("workers on a core of their own", arguments.minutes, {0}, {1}),
        "one machine": _compare("workers on the job's cores", arguments.minutes, {0, 1}, {0, 1}),
    }
    if arguments.save:
        write_result("offload", {"minutes": arguments.minutes, "workers": WORKERS, "rows": rows})


if __name__ == "__main__":
    main()
