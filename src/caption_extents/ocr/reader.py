"""What reads text in a picture, and the reader that the extra ``ocr`` installs."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from caption_extents.errors import InputError

_BORDER_PX = 24
"""Added around a picture: detectors miss text that touches the edge."""

_LONGEST_SIDE_PX = 1280
"""Larger pictures are scaled down to this size for detection. rapidocr's default is to scale the shorter side *up* to
736 pixels, which for wide caption crops takes ten times as long and finds less."""


@dataclass(frozen=True)
class ReadText:
    """Text of a picture, with lines separated by newlines, and the lowest confidence among its parts, in 0..1."""

    text: str
    confidence: float


class TextReader(Protocol):
    """Reads the text of one picture; any OCR engine behind a few lines of code."""

    def read(self, picture: np.ndarray) -> ReadText | None:
        """The text of an RGB picture, uint8 (H, W, 3); None where there is none."""
        ...


def check_reader() -> None:
    """Raise an InputError if the dependencies of :class:`RapidReader` are not installed."""
    if importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None:
        raise InputError("reading text needs the extra 'ocr': pip install 'caption-extents[ocr]'")


class RapidReader:
    """PP-OCR, for upright text.

    Raises:
        InputError: rapidocr is not installed.
    """

    def __init__(self) -> None:
        self._engine = _rapid_engine()

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


def _rapid_engine() -> Any:
    """An OCR engine that detects and recognises upright text; the detection of rotated text is disabled."""
    check_reader()
    from rapidocr import RapidOCR

    engine = RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.log_level": "error",
            "Det.limit_type": "max",
            "Det.limit_side_len": _LONGEST_SIDE_PX,
        }
    )
    # It warns of every picture without text.
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return engine
