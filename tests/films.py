"""A film with captions of plain words, in the fonts of a wheel, so that every machine draws the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from caption_extents.training import captions, fonts, sample_video, text

WORDS = ("The night is over", "Nobody came home", "Wait for the train", "It was raining")


def caption_style(height: int) -> captions.CaptionStyle:
    """White with an outline, in a font of a wheel."""
    script = text.scripts()["latin"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "installed_fonts", lambda language: {})
        fonts.fonts_for.cache_clear()
        font = fonts.random_font(random.Random(1), "en", height // 16)
        fonts.fonts_for.cache_clear()
    assert font is not None
    return captions.CaptionStyle(script=script, font=font, outline_px=3)


def caption_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of all captions' pixels, as fractions of the picture."""
    style = caption_style(height)
    drawn = [
        captions.draw_caption(style, [words], width, height, round(height * sample_video.BASELINE)) for words in WORDS
    ]
    alpha = np.max([overlay.alpha for overlay in drawn], axis=0) > 0.5
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def make_film(
    path: Path,
    extents: Sequence[tuple[int, int]],
    *,
    rate: Fraction | int = 30,
    width: int = 960,
    height: int = 540,
    after: int = 20,
    fade_frames: int = 0,
    lines: int = 1,
) -> list[sample_video.PlannedCaption]:
    """Write an H.264 film whose captions stand on the given frames, first up to the one after the last.

    It ends so many frames ``after`` the last caption.
    """
    style = caption_style(height)
    planned = [
        sample_video.PlannedCaption(
            tuple(WORDS[(number + line) % len(WORDS)] for line in range(lines)),
            "outline",
            "latin",
            *extent,
            fade_frames,
        )
        for number, extent in enumerate(extents)
    ]
    frame_count = extents[-1][1] + after
    rng = random.Random(1)
    sample_video.write_film(
        path, planned, frame_count, lambda _: style, rng=rng, rate=Fraction(rate), width=width, height=height
    )
    return planned
