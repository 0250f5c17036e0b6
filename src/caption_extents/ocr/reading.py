"""Reading captions in the languages that they are written in, and leaving out what no reader here has letters for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from caption_extents.errors import InputError
from caption_extents.ocr.ink import letters_of_line, rescaled
from caption_extents.ocr.languages import Language, find_languages, language_of_script
from caption_extents.ocr.reader import LEAST_CONFIDENCE, Piece, RapidReader, ReadText, joined
from caption_extents.ocr.scripts import ScriptGuess, guess_script
from caption_extents.ocr.tesseract import TesseractLines, installed_languages

READERS = ("auto", "rapidocr", "tesseract")

_WITHOUT_LANGUAGE = ("en", "zh")
"""Languages of the scripts that are read if none is given."""

_SURE = 0.9
"""Probability with which a line is in a script of none of the languages that were given."""

_FOREIGN = 0.6
"""Probability with which a line is in a script that no reader here has letters for."""

_READ = 0.95
"""Confidence of rapidocr with which a line is in its letters, unless it surely looks otherwise."""

_LEAST_HEIGHT_PX = 6

_GOOD, _SCALES = 0.85, (1.0, 0.75)
"""A line that Tesseract is less sure of is read again in another size, and from what else may be its letters."""


class _LineReader(Protocol):
    def read_line(self, letters: np.ndarray) -> ReadText | None:
        """The text of a line's letters."""
        ...


@dataclass
class Unread:
    """Captions that were not read.

    Attributes:
        scripts: how many seem to be in a script that was not asked for, or that no reader here knows, by script.
        unsure: of how many the reader was not sure.
    """

    scripts: Counter[str] = field(default_factory=Counter)
    unsure: int = 0

    def messages(self) -> list[str]:
        """What a person can do about it, a sentence for each script."""
        told = []
        for script, count in self.scripts.most_common():
            language = language_of_script(script)
            if language is None:
                continue
            what = f"{count} caption{'s' * (count > 1)} seem{'s' * (count == 1)} to be {script.capitalize()}"
            told.append(f"{what} and {'were' if count > 1 else 'was'} not read; {_remedy(language)}")
        if self.unsure:
            told.append(f"{self.unsure} captions could not be read with confidence, and are only numbered")
        return told


def _remedy(language: Language) -> str:
    if language.tesseract in installed_languages():
        return f"give --language {language.tag}, or whichever language it is"
    return (
        f"install Tesseract with {language.name} (Debian: apt install tesseract-ocr-{language.tesseract}) or whichever "
        f"language it is, and give --language {language.tag}"
    )


class CaptionReader:
    """A :class:`~caption_extents.ocr.reader.TextReader` for some languages.

    rapidocr finds the lines. Each is read by rapidocr if that knows the letters of the languages in its script, and
    else by Tesseract. A caption with a line that cannot be read is left out as a whole.

    Args:
        languages: tags such as ``ru`` or ``zh,en``; by default English, other languages with its letters, Chinese and
            Japanese.
        reader: ``rapidocr``, ``tesseract``, or whichever knows the letters (``auto``).

    Attributes:
        unread: what was left out so far.

    Raises:
        InputError: nothing that is installed reads a language.
    """

    def __init__(self, languages: str | None = None, reader: str = "auto") -> None:
        if reader not in READERS:
            raise InputError(f"there is no reader {reader!r}; there are {', '.join(READERS)}")
        self._rapid = RapidReader()
        self._are_given = languages is not None
        self._by_script: dict[str, _LineReader | None] = {}
        self.unread = Unread()
        asked = find_languages(languages or ",".join(_WITHOUT_LANGUAGE))
        for script in dict.fromkeys(language.script for language in asked):
            self._by_script[script] = self._choose([one for one in asked if one.script == script], reader)
        if "vietnamese" in self._by_script:
            self._by_script["latin"] = self._by_script["vietnamese"]
        self._beside = "" if "latin" in self._by_script else "latin"
        """Names and numbers stand in captions of any language."""
        if self._beside:
            self._by_script["latin"] = None

    def _choose(self, languages: list[Language], reader: str) -> _LineReader | None:
        """What reads languages of one script; None for rapidocr."""
        letters = frozenset[str]().union(*(language.letters for language in languages))
        if reader != "tesseract" and letters <= self._rapid.alphabet:
            return None
        names = " and ".join(language.name for language in languages)
        if reader == "rapidocr":
            lacking = "".join(sorted(letters - self._rapid.alphabet)[:8])
            raise InputError(f"rapidocr's model has no letters {lacking} for {names}; give --reader auto or tesseract")
        missing = [language.tesseract for language in languages if language.tesseract not in installed_languages()]
        if missing:
            packages = " ".join(f"tesseract-ocr-{code.replace('_', '-')}" for code in missing)
            raise InputError(f"nothing here reads {names}; install Tesseract with it (Debian: apt install {packages})")
        return TesseractLines(languages)

    def read(self, picture: np.ndarray) -> ReadText | None:
        """See the protocol."""
        found = (_Line.of(picture, piece) for piece in self._rapid.pieces(picture))
        lines = [line for line in found if line is not None]
        read: list[Piece] = []
        for line in lines:
            script = self._script_of(line)
            if script not in self._by_script:
                self.unread.scripts[script] += 1
                return None
            piece = self._read(line, self._by_script[script])
            if piece is not None:
                read.append(piece)
            elif line.guess is not None and line.guess.probability >= _FOREIGN:
                self.unread.unsure += 1  # it has letters, and nothing was made of them
                return None
        if not read:
            return None
        if min(piece.score for piece in read) < LEAST_CONFIDENCE:
            self.unread.unsure += 1
            return None
        return ReadText(joined(read), min(piece.score for piece in read))

    def _script_of(self, line: _Line) -> str:
        """The script to read a line in: what it looks like, or that of the first language if that is not certain."""
        first = next(iter(self._by_script))
        if line.guess is None:
            return first
        is_asked = line.guess.script in self._by_script and line.guess.script != self._beside
        is_read = line.piece.score >= _READ and self._by_script[first] is None
        least = 0.0 if is_asked else _SURE if self._are_given or is_read else _FOREIGN
        return line.guess.script if line.guess.probability >= least else first

    def _read(self, line: _Line, reader: _LineReader | None) -> Piece | None:
        if reader is None:
            return line.piece if line.piece.text.strip() else None
        best: ReadText | None = None
        for letters in line.letters:
            for scale in _SCALES:
                text = reader.read_line(rescaled(letters, scale))
                if text is not None and (best is None or text.confidence > best.confidence):
                    best = text
                if best is not None and best.confidence >= _GOOD:
                    return Piece(line.piece.box, best.text, best.confidence)
        return None if best is None else Piece(line.piece.box, best.text, best.confidence)


@dataclass(frozen=True)
class _Line:
    """A line of a picture, before it is read.

    Attributes:
        piece: as rapidocr found and read it.
        letters: pictures of its letters, the likeliest first.
        guess: its script; None where no letters were found.
    """

    piece: Piece
    letters: list[np.ndarray]
    guess: ScriptGuess | None

    @classmethod
    def of(cls, picture: np.ndarray, piece: Piece) -> _Line | None:
        """None for what is too small to be text."""
        if piece.bottom - piece.top < _LEAST_HEIGHT_PX:
            return None
        box = int(piece.left), int(piece.top), int(piece.right), int(piece.bottom)
        letters = letters_of_line(picture, (max(0, box[0]), max(0, box[1]), box[2], box[3]))
        return cls(piece, letters, max(map(guess_script, letters), key=lambda guess: guess.probability, default=None))
