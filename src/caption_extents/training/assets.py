"""Fonts, photographs and footage, packed small: ``python -m caption_extents.training.assets --out DIR``.

Training runs where the GPU is, which need not be where Debian's packages are. The pack holds only what training reads:
fonts cut down to the letters that :mod:`caption_extents.training.text` writes, the library that puts these letters
together, pictures at 1280 pixels, footage at ten frames a second. Families and files held out for evaluation stay out.
Nothing of it belongs to this project.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import random
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

import av
from fontTools import subset
from fontTools.ttLib import TTLibError
from PIL import Image

from caption_extents.training import backgrounds, fonts, text

_PICTURE_SIDE_PX = 1280
_FOOTAGE_LINES = 360
_MANY_LETTERS = 600
"""From so many on, a script's fonts are large, and the letters alone are variety enough."""
_PUNCTUATION = string.digits + string.punctuation + " …。、「」“”♪،؟"


def _letters(script: text.Script) -> str:
    letters = set(script.letters)
    return "".join(sorted(letters | {letter.upper() for letter in letters if script.uppercase})) + _PUNCTUATION


def pack_font(font: fonts.FontFile, letters: str, path: Path) -> bool:
    """Write a font with the given letters only, and its shaping rules; False where it cannot be done."""
    options = subset.Options(font_number=font.index, hinting=False, notdef_outline=True, name_IDs=[])
    options.layout_features = ["*"]
    options.drop_tables += ["SVG ", "CBDT", "CBLC", "COLR", "CPAL", "DSIG"]
    try:
        loaded = subset.load_font(font.path, options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=letters)
        subsetter.subset(loaded)
        subset.save_font(loaded, str(path), options)
    except (TTLibError, subset.Subsetter.SubsettingError, AttributeError, KeyError, AssertionError, ValueError):
        return False
    return path.stat().st_size < 2_000_000


def pack_fonts(out: Path, rng: random.Random, faces_a_script: int) -> dict[str, dict[str, list[str]]]:
    """Pack up to so many faces for each language, from as many families as there are; returns what was packed."""
    packed: dict[str, dict[str, list[str]]] = {}
    for script in text.scripts().values():
        families = {
            name: files for name, files in fonts.fonts_for(script.language).items() if not fonts.is_held_out(name)
        }
        names = sorted(families)
        rng.shuffle(names)
        many_letters = len(set(script.letters)) > _MANY_LETTERS
        count = faces_a_script * 5 if script.name == "latin" else faces_a_script // (2 if many_letters else 1)
        for number, name in enumerate(names[:count]):
            face = rng.choice(families[name])
            path = out / f"{script.language}-{number:03d}.otf"
            if Path(face.path).suffix in {".ttf", ".otf", ".ttc"} and pack_font(face, _letters(script), path):
                packed.setdefault(script.language, {}).setdefault(name, []).append(path.name)
            else:
                path.unlink(missing_ok=True)
        print(f"{script.name}: {sum(map(len, packed.get(script.language, {}).values()))} faces", flush=True)
    return packed


def pack_shaping(out: Path) -> None:
    """Pack the library that Pillow shapes text with; ``LD_LIBRARY_PATH=OUT`` lets it find it.

    Raises:
        OSError: this machine has none.
    """
    ctypes.CDLL(fonts.SHAPING_LIBRARY)
    loaded = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    path = next(Path(file) for file in loaded if Path(file).name.startswith("libfribidi."))
    shutil.copyfile(path, out / fonts.SHAPING_LIBRARY)


def _pictures(rng: random.Random, count: int) -> Iterator[Path]:
    found = [path for path in backgrounds.find_pictures() if not fonts.is_held_out(path.name)]
    rng.shuffle(found)
    yield from found[:count]


def pack_pictures(out: Path, rng: random.Random, count: int) -> int:
    """Pack photographs as JPEG; returns how many."""
    number = 0
    for number, path in enumerate(_pictures(rng, count), start=1):
        picture = backgrounds.load_picture(path).copy()
        picture.thumbnail((_PICTURE_SIDE_PX, _PICTURE_SIDE_PX), Image.Resampling.LANCZOS)
        picture.save(out / f"picture-{number:03d}.jpg", quality=80)
    return number


def pack_footage(out: Path, max_frames: int) -> int:
    """Pack films of this machine at ten frames a second; returns how many."""
    films = [path for path in backgrounds.find_footage() if not fonts.is_held_out(path.name)]
    for number, path in enumerate(films):
        frames = backgrounds.load_footage(path, max_frames)
        print(f"film {number + 1} of {len(films)}: {len(frames)} frames", flush=True)
        height = min(_FOOTAGE_LINES, frames.shape[1]) // 2 * 2
        width = round(frames.shape[2] * height / frames.shape[1] / 2) * 2
        with av.open(str(out / f"film-{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "20", "preset": "slow"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return len(films)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--faces",
        type=int,
        default=24,
        help="faces for a script; five times as many for Latin, half for Chinese and such",
    )
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--film-frames", type=int, default=400)
    arguments = parser.parse_args()
    # Many fonts break some rule or have tables that nobody needs here, and it speaks of each.
    logging.getLogger("fontTools").setLevel(logging.CRITICAL)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    pack_shaping(arguments.out)
    packed = pack_fonts(arguments.out, rng, arguments.faces)
    (arguments.out / "fonts.json").write_text(json.dumps(packed, ensure_ascii=False), encoding="utf-8")
    print(f"{pack_pictures(arguments.out, rng, arguments.pictures)} pictures", flush=True)
    print(f"{pack_footage(arguments.out, arguments.film_frames)} films")


if __name__ == "__main__":
    main()
