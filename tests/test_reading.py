"""Captions in the languages that they are written in, and nothing written that was not read."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from caption_extents.errors import InputError
from caption_extents.ocr import reading, tesseract
from caption_extents.ocr.ink import LINE_PX, letters_of_line
from caption_extents.ocr.languages import LANGUAGES, find_languages, language_of_script
from caption_extents.ocr.reader import Piece, ReadText, joined
from caption_extents.ocr.reading import CaptionReader
from caption_extents.ocr.scripts import ScriptGuess, guess_script
from caption_extents.ocr.tesseract import TesseractLines, installed_languages
from caption_extents.training import fonts

LATIN = "abcdefghijklmnopqrstuvwxyzàáâäãåçèéêëìíîïñòóôöùúûüßąćęłńóśźżğışçöü"


@pytest.mark.parametrize(
    ("given", "tags"),
    [("ru", ["ru"]), ("zh,en", ["zh", "en"]), ("pt-BR", ["pt"]), ("zh_TW", ["zh-tw"]), ("RU + uk ru", ["ru", "uk"])],
)
def test_languages_are_found(given: str, tags: list[str]) -> None:
    assert [language.tag for language in find_languages(given)] == tags


@pytest.mark.parametrize("given", ["xx", "", "russian"])
def test_a_language_that_is_none(given: str) -> None:
    with pytest.raises(InputError, match="language"):
        find_languages(given)


def test_each_script_has_a_language() -> None:
    assert {language.script for language in LANGUAGES.values()} >= {"latin", "cyrillic", "han", "thai"}
    assert all(language_of_script(language.script) is not None for language in LANGUAGES.values())


def piece(text: str, left: float = 0, top: float = 0, width: float = 50, score: float = 0.9) -> Piece:
    box = np.asarray([[left, top], [left + width, top], [left + width, top + 20], [left, top + 20]], float)
    return Piece(box, text, score)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([piece("there", 60), piece("Hello", 0)], "Hello there"),
        ([piece("二", 60), piece("一", 0)], "一二"),
        ([piece("OK", 60), piece("一", 0)], "一 OK"),
        ([piece("ثانية", 0), piece("أولى", 60)], "أولى ثانية"),
        ([piece("שנייה", 0), piece("ראשונה", 60)], "ראשונה שנייה"),
        ([piece("below", 0, 40), piece("above", 0)], "above\nbelow"),
    ],
)
def test_pieces_are_joined_as_people_write(pieces: list[Piece], text: str) -> None:
    assert joined(pieces) == text


class FakeRapid:
    """Finds what it is told, and knows the letters of Latin, Chinese and Japanese."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.found = list(pieces)
        self.alphabet = frozenset(LATIN + "的一是不了人我在有他あいうえおかきくけこアイウエオカキクケコ")

    def pieces(self, picture: np.ndarray) -> list[Piece]:
        return self.found


class FakeLines:
    """Reads every line as the same text."""

    def __init__(self, languages: list[object]) -> None:
        self.confidence = 0.95

    def read_line(self, letters: np.ndarray) -> ReadText:
        return ReadText("прочитано", self.confidence)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ScriptGuess]:
    """What lines look like, by where they begin; otherwise Latin."""
    found: dict[str, ScriptGuess] = {}
    monkeypatch.setattr(reading, "letters_of_line", lambda picture, box: [np.full((1, 1), box[0], np.uint8)])
    latin = ScriptGuess("latin", 1.0)
    monkeypatch.setattr(reading, "guess_script", lambda letters: found.get(str(letters[0, 0]), latin))
    monkeypatch.setattr(reading, "installed_languages", lambda: frozenset({"rus", "vie"}))
    monkeypatch.setattr(reading, "TesseractLines", FakeLines)
    return found


def reader_of(monkeypatch: pytest.MonkeyPatch, *pieces: Piece, language: str | None = None) -> CaptionReader:
    monkeypatch.setattr(reading, "RapidReader", lambda: FakeRapid(pieces))
    return CaptionReader(language)


PICTURE = np.zeros((60, 200, 3), np.uint8)


def test_what_is_in_another_script_is_said_and_not_read(
    looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks["7"] = ScriptGuess("cyrillic", 0.97)
    reader = reader_of(monkeypatch, piece("Hello"), piece("MockBa", 7, 30))
    assert reader.read(PICTURE) is None
    assert reader.read(PICTURE) is None
    (message,) = reader.unread.messages()
    assert "2 captions seem to be Cyrillic" in message
    assert "--language ru" in message


def test_what_rapidocr_is_sure_of_is_kept_unless_it_surely_looks_otherwise(
    looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks["0"] = ScriptGuess("vietnamese", 0.7)
    assert reader_of(monkeypatch, piece("Hello", score=0.99)).read(PICTURE) == ReadText("Hello", 0.99)
    assert reader_of(monkeypatch, piece("Hello", score=0.9)).read(PICTURE) is None
    looks["0"] = ScriptGuess("cyrillic", 0.95)
    assert reader_of(monkeypatch, piece("MOCKBA", score=0.99)).read(PICTURE) is None


def test_the_remedy_names_what_is_missing(looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch) -> None:
    looks["0"] = ScriptGuess("greek", 0.97)
    reader = reader_of(monkeypatch, piece("Eλα"))
    assert reader.read(PICTURE) is None
    (message,) = reader.unread.messages()
    assert "1 caption seems to be Greek and was not read" in message
    assert "apt install tesseract-ocr-ell" in message


def test_a_language_that_rapidocr_lacks_is_read_by_tesseract(
    looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks["0"] = ScriptGuess("cyrillic", 0.97)
    reader = reader_of(monkeypatch, piece("MockBa"), language="ru")
    assert reader.read(PICTURE) == ReadText("прочитано", 0.95)
    assert reader.unread.messages() == []


def test_capitals_that_look_alike_are_read_in_the_language_that_was_given(
    looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks["0"] = ScriptGuess("latin", 0.7)
    assert reader_of(monkeypatch, piece("TECT"), language="ru").read(PICTURE) == ReadText("прочитано", 0.95)
    looks["0"] = ScriptGuess("latin", 0.99)
    assert reader_of(monkeypatch, piece("NASA"), language="ru").read(PICTURE) == ReadText("NASA", 0.9)


def test_vietnamese_without_accents_is_read_with_them(
    looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reader_of(monkeypatch, piece("xin"), language="vi").read(PICTURE) == ReadText("прочитано", 0.95)


def test_a_line_of_which_nothing_is_made(looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch) -> None:
    looks["7"] = ScriptGuess("latin", 0.9)
    reader = reader_of(monkeypatch, piece("Hello"), piece("", 7, 30, score=0))
    assert reader.read(PICTURE) is None
    assert reader.unread.unsure == 1
    looks["7"] = ScriptGuess("thai", 0.3)
    assert reader.read(PICTURE) == ReadText("Hello", 0.9)


def test_what_is_unsure_is_left_out(looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(monkeypatch, piece("Hello"), piece("w0r1d", 0, 30, score=0.3))
    assert reader.read(PICTURE) is None
    assert reader.unread.unsure == 1
    assert "with confidence" in reader.unread.messages()[0]
    assert reader_of(monkeypatch).read(PICTURE) is None


def test_a_language_that_nothing_reads(looks: dict[str, ScriptGuess], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nothing here reads Thai.*apt install tesseract-ocr-tha"):
        reader_of(monkeypatch, language="th")
    with pytest.raises(InputError, match="there is no reader 'other'"):
        CaptionReader("en", "other")
    with pytest.raises(InputError, match=r"has no letters .* for Russian; give --reader"):
        CaptionReader("ru", "rapidocr")


def written(text: str, *, fill: int, outline: int | None, behind: int, size: int = 30) -> np.ndarray:
    """A line as a caption in a picture, RGB, uint8."""
    picture = Image.new("RGB", (60 + size * len(text), 3 * size), (behind,) * 3)
    font = fonts.random_font(random.Random(3), "ru", size)
    assert font is not None
    width = 0 if outline is None else 2
    ImageDraw.Draw(picture).text(
        (30, size), text, (fill,) * 3, font, stroke_width=width, stroke_fill=(outline or 0,) * 3
    )
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("fill", "outline", "behind"), [(255, 0, 180), (255, 0, 20), (20, None, 230), (235, None, 40), (250, 10, 250)]
)
def test_letters_are_cut_out(fill: int, outline: int | None, behind: int) -> None:
    picture = written("Hamburg", fill=fill, outline=outline, behind=behind)
    rows, columns = (np.flatnonzero((picture != behind).any(axis)) for axis in ((1, 2), (0, 2)))
    letters = letters_of_line(picture, (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])))[0]
    expected = written("Hamburg", fill=0, outline=None, behind=255)[..., 0] < 128
    ink = letters < 128
    assert ink.mean() * ink.size / (LINE_PX / (rows[-1] - rows[0])) ** 2 == pytest.approx(expected.sum(), rel=0.25)
    assert not ink[0].any()
    assert not ink[:, -1].any()


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (10, 10, 12, 60), (-50, -50, -10, -10), (190, 50, 300, 90)])
def test_boxes_with_nothing_in_them(box: tuple[int, int, int, int]) -> None:
    assert letters_of_line(np.full((60, 200, 3), 7, np.uint8), box) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Она не сказала капитану ни слова", "cyrillic"),
        ("She did not tell the captain", "latin"),
        ("Ελάτε μαζί μου τώρα αμέσως", "greek"),
        ("Phải bắt đầu từ công tử ấy", "vietnamese"),
        ("Él salió mañana, ¿no es así?", "latin"),
    ],
)
def test_scripts_are_told_apart(text: str, script: str) -> None:
    picture = written(text, fill=255, outline=0, behind=120, size=24)
    rows, columns = (np.flatnonzero((picture != 120).any(axis)) for axis in ((1, 2), (0, 2)))
    letters = letters_of_line(picture, (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])))[0]
    guess = guess_script(letters)
    assert guess.script == script
    assert guess.probability > 0.5


def test_what_tesseract_prints() -> None:
    lines = TesseractLines([LANGUAGES["ja"]])
    header = "\t".join(["level"] * 12)
    words = ["\t".join(["5", *"1234567890"[:9], confidence, word]) for confidence, word in (("90", "船"), ("70", "は"))]
    assert lines._text_of("\n".join([header, *words, "船 は", ""])) == ReadText("船は", 0.8)
    assert lines._text_of(header) is None


@pytest.mark.skipif("rus" not in installed_languages(), reason="needs Tesseract with Russian")
def test_tesseract_reads_letters() -> None:
    picture = written("Никто не сказал капитану", fill=255, outline=0, behind=120)
    rows, columns = (np.flatnonzero((picture != 120).any(axis)) for axis in ((1, 2), (0, 2)))
    letters = letters_of_line(picture, (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])))[0]
    found = TesseractLines([LANGUAGES["ru"]]).read_line(letters)
    assert found is not None
    assert found.text == "Никто не сказал капитану"
    assert found.confidence > 0.5


def test_a_machine_without_tesseract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert tesseract.installed_languages.__wrapped__() == frozenset()


def test_a_reader_of_ones_own_needs_nothing_else(tmp_path: Path) -> None:
    """Neither rapidocr nor what comes with it; without a reader, what is missing is said."""
    code = (
        "import sys, importlib.util\nsys.modules['cv2'] = None\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'rapidocr' else find(name, *more)\n"
        "import caption_extents\n"
        f"path = {str(tmp_path / 'none.mp4')!r}\n"
        "for reader in (object(), None):\n"
        "    try:\n        caption_extents.read_text(path, [], (0, 0, 1, 1), reader)\n"
        "    except caption_extents.InputError as error:\n        print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "no such video file" in printed.splitlines()[0]
    assert "needs the extra 'ocr'" in printed.splitlines()[1]
