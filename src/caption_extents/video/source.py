"""Opening a video file safely, and the facts about it that everything else needs.

Videos come from strangers. Only known containers and codecs are opened, only through the ``file`` protocol, and only
the one video stream is read: a playlist or a script that names other files is refused before it is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import av.container
import av.error
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from caption_extents.errors import VideoError
from caption_extents.video.orientation import Orientation
from caption_extents.video.wholeness import lacks_index, missing_bytes
from caption_extents.watchdog import alive

CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "MP4, MOV",
    "matroska,webm": "MKV, WebM",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
    "avi": "AVI",
    "flv": "FLV",
}
"""Containers that may be opened, by FFmpeg's demuxer name."""

CODECS = frozenset(
    {
        *("h264", "hevc", "vp8", "vp9", "av1"),
        *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3", "h263", "flv1", "wmv2", "theora"),
        *("mjpeg", "prores", "dnxhd", "ffv1"),
    }
)
"""Codecs that may be decoded, by FFmpeg's names."""

WITHOUT_PRESENTATION_TIMES = frozenset({"avi"})
"""Containers that store the order of decoding only; what their demuxers call pts is a guess."""

SPARSE_PRESENTATION_TIMES = frozenset({"mpeg"})
"""Containers in which some frames have no time of their own: those that do not begin a packet of the container."""

_FALLBACK_FRAME_SECONDS = Fraction(1, 25)

MAX_SIDE_PX = 16_384
MAX_PIXELS = 8_192 * 8_192
MAX_STREAMS = 200
MAX_PROBE_PACKETS = 500
"""Packets of the video stream that are tried before it counts as undecodable."""
MAX_OPEN_SECONDS = 20.0
MAX_PACKETS_PER_SECOND = 1_000
"""Of video, on average; more are no film but an attempt to keep the machine busy."""

_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(CONTAINERS),
    "enable_drefs": "0",
    # One more than is allowed: demuxers leave further streams out without a word.
    "max_streams": str(MAX_STREAMS + 1),
    "probesize": str(5 << 20),
    "analyzeduration": str(5_000_000),
}
_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}


@dataclass(frozen=True)
class Colour:
    """Colour description as numbers of ITU-T H.273, passed from source to chunk unchanged."""

    range: int
    space: int
    primaries: int
    transfer: int


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video before it is decoded as a whole.

    Attributes:
        path: the file.
        container: FFmpeg's name of the demuxer.
        codec: FFmpeg's name of the codec.
        stream_index: index of the video stream in the file.
        width, height: size of decoded frames in pixels, before rotation.
        pixel_format: FFmpeg's name, for example ``yuv420p``.
        orientation: how decoded frames are turned for display.
        sample_aspect_ratio: width over height of a displayed pixel.
        colour: colour description.
        interlaced: whether a frame is two fields.
        time_base: seconds in a tick of pts.
        average_rate: frames a second from the header; None if unknown.
        first_pts: pts of the first frame that decodes, in ticks.
        size_bytes: of the file.
        missing_bytes: by which the file is shorter than its container says.
    """

    path: Path
    container: str
    codec: str
    stream_index: int
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
        """Whether each frame comes with the time at which it is shown; otherwise decoding in order tells."""
        return self.container not in WITHOUT_PRESENTATION_TIMES | SPARSE_PRESENTATION_TIMES

    @property
    def usual_duration(self) -> int:
        """Ticks that a frame is shown, by the header's average."""
        seconds = 1 / self.average_rate if self.average_rate else _FALLBACK_FRAME_SECONDS
        return max(1, round(seconds / self.time_base))


OpenFile = Callable[[], BinaryIO]
"""Opens a file for reading whose bytes are still arriving; reading waits for them."""


@contextmanager
def open_video(
    path: Path, thread_count: int = 1, arriving: OpenFile | None = None
) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    """Open a file for reading and find its video stream.

    Args:
        path: a file on this machine.
        thread_count: threads of the decoder.
        arriving: how to read the file, if it is not all there yet.

    Raises:
        VideoError: no such file, unknown container or codec, damaged header, or no video stream.
    """
    check_file(path)
    try:
        container = av.open(
            str(path.absolute()) if arriving is None else arriving(),
            mode="r",
            container_options=_OPEN_OPTIONS,
            metadata_errors="replace",
            timeout=(MAX_OPEN_SECONDS, None),
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if arriving is None and lacks_index(path):
            raise VideoError(
                f"{str(path)!r} has no index: the recording was cut off before the recorder wrote it, or the download "
                "before it came. Fetch it again; of a recording, the program untrunc makes an index from another file "
                "of the same camera"
            ) from error
        raise VideoError(
            f"cannot open {str(path)!r} as a video ({_reason(error)}); "
            f"known containers are {', '.join(CONTAINERS.values())}"
        ) from error
    try:
        stream = _video_stream(container, path)
        stream.codec_context.options = dict(_DECODER_OPTIONS)
        stream.codec_context.thread_count = thread_count
        stream.thread_type = "AUTO"
        yield container, stream
    finally:
        container.close()


def check_file(path: Path) -> None:
    """Return if there is a file to read.

    Raises:
        VideoError: there is none; says what there is.
    """
    shown = repr(str(path))
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(f"no such video file: {shown}") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot read {shown}: {_reason(error)}") from error
    if stat.S_ISDIR(kind):
        raise VideoError(f"{shown} is a folder; give a video file")
    if not stat.S_ISREG(kind):
        raise VideoError(f"{shown} is no file that can be read again, as a pipe is not; save it as a file first")
    if not os.access(path, os.R_OK):
        raise VideoError(f"cannot read {shown}: permission denied; give this user the right to read it")


def read_packets(container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """All packets of a stream, and an empty one at the end that flushes the decoder.

    In a damaged MPEG-TS new streams appear in mid-file, which PyAV does not expect: it raises IndexError for each of
    their packets, and can be asked for the next.
    """
    while True:
        try:
            for packet in container.demux(stream):
                alive()
                yield packet
        except IndexError:
            continue
        return


def decode_or_skip(packet: av.Packet[VideoStream]) -> list[VideoFrame]:
    """The frames that a packet releases; none where it is too damaged to decode."""
    try:
        frames = packet.decode()
    except av.error.FFmpegError:
        return []
    alive()
    return frames


class PresentationClock:
    """Tells when decoded frames are shown, in ticks. One clock reads one pass over a video, frame by frame.

    Where the container keeps no presentation times, frames leave the decoder in the order in which they are shown, and
    the decoding times of the packets that released them say when (as FFmpeg's own ``best_effort_timestamp`` does). The
    last frames are released by the end of the file: each is shown when the one before it ends. So is a frame without a
    time where the container leaves some out.

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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _video_stream(container: av.container.InputContainer, path: Path) -> VideoStream:
    if len(container.streams) > MAX_STREAMS:
        raise VideoError(f"{str(path)!r} has more than {MAX_STREAMS} streams, and at most {MAX_STREAMS} are allowed")
    # Cover pictures of music files are video streams too, with the attached_pic disposition.
    streams = [s for s in container.streams.video if not (s.disposition & s.disposition.attached_pic)]
    if not streams:
        raise VideoError(f"{str(path)!r} has no video stream")
    stream = streams[0]
    name = _codec(stream)
    if name not in CODECS:
        raise VideoError(
            f"{str(path)!r} has video of codec {name or 'unknown'!r}; known codecs are {', '.join(sorted(CODECS))}"
        )
    context = stream.codec_context
    _check_size(path, context.width, context.height)
    return stream


def _codec(stream: VideoStream) -> str:
    """FFmpeg's name of the codec, whichever library decodes it; empty where none does."""
    context = cast("VideoCodecContext | None", stream.codec_context)
    return "" if context is None else context.codec.canonical_name


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise VideoError(
            f"{str(path)!r} is {width}x{height} pixels; {MAX_SIDE_PX} a side and {MAX_PIXELS} in all are allowed"
        )


def probe(path: Path, arriving: OpenFile | None = None) -> VideoFacts:
    """Open a file, decode its first frame, and describe it; see :func:`open_video` for ``arriving``.

    Raises:
        VideoError: as :func:`open_video`, and when no frame decodes or the picture is too large or turned by an angle
            that is no multiple of 90 degrees.
    """
    with open_video(path, arriving=arriving) as (container, stream):
        frame = _first_frame(container, stream, path)
        _check_size(path, frame.width, frame.height)
        first_pts = PresentationClock(container.format.name, 1)(frame)
        if first_pts is None or stream.time_base is None:
            raise no_times(path)
        orientation = Orientation.from_frame(frame)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return VideoFacts(
            path=path,
            container=container.format.name,
            codec=_codec(stream),
            stream_index=stream.index,
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
            size_bytes=path.stat().st_size,
            # What is still arriving has its size from the start.
            missing_bytes=missing_bytes(path) if arriving is None else 0,
        )


def no_times(path: Path) -> VideoError:
    """What there is to say of a video whose frames have no timestamps."""
    return VideoError(
        f"{str(path)!r} gives frames no timestamps; encode it anew, for example: ffmpeg -fflags +genpts -i IN out.mkv"
    )


def _colour(frame: VideoFrame) -> Colour:
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if frame.format.is_rgb:
        # swscale turns RGB into limited-range BT.601.
        return Colour(range=1, space=6, primaries=primaries, transfer=transfer)
    full_range = frame.format.name.startswith("yuvj")
    # 0 says RGB, which these planes are not; 2 that nobody knows.
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
    because = f" ({_reason(error)})" if error else ""
    raise VideoError(f"no frame of {str(path)!r} can be decoded{because}; the file is empty or damaged")
