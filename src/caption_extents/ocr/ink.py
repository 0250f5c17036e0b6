"""The letters of a line of text alone: dark on white, without the picture behind them and without their outline.

Captions are set off from the picture: bright letters have a dark outline or box around them, dark ones a bright one. So
what is brighter than a threshold and does not touch the border of the line's box is letters or what they enclose; the
picture itself reaches the border. The threshold is Otsu's (IEEE Trans. Systems, Man, and Cybernetics 9, 1979).
"""

from __future__ import annotations

import cv2
import numpy as np

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

LINE_PX = 96
"""Height of a line's box in the pictures that are made of it."""

_MARGIN = 0.3
"""Around a line's box, as a share of its height: detectors cut accents off."""

_WHITE_PX = 16
_LEAST_SIDE_PX = 4
_LEAST_INK, _MOST_INK = 0.01, 0.6

_MOST_DIFFERENCE = 70
"""Of a part's colour from that of most letters, in any of red, green and blue."""

_LEAST_PART = 0.001
"""Area of a part, as a share of the square of a line's height."""

_ALONG = 0.5
"""Share of the columns in which letters are at least, of those of their outline."""


def letters_of_line(picture: np.ndarray, box: Box) -> list[np.ndarray]:
    """What may be the letters of a line: those that are brighter than what surrounds them, and those that are darker.

    Args:
        picture: RGB, uint8 (H, W, 3).
        box: where the line stands.

    Returns:
        Up to two pictures, uint8 (h, w), 0 for ink and 255 for none, with a white border; the likelier one first.
    """
    left, top, right, bottom = box
    if right - left < _LEAST_SIDE_PX or bottom - top < _LEAST_SIDE_PX:
        return []
    enlarged = _enlarged(picture, box)
    luma = np.asarray(cv2.cvtColor(enlarged, cv2.COLOR_RGB2GRAY))
    threshold, _ = cv2.threshold(luma, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    masks = [_of_one_colour(_enclosed((luma > threshold) == is_bright), enlarged) for is_bright in (True, False)]
    masks = [mask for mask in masks if _LEAST_INK <= float(mask.mean()) <= _MOST_INK]
    masks.sort(key=lambda mask: float(mask.mean()))
    # What is less is the letters, and the rest their outline; or it is holes in letters, which do not go all along.
    if len(masks) == 2 and masks[0].any(0).sum() < _ALONG * masks[1].any(0).sum():
        masks.reverse()
    return [_softened(luma, mask, threshold) for mask in masks]


def rescaled(letters: np.ndarray, scale: float) -> np.ndarray:
    """The same letters in another size."""
    if scale == 1:
        return letters
    return np.asarray(cv2.resize(letters, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def _enlarged(picture: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    margin = max(3, round((bottom - top) * _MARGIN))
    part = picture[max(0, top - margin) : max(0, bottom + margin), max(0, left - margin) : max(0, right + margin)]
    scale = LINE_PX / max(1, bottom - top)
    return np.asarray(cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))


def _enclosed(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask that do not touch its border."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.asarray((parts > 0) & ~np.isin(parts, np.unique(edge)))


def _of_one_colour(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The parts of a mask that have the colour of most of it: where letters enclose the picture, it shows through."""
    if not mask.any():
        return mask
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    areas = np.maximum(1, np.bincount(parts.ravel(), minlength=count))
    means = [np.bincount(parts.ravel(), picture[..., n].ravel(), count) / areas for n in range(3)]
    usual = np.median(picture[mask], axis=0)
    is_kept = np.abs(np.stack(means, 1) - usual).max(1) <= _MOST_DIFFERENCE
    is_kept &= areas >= _LEAST_PART * LINE_PX**2
    is_kept[0] = False
    return np.asarray(is_kept[parts])


def _softened(luma: np.ndarray, mask: np.ndarray, threshold: float) -> np.ndarray:
    """Letters with the soft edges that they have in the picture."""
    around = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    full = float(np.median(luma[mask]))
    # Thin letters are read better than bold ones, so that only the inner half of an edge counts.
    ink = np.clip((luma.astype(np.float32) - threshold) / (full - threshold or 1), 0, 1)
    letters = 255 - np.where(around, ink, 0) * 255
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = letters[max(0, rows[0] - 2) : rows[-1] + 3, max(0, columns[0] - 2) : columns[-1] + 3]
    return np.pad(cut.astype(np.uint8), _WHITE_PX, constant_values=255)
