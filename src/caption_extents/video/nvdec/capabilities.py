"""Decoding capabilities of a GPU's video decoders (NVDEC).

The number of decode engines and the supported codecs, bit depths and picture sizes are queried from the driver's
library (NVIDIA Video Codec SDK, ``cuvidGetDecoderCaps``), because neither PyTorch nor FFmpeg provide them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from caption_extents.errors import DecodeError, InputError
from caption_extents.video.info import VideoFacts
from caption_extents.video.nvdec import driver
from caption_extents.video.pixels import FORMATS, PLAIN, PixelFormat

_CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
"""``cudaVideoCodec`` numbers of the codecs whose standard fixes every decoded bit, by FFmpeg's names.

MPEG-2 and MPEG-4 part 2 leave the rounding of their transform open, so a GPU's pixels differ from a CPU's in the last
bit, and results would depend on the decoder.
"""

_CHROMA_420, _CHROMA_444 = 1, 3


class _DecoderCaps(ctypes.Structure):
    """``CUVIDDECODECAPS``."""

    _fields_: ClassVar = [
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte),
        ("counter_depth", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    ]


@dataclass(frozen=True)
class DecodeEngines:
    """Capabilities of a device's decode engines for one codec and format; sizes in pixels."""

    count: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    max_macroblocks: int

    def takes(self, width: int, height: int) -> bool:
        """Whether pictures of this size can be decoded."""
        macroblocks = -(-width // 16) * -(-height // 16)
        fits = self.min_width <= width <= self.max_width and self.min_height <= height <= self.max_height
        return fits and macroblocks <= self.max_macroblocks


@cache
def decode_engines(codec: str, ordinal: int, pixels: PixelFormat = PLAIN) -> DecodeEngines | None:
    """Query the capabilities of a device (by its number) for a codec and pixels; None if they are not supported."""
    library = "nvcuvid.dll" if sys.platform == "win32" else "libnvcuvid.so.1"
    try:
        ask = ctypes.CDLL(library).cuvidGetDecoderCaps
    except (OSError, AttributeError):
        return None
    try:
        driver.enter(ordinal)  # the driver answers for the context that is current in this thread
    except (OSError, DecodeError):
        return None
    chroma = _CHROMA_444 if pixels.is_dense else _CHROMA_420
    caps = _DecoderCaps(codec=_CODECS[codec], chroma=chroma, depth_minus_8=pixels.depth - 8)
    if ask(ctypes.byref(caps)) != 0 or not caps.supported:
        return None
    return DecodeEngines(
        count=max(1, caps.engines),
        min_width=caps.min_width,
        min_height=caps.min_height,
        max_width=caps.max_width,
        max_height=caps.max_height,
        max_macroblocks=caps.max_macroblocks,
    )


def gpu_cannot_decode(facts: VideoFacts, reason: str) -> InputError:
    """The error for a video that only a GPU was to decode."""
    return InputError(f"the GPU cannot decode {str(facts.path)!r}: {reason}; use device 'auto' or 'cpu'")


def why_not_nvdec(facts: VideoFacts, ordinal: int) -> str | None:
    """The reason why NVDEC cannot decode a video to the same pixels as the CPU decoder; None if it can."""
    if not facts.times_every_frame:
        return f"{facts.container} files do not time every frame, and are timed by decoding them on the CPU"
    if facts.codec not in _CODECS:
        return f"NVDEC does not decode {facts.codec} exactly"
    if facts.width % 2 or facts.height % 2:
        return f"{facts.width}x{facts.height} is odd, and the decoders take even sizes"
    pixels = FORMATS.get(facts.pixel_format)
    if pixels is None or facts.pixel_format == "yuva420p":
        return f"pixels are {facts.pixel_format}, which the CPU converts"
    engines = decode_engines(facts.codec, ordinal, pixels)
    if engines is None:
        return (
            f"the decoders of {driver.device_name(ordinal)} do not know {facts.codec} with {facts.pixel_format} pixels"
        )
    if not engines.takes(facts.width, facts.height):
        return (
            f"{facts.width}x{facts.height} is outside what the decoders take, {engines.min_width}x{engines.min_height} "
            f"to {engines.max_width}x{engines.max_height} pixels and {engines.max_macroblocks} macroblocks"
        )
    return None
