"""Videos made by the tests, in many codecs, containers and timings, and an independent reading of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type


@dataclass(frozen=True)
class Recipe:
    """How a test video is made; timestamps are in ``time_base`` ticks."""

    name: str
    container: str = "mp4"
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    width: int = 160
    height: int = 96
    pts: Sequence[int] = tuple(range(45))
    time_base: Fraction = Fraction(1, 30)
    rate: Fraction = Fraction(30)
    options: dict[str, str] = field(default_factory=dict)
    muxer_options: dict[str, str] = field(default_factory=dict)
    full_range: bool = False
    rotation: int = 0
    mirror: bool = False
    sample_aspect_ratio: Fraction = Fraction(1)
    audio_first: bool = False


def picture(index: int, width: int, height: int) -> np.ndarray:
    """RGB picture of a frame: coarse random blocks, other ones in each frame."""
    rng = np.random.default_rng(index)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width])


def _encoder_options(recipe: Recipe) -> dict[str, str]:
    options = dict(recipe.options)
    if recipe.codec == "libx265":
        # On a busy machine its pool of threads can take minutes to end, and PyAV waits for it with Python's lock held.
        parameters = [options.get("x265-params", ""), "pools=none", "frame-threads=1"]
        options["x265-params"] = ":".join(filter(None, parameters))
    return options


def make_video(recipe: Recipe, folder: Path) -> Path:
    path = folder / f"{recipe.name}.{recipe.container}"
    with av.open(str(path), "w", container_options=dict(recipe.muxer_options)) as container:
        if recipe.audio_first:
            audio = container.add_stream("aac", rate=48000)
        stream = container.add_stream(recipe.codec, rate=recipe.rate, options=_encoder_options(recipe))
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, recipe.pixel_format
        stream.codec_context.time_base = recipe.time_base
        stream.codec_context.sample_aspect_ratio = recipe.sample_aspect_ratio
        stream.codec_context.thread_count = 1
        if recipe.full_range:
            stream.codec_context.color_range = 2
        if recipe.rotation or recipe.mirror:
            stream.set_display_rotation(recipe.rotation, hflip=recipe.mirror)
        if recipe.audio_first:
            for index in range(40):
                sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
                sound.sample_rate, sound.pts, sound.time_base = 48000, index * 1024, Fraction(1, 48000)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
        for index, pts in enumerate(recipe.pts):
            frame = av.VideoFrame.from_ndarray(picture(index, recipe.width, recipe.height), format="rgb24")
            frame = frame.reformat(format=recipe.pixel_format)
            frame.pts, frame.time_base = pts, recipe.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SIZE = 160, 96


def transport_stream(path: Path, units: Iterable[tuple[bytes, int, int, bool]]) -> Path:
    """Access units with pts, dts, and whether they are key frames, each in a packet of its own."""
    with av.open(str(path), "w", format="mpegts", options={"fflags": "-autobsf"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for data, pts, dts, is_key in units:
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 90_000), is_key
            packet.pts, packet.dts = pts, dts
            container.mux(packet)
    return path


def encode_h264(
    count: int, size: tuple[int, int] = SIZE, first: int = 0, **options: str
) -> list[av.Packet[av.VideoStream]]:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 30), Fraction(30), options
    packets = []
    for index in range(first, first + count):
        frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    return [*packets, *encoder.encode(None)]


@dataclass(frozen=True)
class ReferenceFrame:
    pts: int
    duration: int
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]


def decode_everything(path: Path) -> tuple[list[ReferenceFrame], Fraction]:
    """Every frame in presentation order as displayed, decoded by one thread, skipping nothing."""
    frames: list[ReferenceFrame] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            matrix = frame.side_data.get(Type.DISPLAYMATRIX)
            planes = [_displayed(plane, matrix) for plane in _in_420(frame)]
            # AVI has one constant frame rate and no timestamps: the n-th picture is shown at n.
            pts, duration = (len(frames), 1) if container.format.name == "avi" else (frame.pts, frame.duration or 0)
            frames.append(ReferenceFrame(pts, duration, tuple(planes)))
        return frames, Fraction(stream.time_base)


_DEEP_OR_DENSE = re.compile(r"yuvj?4(?P<chroma>20|44)p(?P<depth>1[02]|)(le)?")


def _in_420(frame: av.VideoFrame) -> list[np.ndarray]:
    """A frame's planes in 8-bit 4:2:0, with even sides."""
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    sizes = [(height, width), *[(height // 2, width // 2)] * 2]
    kind = _DEEP_OR_DENSE.fullmatch(frame.format.name)
    if kind is None:
        frame.make_writable()
        target = "yuvj420p" if frame.color_range == 2 and not frame.format.is_rgb else "yuv420p"
        frame, kind = frame.reformat(format=target), _DEEP_OR_DENSE.fullmatch(target)
    assert kind
    depth = int(kind["depth"] or 8)
    planes: list[np.ndarray] = []
    for plane, (h, w) in zip(frame.planes[:3], sizes, strict=True):
        rows = np.frombuffer(plane, np.uint8 if depth == 8 else np.dtype("<u2"))
        rows = rows.reshape(plane.height, -1)[:, : plane.width] // 2 ** (depth - 8)
        if kind["chroma"] == "44" and len(planes):
            rows = np.floor(rows[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3)) + 0.5)
        planes.append(rows[:h, :w].astype(np.uint8))
    return planes


def _displayed(plane: np.ndarray, matrix: object) -> np.ndarray:
    """Place every pixel where the display matrix says, one by one."""
    if matrix is None:
        return plane
    a, b, _, c, d, *_ = (int(np.sign(value)) for value in np.frombuffer(bytes(matrix), np.int32))
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
    x2, y2 = a * x + c * y, b * x + d * y
    x2, y2 = x2 - x2.min(), y2 - y2.min()
    result = np.empty((y2.max() + 1, x2.max() + 1), np.uint8)
    result[y2, x2] = plane
    return result


def reference_samples(path: Path, rate: Fraction) -> list[ReferenceFrame]:
    """The frame that a player shows k / rate seconds after the first, for every k before the last one ends."""
    frames, time_base = decode_everything(path)
    first = frames[0].pts
    gap = frames[-1].pts - frames[-2].pts if len(frames) > 1 else 0
    end = (frames[-1].pts + (frames[-1].duration or gap) - first) * time_base
    samples: list[ReferenceFrame] = []
    while Fraction(len(samples)) / rate < max(end, Fraction(1, 10**9)):
        now = Fraction(len(samples)) / rate
        samples.append([frame for frame in frames if (frame.pts - first) * time_base <= now][-1])
    return samples


def cut_off_beginning(video: Path, target: Path, seconds: Fraction) -> Path:
    """The same packets, earlier, so that the MP4's edit list says where to start."""
    with (
        av.open(str(video)) as source,
        av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        original = source.streams.video[0]
        stream = out.add_stream_from_template(original)
        assert original.time_base is not None
        shift = int(seconds / original.time_base)
        for packet in source.demux(original):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    return target
