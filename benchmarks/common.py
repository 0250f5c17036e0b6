"""Videos, machine description and result files that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch

import caption_extents
from caption_extents.machine import usable_cores
from caption_extents.training import sample_video
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool
from caption_extents.video.video import Decoding, StartedVideo, Video, open_local

CACHE = Path(tempfile.gettempdir()) / "caption-extents-benchmarks"
RESULTS = Path(__file__).parent.parent / "docs" / "results"
CROP = ",".join(map(str, sample_video.CROP))
_CROP_OF_A_VIDEO = "0.1,0.861112,0.9,0.938888"

_STARTING_SECONDS = 5.0
"""In which a GPU's sessions have surely started."""


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """The video that a benchmark repeats, and the crop; :func:`chosen_video` reads them."""
    parser.add_argument("video", nargs="?", type=Path, help="by default a made 720p video")
    parser.add_argument("--crop", help="by default 1024x56 of 1280x720 in a VIDEO, the captions of the made one")


def chosen_video(arguments: argparse.Namespace) -> tuple[Path, str]:
    """The video, repeated for as many minutes as the arguments say, and the crop."""
    video = repeated_video(arguments.video or captioned_video(1), arguments.minutes)
    return video, arguments.crop or (_CROP_OF_A_VIDEO if arguments.video else CROP)


def captioned_video(minutes: float, *, height: int = 720, seed: int = 1) -> Path:
    """A captioned 30 fps H.264 video: one rendered minute, its packets repeated as often as needed."""
    CACHE.mkdir(exist_ok=True)
    minute = CACHE / f"minute-{height}-{seed}.mp4"
    if not minute.exists():
        partial = minute.with_suffix(".partial.mp4")
        sample_video.render(partial, seconds=60, seed=seed, width=height * 16 // 9, height=height)
        partial.rename(minute)
    return repeated_video(minute, minutes)


def repeated_video(source: Path, minutes: float) -> Path:
    """A video's packets, over and over, until so many minutes are full; nothing is encoded anew."""
    CACHE.mkdir(exist_ok=True)
    video = CACHE / f"{source.stem}-{minutes:g}-minutes.mp4"
    if not video.exists():
        partial = video.with_suffix(".partial.mp4")
        _repeat(source, partial, Fraction(str(minutes)) * 60)
        partial.rename(video)
    return video


def _repeat(source: Path, target: Path, seconds: Fraction) -> None:
    with av.open(str(target), "w") as out:
        stream: av.VideoStream | None = None
        offset, done = 0, False
        while not done:
            with av.open(str(source)) as container:
                original = container.streams.video[0]
                stream = stream or out.add_stream_from_template(original)
                assert original.time_base is not None
                end, first = 0, None
                for packet in container.demux(original):
                    if not packet.size:
                        continue  # the flush at the end
                    if packet.dts is None or packet.pts is None:
                        raise SystemExit(f"{source} has packets without times, which cannot be repeated; remux it")
                    first = packet.pts if first is None else first
                    end = max(end, packet.pts + (packet.duration or 0) - first)
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    if packet.pts * original.time_base < seconds:
                        out.mux(packet)
                    else:
                        done = True
                offset += end


_QUICK = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "7", "row-mt": "1"},
    "libsvtav1": {"preset": "11"},
}
"""Encoders that transcoded videos may use, and settings with which they are done soon."""


def transcoded_video(
    source: Path, codec: str, seconds: Fraction, height: int | None = None, pixel_format: str = "yuv420p"
) -> Path:
    """The beginning of a video, encoded anew with an FFmpeg encoder, and scaled if a height is given."""
    CACHE.mkdir(exist_ok=True)
    pixels = "" if pixel_format == "yuv420p" else f"-{pixel_format}"
    video = CACHE / f"{source.stem}-{codec}-{height or 'same'}-{float(seconds):g}{pixels}.mp4"
    if video.exists():
        return video
    partial = video.with_suffix(".partial.mp4")
    with av.open(str(source)) as container, av.open(str(partial), "w") as out:
        original = container.streams.video[0]
        original.thread_type = "AUTO"
        assert original.time_base is not None
        new_height = height or original.height
        stream = cast(av.VideoStream, out.add_stream(codec, rate=original.average_rate, options=_QUICK[codec]))
        stream.height, stream.width = new_height, original.width * new_height // original.height // 2 * 2
        stream.pix_fmt = pixel_format
        # Not one tick a frame at the average rate: rounding would give two frames of a long video the same pts.
        stream.codec_context.time_base = original.time_base
        for frame in container.decode(original):
            if frame.time is not None and frame.time >= seconds:
                break
            scaled = frame.reformat(stream.width, stream.height, pixel_format)
            out.mux(stream.encode(scaled))
        out.mux(stream.encode(None))
    partial.rename(video)
    return video


@contextmanager
def opened_video(video: Path, device: torch.device, threads: int = 0) -> Iterator[Video]:
    """A video as a run opens it: on a GPU with a process that reads it and others that decode, which have started."""
    if device.type != "cuda":
        with open_local(video, Fraction(10), Decoding(threads=threads)) as opened:
            yield opened
        return
    gpu = device.index or 0
    with (
        VideoReaderProcess(video, Fraction(10), DecoderLimits()) as reader,
        closing(GpuSessions(SessionPool(gpu))) as sessions,
        StartedVideo(reader, sessions, Decoding(gpu, threads=threads)) as opened,
    ):
        time.sleep(_STARTING_SECONDS)
        yield opened


def run_cli(video: Path, *options: str, crop: str = CROP) -> dict[str, Any]:
    """Run the command in a process of its own, with a fresh store; its JSON result."""
    with tempfile.TemporaryDirectory() as store:
        command = [
            sys.executable,
            "-m",
            "caption_extents",
            "run",
            str(video),
            "--crop",
            crop,
            "--store",
            store,
            "--json",
        ]
        done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "package": caption_extents.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "torch": torch.__version__,
        "av": av.__version__,
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Keep a result, stamped with the machine, under docs/results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path
