"""Fonts of this machine, by script, found through fontconfig."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageFont, features

from caption_extents.training import text

SHAPING_LIBRARY = "libfribidi.so.0"
"""What Pillow looks for when it is imported, and cannot shape text without (Debian's package ``libfribidi0``)."""

_NOT_FOR_TEXT = ("emoji", "symbol", "dingbat", "music", "math", "braille", "barcode", "icon", "lastresort", "wingding")


@dataclass(frozen=True)
class FontFile:
    """One face of a font file."""

    path: str
    index: int
    family: str


_DEJAVU_LANGUAGES = frozenset({"en", "ru", "el", "ar", "he", "hy", "ka", "vi", "pl", "tr"})
_DEJAVU_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")


_packed_folder: Path | None = None


def is_held_out(name: str) -> bool:
    """Whether a font family, a picture or a film is kept from training, for evaluation: one in five, by its name."""
    return zlib.crc32(name.encode()) % 5 == 0


@cache
def can_shape() -> bool:
    """Whether Pillow draws scripts whose letters join or are reordered as they are read, and not letter by letter."""
    return bool(features.check("raqm"))


def drawable_scripts() -> dict[str, text.Script]:
    """The scripts that Pillow draws here as they are read, by name."""
    return {name: script for name, script in text.scripts().items() if can_shape() or not script.needs_shaping}


def use_packed_fonts(folder: Path) -> None:
    """Draw with the fonts that :mod:`caption_extents.training.assets` packed, not with those of the machine."""
    global _packed_folder
    _packed_folder = folder
    fonts_for.cache_clear()


@cache
def fonts_for(language: str) -> dict[str, tuple[FontFile, ...]]:
    """Scalable fonts that cover a language by family: packed ones, the machine's, or those in matplotlib's wheel."""
    if _packed_folder is not None:
        return _packed_fonts(_packed_folder, language)
    return installed_fonts(language) or _wheel_fonts(language)


def _packed_fonts(folder: Path, language: str) -> dict[str, tuple[FontFile, ...]]:
    listed = json.loads((folder / "fonts.json").read_text(encoding="utf-8")).get(language, {})
    return {
        family: tuple(FontFile(str(folder / name), 0, family) for name in names) for family, names in listed.items()
    }


def _wheel_fonts(language: str) -> dict[str, tuple[FontFile, ...]]:
    """DejaVu as matplotlib carries it, so that a machine without fonts can still write ten scripts."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None or language not in _DEJAVU_LANGUAGES:
        return {}
    folder = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    return {face: (FontFile(str(folder / f"{face}.ttf"), 0, face),) for face in _DEJAVU_FACES}


def installed_fonts(language: str) -> dict[str, tuple[FontFile, ...]]:
    """Fonts that fontconfig finds on this machine for a language, grouped by family."""
    if shutil.which("fc-list") is None:
        return {}
    listing = subprocess.run(
        ["fc-list", f":lang={language}:scalable=true", "--format", "%{file}\t%{index}\t%{family[0]}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    families: dict[str, list[FontFile]] = {}
    for line in sorted(set(listing.splitlines())):
        path, index, family = line.split("\t")
        usable = Path(path).suffix.lower() in {".ttf", ".otf", ".ttc", ".t1", ".pfb"}
        if usable and not any(word in family.lower() for word in _NOT_FOR_TEXT):
            # The upper half of fontconfig's index names an instance of a variable font, which Pillow selects otherwise.
            families.setdefault(family, []).append(FontFile(path, int(index) & 0xFFFF, family))
    return {family: tuple(files) for family, files in families.items()}


def random_font(rng: random.Random, language: str, size_px: int, words: str = "") -> ImageFont.FreeTypeFont | None:
    """A random face of a random family for a language; None where the machine has none.

    Fonts that cannot be read are passed over, and those that cannot draw ``words``: FreeType finds out only then that
    the program in a font is broken.
    """
    families = fonts_for(language)
    for _ in range(10):
        if not families:
            break
        chosen = rng.choice(families[rng.choice(sorted(families))])
        try:
            font = ImageFont.truetype(chosen.path, size_px, index=chosen.index)
            font.getmask(words, stroke_width=2)
        except OSError:
            continue
        return font
    return None


def builtin_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own Latin font, there on every machine."""
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install a wheel from PyPI")
    return font
