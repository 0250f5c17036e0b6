"""Properties of a video that are known after decoding its first frame, and the presentation times of its frames."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.container
import av.error
import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from caption_extents.errors import VideoError
from caption_extents.video.demux import OpenFile, check_size, open_container, read_packets, reason_of
from caption_extents.video.streams import candidates, codec_name
from caption_extents.video.truncation import missing_bytes


@dataclass(frozen=True)
class Orientation:
    """Transpose first, then mirror: ``displayed = decoded(.T)(mirrored)``."""

    transpose: bool = False
    mirror_horizontal: bool = False
    mirror_vertical: bool = False

    @classmethod
    def from_frame(cls, frame: VideoFrame) -> Orientation:
        """Read the frame's display matrix; without one the frame is shown as it is.

        Raises:
            VideoError: the matrix turns by an angle that is no multiple of 90 degrees.
        """
        data = frame.side_data.get(cast(Any, Type.DISPLAYMATRIX))
        if data is None:
            return cls()
        # Displayed x = a*x + c*y, displayed y = b*x + d*y, in 16.16 fixed point (FFmpeg's libavutil/display.h).
        a, b, _, c, d = struct.unpack("=5i", bytes(cast(Any, data))[:20])
        if (a, b, c, d) == (0, 0, 0, 0):
            return cls()
        size = max(map(abs, (a, b, c, d)))
        if max(abs(b), abs(c)) * 100 < size:
            return cls(False, a < 0, d < 0)
        if max(abs(a), abs(d)) * 100 < size:
            return cls(True, c < 0, b < 0)
        angle = math.degrees(math.atan2(b, a))
        raise VideoError(f"the video is to be shown turned by {angle:.1f} degrees; only multiples of 90 are supported")

    def display_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the displayed picture for a decoded frame."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, planes: np.ndarray) -> np.ndarray:
        """Turn planes (..., rows, columns) of decoded frames as they are displayed; a view, never a copy."""
        if self.transpose:
            planes = planes.swapaxes(-2, -1)
        if self.mirror_horizontal:
            planes = planes[..., ::-1]
        if self.mirror_vertical:
            planes = planes[..., ::-1, :]
        return planes

    def to_decoded(
        self, left: int, top: int, right: int, bottom: int, width: int, height: int
    ) -> tuple[int, int, int, int]:
        """A box of the displayed picture as a box of the decoded frame of the given size."""
        display_width, display_height = self.display_size(width, height)
        if self.mirror_horizontal:
            left, right = display_width - right, display_width - left
        if self.mirror_vertical:
            top, bottom = display_height - bottom, display_height - top
        return (top, left, bottom, right) if self.transpose else (left, top, right, bottom)


WITHOUT_PRESENTATION_TIMES = frozenset({"avi"})
"""Containers that store no presentation times, only the decoding order; the pts of their demuxers are estimates."""

SPARSE_PRESENTATION_TIMES = frozenset({"mpeg"})
"""Containers in which frames that do not begin a container packet have no timestamp."""

MAX_PROBE_PACKETS = 500
"""Packets of the video stream that are tried before it counts as undecodable."""

_FALLBACK_FRAME_SECONDS = Fraction(1, 25)


@dataclass(frozen=True)
class Colour:
    """Colour description as numbers of ITU-T H.273, passed from source to chunk unchanged."""

    range: int
    space: int
    primaries: int
    transfer: int


_FRACTION = re.compile(r"-?[0-9]{1,30}(/[0-9]{1,30})?")


def _fraction(text: str) -> Fraction:
    """A fraction as :meth:`VideoFacts.to_json` writes it; a number such as 1e99999999 would take minutes to compute."""
    if not _FRACTION.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no fraction")
    return Fraction(text)


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video before it is decoded as a whole.

    Attributes:
        path: the file.
        container: FFmpeg's name of the demuxer.
        codec: FFmpeg's name of the codec.
        width, height: size of decoded frames in pixels, before rotation.
        pixel_format: FFmpeg's name, for example ``yuv420p``.
        orientation: how decoded frames are turned for display.
        sample_aspect_ratio: width over height of a displayed pixel.
        colour: colour description.
        interlaced: whether a frame is two fields.
        time_base: seconds in a tick of pts.
        average_rate: frames a second from the header; None if unknown.
        first_pts: pts of the first frame that decodes, in ticks.
        first_sample_seconds: when that frame is shown on a player's clock, which starts where the container does.
        stream_index: of the video stream, as FFmpeg counts them.
        video_streams: indices of all video streams but covers.
        size_bytes: of the file.
        missing_bytes: by which the file is shorter than its container says.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    pixel_format: str
    orientation: Orientation
    sample_aspect_ratio: Fraction
    colour: Colour
    interlaced: bool
    time_base: Fraction
    average_rate: Fraction | None
    first_pts: int
    first_sample_seconds: Fraction
    stream_index: int
    video_streams: tuple[int, ...]
    size_bytes: int
    missing_bytes: int = 0

    @property
    def display_width(self) -> int:
        """Width of the displayed picture in pixels (an odd last column of the frame is dropped)."""
        return self.orientation.display_size(self.width // 2 * 2, self.height // 2 * 2)[0]

    @property
    def display_height(self) -> int:
        """Height of the displayed picture in pixels (an odd last row of the frame is dropped)."""
        return self.orientation.display_size(self.width // 2 * 2, self.height // 2 * 2)[1]

    @property
    def times_every_frame(self) -> bool:
        """Whether the container stores a presentation time for each frame; otherwise times are found by decoding."""
        return self.container not in WITHOUT_PRESENTATION_TIMES | SPARSE_PRESENTATION_TIMES

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the path."""
        plain = {name: value for name, value in asdict(self).items() if name != "path"}
        return {name: str(value) if isinstance(value, Fraction) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any], path: Path) -> VideoFacts:
        """Inverse of :meth:`to_json`, also for data that cannot be trusted.

        Raises:
            ArithmeticError, AttributeError, KeyError, TypeError, ValueError: the data is not of this form.
        """
        values = {field.name: data[field.name] for field in fields(cls) if field.name != "path"}
        values |= {
            name: _fraction(values[name]) for name in ("sample_aspect_ratio", "time_base", "first_sample_seconds")
        }
        values["average_rate"] = None if values["average_rate"] is None else _fraction(values["average_rate"])
        values["orientation"] = Orientation(**{name: bool(v) for name, v in values["orientation"].items()})
        values["colour"] = Colour(**{name: int(v) for name, v in values["colour"].items()})
        values["video_streams"] = tuple(map(int, values["video_streams"]))
        values["interlaced"] = bool(values["interlaced"])
        for name in ("width", "height", "first_pts", "stream_index", "size_bytes", "missing_bytes"):
            values[name] = int(values[name])
        return cls(path=path, **values)

    def seconds_at(self, pts: int) -> float:
        """A time in ticks on a player's clock, which starts where the container does."""
        return float(self.first_sample_seconds + (pts - self.first_pts) * self.time_base)

    @property
    def usual_duration(self) -> int:
        """Duration of a frame in ticks, according to the average frame rate in the header."""
        seconds = 1 / self.average_rate if self.average_rate else _FALLBACK_FRAME_SECONDS
        return max(1, round(seconds / self.time_base))


class PresentationClock:
    """Computes the presentation times of decoded frames, in ticks. It must be called once for every frame, in order.

    If the container stores no presentation times, frames leave the decoder in presentation order, and the time of a
    frame is the decoding time of the packet that released it (like FFmpeg's ``best_effort_timestamp``). The last frames
    are released when the decoder is flushed: each is shown when the one before it ends. The same applies to frames
    without a timestamp in containers that do not store one for every frame.

    Args:
        container: FFmpeg's name of the demuxer.
        usual_duration: ticks that a frame is shown.
    """

    def __init__(self, container: str, usual_duration: int) -> None:
        self._guessed, self._sparse = container in WITHOUT_PRESENTATION_TIMES, container in SPARSE_PRESENTATION_TIMES
        self._usual_duration = usual_duration
        self._last: int | None = None

    def __call__(self, frame: VideoFrame) -> int | None:
        """The time of the next frame; None if it is unknown."""
        if self._guessed:
            if frame.dts is not None:
                self._last = frame.dts
            elif self._last is not None:
                self._last += frame.duration or 1
            return self._last
        if not self._sparse:
            return frame.pts
        if frame.pts is not None:
            self._last = frame.pts
        elif self._last is not None:
            self._last += self._usual_duration
        return self._last


def probe(path: Path, stream_index: int | None = None, arriving: OpenFile | None = None) -> VideoFacts:
    """Open a file, decode its first frame, and describe it; arguments as of :func:`open_container`.

    Raises:
        VideoError: as :func:`open_container`, and when no frame decodes, or the picture is too large or turned by an
            angle that is no multiple of 90 degrees.
    """
    with open_container(path, stream_index, arriving=arriving) as (container, stream):
        frame = _first_frame(container, stream, path)
        check_size(path, frame.width, frame.height)
        first_pts = PresentationClock(container.format.name, 1)(frame)
        if first_pts is None or stream.time_base is None:
            raise no_times(path)
        orientation = Orientation.from_frame(frame)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return VideoFacts(
            path=path,
            container=container.format.name,
            codec=codec_name(stream),
            width=frame.width,
            height=frame.height,
            pixel_format=frame.format.name,
            orientation=orientation,
            sample_aspect_ratio=1 / aspect if orientation.transpose else aspect,
            colour=_colour(frame),
            interlaced=bool(frame.interlaced_frame),
            time_base=Fraction(stream.time_base),
            average_rate=Fraction(stream.average_rate) if stream.average_rate else None,
            first_pts=first_pts,
            first_sample_seconds=max(Fraction(0), first_pts * stream.time_base - _clock_start(container)),
            stream_index=stream.index,
            video_streams=tuple(one.index for one in candidates(container)),
            size_bytes=path.stat().st_size,
            # A file that is still arriving has its full size from the start, so this cannot be determined yet.
            missing_bytes=missing_bytes(path) if arriving is None else 0,
        )


def _clock_start(container: av.container.InputContainer) -> Fraction:
    """Where a player's clock is zero, in seconds on the container's: the earliest start of its streams, as FFmpeg says.

    Players begin to count there (FFmpeg with all streams mapped, and mpv but for its own MKV demuxer), so subtitles
    must too.
    """
    starts = [
        Fraction(s.start_time) * Fraction(s.time_base or 0) for s in container.streams if s.start_time is not None
    ]
    microseconds: int | None = container.start_time
    if microseconds is None:
        return min(starts, default=Fraction(0))
    start = Fraction(microseconds, av.time_base)
    # It is rounded to microseconds; the stream that starts there says it exactly.
    return next((exact for exact in starts if abs(exact - start) < Fraction(1, av.time_base)), start)


def no_times(path: Path) -> VideoError:
    """The error for a video whose frames have no timestamps."""
    return VideoError(
        f"{str(path)!r} gives frames no timestamps; encode it anew, for example: ffmpeg -fflags +genpts -i IN out.mkv"
    )


def _colour(frame: VideoFrame) -> Colour:
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if frame.format.is_rgb:
        # swscale turns RGB into limited-range BT.601.
        return Colour(range=1, space=6, primaries=primaries, transfer=transfer)
    full_range = frame.format.name.startswith("yuvj")
    # 0 means RGB, which these planes are not; 2 means unspecified.
    space = int(frame.colorspace) or 2
    return Colour(2 if full_range else int(frame.color_range), space, primaries, transfer)


def _first_frame(container: av.container.InputContainer, stream: VideoStream, path: Path) -> VideoFrame:
    error: Exception | None = None
    try:
        for index, packet in enumerate(read_packets(container, stream)):
            if packet.has_sidedata("encryption_info"):
                raise VideoError(
                    f"{str(path)!r} is encrypted (CENC, DRM) and cannot be decoded; give a copy without protection"
                )
            try:
                for frame in packet.decode():
                    if isinstance(frame, VideoFrame) and not frame.is_corrupt:
                        return frame
            except av.error.FFmpegError as reason:
                error = reason
            if index >= MAX_PROBE_PACKETS:
                break
    except av.error.FFmpegError as reason:
        error = reason
    because = f" ({reason_of(error)})" if error else ""
    raise VideoError(f"no frame of {str(path)!r} can be decoded{because}; the file is empty or damaged")
