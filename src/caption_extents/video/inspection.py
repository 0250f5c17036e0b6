"""What a video file holds: its streams, its timing, where it will be decoded, and what is unusual about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from caption_extents.errors import VideoError
from caption_extents.video.decoders.base import size_and_format
from caption_extents.video.demux import CONTAINERS, decode_or_skip, open_container, read_packets
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.capabilities import why_not_nvdec
from caption_extents.video.streams import describe
from caption_extents.video.timeline import FrameIndex, index_frames
from caption_extents.watchdog import Watchdog

_MIB = 1 << 20
_LANGUAGE = re.compile(r"[A-Za-z0-9-]{2,35}")
_MOST_CHANGES = 5
_USUAL_LATE_SECONDS = 0.1
"""Sound begins some hundredths of a second before the picture in most files that have both."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: what was checked.
        state: ``ok``; of a machine, ``missing`` (a run works without it) or ``broken`` (no run works); of a video,
            ``unusual``.
        detail: what was found.
        remedy: what to do about it, or what it means for a run.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        line = f"{self.state:8} {self.name:12} {self.detail}"
        return f"{line}\n{'':22}{self.remedy}" if self.remedy else line


def inspect_video(
    path: Path, stream_index: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Finding]:
    """Describe a video as a run would take it, one finding after the other.

    Args:
        path: a file of this machine.
        stream_index: of the video stream, as FFmpeg counts them; None for the film, as players choose it.
        progress: called with bytes read so far and bytes in all, while the file is read for changes of the picture.

    Raises:
        VideoError: the file cannot be used.
        StallError: FFmpeg makes no progress with it.
    """
    yield from Watchdog().items(f"reading {str(path)!r}", _inspect(path, stream_index, progress))


def _inspect(path: Path, stream_index: int | None, progress: Callable[[int, int], None]) -> Iterator[Finding]:
    facts = probe(path, stream_index)
    yield _file(facts)
    with open_container(path, facts.stream_index) as (container, _):
        yield from _streams(container, facts)
    yield _picture(facts)
    yield _clock(facts)
    try:
        index = index_frames(facts)
    except VideoError as error:
        yield Finding("timing", "broken", str(error))
        return
    yield _frames(facts, index)
    yield from _last_picture(facts, index)
    yield from _packets(facts, progress)
    yield _decoder(facts)
    if not facts.times_every_frame:
        yield Finding(
            "refining", "unusual", f"{CONTAINERS[facts.container]} files do not time every frame: no --refine"
        )


def _file(facts: VideoFacts) -> Finding:
    detail = f"{CONTAINERS[facts.container]}, {facts.size_bytes / _MIB:,.1f} MiB"
    if not facts.missing_bytes:
        return Finding("file", "ok", detail)
    whole = (facts.size_bytes + facts.missing_bytes) / _MIB
    return Finding("file", "unusual", f"{detail} of {whole:,.1f}: cut off", "fetch it again, or run with --partial")


def _streams(container: InputContainer, facts: VideoFacts) -> Iterator[Finding]:
    for stream in container.streams:
        film = ": the captions are looked for here" if stream.index == facts.stream_index else ""
        yield Finding(f"stream {stream.index}", "ok", f"{_kind(stream)}{film}")
    if len(facts.video_streams) > 1:
        others = ", ".join(str(index) for index in facts.video_streams if index != facts.stream_index)
        yield Finding("streams", "unusual", f"there are more films, in stream {others}", "--stream N takes another")


def _kind(stream: Stream) -> str:
    if isinstance(stream, VideoStream):
        return f"video, {describe(stream)}"
    # PyAV has no codec for streams of a kind that FFmpeg does not know.
    context = cast(Any, stream).codec_context if stream.type in {"audio", "subtitle"} else None
    # A file may say anything of its language, also what would steer a terminal.
    language = stream.language if _LANGUAGE.fullmatch(stream.language or "") and stream.language != "und" else ""
    return ", ".join(filter(None, (stream.type, context and context.name, language)))


def _picture(facts: VideoFacts) -> Finding:
    unusual = []
    if (facts.display_width, facts.display_height) != (facts.width, facts.height):
        unusual.append(f"displayed as {facts.display_width}x{facts.display_height}")
    if facts.sample_aspect_ratio != 1:
        unusual.append(f"pixels are {facts.sample_aspect_ratio} times as wide as high")
    if facts.interlaced:
        unusual.append("interlaced: a sample shows both fields of a frame")
    detail = "; ".join([f"{facts.width}x{facts.height} {facts.pixel_format}", *unusual])
    return Finding("picture", "unusual" if unusual else "ok", detail)


def _clock(facts: VideoFacts) -> Finding:
    late = float(facts.first_sample_seconds)
    if not late:
        return Finding("clock", "ok", "the picture begins where the file does")
    detail = f"the picture begins {late:.3f} s after the file"
    if late < _USUAL_LATE_SECONDS:
        return Finding("clock", "ok", detail)
    return Finding("clock", "unusual", detail, "times of captions count from where the file begins, as players do")


def _frames(facts: VideoFacts, index: FrameIndex) -> Finding:
    seconds = float((index.end_pts - int(index.pts[0])) * facts.time_base)
    detail = f"{len(index.pts)} frames in {seconds:.2f} s"
    steps = np.diff(index.pts) * float(facts.time_base)
    if not len(steps):
        return Finding("timing", "unusual", detail)
    usual, shortest, longest = float(np.median(steps)), float(steps.min()), float(steps.max())
    # Containers round times, MKV to milliseconds.
    if longest - shortest < 0.0021:
        return Finding("timing", "ok", f"{detail}, {1 / steps.mean():.2f} a second")
    spread = f"a frame is shown for {shortest * 1000:.0f} to {longest * 1000:.0f} ms, most for {usual * 1000:.0f}"
    meaning = "frames are missing, or meant to be shown longer; times are as in a player"
    return Finding("timing", "unusual", f"{detail}; {spread}", meaning)


def _last_picture(facts: VideoFacts, index: FrameIndex) -> Iterator[Finding]:
    stands = float((index.end_pts - int(index.pts[-1])) * facts.time_base)
    if stands > max(0.5, 2 * float(facts.usual_duration * facts.time_base)):
        yield Finding("end", "unusual", f"the last picture stands for {stands:.2f} s", "captions on it last as long")


def _packets(facts: VideoFacts, progress: Callable[[int, int], None]) -> Iterator[Finding]:
    """What only reading the file tells: frames that are not shown, and key frames of another size or format."""
    hidden, count, changes = 0, 0, list[str]()
    shown = facts.width, facts.height, facts.pixel_format
    with open_container(facts.path, facts.stream_index, 0) as (container, stream):
        stream.codec_context.skip_frame = "NONKEY"
        try:
            for packet in read_packets(container, stream):
                hidden += packet.is_discard
                if packet.pos is not None:
                    progress(packet.pos, facts.size_bytes)
                for frame in decode_or_skip(packet):
                    if (found := size_and_format(frame)) != shown:
                        shown = found
                        count += 1
                        if count <= _MOST_CHANGES:
                            at = "" if frame.pts is None else f" at {facts.seconds_at(frame.pts):.2f} s"
                            changes.append(f"{found[0]}x{found[1]} {found[2]}{at}")
        except av.error.FFmpegError as error:
            yield Finding("damage", "unusual", f"reading ends early: {error}")
    if hidden:
        detail = f"the file was cut: {hidden} frames are in it that players do not show"
        yield Finding("edit list", "unusual", detail, "nothing to do: they are left out, and times are as in a player")
    if changes:
        meaning = "the crop is at the same place of each part, in the size of the first"
        more = f" and {count - _MOST_CHANGES} more" if count > _MOST_CHANGES else ""
        yield Finding("changes", "unusual", f"the picture changes: {', '.join(changes)}{more}", meaning)


def _decoder(facts: VideoFacts) -> Finding:
    if not driver.device_count():
        return Finding("decoding", "ok", "on the CPU; this machine has no NVIDIA GPU")
    reason = why_not_nvdec(facts, 0)
    return Finding(
        "decoding", "ok", f"on the GPU, {driver.device_name(0)}" if reason is None else f"on the CPU: {reason}"
    )
