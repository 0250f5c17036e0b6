"""Every sample against a reading of the file that decodes everything and picks frames by the definition."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from caption_extents.region import CropRegion
from caption_extents.samples import SampleBatch
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.decoder import NvdecDecoder
from caption_extents.video.timeline import build_timeline
from tests.engines import FailingEngine, SessionsHere, SoftwareEngine, open_decoder
from tests.media import Recipe, ReferenceFrame, cut_off_beginning, make_video, reference_samples

F = Fraction
B_FRAMES = {"bf": "3", "x264-params": "b-adapt=0:keyint=12:min-keyint=12:log-level=none"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=6:b-adapt=0:b-pyramid=normal:log-level=none"}
X265 = {"x265-params": "log-level=none:bframes=3:keyint=12"}
X265_OPEN = {"x265-params": "log-level=none:bframes=4:keyint=12:open-gop=1:b-adapt=0"}
QUICK_VP9 = {"deadline": "realtime", "cpu-used": "8"}
QUICK_AV1 = {"preset": "12", "svtav1-params": "keyint=20"}
VARIABLE = tuple(np.cumsum([0, 33, 34, 400, 10, 10, 10, 90, 33, 33, 250, 1, 1, 41, 42, 700, 33, 33, 33, 33]).tolist())

RECIPES = [
    *(
        Recipe(f"fps{name}", rate=rate, time_base=1 / rate, options=B_FRAMES)
        for name, rate in [
            ("23.976", F(24000, 1001)),
            ("25", F(25)),
            ("29.97", F(30000, 1001)),
            ("50", F(50)),
            ("59.94", F(60000, 1001)),
            ("7", F(7)),
        ]
    ),
    Recipe("variable", "mkv", pts=VARIABLE, time_base=F(1, 1000)),
    Recipe("variable-mp4", "mp4", pts=VARIABLE, time_base=F(1, 1000), options=B_FRAMES),
    Recipe("first-pts", "mkv", pts=tuple(range(1234, 1279)), options=B_FRAMES),
    Recipe("first-pts-ts", "ts", pts=tuple(range(5000, 5045)), options=B_FRAMES),
    Recipe("first-pts-mp4", "mp4", pts=tuple(range(40, 85)), options=B_FRAMES),
    Recipe("open-gop", options=OPEN_GOP),
    Recipe("open-gop-ts", "ts", options=OPEN_GOP),
    Recipe("h264-mkv", "mkv", options=B_FRAMES),
    Recipe("h264-avi", "avi", options=B_FRAMES),
    Recipe("hevc", codec="libx265", options=X265),
    Recipe("hevc-open-gop", "mkv", codec="libx265", options=X265_OPEN),
    Recipe("hevc-ts", "ts", codec="libx265", options=X265),
    Recipe("vp9-webm", "webm", codec="libvpx-vp9", options=QUICK_VP9),
    Recipe(
        "vp9-alt-ref", "webm", codec="libvpx-vp9", options={"cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    Recipe("vp8-webm", "webm", codec="libvpx", options=QUICK_VP9),
    Recipe("av1", "mp4", codec="libsvtav1", options=QUICK_AV1),
    Recipe("av1-webm", "webm", codec="libsvtav1", options=QUICK_AV1),
    Recipe("mpeg4", codec="mpeg4", options={"bf": "2"}),
    Recipe("mpeg4-avi", "avi", codec="mpeg4", options={"bf": "2"}),
    Recipe("msmpeg4v3-avi", "avi", codec="msmpeg4"),
    Recipe("wmv2-avi", "avi", codec="wmv2"),
    Recipe("flv1", "flv", codec="flv"),
    Recipe("mpeg1-ps", "mpg", codec="mpeg1video", rate=F(25), time_base=F(1, 25)),
    Recipe("mpeg2-ts", "ts", codec="mpeg2video", options={"bf": "2"}),
    Recipe("mpeg2-ps", "mpg", codec="mpeg2video", options={"bf": "2"}),
    Recipe("mjpeg-avi", "avi", codec="mjpeg", pixel_format="yuvj420p"),
    Recipe("10-bit", codec="libx265", pixel_format="yuv420p10le", options=X265),
    Recipe("12-bit", codec="libx265", pixel_format="yuv420p12le", options=X265),
    Recipe("hevc-444", codec="libx265", pixel_format="yuv444p", options=X265),
    Recipe("10-bit-444", codec="libx265", pixel_format="yuv444p10le", options=X265),
    Recipe("12-bit-444", codec="libx265", pixel_format="yuv444p12le", options=X265),
    Recipe("10-bit-rotated", codec="libx265", pixel_format="yuv420p10le", options=X265, rotation=90),
    Recipe("422", pixel_format="yuv422p"),
    Recipe("444", pixel_format="yuv444p"),
    Recipe("10-bit-422", "mkv", pixel_format="yuv422p10le"),
    Recipe("ffv1-rgb", "mkv", codec="ffv1", pixel_format="bgr0"),
    Recipe("full-range", pixel_format="yuvj420p", full_range=True),
    Recipe("full-range-444", pixel_format="yuvj444p", full_range=True),
    Recipe("odd-size", "mkv", codec="ffv1", width=161, height=97),
    Recipe("odd-size-vp9", "webm", codec="libvpx-vp9", width=161, height=97, options=QUICK_VP9),
    *(Recipe(f"rotated-{angle}", rotation=angle) for angle in (90, 180, -90)),
    Recipe("mirrored", mirror=True),
    Recipe("mirrored-90", rotation=90, mirror=True),
    Recipe("wide-pixels", sample_aspect_ratio=F(4, 3)),
    Recipe("one-frame", pts=(0,)),
    Recipe("two-frames", pts=(0, 1)),
    Recipe("shorter-than-a-sample", pts=(0, 1), rate=F(60), time_base=F(1, 60)),
    Recipe("one-frame-webm", "webm", codec="libvpx-vp9", pts=(0,), options=QUICK_VP9),
    Recipe("audio-first", audio_first=True, options=B_FRAMES),
    Recipe("audio-first-ts", "ts", audio_first=True, options=B_FRAMES),
    Recipe("interlaced", options={"flags": "+ildct+ilme", "x264-params": "log-level=none"}),
    Recipe("fragmented", options=B_FRAMES, muxer_options={"movflags": "frag_keyframe+empty_moov"}),
    Recipe("longer", pts=tuple(range(400)), options=B_FRAMES),
]


def open_segmented(
    path: Path, region: CropRegion, rate: Fraction, kind: type[SoftwareEngine] = SoftwareEngine
) -> NvdecDecoder:
    facts = probe(path)
    timeline, crop = build_timeline(facts, rate), resolve_crop(region, facts)
    return NvdecDecoder(facts, timeline, crop, SessionsHere(3, kind=kind))


def decode_samples(path: Path, region: CropRegion, rate: Fraction, threads: int = 2) -> list[SampleBatch]:
    facts = probe(path)
    decoder = open_decoder(facts, build_timeline(facts, rate), resolve_crop(region, facts), threads=threads)
    batches = list(decoder)
    assert decoder.undecodable_samples == []
    return batches


REGION = CropRegion(0.13, 0.4, 0.88, 0.97)


@pytest.mark.parametrize("rate", [F(10), F(30000, 1001)], ids=["10", "29.97"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_samples_are_the_frames_a_player_shows(recipe: Recipe, rate: Fraction, tmp_path: Path) -> None:
    path = make_video(recipe, tmp_path)
    assert_samples_are(path, rate, reference_samples(path, rate))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_segments_side_by_side_give_the_same(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if recipe.container in {"avi", "mpg"}:
        pytest.skip("timed by decoding, never cut into segments")
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    path = make_video(recipe, tmp_path)
    decoder = open_segmented(path, REGION, F(10))
    check_batches(list(decoder), path, reference_samples(path, F(10)))
    assert decoder.undecodable_samples == []


def test_key_frames_that_are_none_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With intra refresh a stream marks frames as key frames that cannot be decoded on their own."""
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    options = {"bf": "0", "x264-params": "intra-refresh=1:keyint=15:log-level=none"}
    path = make_video(Recipe("refresh", pts=tuple(range(150)), options=options), tmp_path)
    assert len(build_timeline(probe(path), F(10)).key_pts) > 3
    decoder = open_segmented(path, REGION, F(10))
    check_batches(list(decoder), path, reference_samples(path, F(10)))


def test_closing_ends_every_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    path = make_video(Recipe("long", pts=tuple(range(600)), options=B_FRAMES), tmp_path)
    before = threading.active_count()
    decoder = open_segmented(path, REGION, F(10))
    next(iter(decoder))
    assert threading.active_count() > before
    decoder.close()
    assert threading.active_count() == before
    assert list(decoder) == []


def test_an_error_of_a_session_is_raised(tmp_path: Path) -> None:
    path = make_video(Recipe("long", pts=tuple(range(60)), options=B_FRAMES), tmp_path)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(open_segmented(path, REGION, F(10), FailingEngine))
    assert threading.active_count() == before


def assert_samples_are(path: Path, rate: Fraction, expected: list[ReferenceFrame]) -> None:
    check_batches(decode_samples(path, REGION, rate), path, expected)


def check_batches(batches: list[SampleBatch], path: Path, expected: list[ReferenceFrame]) -> None:
    assert sum(map(len, batches)) == len(expected)
    assert [batch.first_sample for batch in batches] == list(range(0, len(expected), len(batches[0])))
    crop = resolve_crop(REGION, probe(path))
    for batch in batches:
        for offset in range(len(batch)):
            sample = batch.first_sample + offset
            for shift, plane, whole in zip((0, 1, 1), batch.planes, expected[sample].planes, strict=True):
                box = whole[crop.top >> shift : crop.bottom >> shift, crop.left >> shift : crop.right >> shift]
                np.testing.assert_array_equal(plane[offset], box, err_msg=f"sample {sample}")


@pytest.mark.parametrize("cut", [1, 7, 16])
def test_an_edit_list_that_cuts_off_the_beginning(cut: int, tmp_path: Path) -> None:
    """As editors trim without encoding anew: everything is stored, and the edit list says where to start."""
    original = make_video(Recipe("original", options=B_FRAMES), tmp_path)
    trimmed = cut_off_beginning(original, tmp_path / "trimmed.mp4", F(cut, 30))
    expected = reference_samples(trimmed, F(30))
    assert len(expected) == 45 - cut
    assert_samples_are(trimmed, F(30), expected)


@pytest.mark.parametrize("options", [B_FRAMES, OPEN_GOP], ids=["closed", "open"])
def test_unneeded_frames_are_found_in_h264(options: dict[str, str], tmp_path: Path) -> None:
    path = make_video(Recipe("skip", pts=tuple(range(120)), options=options), tmp_path)
    timeline = build_timeline(probe(path), F(10))
    assert len(timeline.skippable_pts) > 20
    assert not set(timeline.skippable_pts.tolist()) & set(timeline.sample_pts.tolist())


def test_unneeded_frames_are_found_in_hevc(tmp_path: Path) -> None:
    path = make_video(Recipe("skip", codec="libx265", pts=tuple(range(120)), options=X265), tmp_path)
    assert len(build_timeline(probe(path), F(10)).skippable_pts) > 20


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = make_video(Recipe("threads", pts=tuple(range(100)), options=OPEN_GOP), tmp_path)
    one, many = (decode_samples(path, REGION, F(10), threads) for threads in (1, 5))
    for a, b in zip(one, many, strict=True):
        for left, right in zip(a.planes, b.planes, strict=True):
            assert np.array_equal(left, right)


def test_an_hour_at_ten_a_second_has_36000_samples() -> None:
    from caption_extents.video.timeline import FrameIndex, place_samples

    pts = np.arange(3600 * 30, dtype=np.int64) * 512
    index = FrameIndex(pts, int(pts[-1]) + 512, np.empty(0, np.int64), np.empty(0, np.int64))
    timeline = place_samples(index, F(1, 15360), F(10))
    assert len(timeline) == 36_000
    np.testing.assert_array_equal(timeline.sample_pts, np.arange(36_000) * 3 * 512)
