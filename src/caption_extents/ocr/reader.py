"""What reads text in a picture, and the reader that the extra ``ocr`` installs."""

from __future__ import annotations

import importlib.util
import logging
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from caption_extents.errors import InputError

LEAST_CONFIDENCE = 0.5
"""What a reader is less sure of is left out."""

_SURE = 0.8
"""Confidence above which there is no need to look for what was not read."""

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
        pieces = [piece for piece in self.pieces(picture) if piece.score >= LEAST_CONFIDENCE]
        if not pieces:
            return None
        return ReadText(joined(pieces), min(piece.score for piece in pieces))

    def pieces(self, picture: np.ndarray) -> list[Piece]:
        """All pieces of text that are found, whatever their confidence; of some, nothing may have been read."""
        border = ((_BORDER_PX, _BORDER_PX), (_BORDER_PX, _BORDER_PX), (0, 0))
        padded = np.ascontiguousarray(np.pad(picture, border, mode="edge")[..., ::-1])
        result: Any = self._engine(padded, use_det=True, use_rec=True, text_score=0.0)
        pieces = [
            Piece(np.asarray(box) - _BORDER_PX, str(text), float(score))
            for box, text, score in zip(*map(_listed, (result.boxes, result.txts, result.scores)), strict=True)
        ]
        if not pieces or min(piece.score for piece in pieces) < _SURE:
            # Where nothing is read in a box, the engine does not tell of the box.
            found: Any = self._engine(padded, use_det=True, use_rec=False)
            boxes = [np.asarray(box) - _BORDER_PX for box in _listed(found.boxes)]
            pieces += [Piece(box, "", 0.0) for box in boxes if not any(_overlap(box, piece) for piece in pieces)]
        return pieces

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """The characters that it knows."""
        self._engine(np.full((32, 96, 3), 255, np.uint8), use_det=False, use_cls=False)  # loads the model
        return frozenset(self._engine.text_rec.session.get_character_list())


@dataclass(frozen=True)
class Piece:
    """A piece of text and its box, (4, 2) pixels."""

    box: np.ndarray
    text: str
    score: float

    @property
    def left(self) -> float:
        """Of its box."""
        return float(self.box[:, 0].min())

    @property
    def top(self) -> float:
        """Of its box."""
        return float(self.box[:, 1].min())

    @property
    def right(self) -> float:
        """Of its box."""
        return float(self.box[:, 0].max())

    @property
    def bottom(self) -> float:
        """Of its box."""
        return float(self.box[:, 1].max())

    @property
    def middle(self) -> float:
        """Between top and bottom."""
        return (self.top + self.bottom) / 2


def _listed(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _overlap(box: np.ndarray, piece: Piece) -> bool:
    """Whether the middle of a box lies in a piece."""
    x, y = box.mean(0)
    return bool(piece.left <= x <= piece.right and piece.top <= y <= piece.bottom)


def into_lines(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces sorted into lines from top to bottom, each from left to right."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda p: p.middle):
        last = lines[-1] if lines else None
        if last is not None and last[0].top < piece.middle < last[0].bottom:
            last.append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda p: p.left) for line in lines]


def joined(pieces: list[Piece]) -> str:
    """The text of pieces as people write it: a line for each line.

    Within a line the order is that of reading, which in Arabic and Hebrew begins at the right; Chinese and Japanese
    pieces have no space between them.
    """
    return "\n".join(_joined_line(line) for line in into_lines(pieces))


def _joined_line(line: list[Piece]) -> str:
    if _count(line, _RIGHT_TO_LEFT) > _count(line, "L"):
        line = line[::-1]
    text = line[0].text
    for piece in line[1:]:
        is_dense = _is_dense(text[-1:]) and _is_dense(piece.text[:1])
        text += piece.text if is_dense else f" {piece.text}"
    return text


_RIGHT_TO_LEFT = ("R", "AL")
_DENSE = re.compile(r"[\u2e80-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def _count(line: list[Piece], kinds: str | tuple[str, ...]) -> int:
    """Letters with some directions (Unicode Standard Annex 9)."""
    return sum(unicodedata.bidirectional(letter) in kinds for piece in line for letter in piece.text)


def _is_dense(letter: str) -> bool:
    return bool(_DENSE.match(letter))


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
