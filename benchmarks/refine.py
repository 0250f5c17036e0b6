"""How exact ``--refine`` is: ``python -m benchmarks.refine [--captions 80] [--fade FRAMES]``.

Makes a film for each of the usual frame rates, with captions on random frames and gaps of none to three frames, or
more, between them; runs the job with ``refine``, and counts the ends that are off, and by how many frames.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from benchmarks.common import CACHE, write_result
from caption_extents import CropRegion, Job, run_job
from caption_extents.captions.extents import Caption
from caption_extents.captions.opacity import VISIBLE_OPACITY
from caption_extents.training import captions, fonts, sample_video, text
from caption_extents.training.sample_video import PlannedCaption

RATES = (Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60000, 1001))
GAPS = (0, 1, 2, 3)
"""Frames between captions, beside longer gaps of up to a second."""

_WIDTH, _HEIGHT, _LINE_LETTERS = 640, 360, 24


def plan(rng: random.Random, count: int, rate: Fraction, fade_frames: int) -> list[PlannedCaption]:
    """Captions that stand in full for 0.7 to 2.5 seconds; none says what the one before says."""
    script, second = text.scripts()["latin"], round(rate)
    planned: list[PlannedCaption] = []
    at = second
    while len(planned) < count:
        end = at + rng.randint(round(rate * 7 / 10), round(rate * 5 / 2)) + 2 * fade_frames
        line = text.random_line(rng, script, _LINE_LETTERS)
        planned.append(PlannedCaption((line,), "outline", "latin", at, end, fade_frames))
        at = end + rng.choice([*GAPS, *GAPS, rng.randint(4, second)])
    return planned


def _styles(rng: random.Random) -> Callable[[PlannedCaption], captions.CaptionStyle]:
    font = fonts.random_font(rng, "en", _HEIGHT // 16) or fonts.builtin_font(_HEIGHT // 16)
    style = captions.CaptionStyle(script=text.scripts()["latin"], font=font, outline_px=2)
    return lambda _: style


def visible(caption: PlannedCaption) -> tuple[int, int]:
    """First frame that shows a caption with the opacity from which on it counts, and the one after the last."""
    shown = [
        frame for frame in range(caption.start_frame, caption.end_frame) if caption.opacity(frame) >= VISIBLE_OPACITY
    ]
    return shown[0], shown[-1] + 1


def measure(rate: Fraction, count: int, fade_frames: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Ends by how many frames they are off, with captions that are missing or too many, and a line for each."""
    rng = random.Random(seed)
    planned = plan(rng, count, rate, fade_frames)
    frame_count = planned[-1].end_frame + round(rate)
    film = CACHE / f"refine-{rate.numerator}-{rate.denominator}-{count}-{fade_frames}-{seed}.mp4"
    if not film.exists():
        CACHE.mkdir(exist_ok=True)
        partial = film.with_suffix(".partial.mp4")
        style = _styles(rng)
        sample_video.write_film(partial, planned, frame_count, style, rng=rng, rate=rate, width=_WIDTH, height=_HEIGHT)
        partial.rename(film)
    with tempfile.TemporaryDirectory() as store:
        job = Job(str(film), "t", "v", CropRegion(*sample_video.CROP), store=store, refine=True)
        found = list(run_job(job).captions)
    return _compare(planned, found, rate)


def _compare(planned: list[PlannedCaption], found: list[Caption], rate: Fraction) -> tuple[Counter[str], list[str]]:
    off: Counter[str] = Counter()
    told: list[str] = []
    for number, caption in enumerate(planned):
        start, end = visible(caption)
        best = max(found, key=partial(_overlap, float(start / rate), float(end / rate)))
        gap = planned[number + 1].start_frame - caption.end_frame if number + 1 < len(planned) else "last"
        for name, is_at, ought in (("start", best.start, start), ("end", best.end, end)):
            frames = round(is_at * rate) - ought
            off[str(frames)] += 1
            if frames:
                told.append(f"{float(rate):.2f} a second, caption {number}, {name} {frames:+d} frames, gap after {gap}")
    if len(found) != len(planned):
        off["captions missing or too many"] = abs(len(found) - len(planned))
        told.append(f"{float(rate):.2f} a second: {len(found)} captions found of {len(planned)}")
    return off, told


def _overlap(start: float, end: float, caption: Caption) -> float:
    return min(caption.end, end) - max(caption.start, start)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=80, help="for each frame rate")
    parser.add_argument("--fade", type=int, default=0, metavar="FRAMES", help="captions fade in and out over so many")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rates: dict[str, dict[str, int]] = {}
    for rate in RATES:
        off, told = measure(rate, arguments.captions, arguments.fade, arguments.seed)
        rates[f"{float(rate):.3f}"] = dict(sorted(off.items()))
        print(*told, sep="\n")
        print(f"{float(rate):.3f} frames a second: {off['0']} of {off.total()} ends exact", flush=True)
    name = f"refine-fade-{arguments.fade}" if arguments.fade else "refine"
    write_result(name, {"captions": arguments.captions, "fade_frames": arguments.fade, "ends_off_by_frames": rates})


if __name__ == "__main__":
    main()
