"""What stands in pictures and is no caption: signs, channel marks, tickers, clocks, bright things with sharp edges."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from caption_extents.training import captions, text


def _sign(rng: random.Random, size_px: int, width: int, height: int, letters: int = 10) -> captions.Overlay:
    style = captions.random_style(
        rng, max(8, size_px), rng.choice(["latin", "latin", "han", "cyrillic", "hangul", None])
    )
    words = text.random_line(rng, style.script, letters)
    return captions.draw_caption(style, [words], width, height, rng.randint(size_px, max(size_px, height)))


def _add_mark(rng: random.Random, frames: np.ndarray) -> None:
    """A channel mark at one side that stays through the clip, cuts included."""
    height, width = frames.shape[1:3]
    overlay = _sign(rng, int(height * rng.uniform(0.12, 0.45)), max(8, width // 5), height, 6)
    alpha = overlay.alpha * rng.uniform(0.3, 0.95)
    left = rng.choice([0, width - overlay.alpha.shape[1]])
    for frame in frames:
        captions.blend(frame[:, left : left + alpha.shape[1]], overlay.colour, alpha)


def _add_scenery_text(rng: random.Random, frames: np.ndarray) -> None:
    """A sign, a shirt or a page in the scene: turned, cut by the edge, moving with the camera."""
    count, height, width = frames.shape[:3]
    overlay = _sign(rng, int(height * rng.uniform(0.15, 0.9)), width, height)
    turned = Image.fromarray((overlay.alpha * 255).astype(np.uint8)).rotate(rng.uniform(-14, 14))
    alpha = np.asarray(turned, np.float32) / 255 * rng.uniform(0.4, 1.0)
    x, y = rng.uniform(-0.4, 0.4) * width, rng.uniform(-0.5, 0.5) * height
    dx, dy = rng.choice([0.0, rng.uniform(-0.03, 0.03)]) * width, rng.choice([0.0, rng.uniform(-0.08, 0.08)]) * height
    for index in range(count):
        move = (round(y + dy * index), round(x + dx * index))
        captions.blend(frames[index], np.roll(overlay.colour, move, (0, 1)), np.roll(alpha, move, (0, 1)))


def _add_ticker(rng: random.Random, frames: np.ndarray) -> None:
    """News that run along, or credits that climb."""
    count, height, width = frames.shape[:3]
    credits = rng.random() < 0.4
    size = max(8, int(height * (rng.uniform(0.2, 0.5) if credits else rng.uniform(0.3, 0.7))))
    overlay = _sign(rng, size, width, height, 30)
    speed = (
        (0, -max(1, round(height * rng.uniform(0.05, 0.4))))
        if credits
        else (-round(width * rng.uniform(0.01, 0.06)), 0)
    )
    for index in range(count):
        shift = (speed[1] * index, speed[0] * index)
        captions.blend(frames[index], np.roll(overlay.colour, shift, (0, 1)), np.roll(overlay.alpha, shift, (0, 1)))


def _add_clock(rng: random.Random, frames: np.ndarray) -> None:
    """A score, a clock or a counter in a corner, whose digits change."""
    height, width = frames.shape[1:3]
    size = max(8, int(height * rng.uniform(0.15, 0.4)))
    style = captions.random_style(rng, size, "latin")
    every, box = rng.randint(1, 6), max(8, width // 5)
    left, bottom = rng.choice([0, width - box]), rng.randint(size, max(size, height))
    overlay = None
    for index, frame in enumerate(frames):
        if overlay is None or index % every == 0:
            overlay = captions.draw_caption(
                style, [f"{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"], box, height, bottom
            )
        captions.blend(frame[:, left : left + box], overlay.colour, overlay.alpha)


def _add_neighbour(rng: random.Random, frames: np.ndarray) -> None:
    """Feet or heads of another line of text that stands outside the crop, and changes on its own."""
    count, height, width = frames.shape[:3]
    size = max(10, int(height * rng.uniform(0.4, 0.9)))
    style = captions.random_style(rng, size)
    shown = size * rng.uniform(0.1, 0.3)
    bottom = round(shown) if rng.random() < 0.5 else round(height + size * 1.2 - shown)
    at = 0
    while at < count:
        end = at + rng.randint(2, 12)
        words = [text.random_line(rng, style.script, 16)]
        overlay = captions.draw_caption(style, words, width, height, bottom)
        for frame in frames[at:end] if rng.random() < 0.7 else []:
            captions.blend(frame, overlay.colour, overlay.alpha)
        at = end


_CUT_LEVELS = 12.0
"""Mean difference of two frames, in levels, from which on there is a cut between them."""


def shots(frames: np.ndarray) -> list[tuple[int, int]]:
    """First and end frame of each shot of frames, uint8 (T, H, W, 3)."""
    small = frames[:, ::4, ::4].astype(np.int16)
    apart = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return list(itertools.pairwise([0, *(np.flatnonzero(apart > _CUT_LEVELS) + 1).tolist(), len(frames)]))


def _thing(rng: random.Random, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """An irregular shape, often bright, now and then with an edge around it; colour (H, W, 3) and coverage (H, W)."""
    wide, high = (max(2, round(radius * rng.uniform(0.4, 2.0))) for _ in range(2))
    corners = rng.randint(3, 24)
    rough = rng.uniform(0.3, 1.0)
    points = []
    for corner in range(corners):
        angle, far = 2 * math.pi * corner / corners, rng.uniform(rough, 1.0) * 0.9
        points.append((4 * wide * (1 + far * math.cos(angle)), 4 * high * (1 + far * math.sin(angle))))
    large = Image.new("L", (8 * wide, 8 * high))
    ImageDraw.Draw(large).polygon(points, fill=255)
    inside = np.asarray(large.resize((2 * wide, 2 * high), Image.Resampling.BOX), np.float32) / 255
    bright = rng.randint(200, 255)
    fill = rng.choice([captions.WHITE, (bright, bright, bright), (bright, bright, 90), captions.random_colour(rng)])
    colour = np.full((*inside.shape, 3), fill, np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal((high, wide)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize((2 * wide, 2 * high), Image.Resampling.BICUBIC))
    colour += rng.choice([0.0, 15.0, 50.0]) * grain[..., None]
    if rng.random() < 0.4:
        edge = rng.choice([captions.BLACK, (60, 60, 20), captions.random_colour(rng)])
        core = np.asarray(Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))) / 255
        colour = np.where(core[..., None] > 0.5, colour, np.asarray(edge, np.float32))
    return np.clip(colour, 0, 255).astype(np.uint8), inside


def _put_at(frame: np.ndarray, colour: np.ndarray, alpha: np.ndarray, left: int, top: int) -> None:
    """Blend a small picture into a frame; what stands outside is cut off."""
    height, width = frame.shape[:2]
    rows = slice(max(0, -top), min(alpha.shape[0], height - top))
    columns = slice(max(0, -left), min(alpha.shape[1], width - left))
    if rows.start < rows.stop and columns.start < columns.stop:
        there = frame[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
        captions.blend(there, colour[rows, columns], alpha[rows, columns])


def _add_things(rng: random.Random, frames: np.ndarray) -> None:
    """Stones, flowers, lamps, windows, paint on a road: from cut to cut they stay, or move with the camera."""
    height, width = frames.shape[1:3]
    for start, end in shots(frames):
        if rng.random() < 0.25:
            continue
        dx, dy = rng.choice([(0.0, 0.0), (0.0, 0.0), (rng.uniform(-0.02, 0.02) * width, rng.uniform(-2, 2))])
        opacity = rng.choice([1.0, rng.uniform(0.5, 1.0)])
        radius = height * math.exp(rng.uniform(math.log(0.03), math.log(0.4)))
        thing, in_a_row = _thing(rng, radius), rng.random() < 0.2
        x, y, step = rng.uniform(0, width), rng.uniform(0, height), radius * rng.uniform(2, 8)
        for number in range(rng.choice([1, 1, 2, 4, 8, 20])):
            if in_a_row:
                left, top = x + step * number, y
            else:
                thing = _thing(rng, radius * rng.uniform(0.5, 1.5))
                left, top = rng.uniform(-radius, width), rng.uniform(-radius, height)
            for index in range(start, end):
                since = index - start
                _put_at(frames[index], thing[0], thing[1] * opacity, round(left + dx * since), round(top + dy * since))


_KINDS: list[tuple[Callable[[random.Random, np.ndarray], None], float]] = [
    (_add_mark, 3), (_add_scenery_text, 2.5), (_add_ticker, 1), (_add_clock, 1), (_add_neighbour, 1), (_add_things, 4),
]  # fmt: skip


def add_distractors(rng: random.Random, frames: np.ndarray, share: float) -> None:
    """Put what is no caption into frames, uint8 (T, H, W, 3), in so large a share of calls; now and then two kinds."""
    if rng.random() < share:
        kinds, weights = zip(*_KINDS, strict=True)
        # Each once, in the order drawn: a set's order differs from process to process.
        for add in dict.fromkeys(rng.choices(kinds, weights, k=rng.choice([1, 1, 2]))):
            add(rng, frames)
