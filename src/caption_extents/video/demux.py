"""Opening a video file safely, and reading its packets.

Videos come from untrusted sources. Only known containers and codecs are opened, only through the ``file`` protocol, and
only the one video stream is read: a playlist or a script that names other files is refused before it is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av
import av.container
import av.error
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from caption_extents.errors import VideoError
from caption_extents.options import MAX_STREAMS
from caption_extents.video.streams import candidates, chosen_stream, codec_name, find_film
from caption_extents.video.truncation import lacks_index
from caption_extents.watchdog import report_progress

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

MAX_SIDE_PX = 16_384
MAX_PIXELS = 8_192 * 8_192
MAX_OPEN_SECONDS = 20.0
MAX_PACKETS_PER_SECOND = 1_000
"""Maximum average number of video packets per second; files with more are rejected as a denial-of-service attempt."""

_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(CONTAINERS),
    "enable_drefs": "0",
    # One more than is allowed, so that an excess is detected: demuxers silently ignore further streams.
    "max_streams": str(MAX_STREAMS + 1),
    "probesize": str(5 << 20),
    "analyzeduration": str(5_000_000),
}
_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}


OpenFile = Callable[[], BinaryIO]
"""Opens a file for reading whose bytes are still arriving; reading waits for them."""


@contextmanager
def open_container(
    path: Path, stream_index: int | None, thread_count: int = 1, arriving: OpenFile | None = None
) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    """Open a file for reading, with one of its video streams.

    Args:
        path: a file on this machine.
        stream_index: of the stream, as FFmpeg counts them; None for the film, as players choose it.
        thread_count: threads of the decoder.
        arriving: how to read the file, if it is not all there yet.

    Raises:
        VideoError: no such file, unknown container or codec, damaged header, or no such video stream.
    """
    check_file(path)
    container = _open(path, arriving)
    try:
        if stream_index is None:
            stream_index = find_film(container, path)
            if len(candidates(container)) > 1:
                # Its packets have been read to choose.
                container.close()
                container = _open(path, arriving)
        stream = chosen_stream(container, path, stream_index)
        _check_stream(stream, path)
        stream.codec_context.options = dict(_DECODER_OPTIONS)
        stream.codec_context.thread_count = thread_count
        stream.thread_type = "AUTO"
        yield container, stream
    finally:
        container.close()


def _open(path: Path, arriving: OpenFile | None) -> av.container.InputContainer:
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
        if arriving is None and _is_empty(path):
            raise VideoError(f"{str(path)!r} is empty; fetch it again") from error
        raise VideoError(
            f"cannot open {str(path)!r} as a video: it is damaged, or no {', '.join(CONTAINERS.values())} file "
            f"(FFmpeg says: {reason_of(error)})"
        ) from error
    if len(container.streams) > MAX_STREAMS:
        container.close()
        raise VideoError(f"{str(path)!r} has more than {MAX_STREAMS} streams, and at most {MAX_STREAMS} are allowed")
    return container


def _is_empty(path: Path) -> bool:
    """Whether a file has no bytes."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


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
        raise VideoError(f"cannot read {shown}: {reason_of(error)}") from error
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
                report_progress()
                yield packet
        except IndexError:
            continue
        return


def decode_or_skip(packet: av.Packet[VideoStream]) -> list[VideoFrame]:
    """The frames that the decoder returns for a packet; an empty list if the packet cannot be decoded."""
    try:
        frames = packet.decode()
    except av.error.FFmpegError:
        return []
    report_progress()
    return frames


def reason_of(error: Exception) -> str:
    """The shortest available description of an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _check_stream(stream: VideoStream, path: Path) -> None:
    name = codec_name(stream)
    if name not in CODECS:
        raise VideoError(
            f"{str(path)!r} has video of codec {name or 'unknown'!r}; known codecs are {', '.join(sorted(CODECS))}"
        )
    context = stream.codec_context
    check_size(path, context.width, context.height)


def check_size(path: Path, width: int, height: int) -> None:
    """Raise a VideoError if pictures are larger than allowed."""
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise VideoError(
            f"{str(path)!r} is {width}x{height} pixels; {MAX_SIDE_PX} a side and {MAX_PIXELS} in all are allowed"
        )
