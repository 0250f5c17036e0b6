"""A chunk's frames as VP9 in WebM, in memory: encoding, and decoding for readers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from caption_extents.chunks.plan import ChunkFrames, ChunkPlan
from caption_extents.chunks.presets import EncoderPreset
from caption_extents.errors import EncodeError
from caption_extents.samples import Planes, plane_view
from caption_extents.watchdog import report_progress

CONTENT_TYPE = "video/webm"


@dataclass(frozen=True)
class ChunkFormat:
    """What all chunks of a video share.

    Attributes:
        frame_rate: frames a second at which a chunk plays; its n-th sample stands at n / frame_rate seconds.
        colour_range, colour_space, colour_primaries, colour_transfer: as numbers of ITU-T H.273.
    """

    frame_rate: Fraction
    colour_range: int = 0
    colour_space: int = 2
    colour_primaries: int = 2
    colour_transfer: int = 2


@dataclass(frozen=True, repr=False)
class EncodedChunk:
    """A chunk as it will be stored."""

    plan: ChunkPlan
    data: bytes

    def __repr__(self) -> str:
        return f"EncodedChunk(level {self.plan.level}, first {self.plan.first_sample}, {len(self.data)} bytes)"


def encode_chunk(
    frames: ChunkFrames, preset: EncoderPreset, form: ChunkFormat, tell: Callable[[], None] = report_progress
) -> EncodedChunk:
    """Encode a chunk. The same frames, preset and format give the same bytes, every time and in any thread.

    Args:
        frames: of the chunk.
        preset: the encoder's settings.
        form: what all chunks of the video share.
        tell: called after each encoded frame, and after each packet while the encoder is flushed.

    Raises:
        EncodeError: the encoder refused; names the chunk.
    """
    buffer = io.BytesIO()
    try:
        # bitexact keeps random identifiers and library versions out of the file.
        with av.open(buffer, "w", format="webm", container_options={"fflags": "+bitexact"}) as container:
            stream = _add_stream(container, frames.planes, preset, form)
            for index in range(len(frames.plan.samples)):
                container.mux(stream.encode(to_frame(frames.planes, index)))
                tell()
            for packet in stream.codec_context.encode_lazy(None):
                packet.stream = stream
                container.mux(packet)
                tell()
    except (av.error.FFmpegError, ValueError) as error:
        chunk = f"chunk {frames.plan.first_sample} of level {frames.plan.level}"
        raise EncodeError(f"{chunk} could not be encoded with preset {preset.name!r}: {error}") from error
    return EncodedChunk(frames.plan, buffer.getvalue())


def _add_stream(
    container: av.container.OutputContainer, planes: Planes, preset: EncoderPreset, form: ChunkFormat
) -> VideoStream:
    stream = container.add_stream("libvpx-vp9", rate=form.frame_rate, options=dict(preset.options))
    context = stream.codec_context
    stream.height, stream.width = planes[0].shape[1:]
    stream.pix_fmt = "yuv420p"
    context.bit_rate = 0  # constant quality
    context.thread_count = preset.threads
    context.time_base = 1 / form.frame_rate
    context.color_range = form.colour_range
    context.colorspace = form.colour_space
    context.color_primaries = form.colour_primaries
    context.color_trc = form.colour_transfer
    return stream


def to_frame(planes: Planes, index: int) -> VideoFrame:
    """One sample as a frame whose pts is ``index``."""
    height, width = planes[0].shape[1:]
    frame = VideoFrame(width, height, "yuv420p")
    for target, source in zip(frame.planes, planes, strict=True):
        plane_view(target)[:] = source[index]
    frame.pts = index
    return frame


def decode_chunk(data: bytes) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All frames of a chunk: Y (H, W), U and V (H/2, W/2), uint8."""
    with av.open(io.BytesIO(data), "r", format="webm") as container:
        frames = [tuple(plane_view(plane).copy() for plane in frame.planes) for frame in container.decode(video=0)]
    return [(y, u, v) for y, u, v in frames]
