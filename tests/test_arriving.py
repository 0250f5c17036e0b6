"""Videos that are read while they arrive from a store."""

from __future__ import annotations

import random
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caption_extents.errors import CaptionExtentsError, StoreAccessError, VideoError
from caption_extents.samples import SampleBatch
from caption_extents.storage import download
from caption_extents.storage.download import Download
from caption_extents.storage.objects import ObjectFacts
from caption_extents.storage.store import Store, open_store
from caption_extents.video import video as videos
from caption_extents.video.info import VideoFacts, probe
from caption_extents.video.video import Decoding, Video, open_arriving, open_local
from tests.media import Recipe, make_video, reference_samples
from tests.mutations import mutate
from tests.test_exactness import RECIPES, REGION, check_batches

RATE = Fraction(10)
DECODING = Decoding(threads=2)


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


Decoded = tuple[list[SampleBatch], list[int]]


def decode(video: Video) -> Decoded:
    decoder = video.samples(REGION)
    return list(decoder), decoder.undecodable_samples


def decode_arriving(path: Path, folder: Path) -> Decoded:
    with start(path, folder, SlowStore(0.002)) as arriving, open_arriving(arriving, RATE, DECODING) as video:
        return decode(video)


def assert_same(got: Decoded, expected: Decoded) -> None:
    assert got[1] == expected[1]
    assert [batch.first_sample for batch in got[0]] == [batch.first_sample for batch in expected[0]]
    for one, other in zip(got[0], expected[0], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


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
        with open_local(path, RATE, DECODING) as video:
            expected = decode(video)
    except CaptionExtentsError as error:
        with pytest.raises(type(error)):
            decode_arriving(path, tmp_path)
    else:
        assert_same(decode_arriving(path, tmp_path), expected)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_reading_starts_before_the_download_ends(
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
    parts_at_probe: list[int] = []

    def probe_and_count(*arguments: Any) -> VideoFacts:
        facts = probe(*arguments)
        parts_at_probe.append(len(store.parts))
        store.go_on.set()
        return facts

    monkeypatch.setattr(videos, "probe", probe_and_count)
    with start(path, tmp_path, store) as arriving, open_arriving(arriving, RATE, DECODING) as video:
        batches, _ = decode(video)
    assert sum(map(len, batches)) == 200
    assert parts_at_probe[0] < len(store.parts) * 0.9
    if container == "mp4":
        assert store.parts.index(max(store.parts)) < parts_at_probe[0]


def test_a_download_that_fails_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    path = make_video(Recipe("long", "mkv", pts=tuple(range(300))), tmp_path)
    store = SlowStore(0.01, fails_from=100_000)
    with (
        start(path, tmp_path, store) as arriving,
        pytest.raises(StoreAccessError, match="could not read"),
        open_arriving(arriving, RATE, DECODING),
    ):
        pytest.fail("a video that did not arrive was opened")


def test_a_file_that_is_no_video_is_refused_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(b"#EXTM3U\n" * 1000)
    with (
        start(path, tmp_path, SlowStore(0)) as arriving,
        pytest.raises(VideoError, match="as a video: it is damaged, or no"),
        open_arriving(arriving, RATE, DECODING),
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
