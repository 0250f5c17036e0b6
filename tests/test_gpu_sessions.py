"""Decoder sessions in processes: what a GPU's are, with engines of the CPU in them."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from caption_extents import CropRegion
from caption_extents.children import Children
from caption_extents.errors import DecodeError, VideoError
from caption_extents.video.crop import resolve_crop
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess
from caption_extents.video.info import probe
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec import sessions as gpu_sessions
from caption_extents.video.nvdec.decoder import NvdecDecoder
from caption_extents.video.nvdec.scheduler import SegmentReader
from caption_extents.video.nvdec.sessions import GpuSessions, SessionPool
from caption_extents.video.nvdec.worker import EngineSpec, SessionProcess
from caption_extents.video.timeline import build_timeline
from tests.media import Recipe, cut_off_beginning, make_video, reference_samples
from tests.test_exactness import B_FRAMES, OPEN_GOP, RECIPES, REGION, check_batches

TOLD = {"fps29.97", "open-gop", "hevc", "vp9", "av1", "rotated-90", "longer", "mpegts", "one-frame"}
SOFTWARE = EngineSpec("tests.engines", "SoftwareEngine")


@pytest.fixture(autouse=True)
def sessions_for_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuSessions, "_session_count", lambda self, facts: 3)


def open_remote(
    gpu: GpuSessions,
    path: Path,
    rate: Fraction,
    remote_reader: SegmentReader | None = None,
    region: CropRegion = REGION,
) -> NvdecDecoder:
    facts = probe(path)
    timeline, crop = build_timeline(facts, rate), resolve_crop(region, facts)
    return NvdecDecoder(facts, timeline, crop, gpu, remote_reader=remote_reader)


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if recipe.name in TOLD or recipe.name.startswith(("open", "rot"))],
    ids=lambda recipe: recipe.name,
)
def test_samples_are_the_frames_a_player_shows(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    path = make_video(recipe, tmp_path)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, Fraction(10))) as decoder:
        check_batches(list(decoder), path, reference_samples(path, Fraction(10)))
    assert decoder.undecodable_samples == []


def test_parts_of_one_long_segment_come_in_order(tmp_path: Path) -> None:
    path = make_video(Recipe("one-group", pts=tuple(range(600)), options={"bf": "0", "g": "1000"}), tmp_path)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, Fraction(30))) as decoder:
        check_batches(list(decoder), path, reference_samples(path, Fraction(30)))


def test_key_frames_that_are_none_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    options = {"bf": "0", "x264-params": "intra-refresh=1:keyint=15:log-level=none"}
    path = make_video(Recipe("refresh", pts=tuple(range(150)), options=options), tmp_path)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, Fraction(10))) as decoder:
        check_batches(list(decoder), path, reference_samples(path, Fraction(10)))


def test_a_damaged_key_frame_costs_one_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The film is still decoded side by side; what depends on the damage, five samples, is anybody's guess."""
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    options = {"bf": "0", "x264-params": "keyint=15:min-keyint=15:log-level=none"}
    path = make_video(Recipe("long", pts=tuple(range(300)), options=options), tmp_path)
    with av.open(str(path)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
    data = bytearray(path.read_bytes())
    middle, end = keys[9].pos + keys[9].size // 2, keys[9].pos + keys[9].size
    data[middle:end] = bytes(end - middle)
    path.write_bytes(data)
    facts = probe(path)
    timeline, crop = build_timeline(facts, Fraction(10)), resolve_crop(REGION, facts)
    alone = CpuDecoder(facts, timeline, crop, threads=1)
    expected, begun = list(alone), list[int]()
    assert alone.undecodable_samples == [45]
    gpu = GpuSessions(SessionPool(0, kind=SOFTWARE))
    begin = gpu.begin
    monkeypatch.setattr(gpu, "begin", lambda work, there: begun.append(len(work.spans)) or begin(work, there))
    with closing(open_remote(gpu, path, Fraction(10))) as decoder:
        found = list(decoder)
    assert begun == [20, 19]
    assert decoder.undecodable_samples == [45]
    whole = [*range(46), *range(50, 100)]
    luma, other = (np.concatenate([batch.y for batch in batches]) for batches in (found, expected))
    assert np.array_equal(luma[whole], other[whole])


def test_a_large_film_in_one_piece_is_decoded_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sessions, "_SHARED_BYTES", 0)
    monkeypatch.setattr(segments, "cut_segments", None)
    path = make_video(Recipe("one-group", pts=tuple(range(300)), options={"bf": "2", "g": "1000"}), tmp_path)
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, Fraction(30))) as decoder:
        check_batches(list(decoder), path, reference_samples(path, Fraction(30)))
    assert decoder.undecodable_samples == []


@pytest.mark.parametrize("least", [3, 1000], ids=["segments", "one-piece"])
def test_what_cannot_be_sent_is_decoded_here(least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", least)
    original = make_video(Recipe("long", pts=tuple(range(100)), options={"g": "15", "bf": "0"}), tmp_path)
    trimmed = cut_off_beginning(original, tmp_path / "trimmed.mp4", Fraction(40, 30))
    facts = probe(trimmed)
    expected = list(CpuDecoder(facts, build_timeline(facts, Fraction(10)), resolve_crop(REGION, facts), threads=1))
    with closing(open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), trimmed, Fraction(10))) as decoder:
        found = list(decoder)
    assert decoder.undecodable_samples == []
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


@pytest.mark.parametrize("long_bytes", [None, 0, 1 << 30], ids=["not-ready", "all-ready", "one-ready"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_decoding_begins_before_anybody_asks(
    codec: str, long_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    monkeypatch.setattr(gpu_sessions, "why_not_nvdec", lambda facts, ordinal: None)
    monkeypatch.setattr(gpu_sessions, "_LONG_BYTES", long_bytes)
    options = OPEN_GOP if codec == "libx264" else {"g": "30"}
    container = "mkv" if codec == "libvpx-vp9" else "mp4"
    path = make_video(
        Recipe("long", codec=codec, container=container, pts=tuple(range(300)), options=options), tmp_path
    )
    reader = VideoReaderProcess(path, Fraction(10), DecoderLimits(), reads_beginning=long_bytes is not None)
    children = Children()
    gpu = GpuSessions(SessionPool(0, children, SOFTWARE))
    with closing(reader), closing(gpu):
        gpu.begin_early(reader, REGION)
        deadline = time.monotonic() + 60
        while not (gpu._early and gpu._early[1]._parts) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gpu._early
        decoder = open_remote(gpu, path, Fraction(10), reader.segments)
        check_batches(list(decoder), path, reference_samples(path, Fraction(10)))
        assert children.peak_memory_bytes > 10 << 20
        assert children.cpu_seconds > 0


def test_a_process_that_got_ready_for_a_bad_film_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning can be read; its timestamps jump, which is seen when the rest is indexed."""
    monkeypatch.setattr(gpu_sessions, "why_not_nvdec", lambda facts, ordinal: None)
    path = make_video(Recipe("jump", pts=(*range(100), *range(100_000, 100_050))), tmp_path)
    pool = SessionPool(0, Children(), SOFTWARE, most_idle=4)
    reader = VideoReaderProcess(path, Fraction(10), DecoderLimits(), reads_beginning=True)
    gpu = GpuSessions(pool)
    with closing(reader), closing(gpu):
        gpu.begin_early(reader, REGION)
        with pytest.raises(VideoError, match="jump"):
            reader.wait_until_indexed()
    assert gpu._beginning is not None
    assert not pool._idle


def test_a_decoder_that_cannot_get_ready_is_opened_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sessions, "why_not_nvdec", lambda facts, ordinal: None)
    path = make_video(Recipe("long", pts=tuple(range(100))), tmp_path)
    reader = VideoReaderProcess(path, Fraction(10), DecoderLimits(), reads_beginning=True)
    gpu = GpuSessions(SessionPool(0, kind=EngineSpec("tests.engines", "UnreadyEngine")))
    begin = gpu._begin
    monkeypatch.setattr(gpu, "_begin", lambda *arguments: time.sleep(1.2) or begin(*arguments))
    with closing(reader), closing(gpu):
        gpu.begin_early(reader, REGION)
        decoder = open_remote(gpu, path, Fraction(10), reader.segments)
        check_batches(list(decoder), path, reference_samples(path, Fraction(10)))


def test_an_early_start_for_something_else_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    monkeypatch.setattr(gpu_sessions, "why_not_nvdec", lambda facts, ordinal: None)
    path = make_video(Recipe("long", pts=tuple(range(300)), options=OPEN_GOP), tmp_path)
    reader = VideoReaderProcess(path, Fraction(5), DecoderLimits())
    gpu = GpuSessions(SessionPool(0, kind=SOFTWARE))
    with closing(reader), closing(gpu):
        gpu.begin_early(reader, REGION)
        decoder = open_remote(gpu, path, Fraction(10))
        check_batches(list(decoder), path, reference_samples(path, Fraction(10)))


@pytest.mark.parametrize(
    ("engine", "message"), [("DyingEngine", "was ended by signal SIGKILL"), ("FailingEngine", "on purpose")]
)
def test_a_process_that_fails_is_an_error_with_a_reason(engine: str, message: str, tmp_path: Path) -> None:
    path = make_video(Recipe("long", pts=tuple(range(300)), options=B_FRAMES), tmp_path)
    before = threading.active_count()
    with (
        pytest.raises(DecodeError, match=message),
        closing(
            open_remote(GpuSessions(SessionPool(0, kind=EngineSpec("tests.engines", engine))), path, Fraction(10))
        ) as decoder,
    ):
        list(decoder)
    assert threading.active_count() == before


def test_closing_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    path = make_video(Recipe("long", pts=tuple(range(600)), options=B_FRAMES), tmp_path)
    children, before = len(psutil.Process().children()), threading.active_count()
    decoder = open_remote(GpuSessions(SessionPool(0, kind=SOFTWARE)), path, Fraction(10))
    next(iter(decoder))
    assert len(psutil.Process().children()) > children
    decoder.close()
    assert len(psutil.Process().children()) == children
    assert threading.active_count() == before
    assert list(decoder) == []


def test_an_early_start_with_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    path.write_bytes(b"not a video")
    reader = VideoReaderProcess(path, Fraction(10), DecoderLimits())
    gpu = GpuSessions(SessionPool(0, kind=SOFTWARE))
    with closing(reader), closing(gpu):
        gpu.begin_early(reader, REGION)
        for _ in range(2):
            with pytest.raises(Exception, match=r"none\.mp4"):
                reader.wait_until_indexed()


def test_closing_a_process_twice_at_once_is_harmless() -> None:
    for _ in range(4):
        process, errors, gate = SessionProcess(SOFTWARE, Children()), list[BaseException](), threading.Barrier(2)

        def close(process: SessionProcess = process, errors: list[BaseException] = errors, gate: Any = gate) -> None:
            gate.wait()
            try:
                process.close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


def processes_of(gpu: GpuSessions) -> list[SessionProcess]:
    return [*gpu._busy, *gpu._unused]


def test_processes_of_one_owner_serve_no_other(tmp_path: Path) -> None:
    path = make_video(Recipe("film", options={"g": "20"}), tmp_path)
    pool, used = SessionPool(0, kind=SOFTWARE, most_idle=2), list[SessionProcess]()
    with closing(pool):
        for owner in ("a", "b", "a"):
            gpu = GpuSessions(pool, owner)
            used += processes_of(gpu)
            with closing(open_remote(gpu, path, Fraction(10))) as decoder:
                assert sum(map(len, decoder)) == 15
    assert used[0] is used[2]
    assert used[1] is not used[0]
    assert all(process.has_ended for process in used)


def test_processes_serve_one_video_after_the_other(tmp_path: Path) -> None:
    """Also one whose crops need more memory, one of another codec, and the first again."""
    hevc = {"x265-params": "log-level=none:keyint=20"}
    videos = [
        (Recipe("film", pts=tuple(range(90)), options={"g": "20"}), CropRegion(0.2, 0.6, 0.5, 0.8)),
        (Recipe("large", pts=tuple(range(60)), options={"g": "20", "bf": "2"}), CropRegion(0.0, 0.0, 1.0, 1.0)),
        (Recipe("hevc", codec="libx265", pts=tuple(range(60)), options=hevc), CropRegion(0.0, 0.5, 1.0, 1.0)),
        (Recipe("film", pts=tuple(range(90)), options={"g": "20"}), CropRegion(0.2, 0.6, 0.5, 0.8)),
    ]
    pool, seen = SessionPool(0, kind=SOFTWARE, most_idle=2), list[set[SessionProcess]]()
    with closing(pool):
        for recipe, region in videos:
            path, gpu = make_video(recipe, tmp_path), GpuSessions(pool)
            facts = probe(path)
            expected = CpuDecoder(facts, build_timeline(facts, Fraction(10)), resolve_crop(region, facts), threads=1)
            seen.append(set(processes_of(gpu)))
            with closing(open_remote(gpu, path, Fraction(10), region=region)) as decoder:
                planes = [
                    [np.concatenate(part) for part in zip(*(b.planes for b in batches), strict=True)]
                    for batches in (decoder, expected)
                ]
            assert all(np.array_equal(one, other) for one, other in zip(*planes, strict=True))
    assert all(processes == seen[0] for processes in seen)
    assert all(process.has_ended for process in seen[0])


def test_two_videos_at_once_have_processes_of_their_own(tmp_path: Path) -> None:
    path = make_video(Recipe("film", pts=tuple(range(120)), options={"g": "20"}), tmp_path)
    with closing(SessionPool(0, kind=SOFTWARE, most_idle=4)) as pool:
        first, second = GpuSessions(pool), GpuSessions(pool)
        assert not set(processes_of(first)) & set(processes_of(second))
        with (
            closing(open_remote(first, path, Fraction(10))) as one,
            closing(open_remote(second, path, Fraction(10))) as other,
        ):
            for batches in zip(one, other, strict=True):
                assert np.array_equal(batches[0].y, batches[1].y)


@pytest.mark.parametrize("kind", ["SoftwareEngine", "DyingEngine", "FailingEngine"])
def test_what_a_video_left_unfinished_is_not_used_again(kind: str, tmp_path: Path) -> None:
    path = make_video(Recipe("film", pts=tuple(range(600)), options={"g": "20"}), tmp_path)
    with closing(SessionPool(0, kind=EngineSpec("tests.engines", kind), most_idle=4)) as pool:
        gpu = GpuSessions(pool)
        used = set(processes_of(gpu))
        with closing(open_remote(gpu, path, Fraction(10))) as decoder:
            if kind == "SoftwareEngine":
                next(iter(decoder))
            else:
                with pytest.raises(DecodeError):
                    list(decoder)
        assert all(process.has_ended for process in used)
        again = GpuSessions(pool)
        assert not used & set(processes_of(again))
        again.close()
