"""How well captions are read, by script: ``python -m benchmarks.reading [--languages ru,el] [--save]``.

Forty captions in each of fifteen languages, burned into a moving picture by ffmpeg with libass, which training does not
use, and read once each, in the language that is given. The words are names of countries and languages (CLDR, package
``babel``). Prints the share of characters that are wrong (edit distance), from the median of a caption's samples and
from a single one; how many were left out; and what is read, and said, if no language is given.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

from babel import Locale

from benchmarks.common import write_result
from caption_extents.captions.extents import Caption
from caption_extents.ocr import captions as reading
from caption_extents.ocr.languages import LANGUAGES, UNSPACED
from caption_extents.ocr.reader import TextReader
from caption_extents.ocr.reading import CaptionReader

CROP = (0.02, 0.74, 0.98, 0.99)
_FONTS = {
    "zh": "Noto Sans CJK SC",
    "ja": "Noto Sans CJK JP",
    "ko": "Noto Sans CJK KR",
    "ar": "Noto Sans Arabic",
    "hi": "Noto Sans Devanagari",
    "th": "Noto Sans Thai",
    "ta": "Noto Sans Tamil",
    "bn": "Noto Sans Bengali",
    "he": "Noto Sans Hebrew",
    "ka": "Noto Sans Georgian",
    "hy": "Noto Sans Armenian",
}
_TAGS = ("es", "pl", "vi", "ru", "el", "zh", "ja", "ko", "ar", "he", "hi", "bn", "ta", "th", "ka", "hy")
_COUNT, _SECONDS, _GAP_SECONDS = 40, 1.2, 0.4
_MOST_LETTERS = 30


def phrases(tag: str, count: int = _COUNT) -> list[str]:
    """Captions made of names."""
    locale, rng = Locale.parse(tag), random.Random(tag)
    names = [name for table in (locale.territories, locale.languages) for name in table.values()]
    names = [unicodedata.normalize("NFC", name) for name in names if 1 < len(name) <= 14 and "(" not in name]
    found = list[str]()
    while len(found) < count:
        words = [rng.choice(names)]
        while rng.random() < 0.7 and sum(map(len, words)) + len(words) < _MOST_LETTERS - 14:
            words.append(rng.choice(names))
        found.append((", " if tag not in {"zh", "ja"} else "、").join(words))
    return found


def burn(folder: Path, tag: str, texts: list[str]) -> tuple[Path, list[Caption]]:
    """A film with captions, and these."""
    truth, events = list[Caption](), list[str]()
    for number, text in enumerate(texts):
        start = _GAP_SECONDS + number * (_SECONDS + _GAP_SECONDS)
        truth.append(Caption(start, start + _SECONDS, 0, 0, 1.0, text))
        events.append(f"Dialogue: 0,{_time(start)},{_time(start + _SECONDS)},Default,,0,0,0,,{text}")
    style = f"Style: Default,{_FONTS.get(tag, 'DejaVu Sans')},22,&H00FFFFFF,&H00000000,&H00000000,1,2,0,2,10,10,14,1"
    script = "\n".join(
        [
            "[Script Info]\nScriptType: v4.00+\nPlayResX: 640\nPlayResY: 360\n\n[V4+ Styles]",
            "Format: Name, Fontname, Fontsize, PrimaryColour, OutlineColour, BackColour, BorderStyle, Outline, Shadow, "
            "Alignment, MarginL, MarginR, MarginV, Encoding",
            f"{style}\n\n[Events]",
            "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text",
            *events,
        ]
    )
    (folder / f"{tag}.ass").write_text(script, encoding="utf-8")
    length = truth[-1].end + _GAP_SECONDS
    picture = f"mandelbrot=size=640x360:rate=20:end_scale=0.2,format=yuv420p,ass={tag}.ass"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", picture, "-t", str(length), "-c:v", "libx264"]
    command += ["-preset", "veryfast", "-crf", "23", f"{tag}.mp4"]
    subprocess.run(command, check=True, cwd=folder)
    return folder / f"{tag}.mp4", truth


def _time(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{seconds % 60:05.2f}"


def distance(a: str, b: str) -> int:
    """Fewest letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def plain(text: str, tag: str) -> str:
    """Text as it is compared."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    return text.replace(" ", "") if LANGUAGES[tag].script in UNSPACED else text


def read(film: Path, truth: list[Caption], reader: TextReader, tag: str, samples: int) -> dict[str, Any]:
    """Read a film's captions from the median of so many samples each."""
    chosen = reading.median_samples
    reading.median_samples = lambda start, end: chosen(start, end, samples)  # type: ignore[misc,assignment]
    started = time.perf_counter()
    try:
        found = reading.read_text(film, [replace(caption, text=None) for caption in truth], CROP, reader)
    finally:
        reading.median_samples = chosen
    seconds = time.perf_counter() - started
    pairs = [(plain(a.text or "", tag), plain(b.text or "", tag)) for a, b in zip(truth, found, strict=True)]
    read_pairs = [(a, b) for a, b in pairs if b]
    wrong, letters = sum(distance(a, b) for a, b in read_pairs), sum(len(a) for a, _ in read_pairs)
    return {
        "left_out": len(pairs) - len(read_pairs),
        "error_rate": wrong / letters if letters else None,
        "seconds": seconds,
        "differing": [(a, b) for a, b in read_pairs if a != b],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", default=",".join(_TAGS))
    parser.add_argument("--reader", default="auto")
    parser.add_argument("--show", action="store_true", help="print what is read wrongly")
    parser.add_argument("--save", action="store_true", help="write the result under docs/results")
    arguments = parser.parse_args()
    result = dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for tag in arguments.languages.split(","):
            film, truth = burn(Path(folder), tag, phrases(tag))
            row = {"median": read(film, truth, CaptionReader(tag, arguments.reader), tag, 9)}
            row["single"] = read(film, truth, CaptionReader(tag, arguments.reader), tag, 1)
            unasked = CaptionReader()
            row["no_language"] = read(film, truth, unasked, tag, 9)
            told = {name: _told(figures) for name, figures in row.items()}
            print(f"{tag}: {told['median']}; single samples: {told['single']}; no language: {told['no_language']}")
            for message in unasked.unread.messages():
                print(f"    {message}")
            for expected, got in row["median"]["differing"] if arguments.show else ():
                print(f"    {expected!r}\n    {got!r}")
            result[tag] = row
            print(flush=True, end="")
    if arguments.save:
        print("written to", write_result("reading", result))


def _told(figures: dict[str, Any]) -> str:
    rate = figures["error_rate"]
    return f"{'-' if rate is None else f'{rate:.1%}'} wrong, {figures['left_out']} left out, {figures['seconds']:.1f} s"


if __name__ == "__main__":
    main()
