"""Both implementations on one video: ``python -m benchmarks.throughput [VIDEO --crop L,T,R,B]``.

Prints the table Stage | Sequential | Pipelined | Speedup. Where all work is the CPU's it also prints how far the
pipelined run is from what the machine could do at best: all CPU seconds that the stages need, spread over all cores.
Outputs are compared before times are.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import CROP, captioned_video, machine, repeated_video, write_result
from caption_extents.model.devices import choose_device
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest

STAGES = ("extraction", "inference", "encoding", "upload")


def _run(video: Path, crop: str, store: str, implementation: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "caption_extents", "run", str(video), "--crop", crop, "--store", store]
    command += ["--tenant", "b", "--video-id", "b", "--implementation", implementation, "--json", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # type: ignore[no-any-return]


def _content(result: dict[str, Any], address: str) -> list[object]:
    store = open_store(address)
    manifest = read_manifest(store, VideoKeys("b", "b"), result["version"])
    database: sqlite3.Connection = open_database(store.get(result["caption_frame_extents_db_key"]))
    rows = [
        [tuple(row) for row in database.execute(f"SELECT * FROM {table}")] for table in ("pair_results", "captions")
    ]
    return [[(chunk.sha256, chunk.samples) for chunk in manifest.chunks], *rows]


def overlap_alone(video: Path, crop: str, options: list[str]) -> float:
    """Seconds of a sequential run whose inference uses all cores: what remains of the speedup is overlap alone."""
    with tempfile.TemporaryDirectory() as store:
        extra = ["--inference-workers", str(machine()["cores"]), *options]
        return float(_run(video, crop, store, "sequential", extra)["metrics"]["total_seconds"])


def measure(video: Path, crop: str, repeats: int, device: torch.device, options: list[str]) -> dict[str, Any]:
    """Alternate the implementations, so that a drift of the machine meets both; medians of each."""
    options = ["--device", str(device), *options]
    runs: dict[str, list[dict[str, Any]]] = {"sequential": [], "pipelined": []}
    with tempfile.TemporaryDirectory() as store:
        contents = []
        for _ in range(repeats):
            for implementation, results in runs.items():
                results.append(_run(video, crop, store, implementation, options))
                contents.append(_content(results[-1], store))
    if any(content != contents[0] for content in contents):
        raise SystemExit("the two implementations gave different results; the times mean nothing")
    cores = machine()["cores"]
    sequential = _median(runs["sequential"])
    pipelined = _median(runs["pipelined"])
    result: dict[str, Any] = {
        "video": video.name,
        "samples": runs["sequential"][0]["frame_count"],
        "device": str(device),
        "repeats": repeats,
        "sequential": sequential,
        "pipelined": pipelined,
        "speedup": sequential["total_seconds"] / pipelined["total_seconds"],
    }
    if device.type != "cpu":
        return result
    all_cores_seconds = statistics.median(overlap_alone(video, crop, options) for _ in range(repeats))
    stage_cpu = sum(sequential["stages"][stage]["cpu_seconds"] for stage in STAGES)
    return {
        **result,
        "sequential_inference_on_all_cores_seconds": all_cores_seconds,
        "speedup_by_overlap_alone": all_cores_seconds / pipelined["total_seconds"],
        "stage_cpu_seconds": stage_cpu,
        "floor_seconds": stage_cpu / cores,
        "pipelined_over_floor": pipelined["total_seconds"] / (stage_cpu / cores),
        "pipelined_over_own_cpu": pipelined["total_seconds"] / (pipelined["cpu_seconds"] / cores),
        "model_cpu_ms_per_sample": 1000
        * sequential["stages"]["inference"]["cpu_seconds"]
        / runs["sequential"][0]["frame_count"],
    }


def _median(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the run whose total is the median, with the spread of all totals."""
    ordered = sorted((result["metrics"] for result in results), key=lambda metrics: metrics["total_seconds"])
    chosen = dict(ordered[(len(ordered) - 1) // 2])
    totals = [metrics["total_seconds"] for metrics in ordered]
    chosen["total_spread_seconds"] = [min(totals), statistics.median(totals), max(totals)]
    return chosen


def table(result: dict[str, Any]) -> str:
    """Markdown, one row for each stage and a total."""
    rows = ["| Stage | Sequential | Pipelined | Speedup |", "|---|---|---|---|"]
    sequential, pipelined = result["sequential"], result["pipelined"]
    for stage in STAGES:
        one, many = sequential["stages"][stage]["time_seconds"], pipelined["stages"][stage]["time_seconds"]
        rows.append(f"| {stage} | {one:.2f} s | {many:.2f} s | |")
    one, many = sequential["total_seconds"], pipelined["total_seconds"]
    rows.append(f"| Total | {one:.2f} s | {many:.2f} s | {result['speedup']:.2f}x |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path, help="by default a made 720p video")
    parser.add_argument("--crop", default=CROP)
    parser.add_argument("--minutes", type=float, default=3, help="length of the video: it is repeated until it is full")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--name", default="throughput", help="name of the result")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments, options = parser.parse_known_args()
    options += ["--preset", arguments.preset]
    video = (
        repeated_video(arguments.video, arguments.minutes) if arguments.video else captioned_video(arguments.minutes)
    )
    result = measure(video, arguments.crop, arguments.repeats, choose_device(arguments.device), options)
    print(table(result))
    print(f"\n{result['samples']} samples. In the pipelined run stages overlap: their times span most of the total.")
    if "floor_seconds" in result:
        _print_floor(result)
    if arguments.save:
        print("written to", write_result(arguments.name, result))


def _print_floor(result: dict[str, Any]) -> None:
    print(
        f"sequential, but with inference on all cores: {result['sequential_inference_on_all_cores_seconds']:.2f} s; "
        f"speedup by overlap alone: {result['speedup_by_overlap_alone']:.2f}x"
    )
    print(f"floor (CPU seconds of all stages / cores): {result['floor_seconds']:.2f} s")
    print(f"pipelined / floor: {result['pipelined_over_floor']:.3f}")
    print(f"pipelined / its own CPU seconds per core: {result['pipelined_over_own_cpu']:.3f}")
    print(f"model: {result['model_cpu_ms_per_sample']:.2f} ms of CPU a sample")


if __name__ == "__main__":
    main()
