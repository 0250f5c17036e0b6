"""From which frame on a caption that fades counts as shown.

A fade is a blend: on the letters, every frame is a weighted mean of a frame without the caption and one with all of it.
The weight is the caption's opacity on that frame, and least squares find it. They compare fine detail only, because
light and movement change the rest of the picture, and only on edges of the caption's letters where the frame without it
is plain: there it makes no difference whether that frame shows another caption.
"""

from __future__ import annotations

import numpy as np

VISIBLE_OPACITY = 0.35
"""A caption counts as shown from this share of its full opacity on, here and in the model's training."""

_RADIUS = 2
"""Fine detail is a pixel less the mean of the pixels around it, up to this distance."""

_PIXELS, _LETTERS_SHARE = 40_000, 0.03
"""Most pixels that are looked at, and the share of them that is compared."""

_OTHER_WEIGHT = 3.0
"""How much more detail in the frame without the caption speaks against a pixel than detail in the full one for it."""

_CLEAR = 0.12
"""Opacities nearer to 0 or 1 may be noise, or what an encoder left of the picture before."""

_UNEXPLAINED = 0.5
"""Most variance of a fade's frames, as a share of what letters would give that appear one by one."""


def shown_in_fade(luma: np.ndarray, full: int, without: int) -> np.ndarray | None:
    """Which frames show a caption that fades in or out.

    Args:
        luma: uint8 (N, H, W), consecutive frames.
        full: the frame that shows all of the caption.
        without: the one that does not show it.

    Returns:
        bool (N,): whether the opacity is :data:`VISIBLE_OPACITY` or more, which changes once, between the two frames.
        None if the caption does not fade there.
    """
    first, last = sorted((full, without))
    details = _letter_details(luma, full, without)
    change, whole = details[first : last + 1] - details[without], details[full] - details[without]
    energy = float(whole @ whole)
    if not energy:
        return None
    opacity = change @ whole / energy
    visible = opacity >= VISIBLE_OPACITY
    changes = np.flatnonzero(visible[1:] != visible[:-1])
    fading = (opacity > _CLEAR) & (opacity < 1 - _CLEAR)
    if changes.size != 1 or not fading[changes[0] : changes[0] + 2].any():
        return None
    # If a share of the letters were shown in full, the opacity would be that share, and this much would be unexplained.
    one_by_one = opacity * (1 - opacity)
    unexplained = ((change - opacity[:, None] * whole) ** 2).sum(axis=1) / energy
    if np.median(unexplained[fading] / one_by_one[fading]) > _UNEXPLAINED:
        return None
    shown = np.full(len(luma), full < without)
    shown[first : last + 1], shown[last + 1 :] = visible, full > without
    return shown


def _letter_details(luma: np.ndarray, full: int, without: int) -> np.ndarray:
    """Fine detail of all frames, float32 (N, P), where the full frame has most of it and the other one has little."""
    _, height, width = luma.shape
    rows, columns = (np.arange(_RADIUS, size - _RADIUS) for size in (height, width))
    inner = (rows[:, None] * width + columns).ravel()
    inner = inner[:: -(-inner.size // _PIXELS) or 1]
    strength = np.abs(_details(luma[full], inner)) - _OTHER_WEIGHT * np.abs(_details(luma[without], inner))
    letters = inner[np.argsort(strength)[-max(1, int(inner.size * _LETTERS_SHARE)) :]]
    return np.stack([_details(frame, letters) for frame in luma])


def _details(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Fine detail at some pixels that are not at the border, numbered row by row; float32 (P,)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    around = (offsets[:, None] * frame.shape[1] + offsets).ravel()
    values = frame.reshape(-1)[pixels[:, None] + around].astype(np.float32)
    details: np.ndarray = values[:, around.size // 2] - values.mean(axis=1)
    return details
