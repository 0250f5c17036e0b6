"""PP-OCR through rapidocr and onnxruntime; its models come with the package, nothing is downloaded."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from caption_extents.errors import InputError


def check_engine(without_it: str) -> None:
    """Raise an InputError that says so where rapidocr is not installed."""
    if importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None:
        raise InputError(without_it)


def rapid_engine(longest_side_px: int, without_it: str) -> Any:
    """An engine that finds text, and reads it; captions stand upright, so it does not look for turned text.

    Args:
        longest_side_px: larger pictures are scaled down to this before text is looked for. By default rapidocr scales
            the shorter side *up* to 736 pixels: a caption's strip, a tenth as high as wide, becomes so large that this
            takes ten times as long and finds less.
        without_it: what to say where rapidocr is not installed.

    Raises:
        InputError: rapidocr is not installed.
    """
    check_engine(without_it)
    from rapidocr import RapidOCR

    engine = RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.log_level": "error",
            "Det.limit_type": "max",
            "Det.limit_side_len": longest_side_px,
        }
    )
    # It warns of every picture without text.
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return engine
