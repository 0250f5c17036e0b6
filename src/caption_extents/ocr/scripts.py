"""Which script a line is written in, judged by the shapes of its letters before anything reads it.

A reader answers with letters that it knows, whatever it is shown, and may be sure of them: Russian capitals are read as
Latin ones, Vietnamese loses its vowels. Therefore a small network (:mod:`caption_extents.training.scripts`) looks at
the line first, and what a reader has no letters for is not given to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

INPUT_PX = 32
"""Height of what the network sees; the width follows."""

_LEAST_PX, _MOST_PX = 24, 640
_FILE = Path(__file__).parent / "scripts.onnx"


@dataclass(frozen=True)
class ScriptGuess:
    """A script by its name in :mod:`caption_extents.ocr.languages`, and how sure the network is, in 0..1."""

    script: str
    probability: float


def to_input(letters: np.ndarray) -> np.ndarray:
    """Letters, dark on white, uint8 (h, w), as the network takes them: float32 (1, 1, 32, W), 1 for ink."""
    rows, columns = np.flatnonzero((letters < 128).any(1)), np.flatnonzero((letters < 128).any(0))
    if len(rows):
        letters = letters[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    width = round(letters.shape[1] * (INPUT_PX - 4) / letters.shape[0])
    width = min(max(width, _LEAST_PX), _MOST_PX)
    scaled = cv2.resize(letters, (width, INPUT_PX - 4), interpolation=cv2.INTER_AREA)
    padded = np.pad(scaled, ((2, 2), (4, 4)), constant_values=255)
    return 1 - padded[None, None].astype(np.float32) / 255


def guess_script(letters: np.ndarray) -> ScriptGuess:
    """The script of a line's letters, uint8 (h, w), dark on white."""
    session, names = _network()
    (logits,) = session.run(None, {"letters": to_input(letters)})
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    best = int(shares.argmax())
    return ScriptGuess(names[best], float(shares[best]))


@cache
def _network() -> tuple[onnxruntime.InferenceSession, list[str]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(_FILE), options, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["scripts"])
