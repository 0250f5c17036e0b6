"""Encoder settings compared on real captions: ``python -m benchmarks.encode``.

Each setting encodes the chunks of one minute at several qualities, alone on one core. Quality is judged three ways:
PSNR and SSIM of luma, and whether the caption model gives the same labels for the decoded samples. Settings are
compared by the bytes they need for the quality of the ``reference`` preset (interpolated on the rate-distortion curve),
so that a fast setting that merely looks worse cannot win.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common import CROP, captioned_video, write_result
from caption_extents import CropRegion
from caption_extents.chunks.encode import ChunkFormat, decode_chunk, encode_chunk
from caption_extents.chunks.plan import ChunkAssembler, ChunkFrames
from caption_extents.chunks.presets import PRESETS, EncoderPreset
from caption_extents.model.captioner import CaptionModel
from caption_extents.samples import SampleBatch
from caption_extents.video.video import open_video

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def _good(speed: int, **options: str) -> dict[str, str]:
    return {"deadline": "good", "cpu-used": str(speed), "auto-alt-ref": "1", "lag-in-frames": "25", **options}


def _realtime(speed: int, **options: str) -> dict[str, str]:
    return {"deadline": "realtime", "cpu-used": str(speed), "lag-in-frames": "0", **options}


_SCREEN = {"tune-content": "screen"}
_ONE_TILE = {"tile-columns": "0"}
"""libvpx's default is as many as the width allows, four for 1024 pixels."""

SETTINGS: Mapping[str, dict[str, str]] = MappingProxyType(
    {
        **{f"good {speed}": _good(speed) for speed in range(6)},
        "good 2, frame-parallel": _good(2, **{"frame-parallel": "1"}),
        "good 5, lag 0": _good(5, **{"auto-alt-ref": "0", "lag-in-frames": "0"}),
        "good 5, screen": _good(5, **_SCREEN),
        "good 5, row-mt": _good(5, **{"row-mt": "1"}),
        **{f"realtime {speed}": _realtime(speed) for speed in range(2, 9)},
        "realtime 5, aq 0": _realtime(5, **{"aq-mode": "0"}),
        **{f"realtime {speed}, screen": _realtime(speed, **_SCREEN) for speed in range(5, 9)},
        **{f"good {speed}, one tile": _good(speed, **_ONE_TILE) for speed in (1, 2, 4)},
        **{f"realtime {speed}, one tile": _realtime(speed, **_ONE_TILE) for speed in (3, 4, 7)},
        **{f"realtime {speed}, screen, one tile": _realtime(speed, **_SCREEN, **_ONE_TILE) for speed in (4, 7, 8)},
    }
)
"""What is compared; all but one without ``frame-parallel``, which gives up adapting to what was coded before."""

QUALITIES = (22, 28, 34, 40)


def setting(name: str, options: Mapping[str, str], crf: int, threads: int) -> EncoderPreset:
    """A setting as a preset."""
    return EncoderPreset(name, threads, {"frame-parallel": "0", **options, "crf": str(crf)})


def read_crops(video: Path, region: CropRegion) -> tuple[list[ChunkFrames], Planes]:
    """The chunks of a video, and all its crops in order."""
    assembler, chunks, batches = ChunkAssembler(), list[ChunkFrames](), list[SampleBatch]()
    with open_video(video, device="cpu") as opened:
        for batch in opened.samples(region):
            chunks += assembler.add(batch.first_sample, batch.planes)
            batches.append(batch)
    chunks += assembler.flush()
    y, u, v = (np.concatenate([batch.planes[index] for batch in batches]) for index in range(3))
    return chunks, (y, u, v)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over samples of the peak signal-to-noise ratio, in dB."""
    errors = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(255**2 / np.maximum(errors, 1e-3))).mean())


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity over windows of 8x8 pixels (Wang et al., 2004)."""
    x, y = (torch.from_numpy(p)[:, None].float() for p in (a, b))

    def mean(t: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(t, 8, 4)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 6.5025, 58.5225
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def labels(model: CaptionModel, planes: Planes) -> np.ndarray:
    """Forward labels of all pairs."""
    embeddings = model.backend.embed(planes)
    forward: np.ndarray = model.backend.compare(embeddings[:-1], embeddings[1:])[:, 0].argmax(axis=1)
    return forward


def measure(
    chunks: list[ChunkFrames], crops: Planes, known: np.ndarray, preset: EncoderPreset, model: CaptionModel
) -> dict[str, Any]:
    """Encode everything with one setting, decode it again, and judge it; ``known`` are the labels of the crops."""
    form = ChunkFormat(frame_rate=Fraction(10))
    cpu, wall = time.process_time(), time.perf_counter()
    encoded = [encode_chunk(frames, preset, form) for frames in chunks]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    decoded: Planes = tuple(np.empty_like(plane) for plane in crops)  # type: ignore[assignment]
    for chunk in encoded:
        for sample, frame in zip(chunk.plan.samples, decode_chunk(chunk.data), strict=True):
            for target, source in zip(decoded, frame, strict=True):
                target[sample] = source
    count = len(crops[0])
    return {
        "cpu_ms_per_sample": cpu / count * 1e3,
        "wall_ms_per_sample": wall / count * 1e3,
        "bytes_per_sample": sum(len(chunk.data) for chunk in encoded) / count,
        "psnr_db": psnr(crops[0], decoded[0]),
        "ssim": ssim(crops[0], decoded[0]),
        "same_labels": float((labels(model, decoded) == known).mean()),
    }


def bytes_at(curve: list[dict[str, Any]], metric: str, value: float) -> float | None:
    """Bytes a sample that a setting needs for a quality, on its curve (log bytes over quality); None outside of it."""
    points = sorted((point[metric], np.log(point["bytes_per_sample"])) for point in curve)
    if not points[0][0] <= value <= points[-1][0]:
        return None
    return float(np.exp(np.interp(value, [p[0] for p in points], [p[1] for p in points])))


def crf_at(curve: list[dict[str, Any]], metric: str, value: float) -> float:
    """The constant quality at which a setting reaches a quality."""
    points = sorted((point[metric], point["crf"]) for point in curve)
    return float(np.interp(value, [p[0] for p in points], [p[1] for p in points]))


def compare(video: Path, region: CropRegion, names: list[str], threads: int) -> dict[str, Any]:
    """All settings on one video."""
    chunks, crops = read_crops(video, region)
    model = CaptionModel(threads=2)
    known = labels(model, crops)
    reference = measure(chunks, crops, known, PRESETS["reference"], model)
    print(f"{video.name}: {crops[0].shape[2]}x{crops[0].shape[1]}, {len(crops[0])} samples")
    print(f"{'reference':24} {_line(reference)}")
    rows: dict[str, Any] = {}
    for name in names:
        curve = []
        for crf in QUALITIES:
            curve.append(
                {"crf": crf, **measure(chunks, crops, known, setting(name, SETTINGS[name], crf, threads), model)}
            )
        nearest = min(curve, key=lambda point: abs(point["ssim"] - reference["ssim"]))
        sizes = {metric: bytes_at(curve, metric, reference[metric]) for metric in ("psnr_db", "ssim")}
        rows[name] = {
            "curve": curve,
            "speed_up": reference["cpu_ms_per_sample"] / nearest["cpu_ms_per_sample"],
            "size_at_same_psnr": sizes["psnr_db"] and sizes["psnr_db"] / reference["bytes_per_sample"],
            "size_at_same_ssim": sizes["ssim"] and sizes["ssim"] / reference["bytes_per_sample"],
            "crf_at_same_ssim": crf_at(curve, "ssim", reference["ssim"]),
        }
        print(f"{name:24} {_line(nearest)}  {_ratios(rows[name])}", flush=True)
    return {"samples": len(crops[0]), "size": crops[0].shape[:0:-1], "reference": reference, "settings": rows}


def _line(point: dict[str, Any]) -> str:
    return (
        f"cpu {point['cpu_ms_per_sample']:6.2f} ms  {point['bytes_per_sample']:6.0f} B  {point['psnr_db']:5.2f} dB  "
        f"ssim {point['ssim']:.4f}  labels {point['same_labels']:.4f}"
    )


def _ratios(row: dict[str, Any]) -> str:
    def ratio(value: float | None) -> str:
        return "  -  " if value is None else f"{value:.2f}x"

    return (
        f"{row['speed_up']:.2f}x as fast, bytes at the same PSNR {ratio(row['size_at_same_psnr'])}, at the same SSIM "
        f"{ratio(row['size_at_same_ssim'])} (crf {row['crf_at_same_ssim']:.0f})"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, action="append", default=[], help="instead of a rendered minute")
    parser.add_argument("--crop", action="append", default=[], help="one for each --video")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1, help="of one encoder")
    parser.add_argument("--name", default="encode", help="name of the result")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    videos = list(zip(arguments.video, arguments.crop, strict=True)) or [(captioned_video(1), CROP)]
    results = {
        video.name: compare(video, CropRegion.parse(crop), arguments.settings, arguments.threads)
        for video, crop in videos
    }
    if arguments.save:
        print(write_result(arguments.name, {"videos": results}))


if __name__ == "__main__":
    main()
