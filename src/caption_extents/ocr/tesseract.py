"""Tesseract, where it is installed: it knows more than a hundred languages.

It reads letters alone, dark on white and enlarged, as :mod:`caption_extents.ocr.ink` cuts them out. Of a caption as it
stands in the picture it makes little sense.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from functools import cache

import cv2
import numpy as np

from caption_extents.errors import ProcessingError
from caption_extents.ocr.languages import UNSPACED, Language
from caption_extents.ocr.reader import ReadText

_SECONDS = 60
_POLYTONIC = dict.fromkeys((0x0313, 0x0314, 0x0342))
"""Breathings and the circumflex, which Greek has not been written with since 1982, and Tesseract sees all the same."""
_WORD = "5"
"""Level of a word in Tesseract's tables."""


@cache
def installed_languages() -> frozenset[str]:
    """Codes of the languages that Tesseract can read here; none if it is not installed."""
    if shutil.which("tesseract") is None:
        return frozenset()
    listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, check=False)
    return frozenset(listed.stdout.split("\n")[1:]) - {"", "osd"}


class TesseractLines:
    """Reads single lines in some languages of one script.

    Args:
        languages: with :func:`installed_languages`.
    """

    def __init__(self, languages: list[Language]) -> None:
        self._codes = "+".join(dict.fromkeys(language.tesseract for language in languages))
        self._is_unspaced = languages[0].script in UNSPACED

    def read_line(self, letters: np.ndarray) -> ReadText | None:
        """The text of a line's letters, uint8 (h, w), dark on white; None where there is none.

        Raises:
            ProcessingError: Tesseract failed.
        """
        command = ["tesseract", "stdin", "stdout", "-l", self._codes, "--psm", "7", "--dpi", "150", "txt", "tsv"]
        try:
            done = subprocess.run(
                command,
                input=cv2.imencode(".png", letters)[1].tobytes(),
                capture_output=True,
                check=True,
                timeout=_SECONDS,
                env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            raise ProcessingError(f"Tesseract could not read a line in {self._codes}: {said or error}") from error
        return self._text_of(done.stdout.decode(errors="replace"))

    def _text_of(self, printed: str) -> ReadText | None:
        """What Tesseract printed: a table of words with their confidence in percent, and the text."""
        rows = [line.split("\t") for line in printed.split("\n")]
        words = [row for row in rows if len(row) == 12 and row[0] == _WORD and row[11].strip()]
        text = " ".join(line[0].strip() for line in rows if len(line) == 1).strip()
        text = unicodedata.normalize("NFD", text.replace("\u00b5", "\u03bc"))
        if "ell" in self._codes:
            text = text.translate(_POLYTONIC)
        text = unicodedata.normalize("NFC", text)
        if self._is_unspaced:
            text = text.replace(" ", "")
        if not text or not words:
            return None
        lengths = [len(row[11]) for row in words]
        return ReadText(text, float(np.average([float(row[10]) for row in words], weights=lengths)) / 100)
