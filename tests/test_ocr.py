"""Text of captions: one reading for each, into the database and subtitle files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pysubs2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from caption_extents.captions.extents import Caption
from caption_extents.captions.subtitles import render_subtitles
from caption_extents.cli import app
from caption_extents.ocr.captions import caption_picture, median_samples, store_texts
from caption_extents.ocr.reader import Piece, RapidReader, ReadText, into_lines
from caption_extents.results.database import open_database, read_captions, with_captions
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import Store, open_store
from caption_extents.storage.versions import SampleReader, change_database
from caption_extents.training import sample_video
from tests.films import WORDS, make_film

KEYS = VideoKeys("local", "film")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    planned = make_film(path, [(start, start + 40) for start in range(10, 210, 50)])
    return path, sample_video.truth(planned, 30)


@pytest.fixture(scope="module")
def store(film: tuple[Path, list[dict[str, object]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    command = ["run", str(film[0]), "--crop", ",".join(map(str, sample_video.CROP)), "--store", str(folder), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["caption_count"] == len(WORDS)
    return folder


class CountingReader:
    """Says how large the picture was, and counts."""

    def __init__(self, answer: Callable[[int], ReadText | None]) -> None:
        self.pictures: list[np.ndarray] = []
        self._answer = answer

    def read(self, picture: np.ndarray) -> ReadText | None:
        self.pictures.append(picture)
        return self._answer(len(self.pictures))


def texts(opened: Store) -> list[tuple[str | None, float | None]]:
    rows = open_database(opened.get(KEYS.database())).execute("SELECT * FROM captions ORDER BY caption_index")
    return [(row["text"], row["text_confidence"]) for row in rows]


def test_each_caption_is_read_once(store: Path) -> None:
    opened = open_store(store)
    reader = CountingReader(lambda number: None if number == 2 else ReadText(f"text {number}", 0.5))
    told: list[tuple[int, int]] = []
    assert store_texts(opened, KEYS, reader, tell=lambda done, total: told.append((done, total))) == 3
    assert len(reader.pictures) == len(WORDS)
    assert {picture.shape for picture in reader.pictures} == {(78, 768, 3)}
    assert told[-1] == (4, 4)
    assert texts(opened) == [("text 1", 0.5), (None, None), ("text 3", 0.5), ("text 4", 0.5)]
    assert opened.get(KEYS.database()) == opened.get(KEYS.database(1))


def test_what_a_person_wrote_stays(store: Path) -> None:
    opened = open_store(store)
    store_texts(opened, KEYS, CountingReader(lambda number: ReadText(f"text {number}", 0.5)))
    data = opened.get(KEYS.database(1))
    rows = read_captions(data)
    rows[1] = replace(rows[1], text="as I say", text_confidence=None)
    change_database(opened, KEYS, 1, lambda _: with_captions(data, rows))
    again = CountingReader(lambda number: ReadText(f"again {number}", 0.6))
    assert store_texts(opened, KEYS, again) == 3
    assert texts(opened) == [("again 1", 0.6), ("as I say", None), ("again 2", 0.6), ("again 3", 0.6)]
    change_database(opened, KEYS, 1, lambda _: data)


def test_the_words_are_read(store: Path, film: tuple[Path, list[dict[str, object]]], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["subtitles", "film", str(tmp_path / "film.srt"), "--ocr", "--store", str(store), "--quiet"]
    )
    assert result.exit_code == 0, result.output
    events = pysubs2.load(str(tmp_path / "film.srt"))
    found, expected = (" ".join(words) for words in ([event.plaintext for event in events], WORDS))
    assert difflib.SequenceMatcher(None, found.lower(), expected.lower()).ratio() > 0.95
    times = [(event.start, event.end) for event in events]
    assert times == [(100 * caption["start_frame"], 100 * caption["end_frame"]) for caption in film[1]]  # type: ignore[operator]
    assert all(confidence is not None and confidence > 0.5 for _, confidence in texts(open_store(store)))


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".ass"])
def test_without_reading_captions_are_numbered(suffix: str, store: Path, tmp_path: Path) -> None:
    store_texts(open_store(store), KEYS, CountingReader(lambda number: None))
    path = tmp_path / f"film{suffix}"
    assert CliRunner().invoke(app, ["subtitles", "film", str(path), "--store", str(store)]).exit_code == 0
    assert [event.plaintext for event in pysubs2.load(str(path))] == ["[1]", "[2]", "[3]", "[4]"]


def test_a_subtitle_file_of_an_unknown_kind(store: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["subtitles", "film", str(tmp_path / "film.txt"), "--store", str(store)])
    assert result.exit_code == 2
    assert ".srt, .vtt, .ass" in result.output


def test_what_moves_behind_a_caption_is_blurred(store: Path) -> None:
    read_sample = SampleReader(open_store(store), KEYS, 1)
    start, end = (
        open_database(open_store(store).get(KEYS.database()))
        .execute("SELECT start_frame, end_frame FROM captions")
        .fetchone()
    )
    picture = caption_picture(read_sample, start, end)
    assert picture.shape == (78, 768, 3)
    assert picture.max() > 230
    assert picture.min() < 40


@given(start=st.integers(0, 1000), length=st.integers(1, 300))
def test_samples_of_a_caption_are_its_own(start: int, length: int) -> None:
    samples = median_samples(start, start + length)
    assert samples == sorted(set(samples))
    assert 1 <= len(samples) <= 9
    assert all(start <= sample < start + length for sample in samples)


def test_pieces_become_lines() -> None:
    def piece(words: str, left: int, top: int) -> Piece:
        box = np.asarray([[left, top], [left + 50, top], [left + 50, top + 20], [left, top + 20]])
        return Piece(box, words, 0.9)

    pieces = [piece("d", 100, 42), piece("b", 100, 12), piece("c", 10, 40), piece("a", 10, 10)]
    assert [[p.text for p in line] for line in into_lines(pieces)] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass"])
@pytest.mark.parametrize("words", ["{\\b1}bold", "<script>alert(1)</script>", "a\\Nb", "x & y < z", "-->"])
def test_text_never_becomes_markup(kind: str, words: str) -> None:
    rendered = render_subtitles([Caption(1, 2, 10, 20, 1.0, words)], kind)
    body = rendered.rsplit("Dialogue", 1)[-1] if kind == "ass" else rendered.split("\n", 3)[-1]
    assert "{\\" not in body
    assert "<script" not in body or kind == "ass"
    assert body.count("-->") <= 1
    (event,) = pysubs2.SSAFile.from_string(rendered)
    assert "\n" not in event.plaintext


def test_a_picture_without_text() -> None:
    assert RapidReader().read(np.full((60, 400, 3), 90, np.uint8)) is None


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass"])
def test_the_shortest_caption_is_shown(kind: str) -> None:
    (event,) = pysubs2.SSAFile.from_string(render_subtitles([Caption(2 / 240, 3 / 240, 2, 3, 1.0, "now")], kind))
    assert event.end > event.start


def test_characters_that_webvtt_takes_for_others() -> None:
    assert "AT&amp;T &amp;lt;" in render_subtitles([Caption(0, 1, 0, 10, 1.0, "AT&T &lt;")], "vtt")
    assert "one\ntwo\nthree" in render_subtitles([Caption(0, 1, 0, 10, 1.0, "one\r\ntwo\rthree")], "srt")
