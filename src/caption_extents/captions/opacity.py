"""From which frame on a caption that fades counts as shown.

A fade is a blend: on the letters, every frame is a weighted mean of a frame without the caption and one with all of it.
The weight is the caption's opacity on that frame, and least squares find it. They compare fine detail only, because
light and movement change the rest of the picture, and only on pixels where the frame with the caption has much of it
and the other one little: most of these are edges of letters, also if the other frame shows another caption.

A caption whose opacity cannot be measured so is not taken for one that fades: it may be there at once, letter by
letter, or dimmed, or stand before a picture that itself dissolves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VISIBLE_OPACITY = 0.35
"""A caption counts as shown from this share of its full opacity on, here and in the model's training."""

_RADIUS = 2
"""Fine detail is a pixel less the mean of the pixels around it, up to this distance."""

_PIXELS, _LETTERS_SHARE = 20_000, 0.03
"""Most pixels among which letters are looked for, and the share of them that is compared."""

_WITHOUT_WEIGHT = 3.0
"""How much more detail in the frame without the caption speaks against a pixel than detail in the other one for it."""

_LEAST_STRENGTH, _LEAST_PIXELS = 12.0, 24
"""Levels by which detail must speak for a pixel, and pixels for which it must."""

_NOISE = 0.12
"""Opacities nearer to 0 or 1 may be noise, or what an encoder left of the picture before."""

_MOSTLY = 0.7
"""Most frames with at least this opacity show all of the caption."""

_LEVEL, _LEVEL_SHARE = 0.08, 0.6
"""How near to their median, and how many of these frames, where a fade has come to its end."""

_JUMP = 0.06
"""By more than this, and twice an ordinary step of a fade, opacity does not rise within it from one frame to the next:
a caption that is there at once in another colour, and is filled with its own afterwards, is no fade."""

_SEEN_WITHIN = 0.3
"""The model sees a caption that fades somewhere around a fifth of its opacity: at most this share of the fade's length
away from where it counts as shown."""

_UNEXPLAINED = 0.5
"""Letters that appear one by one also give a mean between 0 and 1; but then a frame is no blend, and differs from one
by a variance of opacity (1 - opacity). A fade's frames differ by less than this share of it."""


def change_in_fade(luma: Sequence[np.ndarray], full: int, without: int, seen: int) -> int | None:
    """Where a caption that fades begins or ceases to count as shown.

    Args:
        luma: uint8 (H, W) each, consecutive frames.
        full: number of the frame that shows all of the caption.
        without: number of the one that does not show it.
        seen: number of the frame with which the model sees the caption begin or cease; a fade is around it.

    Returns:
        Number of the first frame whose opacity is on the other side of :data:`VISIBLE_OPACITY` than the frame's before.
        None if the caption is not seen to fade.
    """
    details = _letter_details(luma, full, without)
    if details is None:
        return None
    whole = details[full] - details[without]
    energy = float(whole @ whole)
    first, last = sorted((full, without))
    change = details[first : last + 1] - details[without]
    opacity = change @ whole / energy
    # A single frame may be sharper than the others, as key frames are.
    mostly = opacity > _MOSTLY
    opacity /= np.median(opacity[mostly])
    if np.mean(np.abs(opacity[mostly] - 1) < _LEVEL) < _LEVEL_SHARE:
        return None  # it fades for longer than these frames last
    visible = opacity >= VISIBLE_OPACITY
    changes = np.flatnonzero(visible[1:] != visible[:-1])
    fading = (opacity > _NOISE) & (opacity < 1 - _NOISE)
    if changes.size != 1 or not fading[changes[0] : changes[0] + 2].any():
        return None
    found = first + int(changes[0]) + 1
    unexplained = ((change - opacity[:, None] * whole) ** 2).sum(axis=1) / energy
    if np.median(unexplained[fading] / (opacity * (1 - opacity))[fading]) > _UNEXPLAINED:
        return None
    rising = opacity if full > without else opacity[::-1]
    return found if _is_fade(rising, int(fading.sum()), abs(found - seen)) else None


def _is_fade(opacity: np.ndarray, fading_count: int, frames_off: int) -> bool:
    """Whether opacity rises from nothing to all of it in steps, around where the model sees the caption begin."""
    steps = np.diff(opacity)
    between = (np.maximum(opacity[1:], opacity[:-1]) > _NOISE) & (np.minimum(opacity[1:], opacity[:-1]) < 1 - _NOISE)
    if steps.max() > 2 * np.median(steps[between]) + _JUMP:
        return False
    return frames_off <= 1 + _SEEN_WITHIN * fading_count / (1 - 2 * _NOISE)


def _letter_details(luma: Sequence[np.ndarray], full: int, without: int) -> np.ndarray | None:
    """Fine detail of all frames, float32 (N, P), at pixels where the full frame has much of it and the other little.

    None if there are hardly any such pixels.
    """
    height, width = luma[full].shape
    rows, columns = (np.arange(_RADIUS, size - _RADIUS) for size in (height, width))
    inner = (rows[:, None] * width + columns).ravel()
    if inner.size == 0:
        return None
    inner = inner[:: -(-inner.size // _PIXELS)]
    strength = np.abs(_details(luma[full], inner)) - _WITHOUT_WEIGHT * np.abs(_details(luma[without], inner))
    strongest = np.argsort(strength)[-max(1, int(inner.size * _LETTERS_SHARE)) :]
    letters = inner[strongest[strength[strongest] >= _LEAST_STRENGTH]]
    if letters.size < _LEAST_PIXELS:
        return None
    return np.stack([_details(frame, letters) for frame in luma])


def _details(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Fine detail at some pixels that are not at the border, numbered row by row; float32 (P,)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    around = (offsets[:, None] * frame.shape[1] + offsets).ravel()
    values = frame.reshape(-1)[pixels[:, None] + around].astype(np.float32)
    details: np.ndarray = values[:, around.size // 2] - values.mean(axis=1)
    return details
