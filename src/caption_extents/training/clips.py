"""Short sequences of cropped frames with known captions, after real compression.

A clip is what the model sees of a video: consecutive samples of one crop region, ten a second. Everything random comes
from one ``random.Random``, so a seed repeats a clip.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from caption_extents.captions.opacity import VISIBLE_OPACITY
from caption_extents.samples import plane_view
from caption_extents.training import captions, text
from caption_extents.training.backgrounds import BackgroundSource, exposed
from caption_extents.training.distractors import add_distractors

CAPTIONED_SHARE = 0.85
"""Of clips; the others teach what is none."""

_WANDERING_SHARE = 0.06
"""Of clips; in these each caption has a place of its own, as speakers' captions have."""

_DECODERS = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9"}

UNSURE_ALPHAS = (0.15, 0.55)
"""Between these opacities people disagree, so pairs with such a sample weigh little in training."""


@dataclass(frozen=True)
class Clip:
    """Consecutive samples with truth.

    Attributes:
        y, u, v: planes after compression, uint8 (T, H, W) and twice (T, H/2, W/2).
        caption_ids: int64 (T,); 0 where no caption is shown, otherwise a number that differs from caption to caption,
            but is the same again for the same caption shown again.
        unsure: bool (T,); samples in the middle of a fade.
        ink: coverage of caption letters, float32 (T, H/4, W/4).
    """

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    caption_ids: np.ndarray
    unsure: np.ndarray
    ink: np.ndarray


@dataclass(frozen=True)
class _Showing:
    """A caption on some samples of a clip."""

    number: int
    lines: list[str]
    start: int
    end: int
    colour: captions.Colour


def _random_lines(rng: random.Random, style: captions.CaptionStyle, width: int, max_lines: int) -> list[str]:
    letter = max(1.0, captions.line_width(style, style.script.letters[:20]) / 20)
    fit = max(2, int(width * 0.9 / letter))
    longest = rng.choices([rng.randint(2, min(fit, 8)), rng.randint(2, fit), fit], [2, 5, 3])[0]
    count = rng.randint(1, max_lines)
    lines = [text.random_line(rng, style.script, longest) for _ in range(count)]
    return [_cut_to_width(line, style, width) for line in lines]


def _cut_to_width(line: str, style: captions.CaptionStyle, width: int) -> str:
    while len(line) > 1 and captions.line_width(style, line) > width * 0.96:
        line = line[: max(1, len(line) * 9 // 10)]
    return line


def _next_lines(
    rng: random.Random, style: captions.CaptionStyle, lines: list[str], width: int, max_lines: int
) -> list[str]:
    """Lines of the caption that follows another: new, or different by one letter or one line."""
    kind = rng.random()
    if kind < 0.6:
        at = rng.randrange(len(lines))
        edited = _cut_to_width(text.small_edit(rng, style.script, lines[at]), style, width)
        if edited != lines[at]:
            return [*lines[:at], edited, *lines[at + 1 :]]
    if kind < 0.7 and len(lines) > 1:
        return [*lines[1:], *_random_lines(rng, style, width, 1)]
    return _random_lines(rng, style, width, max_lines)


def _schedule(
    rng: random.Random, style: captions.CaptionStyle, count: int, width: int, max_lines: int
) -> list[_Showing]:
    """Captions over ``count`` samples: some back to back, some after a gap, some the same text again."""
    showings: list[_Showing] = []
    numbers: dict[tuple[tuple[str, ...], captions.Colour], int] = {}
    at = rng.choice([0, rng.randint(-8, 0), rng.randint(0, count)])
    lines = _random_lines(rng, style, width, max_lines)
    while at < count:
        length = rng.choices([rng.randint(1, 4), rng.randint(3, 10), rng.randint(8, 40)], [1, 3, 4])[0]
        colour = rng.choice([style.fill, *style.speakers]) if style.speakers else style.fill
        number = numbers.setdefault((tuple(lines), colour), len(numbers) + 1)
        showings.append(_Showing(number, lines, at, at + length, colour))
        at += length
        if rng.random() < 0.5:
            at += rng.choice([1, 2, rng.randint(1, 12), rng.randint(5, 25)])
            lines = lines if rng.random() < 0.15 else _random_lines(rng, style, width, max_lines)
        else:
            following = _next_lines(rng, style, lines, width, max_lines)
            lines = following if following != lines else [*lines[:-1], lines[-1] + style.script.letters[0]]
    return showings


@dataclass(frozen=True)
class _Effect:
    """How captions of a clip come and go."""

    fade_in: int = 0
    fade_out: int = 0
    kind: str = "plain"
    duration: int = 10
    whole: bool = False
    """Whether a fill, or typing, takes as long as the caption stands."""
    second_colour: captions.Colour = (255, 80, 80)

    @classmethod
    def random(cls, rng: random.Random) -> _Effect:
        fade = rng.random() < 0.25
        kinds = ["plain", "karaoke", "word", "typing", "jitter", "slide", "flicker", "pop"]
        kind = rng.choices(kinds, [20, 4, 1.5, 1, 1, 0.8, 1, 2])[0]
        return cls(
            fade_in=rng.randint(1, 4) if fade else 0,
            fade_out=rng.randint(1, 4) if fade and rng.random() < 0.8 else 0,
            kind=kind,
            duration=rng.randint(4, 30),
            whole=rng.random() < 0.5,
            second_colour=captions.random_colour(rng),
        )

    def opacity(self, showing: _Showing, sample: int) -> float:
        since, left = sample - showing.start, showing.end - sample
        rising = (since + 0.5) / self.fade_in if self.fade_in else 1.0
        falling = (left - 0.5) / self.fade_out if self.fade_out else 1.0
        return float(min(1.0, rising, falling))


class _Layer:
    """One caption, drawn once, put over as many samples as it stands on."""

    def __init__(
        self, style: captions.CaptionStyle, showing: _Showing, effect: _Effect, size: tuple[int, int], bottom: int
    ) -> None:
        width, height = size
        self._effect, self._showing = effect, showing
        self._overlay = captions.draw_caption(style, showing.lines, width, height, bottom, showing.colour)
        self._second = None
        if effect.kind in {"karaoke", "word"}:
            self._second = captions.draw_caption(style, showing.lines, width, height, bottom, effect.second_colour)
        self.looks = np.packbits(self._overlay.ink > 0.5).tobytes() + bytes(showing.colour)
        """Equal for captions that nobody can tell apart."""
        columns = np.flatnonzero(self._overlay.alpha.max(axis=0) > 0.02)
        self._left, self._right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        rows = np.flatnonzero(self._overlay.alpha.max(axis=1) > 0.02)
        self._middle = ((self._left + self._right) / 2, float(rows.mean()) if len(rows) else 0.0)

    def at(self, rng: random.Random, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Colour, coverage, ink and opacity of the caption on one sample."""
        opacity = self._effect.opacity(self._showing, sample)
        colour, alpha, ink = self._overlay.colour, self._overlay.alpha, self._overlay.ink
        lasts = self._showing.end - self._showing.start if self._effect.whole else self._effect.duration
        progress = (sample - self._showing.start + 1) / lasts
        edge = self._left + round(min(1.0, progress) * (self._right - self._left))
        if self._second is not None:
            word = max(4, (self._right - self._left) // 6)
            start = 0 if self._effect.kind == "karaoke" else edge - word
            colour = colour.copy()
            colour[:, max(0, start) : edge] = self._second.colour[:, max(0, start) : edge]
        elif self._effect.kind == "slide" and sample - self._showing.start < 3:
            shift = (3 - (sample - self._showing.start)) * max(1, alpha.shape[0] // 20)
            alpha, ink, colour = (np.roll(a, shift, axis=0) for a in (alpha, ink, colour))
        elif self._effect.kind == "pop" and sample - self._showing.start < 2:
            size = (0.75, 0.9)[sample - self._showing.start]
            alpha, ink = _shrunk(alpha, size, self._middle), _shrunk(ink, size, self._middle)
            colour = np.stack([_shrunk(channel, size, self._middle) for channel in colour.transpose(2, 0, 1)], axis=2)
        elif self._effect.kind == "flicker":
            opacity *= rng.uniform(0.75, 1.0)
        elif self._effect.kind == "typing":
            shown = np.arange(alpha.shape[1]) < edge
            alpha, ink = alpha * shown, ink * shown
        elif self._effect.kind == "jitter":
            shift = rng.randint(-1, 1)
            alpha, ink, colour = (np.roll(a, shift, axis=1) for a in (alpha, ink, colour))
        return colour, alpha * opacity, ink * opacity, opacity


def _shrunk(plane: np.ndarray, size: float, middle: tuple[float, float]) -> np.ndarray:
    """A plane drawn smaller by a factor, around a point."""
    picture = Image.fromarray(plane)
    matrix = (1 / size, 0, middle[0] * (1 - 1 / size), 0, 1 / size, middle[1] * (1 - 1 / size))
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def compress(frames: np.ndarray, codec: str, options: dict[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode RGB frames (T, H, W, 3) with a video codec and decode them again; the planes of the result."""
    count, height, width = frames.shape[:3]
    encoder = cast(av.VideoCodecContext, av.CodecContext.create(codec, "w"))
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
    encoder.thread_count = 1
    encoder.options = options
    packets = []
    # One for all frames: a frame's own reformat sets the scaler up anew, for longer than it scales.
    reformatter = VideoReformatter()
    for index, picture in enumerate(frames):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = reformatter.reformat(rgb, format="yuv420p", threads=1)
        frame.pts = index
        packets.extend(encoder.encode(frame))
    packets.extend(encoder.encode(None))
    decoder = cast(
        av.VideoCodecContext,
        av.CodecContext.create(_DECODERS.get(codec, codec), "r"),
    )
    decoder.thread_count = 1
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    if len(decoded) != count:
        raise RuntimeError(f"{codec} gave back {len(decoded)} of {count} frames")
    return _plane(decoded, 0), _plane(decoded, 1), _plane(decoded, 2)


def _plane(frames: list[av.VideoFrame], index: int) -> np.ndarray:
    return np.stack([plane_view(frame.planes[index]).copy() for frame in frames])


def _random_codec(rng: random.Random) -> tuple[str, dict[str, str]]:
    crf = rng.randint(16, 36)
    kind = rng.random()
    if kind < 0.08:
        return "mpeg4", {"qmin": str(crf // 4), "qmax": str(crf // 3)}
    if kind < 0.13:
        return "libx265", {
            "crf": str(crf),
            "preset": "ultrafast",
            "x265-params": "log-level=none:pools=none:frame-threads=1",
        }
    if kind < 0.25:
        speed = str(rng.choice([6, 7, 8]))
        return "libvpx-vp9", {
            "crf": str(crf + 14),
            "b": "0",
            "deadline": "realtime",
            "cpu-used": speed,
            "lag-in-frames": "0",
        }
    preset = rng.choice(["ultrafast", "superfast", "veryfast", "medium"])
    return "libx264", {
        "crf": str(crf),
        "preset": preset,
        "g": str(rng.choice([5, 12, 250])),
        "x264-params": "log-level=none",
    }


def _most_lines(rng: random.Random, aspect: float) -> int:
    """Lines of the tallest caption of a clip with crops of this shape, width over height."""
    if aspect < 8:
        return rng.choice([1, 2, 2, 3])
    return rng.choice([1, 2, 2]) if aspect < 12 else 1


def random_clip(rng: random.Random, backgrounds: BackgroundSource, count: int, width: int, height: int) -> Clip:
    """A clip of ``count`` samples with crops of the given even size in pixels."""
    pictures = exposed(rng, backgrounds.frames(rng, count, width, height))
    has_captions = rng.random() < CAPTIONED_SHARE
    add_distractors(rng, pictures, 0.4 if has_captions else 0.7)
    max_lines = _most_lines(rng, width / height)
    tightness = rng.uniform(0.5, 0.95) if rng.random() < 0.7 else rng.uniform(0.25, 0.6)
    size = max(9, int(height * tightness / (max_lines * 1.35)))
    style = captions.random_style(rng, size)
    bottom = height - rng.randint(0, max(1, int(height * (1 - tightness) * 0.7))) + style.font.getmetrics()[1] // 2
    effect = _Effect.random(rng)
    wanders = rng.random() < _WANDERING_SHARE
    caption_ids, unsure = np.zeros(count, np.int64), np.zeros(count, bool)
    ink = np.zeros((count, height // 4, width // 4), np.float32)
    numbers: dict[bytes, int] = {}
    for showing in _schedule(rng, style, count, width, max_lines) if has_captions else []:
        samples = range(max(0, showing.start), min(count, showing.end))
        if not samples:
            continue
        placed = replace(style, align=rng.choice(captions.ALIGNS)) if wanders else style
        layer = _Layer(placed, showing, effect, (width, height), bottom)
        # What looks the same is the same: a font may lack the letters that tell two captions apart.
        number = numbers.setdefault(layer.looks, showing.number)
        for sample in samples:
            colour, alpha, letters, opacity = layer.at(rng, sample)
            captions.blend(pictures[sample], colour, alpha)
            np.maximum(ink[sample], _coarse(letters), out=ink[sample])
            unsure[sample] |= UNSURE_ALPHAS[0] < opacity < UNSURE_ALPHAS[1] or letters.max() < 0.3
            if opacity >= VISIBLE_OPACITY:
                caption_ids[sample] = number
    if rng.random() < 0.2:
        pictures = _rescale(rng, pictures)
    y, u, v = compress(pictures, *_random_codec(rng))
    return Clip(y, u, v, caption_ids, unsure, ink)


def _coarse(letters: np.ndarray) -> np.ndarray:
    height, width = letters.shape
    cells = letters[: height // 4 * 4, : width // 4 * 4].reshape(height // 4, 4, width // 4, 4)
    coarse: np.ndarray = cells.mean((1, 3))
    return coarse


def _rescale(rng: random.Random, pictures: np.ndarray) -> np.ndarray:
    """The blur of a re-upload at another size."""
    height, width = pictures.shape[1:3]
    factor = rng.uniform(0.5, 0.9)
    small = (max(8, int(width * factor)), max(8, int(height * factor)))
    resize = Image.Resampling.BICUBIC
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(small, resize).resize((width, height), resize)) for p in pictures]
    )
