"""Decoding in a process of its own, and decoders that hang, crash or grow."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import caption_extents
from caption_extents import spawning
from caption_extents.errors import DecodeError, InputError, StallError, VideoError
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import list_versions
from caption_extents.video.crop import resolve_crop
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.video.decoders.isolated import DecoderLimits, VideoReaderProcess, reader_pool
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.nvdec import segments
from caption_extents.video.nvdec.decoder import NvdecDecoder
from caption_extents.video.nvdec.segments import PackedSegment, Span, plan_spans, read_segments
from caption_extents.video.timeline import build_timeline
from caption_extents.watchdog import Watchdog
from tests.engines import SessionsHere
from tests.media import Recipe, cut_off_beginning, make_video
from tests.test_exactness import RECIPES, REGION

KEYS = VideoKeys("t1", "v1")
LIMITS = DecoderLimits(stall_seconds=90.0)

SABOTAGE = {
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "time.sleep(600)",
    "grows": "hold = bytearray(64 << 30)",
    "writes": "open(str(self._facts.path) + '.written', 'wb').write(b'x' * 5000)",
    "prints": "os.write(1, b'frame= 1 fps= 2')",
}
"""What a codec might do in the child, after its second batch."""

CHILD = """
import os, signal, sys, time
from caption_extents import child
from caption_extents.video.decoders import cpu
decode = cpu.CpuDecoder._decode
def sabotaged(self):
    for number, batch in enumerate(decode(self)):
        if number == 2:
            {what}
        yield batch
cpu.CpuDecoder._decode = sabotaged
child.main()
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(Recipe("long", pts=tuple(range(400))), tmp_path_factory.mktemp("isolated"))


@pytest.fixture
def sabotaged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    child = CHILD.format(what=SABOTAGE[request.param])
    monkeypatch.setattr(spawning, "COMMAND", [sys.executable, "-c", child])
    return str(request.param)


def run(video: Path, store: Path, **options: object) -> caption_extents.CropInferResult:
    return caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", REGION, store=store, isolate=True, **options
    )


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.name in {"fps23.976", "variable", "h264-avi", "rotated-90", "longer", "10-bit"}],
    ids=lambda recipe: recipe.name,
)  # fmt: skip
def test_a_child_decodes_the_same(recipe: Recipe, tmp_path: Path) -> None:
    path = make_video(recipe, tmp_path)
    facts, rate = probe(path), Fraction(10)
    crop, timeline = resolve_crop(REGION, facts), build_timeline(facts, rate)
    with VideoReaderProcess(path, rate, LIMITS) as child:
        assert child.facts == facts
        for name in ("sample_pts", "skippable_pts", "key_pts"):
            np.testing.assert_array_equal(getattr(child.timeline, name), getattr(timeline, name))
        there = list(child.open_decoder(crop, threads=1))
    here = list(CpuDecoder(facts, timeline, crop, threads=1))
    for one, other in zip(there, here, strict=True):
        assert one.first_sample == other.first_sample
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_child_reads_the_same_segments(recipe: Recipe, tmp_path: Path) -> None:
    path = make_video(recipe, tmp_path)
    rate = Fraction(10)
    with VideoReaderProcess(path, rate, LIMITS) as child:
        spans = plan_spans(child.timeline, 3)
        here = list(read_segments(child.facts, child.timeline, spans))
        for one, other in zip(child.segments(spans), here, strict=True):
            assert (one.number, one.span) == (other.number, other.span)
            for sent, packet in zip(one.unpack().packets, [*other.packets, *other.later], strict=True):
                assert bytes(sent) == bytes(packet)
                assert (sent.pts, sent.dts, sent.is_keyframe) == (packet.pts, packet.dts, packet.is_keyframe)
        assert list(child.segments(spans)) == []


def test_segments_that_a_child_cannot_send_are_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 3)
    original = make_video(Recipe("long", pts=tuple(range(100)), options={"g": "15", "bf": "0"}), tmp_path)
    trimmed = cut_off_beginning(original, tmp_path / "trimmed.mp4", Fraction(40, 30))
    rate = Fraction(10)
    with VideoReaderProcess(trimmed, rate, LIMITS) as child:
        facts, timeline = child.facts, child.timeline
        crop = resolve_crop(REGION, facts)
        given: list[int] = []

        def remote_reader(spans: list[Span]) -> Iterator[PackedSegment]:
            for segment in child.segments(spans):
                given.append(segment.number)
                yield segment

        there = list(NvdecDecoder(facts, timeline, crop, SessionsHere(2), remote_reader=remote_reader))
    here = list(CpuDecoder(facts, timeline, crop, threads=1))
    assert len(given) < len(plan_spans(timeline, 3))
    for one, other in zip(there, here, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


def test_facts_survive_the_way(video: Path) -> None:
    facts = probe(video)
    assert VideoFacts.from_json(facts.to_json(), video) == facts
    with pytest.raises(ZeroDivisionError):
        VideoFacts.from_json({**facts.to_json(), "time_base": "1/0"}, video)
    with pytest.raises(ValueError, match="no fraction"):
        VideoFacts.from_json({**facts.to_json(), "time_base": "1e30000000"}, video)


def test_an_isolated_run_makes_the_same_objects(video: Path, tmp_path: Path) -> None:
    stores = [tmp_path / "here", tmp_path / "there"]
    result = run(video, stores[1])
    assert result.decoder == "cpu, isolated"
    caption_extents.crop_and_infer_caption_frame_extents(str(video), "t1", "v1", REGION, store=stores[0])
    chunks = [
        {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*.webm"))} for store in stores
    ]
    assert chunks[0] == chunks[1] != {}


@pytest.mark.parametrize("sabotaged", ["crashes", "grows"], indirect=True)
def test_a_codec_that_brings_its_process_down(sabotaged: str, video: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"signal SIGSEGV|more memory than it may take|ended with code"):
        run(video, tmp_path / "store")
    assert [state.state for state in list_versions(open_store(tmp_path / "store"), KEYS)] == ["abandoned"]


@pytest.mark.undisturbed
@pytest.mark.parametrize("sabotaged", ["hangs"], indirect=True)
@pytest.mark.parametrize("implementation", ["pipelined", "sequential"])
def test_a_codec_that_hangs(sabotaged: str, implementation: str, video: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StallError, match="gave no sign of life for 8 s"):
        run(video, tmp_path / "store", stall_seconds=8.0, implementation=implementation)
    assert time.monotonic() - started < 40


@pytest.mark.parametrize("sabotaged", ["writes"], indirect=True)
def test_a_child_cannot_write_files(sabotaged: str, video: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="File too large"):
        run(video, tmp_path / "store")
    written = Path(f"{video}.written")
    assert not written.exists() or written.stat().st_size == 0


@pytest.mark.parametrize("sabotaged", ["prints"], indirect=True)
def test_what_a_codec_prints_does_not_get_between(sabotaged: str, video: Path, tmp_path: Path) -> None:
    assert run(video, tmp_path / "store").frame_count == 134


def test_a_bad_video_is_the_users_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 100)
    with pytest.raises(VideoError, match="cannot open"):
        run(bad, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_closing_ends_a_thread_that_reads(video: Path) -> None:
    """Whenever it comes to it; a pipe that is closed first would leave the thread waiting for as long as it may."""
    for wait_seconds in (0.0, 0.0, 0.0, 0.2):
        child = VideoReaderProcess(video, Fraction(10), LIMITS)
        child.wait_until_indexed()
        errors: list[BaseException] = []

        def read(child: VideoReaderProcess = child, errors: list[BaseException] = errors) -> None:
            try:
                child._receive(0, 0)
            except DecodeError as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(wait_seconds)
        child.close()
        reader.join(5.0)
        assert not reader.is_alive()
        assert len(errors) == 1


def test_no_child_is_left(video: Path) -> None:
    with VideoReaderProcess(video, Fraction(10), LIMITS) as child:
        decoder = child.open_decoder(resolve_crop(REGION, child.facts), threads=1)
        next(iter(decoder))
        process = child._child
        decoder.close()
    assert process.has_ended


@pytest.mark.undisturbed
@pytest.mark.parametrize("implementation", ["pipelined", "sequential"])
def test_a_decoder_that_hangs_in_this_process(
    implementation: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, over = CpuDecoder._decode, threading.Event()

    def hanging(self: CpuDecoder) -> Iterator[object]:
        for number, batch in enumerate(decode(self)):
            if number == 2:
                over.wait(60)
            yield batch

    monkeypatch.setattr(CpuDecoder, "_decode", hanging)
    monkeypatch.setattr("caption_extents.video.decoders.cpu._CLOSE_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(StallError, match="decoding gave no sign of life for 1 s"):
        caption_extents.crop_and_infer_caption_frame_extents(
            str(video), "t1", "v1", REGION, store=tmp_path / "store", implementation=implementation, stall_seconds=1.0
        )
    over.set()
    assert time.monotonic() - started < 30


def test_watching_passes_items_and_errors_on() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyError("at the end")

    iterator = iter(Watchdog(5.0).items("items", items()))
    assert [next(iterator) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="at the end"):
        next(iterator)


def test_a_watched_iteration_that_is_left_early_ends_its_thread() -> None:
    before = threading.active_count()
    iterator = iter(Watchdog(5.0).items("items", iter(range(1000))))
    assert next(iterator) == 0
    iterator.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_the_environment_of_a_child_is_not_changed_for_others(video: Path) -> None:
    before = dict(os.environ)
    with VideoReaderProcess(video, Fraction(10), LIMITS):
        assert dict(os.environ) == before


def test_a_child_that_dies_early_is_told_of_and_not_its_pipe(video: Path) -> None:

    def open_dead_child() -> None:
        with VideoReaderProcess(video, Fraction(10), LIMITS) as child:
            os.kill(child._child.process_id, signal.SIGKILL)
            child._child.describe_exit()
            child.open_decoder(resolve_crop(REGION, child.facts), threads=0)

    with pytest.raises(DecodeError, match="signal SIGKILL"):
        open_dead_child()


def test_a_child_decodes_once(video: Path) -> None:
    with VideoReaderProcess(video, Fraction(10), LIMITS) as child:
        crop = resolve_crop(REGION, child.facts)
        child.open_decoder(crop, threads=1)
        with pytest.raises(InputError, match="decoded once"):
            child.open_decoder(crop, threads=1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"undecodable": [-5]}, "it speaks of samples"),
        ({"undecodable": [10**9]}, "it speaks of samples"),
        ({"undecodable": 7}, "TypeError"),
        ({}, "KeyError"),
    ],
)
def test_what_a_child_says_is_checked(
    reply: dict[str, object], message: str, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoReaderProcess(video, Fraction(10), LIMITS) as child:
        crop = resolve_crop(REGION, child.facts)
        half = np.zeros((32, crop.height // 2, crop.width // 2), np.uint8)
        planes = [plane.reshape(-1) for plane in (np.zeros((32, crop.height, crop.width), np.uint8), half, half)]
        monkeypatch.setattr(child._child, "receive", lambda limit_bytes: (reply, planes))
        with pytest.raises(DecodeError, match=f"cannot be trusted.*{message}"):
            next(iter(child.open_decoder(crop, threads=1)))


def test_a_process_reads_one_video_after_the_other(tmp_path: Path) -> None:
    """To the end, or only its index; not after one that was given up, or that cannot be read."""
    rate, used = Fraction(10), list[int]()
    recipes = [Recipe(f"film-{n}", pts=tuple(range(60 + 10 * n)), options={"g": "10"}) for n in range(4)]
    (tmp_path / "none.mp4").write_bytes(b"no video")
    pool = reader_pool(most_idle=1)
    with closing(pool):
        for recipe in recipes:
            path = make_video(recipe, tmp_path)
            facts = probe(path)
            spans = plan_spans(build_timeline(facts, rate), 3)
            with VideoReaderProcess(path, rate, LIMITS, pool) as reader:
                used.append(reader._child.process_id)
                assert reader.facts == facts
                if recipe is not recipes[1]:
                    assert len(list(reader.segments(spans))) == len(spans)
        assert len(set(used)) == 1
        with VideoReaderProcess(path, rate, LIMITS, pool) as reader:
            next(reader.segments(spans))
        with VideoReaderProcess(path, rate, LIMITS, pool) as reader:
            used.append(reader._child.process_id)
        assert len(set(used)) == 2
        with pytest.raises(VideoError), VideoReaderProcess(tmp_path / "none.mp4", rate, LIMITS, pool):
            pass
        with VideoReaderProcess(path, rate, LIMITS, pool) as reader:
            assert len(list(reader.open_decoder(resolve_crop(REGION, facts), threads=1))) > 0
            used.append(reader._child.process_id)
    assert len(set(used)) == 3


def test_a_closed_reader_sends_nothing_more(tmp_path: Path) -> None:
    """Its process may be at work on another video by then."""
    path, pool = make_video(Recipe("film", options={"g": "10"}), tmp_path), reader_pool(most_idle=1)
    with closing(pool):
        first = VideoReaderProcess(path, Fraction(10), LIMITS, pool, owner="a")
        first.wait_until_indexed()
        spans = plan_spans(first.timeline, 3)
        first.close()
        first.close()
        with VideoReaderProcess(path, Fraction(10), LIMITS, pool, owner="a") as second:
            assert second._child is first._child
            assert list(first.segments(spans)) == []
            assert len(list(second.segments(spans))) == len(spans)
        with VideoReaderProcess(path, Fraction(10), LIMITS, pool, owner="b") as third:
            assert third._child is not first._child, "it has worked for somebody else"
