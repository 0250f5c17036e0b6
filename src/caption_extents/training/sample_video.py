"""A made video with burned-in captions and their truth: ``python -m caption_extents.training.sample_video OUT.mp4``.

Everything in it is drawn by this package, so it may be given to anyone. Beside the video stands OUT.json with the crop
and, for every caption, the samples that show it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from caption_extents.training import backgrounds, captions, fonts, text

BASELINE = 0.95
"""Where captions' last line stands, from the top of the picture."""

CROP = (0.1, 0.82, 0.9, 0.96)
"""Where the captions stand, as fractions of the picture."""

_STYLES = ("outline", "outline-shadow", "box", "translucent-box", "yellow", "glow")
_SCRIPTS = ("latin", "cyrillic", "greek", "han", "arabic", "hebrew", "hangul", "japanese", "devanagari", "thai")
_SHOT_SECONDS = 6


@dataclass(frozen=True)
class PlannedCaption:
    """A caption on frames ``start_frame`` up to, not including, ``end_frame`` of the video.

    It fades in over its first ``fade_frames``, in equal steps from nothing, and out over its last.
    """

    lines: tuple[str, ...]
    style: str
    script: str
    start_frame: int
    end_frame: int
    fade_frames: int = 0

    def opacity(self, frame: int) -> float:
        """Share of full opacity on a frame."""
        steps = min(frame + 1 - self.start_frame, self.end_frame - frame)
        return min(1.0, steps / (self.fade_frames + 1))


def _style(name: str, script: text.Script, size_px: int, seed: int, words: str) -> captions.CaptionStyle:
    font = fonts.random_font(random.Random(seed), script.language, size_px, words)
    if font is None:
        script, font = text.scripts()["latin"], fonts.builtin_font(size_px)
    plain = captions.CaptionStyle(script=script, font=font, outline_px=max(2, size_px // 14), name=name)
    return {
        "outline": plain,
        "outline-shadow": replace(plain, shadow_px=max(2, size_px // 10)),
        "box": replace(plain, outline_px=0, box=captions.BLACK, box_alpha=1.0),
        "translucent-box": replace(plain, outline_px=0, box=captions.BLACK, box_alpha=0.6),
        "yellow": replace(plain, fill=(255, 230, 0)),
        "glow": replace(plain, outline_px=1, glow_px=max(3, size_px // 6)),
    }[name]


def plan_captions(rng: random.Random, frame_count: int, rate: int) -> list[PlannedCaption]:
    """Captions of half a second to four seconds: some back to back, some after a gap."""
    planned: list[PlannedCaption] = []
    at = rate // 2
    while True:
        end = at + rng.randint(rate // 2, rate * 4)
        if end >= frame_count - rate // 2:
            return planned
        number = len(planned) // 3
        script = text.scripts()[_SCRIPTS[number % len(_SCRIPTS)]]
        lines = tuple(text.random_line(rng, script, 22 if script.spaced else 12) for _ in range(rng.choice([1, 1, 2])))
        planned.append(PlannedCaption(lines, _STYLES[number % len(_STYLES)], script.name, at, end))
        at = end + rng.choice([0, 0, rate // 2, rate * 2])


def _scenery(rng: random.Random, frame_count: int, rate: int, width: int, height: int) -> Iterator[np.ndarray]:
    source = backgrounds.BackgroundSource()
    while frame_count > 0:
        shot = min(frame_count, rng.randint(rate, rate * _SHOT_SECONDS))
        # Drawn at a third of the size: it is only scenery, and three frames out of four may be slow machines'.
        for picture in source.shot(rng, shot, width // 3 // 2 * 2, height // 3 // 2 * 2):
            yield np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
        frame_count -= shot


def render(
    path: Path, *, seconds: float, seed: int = 1, rate: int = 30, width: int = 1280, height: int = 720
) -> list[PlannedCaption]:
    """Write an H.264 video and return its captions."""
    rng = random.Random(seed)
    frame_count = round(seconds * rate)
    planned = plan_captions(rng, frame_count, rate)
    order = {caption: len(planned) - 1 - number for number, caption in enumerate(planned)}

    def style(caption: PlannedCaption) -> captions.CaptionStyle:
        words, script = " ".join(caption.lines), text.scripts()[caption.script]
        return _style(caption.style, script, height // 22, seed * 1000 + order[caption], words)

    write_film(path, planned, frame_count, style, rng=rng, rate=Fraction(rate), width=width, height=height)
    return planned


def write_film(
    path: Path,
    planned: Sequence[PlannedCaption],
    frame_count: int,
    style: Callable[[PlannedCaption], captions.CaptionStyle],
    *,
    rng: random.Random,
    rate: Fraction,
    width: int,
    height: int,
) -> None:
    """Write an H.264 video with the given captions, in order, on scenery that ``rng`` chooses."""
    waiting = list(planned)
    current: PlannedCaption | None = None
    overlay: captions.Overlay | None = None
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "24", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index, scenery in enumerate(_scenery(rng, frame_count, math.ceil(rate), width, height)):
            if waiting and waiting[0].start_frame == index:
                current = waiting.pop(0)
                overlay = captions.draw_caption(
                    style(current), list(current.lines), width, height, round(height * BASELINE)
                )
            if current is not None and index >= current.end_frame:
                current = overlay = None
            picture = scenery.copy()
            if current is not None and overlay is not None:
                captions.blend(picture, overlay.colour, overlay.alpha * np.float32(current.opacity(index)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def truth(planned: list[PlannedCaption], rate: int, sample_rate: Fraction = Fraction(10)) -> list[dict[str, object]]:
    """Each caption's samples: the first that shows it, and the first after it that does not."""
    records = []
    for caption in planned:
        first, last = (-(-frame * sample_rate // rate) for frame in (caption.start_frame, caption.end_frame))
        records.append(
            {
                "start_frame": int(first),
                "end_frame": int(last),
                "text": "\n".join(caption.lines),
                "style": caption.style,
                "script": caption.script,
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    planned = render(
        arguments.out, seconds=arguments.seconds, seed=arguments.seed, rate=arguments.rate, width=width, height=height
    )
    description = {"crop": CROP, "rate": 10, "captions": truth(planned, arguments.rate)}
    arguments.out.with_suffix(".json").write_text(
        json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
