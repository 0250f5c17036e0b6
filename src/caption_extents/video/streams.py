"""Which of a file's video streams is the film: covers, previews and other angles are video streams too."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from caption_extents.errors import VideoError

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_LOOKED_AT_PACKETS = 2000
"""More than a minute of film: a stream that has had one picture by then does not move."""


def candidates(container: InputContainer) -> list[VideoStream]:
    """Video streams that are not marked as covers or thumbnails."""
    return [stream for stream in container.streams.video if not Disposition(stream.disposition) & _PICTURES]


def find_film(container: InputContainer, path: Path) -> int:
    """The index of the stream that players show; packets are read if there is a choice.

    A stream that moves goes before one with a single picture, one that is marked as the default before one that is not,
    a larger picture before a smaller one, and the first of equals.

    Raises:
        VideoError: there is no video stream.
    """
    found = candidates(container)
    if not found:
        cover = ", only a cover picture" if container.streams.video else ""
        raise VideoError(f"{str(path)!r} has no video stream{cover}")
    if len(found) == 1:
        return found[0].index
    moving = _moving(container, found)
    return max(found, key=lambda stream: (stream.index in moving, *_rank(stream))).index


def chosen_stream(container: InputContainer, path: Path, index: int) -> VideoStream:
    """The video stream of an index.

    Raises:
        VideoError: there is none, or it is a cover beside a film; names those that there are.
    """
    films = candidates(container)
    for stream in container.streams.video:
        if stream.index == index:
            if films and stream not in films:
                others = " or ".join(str(film.index) for film in films)
                raise VideoError(f"stream {index} of {str(path)!r} is a cover picture; take stream {others}")
            return stream
    there = ", ".join(f"{stream.index} ({describe(stream)})" for stream in container.streams.video) or "none"
    raise VideoError(f"stream {index} of {str(path)!r} is no video; its video streams are {there}")


def describe(stream: VideoStream) -> str:
    """A stream in a few words: codec, size, and what it is marked as."""
    context = cast("VideoCodecContext | None", stream.codec_context)
    size = f" {context.width}x{context.height}" if context is not None else ""
    marked = [flag.name.replace("_", " ") for flag in Disposition(stream.disposition) if flag.name]
    return f"{codec_name(stream) or 'unknown codec'}{size}{''.join(f', {mark}' for mark in marked)}"


def codec_name(stream: VideoStream) -> str:
    """FFmpeg's name of the codec, whichever library decodes it; empty where none does."""
    context = cast("VideoCodecContext | None", stream.codec_context)
    return "" if context is None else context.codec.canonical_name


def _rank(stream: VideoStream) -> tuple[bool, int, int]:
    context = cast("VideoCodecContext | None", stream.codec_context)
    area = context.width * context.height if context is not None else 0
    return bool(Disposition(stream.disposition) & Disposition.default), area, -stream.index


def _moving(container: InputContainer, found: list[VideoStream]) -> set[int]:
    """Indices of the streams with more than one packet, as far as the beginning of the file tells."""
    packets = dict.fromkeys((stream.index for stream in found), 0)
    try:
        for number, packet in enumerate(container.demux(found)):
            packets[packet.stream.index] += packet.size > 0
            if number >= _LOOKED_AT_PACKETS or min(packets.values()) > 1:
                break
    except (av.error.FFmpegError, IndexError):
        pass  # what has come so far decides
    return {index for index, count in packets.items() if count > 1}
