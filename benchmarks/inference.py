"""The model alone: ``python -m benchmarks.inference [--device cuda]``.

Samples a second with both directions of every pair, milliseconds of CPU a sample, and how many labels of a GPU are
those of the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import CROP, captioned_video, machine, write_result
from caption_extents import CropRegion
from caption_extents.model.captioner import CaptionModel
from caption_extents.model.devices import choose_device
from caption_extents.model.labeller import Labeller
from caption_extents.pipeline.clocks import INFERENCE, StageClock
from caption_extents.pipeline.stages import Inference
from caption_extents.samples import SampleBatch
from caption_extents.video.decoders.base import BATCH_SAMPLES
from caption_extents.video.video import open_video


def read_batches(video: Path, region: CropRegion, size: int) -> list[SampleBatch]:
    """All crops of a video, decoded on the CPU, in batches of a size."""
    with open_video(video, device="cpu") as opened:
        planes = (batch.planes for batch in opened.samples(region))
        y, u, v = (np.concatenate(plane) for plane in zip(*planes, strict=True))
    return [SampleBatch(at, y[at : at + size], u[at : at + size], v[at : at + size]) for at in range(0, len(y), size)]


def infer(model: CaptionModel, batches: list[SampleBatch], repeats: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Probabilities of all pairs, and what a pass costs (the best of several), from batches in the host's memory."""
    count = sum(map(len, batches))
    best: dict[str, Any] = {}
    for _ in range(repeats + 1):
        inference = Inference(Labeller(model.backend), count, StageClock(INFERENCE))
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            inference.infer(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if not best or wall < best["seconds"]:
            best = {"seconds": wall, "samples_per_second": count / wall, "cpu_ms_per_sample": cpu / count * 1e3}
    return inference.probabilities, best


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path, help="by default a made 720p video")
    parser.add_argument("--crop", default=CROP)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=128, help="samples in a batch on a GPU; 32 on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    video, region = arguments.video or captioned_video(arguments.minutes), CropRegion.parse(arguments.crop)
    batches = read_batches(video, region, BATCH_SAMPLES)
    with CaptionModel(device="cpu", threads=machine()["cores"]) as model:
        reference, cpu = infer(model, batches, arguments.repeats)
    result: dict[str, Any] = {
        "samples": sum(map(len, batches)),
        "crop": [batches[0].width, batches[0].height],
        "cpu": cpu,
    }
    cores = machine()["cores"]
    print(
        f"cpu, {cores} threads: {cpu['samples_per_second']:.0f} samples/s, {cpu['cpu_ms_per_sample']:.2f} ms CPU each"
    )
    if device.type == "cuda":
        batches = read_batches(video, region, arguments.batch)
        with CaptionModel(device=str(device)) as model:
            found, gpu = infer(model, batches, arguments.repeats)
        gpu |= {"batch": arguments.batch}
        same = float((found.argmax(-1) == reference.argmax(-1)).mean())
        result |= {"gpu": gpu, "same_labels": same, "largest_difference": float(np.abs(found - reference).max())}
        print(f"{device}: {gpu['samples_per_second']:.0f} samples/s; {same:.5f} of all labels as on the CPU")
    if arguments.save:
        print("written to", write_result(f"inference-{device.type}", result))


if __name__ == "__main__":
    main()
