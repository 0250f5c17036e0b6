"""Which captions of a film a person could see: what nobody can see is no truth to measure a model by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caption_extents.training.scoring import Extent

_SEEN_LEVELS, _SEEN_PX = 40, 6
"""A difference that can be seen on an even grey: of so many levels of luma, in so many pixels."""

_TOLD_LEVELS = 12
"""Levels of luma by which a letter must differ from the picture behind it; a codec leaves little of fewer."""

_TOLD_SHARE = 0.1
"""Of a caption's pixels: so many must differ from the picture, or there is nothing to read."""


def letters(drawn: np.ndarray) -> np.ndarray:
    """Where captions, each drawn alone on one even grey, differ from it; both (N, H, W), uint8 and bool."""
    blank = np.bincount(drawn.ravel()).argmax()
    shown: np.ndarray = np.abs(drawn.astype(np.int16) - blank) > _SEEN_LEVELS
    return shown


def which_are_seen(drawn: np.ndarray, least_px: Sequence[float]) -> np.ndarray:
    """Which pictures (N, H, W) show something as wide as it must be, and not what the one before shows; bool (N,).

    libass draws letters that a font lacks, or has only as bitmaps, as nothing, as boxes or all in one place.
    """
    shown = letters(drawn)
    changes = np.concatenate([shown[:1], np.abs(np.diff(drawn.astype(np.int16), axis=0)) > _SEEN_LEVELS])
    columns: np.ndarray = np.any(shown, axis=1)
    widths = columns.shape[1] - columns.argmax(axis=1) - columns[:, ::-1].argmax(axis=1)
    widths[~columns.any(axis=1)] = 0
    seen: np.ndarray = (changes.sum((1, 2)) >= _SEEN_PX) & (widths >= np.asarray(least_px))
    return seen


def which_are_told(
    without: np.ndarray, captioned: np.ndarray, extents: Sequence[Extent], letters_px: Sequence[int], edge: int = 1
) -> np.ndarray:
    """Which captions can be told from the pictures behind them in all of their samples; bool (N,).

    White letters on a white sky cannot, whatever the truth says.

    Args:
        without: luma of every sample without any caption, uint8 (samples, H, W).
        captioned: the same with them.
        extents: samples of each caption.
        letters_px: pixels that each has on a background which shows all of them.
        edge: samples at both ends that may show less, because the caption fades or a frame is another's.
    """
    told_px = (np.abs(captioned.astype(np.int16) - without) >= _TOLD_LEVELS).sum((1, 2))

    def is_told(extent: Extent, all_px: int) -> bool:
        start, end = extent
        inside = told_px[start + edge : end - edge] if end - start > 2 * edge else told_px[(start + end) // 2 :][:1]
        return bool(inside.min(initial=all_px) >= _TOLD_SHARE * all_px)

    return np.array([is_told(*one) for one in zip(extents, letters_px, strict=True)], bool)
