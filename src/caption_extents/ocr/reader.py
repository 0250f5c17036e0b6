"""What reads text in a picture, and the reader that the extra ``ocr`` installs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from caption_extents.ocr.engine import check_engine, rapid_engine

_BORDER_PX = 24
"""Added around a picture: detectors miss text that touches the edge."""

_LONGEST_SIDE_PX = 1280
"""Of a picture whose text is read."""


_WITHOUT_IT = "reading text needs the extra 'ocr': pip install 'caption-extents[ocr]'"


@dataclass(frozen=True)
class ReadText:
    """Text of a picture, lines divided by newlines, and how sure the reader is of its least sure part, in 0..1."""

    text: str
    confidence: float


class TextReader(Protocol):
    """Reads the text of one picture; any OCR engine behind a few lines of code."""

    def read(self, picture: np.ndarray) -> ReadText | None:
        """The text of an RGB picture, uint8 (H, W, 3); None where there is none."""
        ...


def check_reader() -> None:
    """Raise an InputError where :class:`RapidReader` cannot be."""
    check_engine(_WITHOUT_IT)


class RapidReader:
    """PP-OCR; see :func:`~caption_extents.ocr.engine.rapid_engine`.

    Raises:
        InputError: rapidocr is not installed.
    """

    def __init__(self) -> None:
        self._engine = rapid_engine(_LONGEST_SIDE_PX, _WITHOUT_IT)

    def read(self, picture: np.ndarray) -> ReadText | None:
        """See the protocol."""
        border = ((_BORDER_PX, _BORDER_PX), (_BORDER_PX, _BORDER_PX), (0, 0))
        result: Any = self._engine(np.ascontiguousarray(np.pad(picture, border, mode="edge")[..., ::-1]))
        if result.boxes is None or not len(result.boxes):
            return None
        pieces = [
            _Piece(np.asarray(box), str(text), float(score))
            for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True)
        ]
        text = "\n".join(" ".join(piece.text for piece in line) for line in into_lines(pieces))
        return ReadText(text, min(piece.score for piece in pieces))


@dataclass(frozen=True)
class _Piece:
    """A piece of text and its box, (4, 2) pixels."""

    box: np.ndarray
    text: str
    score: float

    @property
    def left(self) -> float:
        return float(self.box[:, 0].min())

    @property
    def top(self) -> float:
        return float(self.box[:, 1].min())

    @property
    def bottom(self) -> float:
        return float(self.box[:, 1].max())

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def into_lines(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces sorted into lines from top to bottom, each from left to right."""
    lines: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda p: p.middle):
        last = lines[-1] if lines else None
        if last is not None and last[0].top < piece.middle < last[0].bottom:
            last.append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda p: p.left) for line in lines]
