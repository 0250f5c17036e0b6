"""Pictures that change their size or format in mid-file, as in broadcasts, live streams and parts put together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch

import caption_extents as ce
from caption_extents.errors import DecodeError, InputError
from caption_extents.results.database import open_database
from caption_extents.samples import SampleBatch, plane_view
from caption_extents.storage.store import open_store
from caption_extents.video.crop import resolve_crop
from caption_extents.video.decoders.base import PictureChange
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.video.info import probe
from caption_extents.video.inspection import inspect_video
from caption_extents.video.nvdec import decoder as nvdec_decoder
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool
from caption_extents.video.random_access import frames_between
from caption_extents.video.timeline import build_timeline
from tests.media import picture
from tests.test_gpu_sessions import SOFTWARE, open_remote

SIZE = 160, 96
PART_FRAMES, RATE = 60, Fraction(10)
REGION = ce.CropRegion(0.1, 0.3, 0.9, 0.9)
# x264 writes the range of colours only if it is told more of them, and FFmpeg keeps the range of the part before.
OPTIONS = {
    "libx264": {"x264-params": "keyint=30:colormatrix=smpte170m:log-level=none", "bf": "2", "crf": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"},
    "libx265": {"x265-params": "keyint=30:log-level=none:pools=none:frame-threads=1", "crf": "10"},
    "mpeg2video": {"b": "6000000", "g": "15"},
}


def drawn(index: int, size: tuple[int, int], pixel_format: str = "yuv420p") -> av.VideoFrame:
    """The same blocks in any size."""
    frame = av.VideoFrame.from_ndarray(picture(index, *SIZE), format="rgb24")
    frame = frame.reformat(*size, format="rgb24", interpolation="POINT")
    return frame.reformat(format=pixel_format)


def encoded(codec: str, part: int, size: tuple[int, int], pixel_format: str) -> list[av.Packet[av.VideoStream]]:
    """The packets of one part, with times that go on where the part before ends."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = *size, pixel_format
    encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 30), Fraction(30), OPTIONS[codec]
    encoder.thread_count = 1
    packets = []
    for index in range(PART_FRAMES * part, PART_FRAMES * (part + 1)):
        frame = drawn(index, size, pixel_format)
        frame.pts = index
        packets += encoder.encode(frame)
    return [*packets, *encoder.encode(None)]


def put_together(path: Path, codec: str, parts: list[tuple[tuple[int, int], str]]) -> Path:
    """A file with one stream, of parts that were encoded each on its own."""
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=30))
        (stream.width, stream.height), stream.pix_fmt = parts[0][0], parts[0][1]
        for number, (size, pixel_format) in enumerate(parts):
            for packet in encoded(codec, number, size, pixel_format):
                packet.stream = stream
                container.mux(packet)
    return path


def expected_planes(count: int) -> list[np.ndarray]:
    """Y, U and V of the samples' crops before they were encoded, in the size of the first part."""
    drawings = [drawn(3 * sample, SIZE) for sample in range(count)]
    y, u, v = (np.stack([plane_view(frame.planes[index]).copy() for frame in drawings]) for index in range(3))
    return [y[:, 28:88, 16:144], u[:, 14:44, 8:72], v[:, 14:44, 8:72]]


def all_planes(batches: Iterable[SampleBatch]) -> list[np.ndarray]:
    return [np.concatenate(planes) for planes in zip(*(batch.planes for batch in batches), strict=True)]


def check_samples(batches: Iterable[SampleBatch]) -> None:
    found = all_planes(batches)
    for planes, expected in zip(found, expected_planes(len(found[0])), strict=True):
        assert planes.shape == expected.shape
        inner = np.abs(planes.astype(int) - expected)[:, 4:-4, 4:-4]
        assert inner.mean(axis=(1, 2)).max() < 8


@pytest.mark.parametrize(
    ("container", "codec"),
    [("ts", "libx264"), ("webm", "libvpx-vp9"), ("ts", "mpeg2video"), ("mkv", "mpeg2video")],
)
@pytest.mark.parametrize("sizes", [[SIZE, (320, 192), SIZE], [SIZE, (240, 144)], [SIZE, (120, 72), (640, 384)]])
def test_samples_of_each_part_show_the_same_place(
    container: str, codec: str, sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = put_together(tmp_path / f"parts.{container}", codec, [(size, "yuv420p") for size in sizes])
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples(REGION)
        check_samples(decoder)
    assert decoder.undecodable_samples == []
    changes = [PictureChange(20 * part, *size, "yuv420p") for part, size in enumerate(sizes) if part]
    assert decoder.picture_changes == changes
    found = {finding.name: finding for finding in inspect_video(path)}
    assert all(f"{change.width}x{change.height}" in found["changes"].detail for change in changes)


def test_headers_of_their_own(tmp_path: Path) -> None:
    """FLV, in which each part begins with the parameters of its encoder."""
    data = []
    for part, size in enumerate((SIZE, (320, 192))):
        path = tmp_path / f"{part}.flv"
        with av.open(str(path), "w") as container:
            # Without B frames, for which FLV shifts the times of a part that begins at zero, and of no other.
            stream = container.add_stream("libx264", rate=30, options={**OPTIONS["libx264"], "bf": "0"})
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
            for index in range(PART_FRAMES * part, PART_FRAMES * (part + 1)):
                frame = drawn(index, size)
                frame.pts, frame.time_base = index, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        data.append(path.read_bytes())
    path = tmp_path / "both.flv"
    path.write_bytes(data[0] + data[1][13:])
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples(REGION)
        check_samples(decoder)
    assert decoder.picture_changes == [PictureChange(20, 320, 192, "yuv420p")]


@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "yuv420p10le"])
def test_a_format_that_changes(pixel_format: str, tmp_path: Path) -> None:
    path = put_together(tmp_path / "parts.ts", "libx264", [(SIZE, "yuv420p"), (SIZE, pixel_format)])
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples(REGION)
        check_samples(decoder)
    assert decoder.undecodable_samples == []
    assert decoder.picture_changes == [PictureChange(20, *SIZE, pixel_format)]


@pytest.mark.parametrize("size", [(8, 8), (16, 8192), (8192, 8192)])
def test_sizes_that_nobody_films_in(size: tuple[int, int], tmp_path: Path) -> None:
    """Of a hostile file: what is too small counts as lost, and everything else is scaled."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuvj420p"
        for index, one in enumerate([SIZE] * 5 + [size] + [SIZE] * 5):
            encoder = av.CodecContext.create("mjpeg", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            (encoder.width, encoder.height), encoder.pix_fmt = one, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            picture = drawn(index, SIZE) if one == SIZE else av.VideoFrame(*one, "yuv420p")
            picture = picture.reformat(format="yuvj420p")
            picture.pts = index
            for packet in encoder.encode(picture):
                packet.stream = stream
                container.mux(packet)
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples((0.1, 0.8, 0.3, 1.0))
        assert sum(map(len, decoder)) == 11
    too_small = min(size) < 16
    assert decoder.undecodable_samples == ([5] if too_small else [])
    assert [change.sample for change in decoder.picture_changes] == ([] if too_small else [5, 6])


@pytest.mark.parametrize("first_is_full", [False, True])
def test_a_range_that_changes_with_the_size(first_is_full: bool, tmp_path: Path) -> None:
    """A chunk says one range of all its pixels, so all are in that of the first part."""
    formats = ["yuvj420p", "yuv420p"] if first_is_full else ["yuv420p", "yuvj420p"]
    parts = list(zip((SIZE, (320, 192)), formats, strict=True))
    path = put_together(tmp_path / "parts.ts", "libx264", parts)
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples(REGION)
        found = np.concatenate([batch.y for batch in decoder])
    assert [change.pixel_format for change in decoder.picture_changes] == formats[1:]
    expected = expected_planes(40)[0].astype(float)
    if first_is_full:
        expected = (expected - 16) * 255 / 219
    inner = np.abs(found.astype(float) - expected)[:, 4:-4, 4:-4]
    assert inner.mean(axis=(1, 2)).max() < 3


def test_pictures_of_sixteen_pixels(tmp_path: Path) -> None:
    """Too small to show anything, and no reason to fail."""
    path = put_together(tmp_path / "parts.ts", "mpeg2video", [(SIZE, "yuv420p"), ((16, 16), "yuv420p")])
    with ce.open_video(path, device="cpu") as video:
        decoder = video.samples((0.1, 0.8, 0.9, 1.0))
        assert sum(map(len, decoder)) == 40
    assert decoder.picture_changes == [PictureChange(20, 16, 16, "yuv420p")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "parts.ts"
    return put_together(path, "libx264", [(size, "yuv420p") for size in (SIZE, (320, 192), SIZE)])


@pytest.mark.parametrize("second", [((320, 192), "yuv420p"), (SIZE, "yuv422p")], ids=["size", "format"])
def test_segments_go_on_on_the_cpu(
    second: tuple[tuple[int, int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    first = (SIZE, "yuv420p")
    path = put_together(tmp_path / "parts.ts", "libx264", [first, first, second, first])
    facts = probe(path)
    timeline, crop = build_timeline(facts, RATE), resolve_crop(REGION, facts)
    alone = CpuDecoder(facts, timeline, crop)
    expected = all_planes(alone)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, RATE, region=REGION)) as decoder:
        found = list(decoder)
    for planes, others in zip(all_planes(found), expected, strict=True):
        np.testing.assert_array_equal(planes, others)
    assert [len(batch) for batch in found] == [80]
    assert decoder.name == "cpu (the picture changes in mid-file)"
    assert decoder.picture_changes == alone.picture_changes
    assert [change.sample for change in decoder.picture_changes] == [40, 60]
    assert decoder.undecodable_samples == []


def test_the_cpu_stops_when_it_is_told(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec_decoder, "_MAX_BATCH_SAMPLES", 32)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), parts, RATE, region=REGION)) as decoder:
        batches = iter(decoder)
        next(batches)
        decoder.close()
        with pytest.raises(InputError, match="was closed"):
            list(batches)


def test_what_is_lost_after_a_change_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that may lose few samples stops in the middle, and not when all is done."""
    monkeypatch.setattr(nvdec_decoder, "_MAX_BATCH_SAMPLES", 32)
    path = put_together(tmp_path / "parts.ts", "libx264", [(SIZE, "yuv420p"), *[((320, 192), "yuv420p")] * 4])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data[: middle + 188 * 20] + path.read_bytes()[-188 * 40 :])
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, RATE, region=REGION)) as decoder:
        told = [list(decoder.undecodable_samples) for _ in decoder]
    assert told[-1] == decoder.undecodable_samples
    assert told[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("container", "codec", "second"),
    [
        ("ts", "libx264", ((640, 384), "yuv420p")),
        ("webm", "libvpx-vp9", ((640, 384), "yuv420p")),
        ("webm", "libvpx-vp9", ((96, 64), "yuv420p")),
        ("ts", "libx264", ((32, 16), "yuv420p")),
        ("ts", "libx264", ((320, 192), "yuv420p10le")),
        ("ts", "libx264", ((320, 192), "yuv444p")),
        ("ts", "libx265", ((320, 192), "yuv420p10le")),
    ],
)
def test_a_gpu_and_a_cpu_give_the_same(
    container: str, codec: str, second: tuple[tuple[int, int], str], tmp_path: Path
) -> None:
    """Also where the engines refuse the second part: too small, too deep."""
    first = ((320, 192), "yuv420p")
    path = put_together(tmp_path / f"parts.{container}", codec, [first, second, first])
    shown = []
    for device in ("cpu", "auto"):
        with ce.open_video(path, device=device) as video:
            decoder = video.samples(REGION)
            begins_as = decoder.name
            shown.append(all_planes(decoder))
        assert [change.sample for change in decoder.picture_changes] == [20, 40]
    assert (begins_as, decoder.name) == ("nvdec", "cpu (the picture changes in mid-file)")
    for planes, others in zip(*shown, strict=True):
        np.testing.assert_array_equal(planes, others)
    with (
        ce.open_video(path, device="cuda") as video,
        pytest.raises(DecodeError, match="the picture changes in mid-file; use device"),
    ):
        list(video.samples(REGION))


def test_frames_between_samples(parts: Path) -> None:
    facts = probe(parts)
    crop, pts = resolve_crop(REGION, facts), build_timeline(facts, RATE).sample_pts
    (frames,) = frames_between(facts, crop, [(int(pts[19]), int(pts[21]))])
    assert [plane.shape for plane in frames.planes] == [(7, 60, 128), (7, 30, 64), (7, 30, 64)]


@pytest.mark.parametrize("options", [{}, {"isolate": True}, {"implementation": "sequential"}], ids=str)
def test_it_is_noted_in_the_result(options: dict[str, object], parts: Path, tmp_path: Path) -> None:
    job = ce.Job(str(parts), "t", "v", REGION, store=tmp_path, device="cpu", **options)  # type: ignore[arg-type]
    result = ce.run_job(job)
    assert [str(change) for change in result.picture_changes] == [
        "320x192 yuv420p from sample 20 on",
        "160x96 yuv420p from sample 40 on",
    ]
    database = open_database(open_store(tmp_path).get(result.caption_frame_extents_db_key))
    noted = json.loads(database.execute("SELECT picture_changes FROM run_metadata").fetchone()[0])
    assert noted == result.to_dict()["picture_changes"]
    assert noted[0] == {"sample": 20, "width": 320, "height": 192, "pixel_format": "yuv420p"}
