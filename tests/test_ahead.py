"""A video that is indexed and decoded while it arrives gives what the whole file gives."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from caption_extents.errors import CaptionExtentsError, StoreAccessError, VideoError
from caption_extents.storage import download
from caption_extents.storage.download import Download
from caption_extents.storage.store import ObjectFacts, Store, open_store
from caption_extents.video import ahead
from caption_extents.video.ahead import AheadDecoder
from caption_extents.video.batch import CropBatch
from caption_extents.video.crop import resolve_crop
from caption_extents.video.input import VideoInput, open_arriving, open_input
from caption_extents.video.source import probe
from caption_extents.video.timeline import build_timeline
from tests.media import Recipe, make_video, reference_samples
from tests.mutations import mutate
from tests.test_exactness import RECIPES, REGION, check_batches

RATE = Fraction(10)
CPU = torch.device("cpu")


class SlowStore(Store):
    """A store whose every part takes a while, and fails from a byte on if told so."""

    def __init__(self, seconds: float, fails_from: int | None = None) -> None:
        memory = open_store("memory://")
        self.__dict__.update(memory.__dict__)
        self.seconds, self.fails_from = seconds, fails_from
        self.parts: list[int] = []

    def read_range(self, key: str, facts: ObjectFacts, start: int, end: int) -> bytes:
        time.sleep(self.seconds)
        if self.fails_from is not None and start >= self.fails_from:
            raise StoreAccessError(f"could not read bytes {start} to {end}")
        self.parts.append(start)
        return super().read_range(key, facts, start, end)


class HesitantStore(SlowStore):
    """Takes a while for half of an object's parts, and a second for each of the others until it is told to go on."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(0.1)
        self._quick = size_bytes // download.PART_BYTES // 2
        self.go_on = threading.Event()

    def read_range(self, key: str, facts: ObjectFacts, start: int, end: int) -> bytes:
        if len(self.parts) >= self._quick:
            self.go_on.wait(1.0)
        return super().read_range(key, facts, start, end)


def start(path: Path, folder: Path, store: SlowStore) -> Download:
    store.put("video", path.read_bytes(), "video/mp4")
    return store.start_download("video", folder / "arriving", None)


Decoded = tuple[list[CropBatch], list[int]]


def decode(video: VideoInput) -> Decoded:
    decoder = video.open_decoder(resolve_crop(REGION, video.facts), device=CPU, insist=False, threads=2)
    with closing(decoder):
        return list(decoder), decoder.undecodable_samples


def decode_arriving(path: Path, folder: Path) -> Decoded:
    with start(path, folder, SlowStore(0.002)) as arriving, open_arriving(arriving, RATE, REGION, 2) as video:
        return decode(video)


def assert_same(got: Decoded, expected: Decoded) -> None:
    assert got[1] == expected[1]
    assert [batch.first_sample for batch in got[0]] == [batch.first_sample for batch in expected[0]]
    for one, other in zip(got[0], expected[0], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_samples_are_those_of_the_whole_file(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 4_000)
    path = make_video(recipe, tmp_path)
    batches, undecodable = decode_arriving(path, tmp_path)
    check_batches(batches, path, reference_samples(path, RATE))
    assert undecodable == []


@pytest.mark.parametrize("seed", range(30))
def test_damaged_videos_are_no_different(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 4_000)
    rng = random.Random(seed)
    # Every frame for itself: where a codec fills damage from other frames, its threads' timing decides what it gives.
    container = rng.choice(["mp4", "mkv", "avi"])
    recipe = Recipe("damaged", container, codec="mjpeg", pixel_format="yuvj420p", pts=tuple(range(200)))
    path = make_video(recipe, tmp_path)
    path.write_bytes(mutate(rng, path.read_bytes(), [path.read_bytes()])[1])
    try:
        with open_input(path, RATE) as video:
            expected = decode(video)
    except CaptionExtentsError as error:
        with pytest.raises(type(error)):
            decode_arriving(path, tmp_path)
    else:
        assert_same(decode_arriving(path, tmp_path), expected)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_decoding_starts_before_the_download_ends(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the index stands at the end, as in the first of these files: that part is fetched first."""
    monkeypatch.setattr(download, "PART_BYTES", 100_000)
    monkeypatch.setattr(download, "AT_ONCE", 2)
    recipe = Recipe(
        "long",
        container,
        pts=tuple(range(600)),
        width=480,
        height=320,
        options={"bf": "2", "g": "30", "preset": "superfast"},
    )
    path = make_video(recipe, tmp_path)
    store = HesitantStore(path.stat().st_size)
    decoded: list[tuple[int, int]] = []
    give = AheadDecoder._give

    def count(self: AheadDecoder, item: object) -> None:
        decoded.append((self.decoded_samples, len(store.parts)))
        store.go_on.set()
        give(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(AheadDecoder, "_give", count)
    with start(path, tmp_path, store) as arriving, open_arriving(arriving, RATE, REGION) as video:
        batches, _ = decode(video)
    assert sum(map(len, batches)) == 200
    samples, parts = decoded[0]
    assert samples == 32
    assert parts < len(store.parts) * 0.9
    if container == "mp4":
        assert store.parts.index(max(store.parts)) < parts


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SPOOL_BYTES", 0)
    path = make_video(Recipe("long", pts=tuple(range(600))), tmp_path)
    with start(path, tmp_path, SlowStore(0)) as arriving, open_arriving(arriving, RATE, REGION) as video:
        time.sleep(1)
        crop = resolve_crop(REGION, video.facts)
        decoder = video.open_decoder(crop, device=CPU, insist=False, threads=0)
        assert isinstance(decoder, AheadDecoder)
        assert decoder.decoded_samples <= 32 * 4
        assert sum(map(len, decoder)) == 200


def test_a_download_that_fails_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    path = make_video(Recipe("long", "mkv", pts=tuple(range(300))), tmp_path)
    store = SlowStore(0.01, fails_from=100_000)
    with (
        start(path, tmp_path, store) as arriving,
        pytest.raises(StoreAccessError, match="could not read"),
        open_arriving(arriving, RATE, REGION),
    ):
        pytest.fail("a video that did not arrive was opened")
    assert not [thread for thread in threading.enumerate() if thread.name == "decode-ahead"]


def test_a_file_that_is_no_video_is_refused_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(b"#EXTM3U\n" * 1000)
    with (
        start(path, tmp_path, SlowStore(0)) as arriving,
        pytest.raises(VideoError, match="known containers"),
        open_arriving(arriving, RATE, REGION),
    ):
        pytest.fail("a playlist was opened")


def test_giving_up_does_not_wait_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    path = make_video(Recipe("long", "mkv", pts=tuple(range(300))), tmp_path)
    store = SlowStore(5.0)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), start(path, tmp_path, store):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 5.0


def test_closing_while_a_batch_is_awaited_ends_the_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not begin to decode again from the start."""
    path = make_video(Recipe("long", pts=tuple(range(900))), tmp_path)
    facts = probe(path)
    timeline = build_timeline(facts, RATE)
    go_on = threading.Event()

    def waiting(*_: object) -> Iterator[tuple[int, object]]:
        go_on.wait(10)
        return iter(())

    monkeypatch.setattr(ahead, "good_frames", waiting)
    decoder = AheadDecoder(facts, RATE, resolve_crop(REGION, facts), lambda: path.open("rb"))
    decoder.set_timeline(timeline)
    batches: list[CropBatch] = []
    iterating = threading.Thread(target=lambda: batches.extend(decoder))
    iterating.start()
    threading.Timer(0.3, go_on.set).start()
    time.sleep(0.1)
    decoder.close()
    iterating.join(5)
    assert not iterating.is_alive()
    assert batches == []
