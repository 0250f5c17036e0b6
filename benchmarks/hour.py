"""A long video on one machine: ``python -m benchmarks.hour [VIDEO] --minutes 60``.

The whole job, from the start of its process, against its own floor: the time of each stage alone on the same machine.
A VIDEO is repeated, without encoding it anew, until it is long enough.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import add_video_arguments, chosen_video, opened_video, run_cli, write_result
from caption_extents import CropRegion
from caption_extents.chunks.encode import ChunkFormat
from caption_extents.chunks.plan import ChunkAssembler, ChunkFrames
from caption_extents.chunks.presets import PRESETS
from caption_extents.encoders.base import ThreadEncoder
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.devices import choose_device
from caption_extents.model.labeller import Labeller
from caption_extents.options import encoders_of_machine
from caption_extents.pipeline.clocks import INFERENCE, StageClock
from caption_extents.pipeline.stages import Inference
from caption_extents.samples import SampleBatch

_WARM_UP_SECONDS = 1.0
"""After the first samples, in which a GPU loads its libraries."""

_KEPT_BATCHES = 30
"""Batches that the stages after decoding are measured with, over and over: enough for all kinds of chunk."""


class _Floors:
    """The time of each stage alone."""

    def __init__(self, video: Path, region: CropRegion, device: torch.device) -> None:
        self._device = device
        self._batches: list[SampleBatch] = []
        with opened_video(video, device) as opened:
            self.samples = opened.sample_count
            decoder = opened.samples(region)
            start = time.perf_counter()
            for batch in decoder:
                if len(self._batches) < _KEPT_BATCHES:
                    self._batches.append(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.extraction = time.perf_counter() - start
            decoder.close()

    def inference(self, threads: int) -> float:
        """Seconds for all samples, from batches on the device."""
        count = sum(map(len, self._batches))
        with CaptionModel(device=str(self._device), threads=threads) as model:
            for _ in range(2):
                inference = Inference(Labeller(model.backend), count, StageClock(INFERENCE))
                start = time.perf_counter()
                for batch in self._batches:
                    inference.infer(batch)
                seconds = time.perf_counter() - start
        return seconds * self.samples / count

    def encoding(self, preset: str, workers: int) -> float:
        """Seconds for all samples, from chunks in memory, in the way of a run on this device."""
        assembler, chunks = ChunkAssembler(), list[ChunkFrames]()
        for batch in self._batches:
            chunks += assembler.add(batch.first_sample, batch.planes)
        repeats = max(1, -(-8 * workers // len(chunks)))
        work = list(itertools.chain.from_iterable([chunks] * repeats))
        form = ChunkFormat(frame_rate=Fraction(10))
        on_gpu = self._device.type == "cuda"
        made = (ProcessEncoder if on_gpu else ThreadEncoder)(PRESETS[preset], workers)
        with closing(made) as encoder, ThreadPoolExecutor(encoder.calls) as pool:

            def encode(frames: ChunkFrames) -> None:
                encoder.encode(frames, form)

            list(pool.map(encode, work[: 2 * workers]))
            start = time.perf_counter()
            list(pool.map(encode, work))
            seconds = time.perf_counter() - start
        return seconds * self.samples / sum(len(frames.plan.samples) for frames in work)


def _run_started(metrics: dict[str, Any]) -> float:
    """When the run began, on the clock of its stages; one clock serves all processes."""
    return float(min(stage["started"] for stage in metrics["stages"].values()) - metrics["setup_seconds"])


def _first_samples_at(metrics: dict[str, Any]) -> float:
    """When the first samples went into the pipeline, on the same clock."""
    extraction = metrics["stages"]["extraction"]
    return float(extraction["started"] + extraction["first_item_seconds"])


def _tail_seconds(metrics: dict[str, Any]) -> float:
    """From the last stage's end until the results were there."""
    end = max(stage["started"] + stage["time_seconds"] for stage in metrics["stages"].values())
    return float(_run_started(metrics) + metrics["total_seconds"] - end)


def _busy_shares(metrics: dict[str, Any]) -> dict[str, float]:
    """How much of its time, after its first item, each stage was at work; all of its workers together."""
    shares = {}
    for name, stage in metrics["stages"].items():
        steady = stage["time_seconds"] - stage["first_item_seconds"]
        if name == "extraction":  # works on while it waits to be asked, until its results find no room
            shares[name] = 1 - stage["wait_room_seconds"] / max(steady, 1e-9)
        else:
            shares[name] = min(1.0, stage["busy_seconds"] / stage["workers"] / max(steady, 1e-9))
    return shares


def _warm_shares(metrics: dict[str, Any]) -> dict[str, float]:
    """The same from the timeline of a run, from ``_WARM_UP_SECONDS`` after its first samples until the stage's end."""
    timeline, origin = metrics["timeline"], _run_started(metrics)
    step = timeline["bucket_seconds"]
    first = math.ceil((_first_samples_at(metrics) + _WARM_UP_SECONDS - origin) / step)
    shares = {}
    for name, stage in metrics["stages"].items():
        end = int((stage["started"] + stage["time_seconds"] - origin) / step)
        busy = timeline["busy"][name][first:end]
        shares[name] = sum(busy) / stage["workers"] / max(1, end - first)
    return shares


def measure(video: Path, crop: str, device: torch.device, presets: list[str], workers: int) -> dict[str, Any]:
    """Runs and floors for each preset."""
    floors = _Floors(video, CropRegion.parse(crop), device)
    inference = floors.inference(threads=16)
    print(
        f"{floors.samples} samples; alone: extraction {floors.extraction:.2f} s, inference {inference:.2f} s",
        flush=True,
    )
    torch.cuda.empty_cache()
    result: dict[str, Any] = {"video": video.name, "samples": floors.samples, "device": str(device), "runs": {}}
    for preset in presets:
        stages = {
            "extraction": floors.extraction,
            "inference": inference,
            "encoding": floors.encoding(preset, workers),
        }
        options = ["--preset", preset, "--device", str(device), "--encoder-workers", str(workers)]
        started = time.perf_counter()
        run = run_cli(video, *options, crop=crop)
        process_seconds = time.perf_counter() - started
        metrics = run["metrics"]
        gpu_memory = metrics["gpu"]["added_memory_bytes"] if metrics["gpu"] else 0
        slowest = max(stages, key=lambda stage: stages[stage])
        record = result["runs"][preset] = {
            "alone_seconds": stages,
            "floor_stage": slowest,
            "total_over_floor": metrics["total_seconds"] / stages[slowest],
            "process_seconds": process_seconds,
            "first_frame_seconds": metrics["first_frame_at"] - started,
            "first_samples_seconds": _first_samples_at(metrics) - started,
            "tail_seconds": _tail_seconds(metrics),
            "busy_shares": _busy_shares(metrics),
            "warm_busy_shares": _warm_shares(metrics),
            "gpu_memory_bytes": gpu_memory,
            "captions": run["caption_count"],
            "metrics": metrics,
        }
        print(
            f"{preset}: total {metrics['total_seconds']:.2f} s (process {process_seconds:.2f} s, set-up "
            f"{metrics['setup_seconds']:.2f} s), slowest stage alone: {slowest} {stages[slowest]:.2f} s, total / floor "
            f"{record['total_over_floor']:.3f}; host {metrics['peak_memory_bytes'] / 2**20:.0f} MiB, "
            f"GPU {gpu_memory / 2**20:.0f} MiB",
            flush=True,
        )
        print(
            f"  first frame {record['first_frame_seconds']:.2f} s after the process was started, first samples "
            f"in the pipeline {record['first_samples_seconds']:.2f} s; "
            f"{record['tail_seconds']:.2f} s from the last stage's end to the results"
        )
        shares, warm = record["busy_shares"], record["warm_busy_shares"]
        for name, stage in metrics["stages"].items():
            print(
                f"  {name}: busy {stage['busy_seconds']:.2f} s by {stage['workers']}, waited "
                f"{stage['wait_input_seconds']:.2f} s for input, {stage['wait_room_seconds']:.2f} s for room; "
                f"at work {shares[name]:.0%} of its time, {warm[name]:.0%} when warm",
                flush=True,
            )
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_video_arguments(parser)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--encoder-workers", type=int, default=encoders_of_machine())
    parser.add_argument("--name", default="hour", help="name of the result")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    video, crop = chosen_video(arguments)
    device = choose_device(arguments.device)
    result = measure(video, crop, device, arguments.presets, arguments.encoder_workers)
    if arguments.save:
        print("written to", write_result(arguments.name, result))


if __name__ == "__main__":
    main()
