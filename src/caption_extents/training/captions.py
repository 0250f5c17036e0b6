"""Drawing captions as burned-in subtitles look: fonts, outlines, boxes, shadows, glow, colours, several lines."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from caption_extents.training import fonts, text

Colour = tuple[int, int, int]

ALIGNS = ("center", "left", "right")

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


@dataclass(frozen=True)
class CaptionStyle:
    """How all captions of one video look."""

    script: text.Script
    font: ImageFont.FreeTypeFont
    fill: Colour = WHITE
    outline: Colour = BLACK
    outline_px: int = 2
    shadow_px: int = 0
    glow_px: int = 0
    box: Colour | None = None
    box_alpha: float = 0.0
    box_padding_px: int = 6
    slant: float = 0.0
    align: str = "center"
    opacity: float = 1.0
    line_spacing: float = 1.2
    name: str = "outline"
    fill_bottom: Colour | None = None
    """Colour of the letters' feet, for a vertical gradient."""
    outer: Colour | None = None
    outer_px: int = 0
    """A second outline around the first."""
    stretch: float = 1.0
    """Width of letters over their natural width."""
    tracking_px: int = 0
    """Room between letters beyond the font's; for scripts whose letters do not join."""
    soft_px: float = 0.0
    """Blur of everything drawn, as from old discs and upscaled pictures."""
    bar: bool = False
    """Whether the box is as wide as the picture."""
    speakers: tuple[Colour, ...] = field(default=())
    """Other fill colours that captions of this video take now and then."""


@dataclass(frozen=True)
class Overlay:
    """A drawn caption: colour uint8 (H, W, 3) and coverage float32 (H, W) in 0..1, the size of the crop."""

    colour: np.ndarray
    alpha: np.ndarray
    ink: np.ndarray
    """Coverage of the letters and their outline alone, without box, shadow and glow; float32 (H, W)."""


def random_colour(rng: random.Random, lowest: int = 0) -> Colour:
    return (rng.randint(lowest, 255), rng.randint(lowest, 255), rng.randint(lowest, 255))


_KINDS = {
    "outline": 8.0,
    "outline-shadow": 3.0,
    "shadow": 2.5,
    "glow": 1.5,
    "box": 2.0,
    "translucent-box": 2.0,
    "light-box": 1.5,
    "plain": 6.0,
    "dark-on-light": 1.0,
    "double": 0.8,
}
"""What sets letters off from the picture, and how often."""


def _random_tracking_px(rng: random.Random, size_px: int) -> int:
    """Mostly a little; now and then as wide as titles are set."""
    return rng.randint(1, max(1, size_px // rng.choice([8, 4, 4, 2])))


def random_style(rng: random.Random, size_px: int, script_name: str | None = None) -> CaptionStyle:
    """A style as found in the wild, mostly white or yellow with an outline."""
    known = fonts.drawable_scripts()
    script = known[script_name or rng.choice(sorted(known))]
    font = fonts.random_font(rng, script.language, size_px)
    if font is None:
        script, font = known["latin"], fonts.builtin_font(size_px)
    style = CaptionStyle(script=script, font=font, align=rng.choices(ALIGNS, [7, 1.5, 1])[0])
    fill = rng.choices(
        [WHITE, (255, 255, 0), (240, 240, 240), (255, 230, 120), random_colour(rng, 120)], [9, 3, 2, 2, 3]
    )[0]
    style = replace(
        style,
        fill=fill,
        slant=rng.choice([0.0, 0.0, 0.0, 0.2]),
        opacity=rng.choice([1.0, 1.0, 1.0, rng.uniform(0.55, 1.0)]),
        line_spacing=rng.uniform(1.0, 1.4),
        fill_bottom=random_colour(rng, 80) if rng.random() < 0.06 else None,
        stretch=rng.choice([1.0, 1.0, 1.0, rng.uniform(0.75, 1.3)]),
        tracking_px=_random_tracking_px(rng, size_px) if not script.needs_shaping and rng.random() < 0.15 else 0,
        soft_px=rng.choice([0.0, 0.0, 0.0, rng.uniform(0.4, 1.2)]),
        speakers=tuple(random_colour(rng, 100) for _ in range(3)) if rng.random() < 0.1 else (),
    )
    thick = max(1, round(size_px * rng.uniform(0.03, 0.12)))
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    return replace(style, name=kind, **_set_off(rng, kind, fill, size_px, thick))


def _set_off(rng: random.Random, kind: str, fill: Colour, size_px: int, thick_px: int) -> dict[str, Any]:
    """What a style of a kind has of its own; ``thick_px`` is a usual outline for its letters."""
    match kind:
        case "double":
            half = max(1, thick_px // 2)
            outline = random_colour(rng)
            outer = rng.choice([WHITE, BLACK, random_colour(rng)])
            return {"outline_px": half, "outline": outline, "outer": outer, "outer_px": half}
        case "outline":
            return {"outline_px": thick_px, "outline": rng.choice([BLACK, BLACK, BLACK, random_colour(rng)])}
        case "outline-shadow":
            return {"outline_px": thick_px, "shadow_px": max(1, size_px // 12)}
        case "shadow":
            return {"outline_px": 0, "shadow_px": max(1, size_px // 14)}
        case "glow":
            width = rng.choice([0, 1])
            return {"outline_px": width, "glow_px": max(2, size_px // 6), "outline": random_colour(rng)}
        case "box" | "translucent-box":
            opaque = kind == "box"
            alpha = 1.0 if opaque else rng.uniform(0.3, 0.8)
            width = rng.choice([0, 0, 1])
            box = _box(rng, size_px, rng.choice([BLACK, BLACK, random_colour(rng)]), alpha)
            return {"outline_px": width, **box, "fill": rng.choice([fill, fill, BLACK]) if opaque else fill}
        case "light-box":
            fill = rng.choice([BLACK, (40, 40, 40), (rng.randint(0, 90), rng.randint(0, 90), rng.randint(0, 90))])
            colour = rng.choice([WHITE, (235, 235, 235), (255, 255, 190), random_colour(rng, 150)])
            box = _box(rng, size_px, colour, rng.choice([1.0, 1.0, rng.uniform(0.5, 0.9)]))
            return {"outline_px": 0, "fill": fill, "fill_bottom": None, **box}
        case "dark-on-light":
            return {"fill": rng.choice([BLACK, (40, 40, 40)]), "outline": WHITE, "outline_px": thick_px}
    return {"outline_px": 0}


def _box(rng: random.Random, size_px: int, colour: Colour, alpha: float) -> dict[str, Any]:
    padding = rng.randint(2, max(3, size_px // 3))
    return {"box": colour, "box_alpha": alpha, "box_padding_px": padding, "bar": rng.random() < 0.2}


def _clusters(line: str) -> list[str]:
    """Letters, each with the marks that stand above and below it."""
    clusters: list[str] = []
    for letter in line:
        if clusters and unicodedata.category(letter).startswith("M"):
            clusters[-1] += letter
        else:
            clusters.append(letter)
    return clusters


def line_width(style: CaptionStyle, line: str) -> float:
    """How wide a line is drawn, in pixels, without outline and shadow."""
    return _natural_width(style, line) * style.stretch


def _natural_width(style: CaptionStyle, line: str) -> float:
    if not style.tracking_px:
        return float(style.font.getlength(line))
    return float(sum(style.font.getlength(cluster) + style.tracking_px for cluster in _clusters(line)))


def _write(
    draw: ImageDraw.ImageDraw, style: CaptionStyle, line: str, position: tuple[int, int], stroke_px: int
) -> None:
    left, top = float(position[0]), position[1]
    for part in _clusters(line) if style.tracking_px else [line]:
        draw.text((round(left), top), part, fill=255, font=style.font, stroke_width=stroke_px)
        left += style.font.getlength(part) + style.tracking_px


def _line_positions(style: CaptionStyle, lines: list[str], width: int, anchor_bottom: int) -> list[tuple[int, int]]:
    """Left and top of each line's box, for lines that end at ``anchor_bottom``."""
    ascent, descent = style.font.getmetrics()
    pitch = round((ascent + descent) * style.line_spacing)
    positions = []
    for index, line in enumerate(lines):
        length = round(_natural_width(style, line))
        left = {"left": width // 20, "center": (width - length) // 2, "right": width - length - width // 20}[
            style.align
        ]
        positions.append((left, anchor_bottom - descent - ascent - (len(lines) - 1 - index) * pitch))
    return positions


def _shaped(mask: Image.Image, style: CaptionStyle) -> Image.Image:
    """Slanted and stretched about the side that the text is aligned to, and softened."""
    if style.slant or style.stretch != 1.0:
        fixed = {"left": 0.0, "center": mask.width / 2, "right": float(mask.width)}[style.align]
        shrink = 1 / style.stretch
        matrix = (shrink, style.slant, fixed * (1 - shrink) - style.slant * mask.height / 2, 0, 1, 0)
        mask = mask.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return mask.filter(ImageFilter.GaussianBlur(style.soft_px)) if style.soft_px else mask


def _paint(style: CaptionStyle, letters: Image.Image, fill: Colour) -> Colour | np.ndarray:
    """One colour, or a gradient from the top of the letters to their feet, float32 (H, 1, 3)."""
    box = letters.getbbox()
    if style.fill_bottom is None or box is None:
        return fill
    down = np.clip((np.arange(letters.height, dtype=np.float32) - box[1]) / max(1, box[3] - box[1]), 0, 1)
    top, bottom = np.asarray(fill, np.float32), np.asarray(style.fill_bottom, np.float32)
    return ((1 - down)[:, None] * top + down[:, None] * bottom)[:, None]


def draw_caption(
    style: CaptionStyle, lines: list[str], width: int, height: int, anchor_bottom: int, fill: Colour | None = None
) -> Overlay:
    """Draw lines of text over a transparent picture of the crop's size; what stands outside is cut off."""
    letters = Image.new("L", (width, height))
    outlined = Image.new("L", (width, height))
    positions = _line_positions(style, lines, width, anchor_bottom)
    outer = Image.new("L", (width, height)) if style.outer else None
    strokes = [(letters, 0), (outlined, style.outline_px), (outer, style.outline_px + style.outer_px)]
    for picture, stroke in strokes:
        if picture is None:
            continue
        draw = ImageDraw.Draw(picture)
        for line, position in zip(lines, positions, strict=True):
            _write(draw, style, line, position, stroke)
    letters, outlined = _shaped(letters, style), _shaped(outlined, style)

    colour = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)

    def put(coverage: np.ndarray, paint: Colour | np.ndarray) -> None:
        nonlocal colour, alpha
        total = coverage + alpha * (1 - coverage)
        share = np.divide(coverage, total, out=np.zeros_like(total), where=total > 0)[..., None]
        colour = colour * (1 - share) + np.asarray(paint, np.float32) * share
        alpha = total

    if style.box is not None and letters.getbbox():
        left, top, right, bottom = outlined.getbbox() or (0, 0, 0, 0)
        pad = style.box_padding_px
        left, right = (0, width) if style.bar else (left, right)
        box = np.zeros_like(alpha)
        box[max(0, top - pad) : bottom + pad, max(0, left - pad) : right + pad] = style.box_alpha
        put(box, style.box)
    if style.glow_px:
        blurred = outlined.filter(ImageFilter.GaussianBlur(style.glow_px / 2))
        put(np.clip(np.asarray(blurred, np.float32) / 255 * 1.6, 0, 1), style.outline)
    if style.shadow_px:
        moved = Image.new("L", letters.size)
        moved.paste(outlined, (style.shadow_px, style.shadow_px))
        blurred = moved.filter(ImageFilter.GaussianBlur(style.shadow_px / 2))
        put(np.asarray(blurred, np.float32) / 255 * 0.8, BLACK)
    if outer is not None and style.outer is not None:
        put(np.asarray(_shaped(outer, style), np.float32) / 255, style.outer)
    outlined_coverage = np.asarray(outlined, np.float32) / 255
    if style.outline_px:
        put(outlined_coverage, style.outline)
    put(np.asarray(letters, np.float32) / 255, _paint(style, letters, fill or style.fill))
    return Overlay(np.clip(colour, 0, 255).astype(np.uint8), alpha * style.opacity, outlined_coverage)


def blend(picture: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Put a colour, uint8 (H, W, 3), over a picture where its coverage (H, W) says so, in place."""
    rows = np.flatnonzero(alpha.max(axis=1) > 0.004)
    if len(rows):
        part = slice(rows[0], rows[-1] + 1)
        columns = np.flatnonzero(alpha[part].max(axis=0) > 0.004)
        box = (part, slice(columns[0], columns[-1] + 1))
        below, weight = picture[box].astype(np.float32), alpha[box][..., None]
        picture[box] = np.clip(below + (colour[box] - below) * weight + 0.5, 0, 255).astype(np.uint8)
