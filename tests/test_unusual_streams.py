"""Streams as broadcasts, hardware encoders and older tools write them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from caption_extents.errors import VideoError
from caption_extents.region import CropRegion
from caption_extents.samples import plane_view
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from caption_extents.video.nvdec import segments
from caption_extents.video.random_access import frames_between
from caption_extents.video.timeline import build_timeline
from tests.fields import field_pairs, without_vui
from tests.media import SIZE, Recipe, encode_h264, make_video, picture, reference_samples, transport_stream
from tests.test_exactness import REGION, assert_samples_are, check_batches, decode_samples, open_segmented

RATE = Fraction(10)
WHOLE = CropRegion(0, 0, 1, 1)


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)


def test_frames_in_two_fields_with_a_time_each(tmp_path: Path) -> None:
    """Interlaced H.264 in a transport stream (PAFF): the second field's time is not that of another frame."""
    lumas = [picture(index, *SIZE)[..., 0] for index in range(75)]
    units = []
    for index, pair in enumerate(field_pairs(lumas, group=10)):
        units += [
            (field, 90_000 + 3600 * index + 1800 * at, index % 10 == 0 and not at) for at, field in enumerate(pair)
        ]
    path = transport_stream(tmp_path / "fields.ts", ((data, pts, pts, key) for data, pts, key in units))
    for rate, step in ((10, 2.5), (25, 1)):
        batches = decode_samples(path, WHOLE, Fraction(rate))
        shown = np.concatenate([batch.y for batch in batches])
        assert len(shown) == 75 / step
        for sample, luma in enumerate(shown):
            np.testing.assert_array_equal(luma, np.clip(lumas[int(sample * step)], 1, 254))
    decoder = open_segmented(path, WHOLE, RATE)
    for batch, expected in zip(decoder, decode_samples(path, WHOLE, RATE), strict=True):
        assert np.array_equal(batch.y, expected.y)
    assert len(build_timeline(probe(path), RATE).key_pts) == 8


def test_frames_that_are_never_shown(tmp_path: Path) -> None:
    """VP8 stores them as packets of their own, for other frames to refer to."""
    shown = make_video(Recipe("shown", "webm", "libvpx", options={"deadline": "realtime"}), tmp_path)
    path = tmp_path / "hidden.webm"
    with av.open(str(shown)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            if number % 7 == 6:
                data = bytearray(bytes(packet))
                data[0] &= ~0x10
                hidden = av.Packet(bytes(data))
                hidden.stream, hidden.time_base = stream, packet.time_base
                hidden.pts = hidden.dts = packet.pts - 10
                target.mux(hidden)
            packet.stream = stream
            target.mux(packet)
    expected = reference_samples(path, Fraction(30))
    assert len(expected) == 45
    assert_samples_are(path, Fraction(30), expected)


@pytest.mark.parametrize("frames", ["3", "5"])
def test_reordering_that_is_not_announced(frames: str, tmp_path: Path) -> None:
    """Hardware encoders leave out how many B frames are shown late; each decoder has to find out, and lose nothing."""
    x264 = f"bframes={frames}:b-pyramid=normal:keyint=24:min-keyint=24:b-adapt=0:scenecut=0:log-level=none"
    packets = encode_h264(240, **{"x264-params": x264})
    units = (
        (without_vui(bytes(p)), 90_000 + 3000 * p.pts, 90_000 + 3000 * p.dts, p.is_keyframe)
        for p in packets
        if p.pts is not None and p.dts is not None
    )
    path = transport_stream(tmp_path / "late.ts", units)
    expected = reference_samples(path, RATE)
    assert len(expected) == 80
    decoder = open_segmented(path, REGION, RATE)
    check_batches(list(decoder), path, expected)
    assert decoder.undecodable_samples == []


def test_parameters_that_change_on_the_way(tmp_path: Path) -> None:
    """FLV of two parts, each with a header of its own: who starts in the middle would decode with the first one's."""
    parts = []
    for part, crf in enumerate(("20", "26")):
        x264 = "keyint=15:min-keyint=15:cabac=0:log-level=none"
        pts = tuple(range(300 * part, 300 * part + 300))
        recipe = Recipe(f"{part}", "flv", pts=pts, options={"crf": crf, "x264-params": x264})
        parts.append(make_video(recipe, tmp_path).read_bytes())
    path = tmp_path / "both.flv"
    path.write_bytes(parts[0] + parts[1][13:])
    expected = reference_samples(path, RATE)
    assert len(expected) == 200
    decoder = open_segmented(path, REGION, RATE)
    check_batches(list(decoder), path, expected)
    assert decoder.undecodable_samples == []
    assert_samples_are(path, RATE, expected)


def test_a_program_stream_that_does_not_time_every_frame(tmp_path: Path) -> None:
    """Several small frames in one packet, of which only the first has a time."""
    options = {"b": "30000", "bf": "0", "x264-params": "log-level=none"}
    path = tmp_path / "sparse.mpg"
    with av.open(str(path), "w", format="vob") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(150):
            frame = av.VideoFrame.from_ndarray(picture(index // 30, *SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        frames = [(frame.pts, plane_view(frame.planes[0]).copy()) for frame in container.decode(video=0)]
    assert len(frames) == 150
    assert sum(pts is None for pts, _ in frames) > 50
    shown = np.concatenate([batch.y for batch in decode_samples(path, WHOLE, RATE)])
    np.testing.assert_array_equal(shown, np.stack([frame for _, frame in frames[::3]]))


def test_a_matrix_that_is_for_other_pixels(tmp_path: Path) -> None:
    """Marked as RGB and stored as YUV: the mark cannot be passed on to VP9, and means nothing."""
    options = {"x264-params": "colormatrix=GBR:log-level=none"}
    facts = probe(make_video(Recipe("marked", "mkv", options=options), tmp_path))
    assert facts.pixel_format == "yuv420p"
    assert facts.colour.space == 2


@pytest.mark.parametrize("size", [(96, 64), (192, 112)])
def test_frames_of_another_size_are_scaled(size: tuple[int, int], tmp_path: Path) -> None:
    options = {"bf": "0", "x264-params": "keyint=15:log-level=none"}
    packets = [*encode_h264(60, **options), *encode_h264(30, size, 60, **options)]
    units = ((bytes(p), 90_000 + 3000 * k, 90_000 + 3000 * k, p.is_keyframe) for k, p in enumerate(packets))
    path = transport_stream(tmp_path / "sizes.ts", units)
    facts = probe(path)
    times = (facts.first_pts + 3000 * 57, facts.first_pts + 3000 * 63)
    (frames,) = frames_between(facts, resolve_crop(WHOLE, facts), [times])
    assert frames.pts == [times[0] + 3000 * k for k in range(7)]
    assert frames.planes[0].shape == (7, facts.height, facts.width)


@pytest.mark.parametrize("late", [10, 40])
def test_a_clock_that_goes_back(late: int, tmp_path: Path) -> None:
    """Another recording after the first, as ``cat`` leaves them, is not lost in silence; a few packets are damage."""
    options = {"bf": "0", "x264-params": "log-level=none"}
    path = tmp_path / "both.ts"
    for number, count in enumerate((90, late)):
        packets = enumerate(encode_h264(count, first=90 * number, **options))
        units = ((bytes(p), 90_000 + 3000 * k, 90_000 + 3000 * k, p.is_keyframe) for k, p in packets)
        part = transport_stream(tmp_path / "part.ts", units)
        with path.open("ab") as both:
            both.write(part.read_bytes())
    if late == 10:
        assert len(build_timeline(probe(path), RATE)) == 30
    else:
        with pytest.raises(VideoError, match=r"go back by 3\.0 s at frame 90.* ffmpeg -i IN -c copy out\.mkv"):
            build_timeline(probe(path), RATE)
