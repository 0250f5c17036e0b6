"""The evaluation set: films whose captions another renderer burned in.

``python -m caption_extents.training.evaluation_set --out DIR`` writes videos with their truth beside them. Nothing in
it was made as training's clips are: libass draws the captions (Debian's ``ffmpeg`` program, filter ``ass``), with font
families that training does not use, sentences from the translations of GLib and GTK, and footage and pictures that
training does not see. Captions that nobody could see are left out. The same seed and packages give the same set.
"""

from __future__ import annotations

import argparse
import gettext
import json
import random
import shutil
import subprocess
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import cast

import av
import numpy as np

from caption_extents.captions.opacity import VISIBLE_OPACITY
from caption_extents.training import backgrounds, fonts
from caption_extents.training.scoring import first_sample_at
from caption_extents.training.visibility import letters, which_are_seen, which_are_told

LOCALES = Path("/usr/share/locale")
SECONDS = 40
SAMPLE_RATE = 10

LANGUAGES = {
    "latin": ("en", ("de", "fr", "es", "it", "nl", "fi", "sv")),
    "cyrillic": ("ru", ("ru", "uk", "bg", "sr")),
    "greek": ("el", ("el",)),
    "han": ("zh-cn", ("zh_CN",)),
    "han-traditional": ("zh-tw", ("zh_TW",)),
    "japanese": ("ja", ("ja",)),
    "hangul": ("ko", ("ko",)),
    "arabic": ("ar", ("ar", "fa")),
    "hebrew": ("he", ("he",)),
    "devanagari": ("hi", ("hi", "mr", "ne")),
    "thai": ("th", ("th",)),
    "bengali": ("bn", ("bn",)),
    "vietnamese": ("vi", ("vi",)),
    "georgian": ("ka", ("ka",)),
    "central-european": ("pl", ("pl", "cs", "tr", "hu")),
}
"""For each script: a language that fontconfig knows to need it, and catalogues with sentences in it."""

CATALOGUES = ("glib20", "gtk20", "gtk20-properties", "gtk30", "gtk30-properties")
"""Whose translations are read: not those of whatever else is installed, which would be another set on each machine."""

_LETTER_WIDTH = 0.12
"""Width over size of the narrowest letters, marks that stand above or below others counted too."""

WIDE_SCRIPTS = frozenset({"han", "han-traditional", "japanese", "hangul"})

# Colours are &HAABBGGRR; BorderStyle 3 is a box. Fields: primary, outline colour, back colour, bold, italic, border
# style, outline (share of the size), shadow (share of the size), then what each line begins with.
STYLES: dict[str, tuple[str, str, str, int, int, int, float, float, str]] = {
    "outline-thin": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 1, 0.04, 0, ""),
    "outline-thick": ("&H00FFFFFF", "&H00000000", "&H00000000", 1, 0, 1, 0.10, 0, ""),
    "outline-shadow": ("&H00FFFFFF", "&H00000000", "&H80000000", 0, 0, 1, 0.05, 0.06, ""),
    "shadow-only": ("&H00FFFFFF", "&H00000000", "&H40000000", 0, 0, 1, 0, 0.07, ""),
    "plain-white": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 1, 0, 0, ""),
    "yellow": ("&H0000FFFF", "&H00000000", "&H00000000", 0, 0, 1, 0.05, 0, ""),
    "box": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 3, 0.12, 0, ""),
    "box-translucent": ("&H00FFFFFF", "&H80000000", "&H80000000", 0, 0, 3, 0.12, 0, ""),
    "box-light": ("&H00202020", "&H00F0F0F0", "&H00F0F0F0", 0, 0, 3, 0.12, 0, ""),
    "italic": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 1, 1, 0.05, 0.03, ""),
    "coloured": ("&H0060D0FF", "&H00602010", "&H00000000", 1, 0, 1, 0.07, 0, ""),
    "speakers": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 1, 0.05, 0, "{\\c&HCOLOUR&}"),
    "glow": ("&H00FFFFFF", "&H00C04010", "&H00000000", 1, 0, 1, 0.10, 0, "{\\blur6}"),
    "fade": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 1, 0.06, 0, "{\\fad(300,300)}"),
    "karaoke": ("&H0000C0FF", "&H00000000", "&H00000000", 1, 0, 1, 0.06, 0, "{\\kfKARAOKE}"),
    "pop": (
        "&H00FFFFFF",
        "&H00000000",
        "&H00000000",
        1,
        0,
        1,
        0.07,
        0,
        "{\\fscx70\\fscy70\\t(0,150,\\fscx100\\fscy100)}",
    ),
    "spaced": ("&H00FFFFFF", "&H00000000", "&H00000000", 0, 0, 1, 0.05, 0, "{\\fsp4}"),
    "translucent": ("&H50FFFFFF", "&H50000000", "&H50000000", 0, 0, 1, 0.06, 0, ""),
}

SIZES = ((640, 360), (854, 480), (960, 540), (1280, 720), (1280, 720), (1280, 720), (1920, 1080), (720, 1280))
RATES = ("24000/1001", "25", "30000/1001", "30", "50", "60000/1001")
CODECS = (
    ("libx264", "mp4", ("-preset", "veryfast", "-crf", "23")),
    ("libx264", "mkv", ("-preset", "medium", "-crf", "28")),
    ("libx264", "ts", ("-preset", "ultrafast", "-b:v", "900k")),
    ("libx265", "mp4", ("-preset", "ultrafast", "-crf", "28", "-x265-params", "log-level=none")),
    ("libvpx-vp9", "webm", ("-deadline", "realtime", "-cpu-used", "8", "-b:v", "700k")),
)


@dataclass(frozen=True)
class Event:
    """A caption from ``start`` up to ``end``, in hundredths of a second."""

    start: int
    end: int
    text: str


@dataclass
class Film:
    """One video to make."""

    name: str
    style: str
    script: str
    font: str
    background: str
    width: int
    height: int
    rate: str
    codec: str
    events: list[Event] = field(default_factory=list)
    size_px: int = 0
    lines: int = 1
    align: int = 2
    margin_px: int = 0
    marks: bool = False
    rescaled: bool = False

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """The band of the captions, with some room."""
        block = self.size_px * 1.35 * self.lines
        bottom = self.height - self.margin_px + self.size_px * 0.35
        top = bottom - block - self.size_px * 0.6
        sides = {2: (0.05, 0.95), 1: (0.0, 0.92), 3: (0.08, 1.0)}[self.align]
        return sides[0], round(max(0.0, top / self.height), 4), sides[1], round(min(1.0, bottom / self.height), 4)

    @property
    def hard(self) -> str:
        """What makes it harder than others, if anything."""
        if self.style == "plain-white" and self.background == "bright":
            return "white on bright"
        return "over a static mark" if self.marks else ""

    def truth(self, frames: Sequence[int]) -> list[dict[str, object]]:
        """Samples of each caption; a fading one is on screen from the same opacity on as in training.

        Args:
            frames: number of the frame that each sample shows.
        """
        rate = Fraction(self.rate)
        fade = 30 * VISIBLE_OPACITY if self.style == "fade" else 0.0
        # Milliseconds at which the renderer drew the frame.
        times = [1000 * frame / rate for frame in frames]
        found = []
        for event in self.events:
            shown = [k for k, t in enumerate(times) if (event.start + fade) * 10 <= t < (event.end - fade) * 10]
            if shown:
                found.append({"start_frame": shown[0], "end_frame": shown[-1] + 1, "text": event.text})
        return found


def frames_of_samples(video: Path) -> list[int]:
    """Number of the frame that a player shows at each tenth of a second.

    By the times that stand in the file: where those are milliseconds, the fourth frame of 29.97 a second stands at
    0.100 s, and not after it. Not by ``video/timeline.py``, which is part of what the set measures.
    """
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        base = cast(Fraction, stream.time_base)
        stored = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    pts = [(value - stored[0]) * base for value in stored]
    return [bisect_right(pts, Fraction(k, SAMPLE_RATE)) - 1 for k in range(SECONDS * SAMPLE_RATE)]


def _catalogue(language: str, name: str) -> Path:
    return LOCALES / language / "LC_MESSAGES" / f"{name}.mo"


@cache
def sentences(language: str) -> tuple[str, ...]:
    """Short translated sentences of GLib and GTK."""
    found = set()
    for name in CATALOGUES:
        with _catalogue(language, name).open("rb") as file:
            catalogue = gettext.GNUTranslations(file)
        for message in catalogue._catalog.values():  # type: ignore[attr-defined]  # gettext offers no listing
            line = str(message).strip()
            if 3 <= len(line) <= 60 and not set(line) & set("%{}\\\n\t<>_=&|") and line[-1] != ":":
                found.add(line)
    return tuple(sorted(found))


def _fit(line: str, letters: int) -> str:
    return line if len(line) <= letters else line[:letters].rsplit(" ", 1)[0][:letters]


def _plan_events(rng: random.Random, film: Film, letters: int) -> list[Event]:
    pool = [line for language in LANGUAGES[film.script][1] for line in sentences(language)]

    def words() -> str:
        count = rng.randint(1, film.lines)
        return "\\N".join(_fit(rng.choice(pool), letters) for _ in range(count))

    events: list[Event] = []
    at = rng.randint(20, 150)
    previous = ""
    while True:
        length = rng.randint(60, 400)
        if at + length > SECONDS * 100 - 50:
            return events
        text = words()
        kind = rng.random()
        if previous and kind < 0.12 and "\\N" in previous:
            text = previous.split("\\N", 1)[1] + "\\N" + _fit(rng.choice(pool), letters)
        elif previous and kind < 0.2 and len(previous) > 6:
            text = previous[:-1] + rng.choice([letter for letter in rng.choice(pool) + "x" if letter.strip()])
        back_to_back = bool(events) and events[-1].end == at
        if text == previous and back_to_back:
            continue
        events.append(Event(at, at + length, text))
        previous = text
        at += length + rng.choice([0, 0, 0, rng.randint(20, 60), rng.randint(60, 250)])


def plan_films(seed: int, count: int, captionless: int) -> list[Film]:
    """What to make: every style and script in turn, everything else at random."""
    rng = random.Random(seed)
    styles, scripts = list(STYLES), list(LANGUAGES)
    kinds = ["footage", "pictures", "bright", "procedural"]
    films = []
    for number in range(count + captionless):
        script = scripts[number % len(scripts)]
        families = [name for name in fonts.installed_fonts(LANGUAGES[script][0]) if fonts.is_held_out(name)]
        width, height = SIZES[rng.randrange(len(SIZES))]
        codec = rng.randrange(len(CODECS))
        film = Film(
            name=f"{number:03d}", style=styles[number % len(styles)], script=script, font=rng.choice(sorted(families)),
            background=kinds[number % 4 if number < count else (number * 2) % 4], width=width, height=height,
            rate=rng.choice(RATES), codec=str(codec),
        )  # fmt: skip
        short = min(width, height)
        film.size_px = round(short * rng.choice([0.045, 0.055, 0.065, 0.08]))
        film.lines = rng.choice([1, 1, 2])
        film.align = rng.choices([2, 1, 3], [8, 1, 1])[0]
        film.margin_px = round(short * rng.uniform(0.04, 0.12))
        film.marks = number % 5 == 4
        film.rescaled = rng.random() < 0.25
        if number < count:
            letter = film.size_px * (1.05 if script in WIDE_SCRIPTS else 0.62)
            film.events = _plan_events(rng, film, max(4, int(width * 0.8 / letter)))
        else:
            film.style = "none"
        films.append(film)
    return films


def _stamp(hundredths: int) -> str:
    seconds, rest = divmod(hundredths, 100)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:02d}"


def write_script(film: Film, rng: random.Random, path: Path) -> None:
    """The captions as an ASS script."""
    style = STYLES["outline-thin" if film.style == "none" else film.style]
    primary, outline, back, bold, italic, border, thick, shadow, prefix = style
    header = [
        "[Script Info]", "ScriptType: v4.00+", f"PlayResX: {film.width}", f"PlayResY: {film.height}", "WrapStyle: 2",
        "[V4+ Styles]",
        "Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, "
        "Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, "
        "MarginR, MarginV, Encoding",
        f"Style: Main,{film.font},{film.size_px},{primary},&H00FFFFFF,{outline},{back},{-bold},{-italic},0,0,100,100,"
        f"0,0,{border},{thick * film.size_px:.1f},{shadow * film.size_px:.1f},{film.align},{film.width // 14},"
        f"{film.width // 14},{film.margin_px},1",
        f"Style: Mark,{film.font},{film.size_px * 3 // 4},&H60FFFFFF,&H00FFFFFF,&H60000000,&H60000000,0,0,0,0,100,100,"
        f"0,0,1,1,0,3,{film.width // 40},{film.width // 40},{film.margin_px},1",
        "[Events]", "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text",
    ]  # fmt: skip
    lines = []
    for event in film.events:
        colour = "".join(f"{rng.choice([80, 160, 255]):02X}" for _ in range(3))
        begin = prefix.replace("COLOUR", colour).replace("KARAOKE", str(event.end - event.start))
        text = event.text.replace("{", "(").replace("}", ")")
        lines.append(f"Dialogue: 0,{_stamp(event.start)},{_stamp(event.end)},Main,,0,0,0,,{begin}{text}")
    if film.marks:
        lines.append(f"Dialogue: 1,0:00:00.00,{_stamp(SECONDS * 100 + 100)},Mark,,0,0,0,,TV-{rng.randint(2, 99)}")
    path.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")


def _inputs(film: Film, rng: random.Random, footage: list[Path], pictures: list[Path]) -> tuple[list[str], list[str]]:
    """FFmpeg's inputs for several shots, and the filter of each."""
    arguments: list[str] = []
    filters: list[str] = []
    left, number = float(SECONDS), 0
    width, height = film.width, film.height
    while left > 0:
        length = min(left, rng.uniform(1.5, 9.0))
        left -= length
        fill = f"scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}"
        if film.background == "footage":
            arguments += [
                "-stream_loop",
                "-1",
                "-ss",
                f"{rng.uniform(0, 4):.2f}",
                "-t",
                f"{length:.3f}",
                "-i",
                str(rng.choice(footage)),
            ]
        elif film.background == "procedural":
            size, seed = f"size={width}x{height}:rate={film.rate}", rng.randrange(9999)
            sources = [
                f"mandelbrot={size}:start_scale={rng.uniform(0.3, 3)}",
                f"gradients={size}:speed={rng.uniform(0.001, 0.05)}:seed={seed}",
                f"life=size={width // 8}x{height // 8}:rate=12:mold=10:life_color=green:death_color=brown:seed={seed}",
                f"testsrc2={size}",
            ]
            source = rng.choice(sources)
            arguments += ["-f", "lavfi", "-t", f"{length:.3f}", "-i", source]
        else:
            arguments += ["-i", str(rng.choice(pictures))]
            zoom = rng.uniform(1.05, 1.6)
            big = (round(width * zoom / 2) * 2, round(height * zoom / 2) * 2)
            dx, dy = rng.uniform(-60, 60), rng.uniform(-25, 25)
            fill = (
                # Decoded and scaled once: a large photograph takes longer to decode than a frame to encode.
                f"scale={big[0]}:{big[1]}:force_original_aspect_ratio=increase,loop=loop=-1:size=1,"
                f"setpts=N/30/TB,trim=duration={length:.3f},"
                f"crop={width}:{height}:'(iw-ow)/2+{dx:.1f}*t':'(ih-oh)/2+{dy:.1f}*t'"
            )
            if film.background == "bright":
                fill += ",eq=brightness=0.35:contrast=0.6"
        filters.append(f"[{number}:v]{fill},fps={film.rate},format=yuv420p,setsar=1[s{number}]")
        number += 1
    return arguments, filters


def _cropping(film: Film) -> tuple[str, int, int]:
    """FFmpeg's filter that crops the band of the captions, and its height and width."""
    left, top, right, bottom = film.crop
    box = [round(film.width * left), round(film.height * top), round(film.width * right), round(film.height * bottom)]
    width, height = box[2] - box[0], box[3] - box[1]
    return f"crop={width}:{height}:{box[0]}:{box[1]}", height, width


def _luma(arguments: list[str], height: int, width: int) -> np.ndarray:
    """What FFmpeg makes of these arguments; uint8 (N, H, W)."""
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", *arguments, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, height, width)


def drawn_captions(film: Film, script: Path) -> np.ndarray:
    """What the renderer draws of each caption inside the crop, alone on grey, at the middle of its time.

    Returns:
        Luma, uint8 (captions, H, W).
    """
    crop, height, width = _cropping(film)
    grey = f"color=gray:s={film.width}x{film.height}:r={SAMPLE_RATE}:d={SECONDS},format=rgb24"
    shown = _luma(["-f", "lavfi", "-i", grey, "-vf", f"ass={script},{crop}"], height, width)
    return shown[[(event.start + event.end) * SAMPLE_RATE // 200 for event in film.events]]


def _sample_at(hundredths: int) -> int:
    return first_sample_at(hundredths / 100, Fraction(SAMPLE_RATE))


def _leave_out_untold(film: Film, script: Path, luma: np.ndarray) -> bool:
    """Drop the captions that cannot be told from the pictures behind them; whether there are any.

    Args:
        luma: as :func:`_encode` returns it.
    """
    if not film.events:
        return False
    told = which_are_told(
        luma[0],
        luma[1],
        [(_sample_at(event.start), _sample_at(event.end)) for event in film.events],
        letters(drawn_captions(film, script)).sum((1, 2)),
        edge=4 if film.style == "fade" else 1,
    )
    film.events = [event for event, is_told in zip(film.events, told, strict=True) if is_told]
    return not told.all()


def _choose_font(film: Film, script: Path) -> None:
    """Take the next held-out family until one shows all captions; failing that, drop what the best does not show."""
    families = sorted(name for name in fonts.installed_fonts(LANGUAGES[film.script][0]) if fonts.is_held_out(name))
    at = families.index(film.font) if film.font in families else 0
    least = [_LETTER_WIDTH * film.size_px * max(map(len, event.text.split("\\N"))) for event in film.events]
    best = np.zeros(0, bool)
    for family in [film.font, *families[at + 1 :], *families[:at]] if film.events else []:
        tried = replace(film, font=family)
        write_script(tried, random.Random(f"film {film.name}"), script)
        seen = which_are_seen(drawn_captions(tried, script), least)
        if seen.sum() > best.sum():
            best, film.font = seen, family
        if seen.all():
            break
    film.events = [event for event, is_seen in zip(film.events, best, strict=True) if is_seen]


def _encode(film: Film, script: Path, arguments: list[str], filters: list[str], video: Path) -> np.ndarray:
    """Encode a film.

    Args:
        film: says how.
        script: its captions.
        arguments: FFmpeg's inputs.
        filters: one for each shot.
        video: the file to write.

    Returns:
        Luma of the captions' band at each sample, without and with captions; uint8 (2, samples, H, W).
    """
    codec, _, options = CODECS[int(film.codec)]
    crop, height, width = _cropping(film)
    small = (film.width * 5 // 8 // 2 * 2, film.height * 5 // 8 // 2 * 2)
    resized = f"scale={small[0]}:{small[1]},scale={film.width}:{film.height}" if film.rescaled else "null"
    numbers = "".join(f"[s{number}]" for number in range(len(filters)))
    # Luma alone, because the crop may have odd sides.
    band = f"fps={SAMPLE_RATE},format=gray,{crop}"
    graph = [
        *filters,
        f"{numbers}concat=n={len(filters)}:v=1,fps={film.rate}:start_time=0,split[plain][bare]",
        f"[bare]ass={script},split[captioned][film]",
        f"[film]{resized}[out]",
        f"[plain]{band}[without]",
        f"[captioned]{band}[with]",
        "[without][with]vstack[bands]",
    ]
    luma = ["-map", "[bands]", "-t", str(SECONDS)]
    made = ["-map", "[out]", "-t", str(SECONDS), "-c:v", codec, *options, "-threads", "1"]
    made += ["-pix_fmt", "yuv420p", "-y", str(video)]
    bands = _luma([*arguments, "-filter_complex", ";".join(graph), *made, *luma], 2 * height, width)
    return np.stack([bands[:, :height], bands[:, height:]])


def render(film: Film, folder: Path, footage: list[Path], pictures: list[Path]) -> None:
    """Make one film and its truth."""
    codec, container, _ = CODECS[int(film.codec)]
    script, video = folder / f"{film.name}.ass", folder / f"{film.name}.{container}"
    arguments, filters = _inputs(film, random.Random(f"shots {film.name}"), footage, pictures)
    _choose_font(film, script)
    while True:
        write_script(film, random.Random(f"film {film.name}"), script)
        if not _leave_out_untold(film, script, _encode(film, script, arguments, filters, video)):
            break
    script.unlink()
    description = asdict(film) | {
        "video": video.name,
        "codec": codec,
        "crop": film.crop,
        "rate": SAMPLE_RATE,
        "hard": film.hard,
    }
    description |= {"captions": film.truth(frames_of_samples(video)), "events": len(film.events)}
    (folder / f"{film.name}.json").write_text(json.dumps(description, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=72, help="films with captions")
    parser.add_argument("--captionless", type=int, default=18, help="films without")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--footage", type=Path, action="append", default=[], help="folder with more held-out films")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        parser.error("the ffmpeg program is missing; install Debian's package ffmpeg, whose libass draws the captions")
    missing = [name for name in CATALOGUES if not _catalogue("de", name).exists()]
    if missing:
        parser.error(
            f"no German translation of {', '.join(missing)} under {LOCALES}; install Debian's packages "
            "libglib2.0-data, libgtk2.0-common and libgtk-3-common, with their translations"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    films = plan_films(arguments.seed, arguments.clips, arguments.captionless)
    held = [path for path in backgrounds.find_footage() if fonts.is_held_out(path.name)]
    footage = held + sorted(path for folder in arguments.footage for path in folder.glob("*.mp4"))
    pictures = [path for path in backgrounds.find_pictures() if fonts.is_held_out(path.name)]
    if not footage or not pictures:
        parser.error("no held-out footage or pictures on this machine; see docs/model-card.md for the packages")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        made = [pool.submit(render, film, arguments.out, footage, pictures) for film in films]
        for number, future in enumerate(made, start=1):
            future.result()
            print(f"{number} of {len(films)} films", flush=True)


if __name__ == "__main__":
    main()
