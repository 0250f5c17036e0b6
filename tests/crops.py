"""Suggested crops of made films: ``python -m tests.crops [VIDEO ...]``.

Ten films of other sizes, shapes and places of their captions; each suggestion must hold every pixel of every caption,
and be at most twice as high as all of them together. Of further videos the suggestion is printed, to be looked at.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from caption_extents.bands import suggest_crop
from caption_extents.region import CropRegion
from caption_extents.training import sample_video
from tests import films


@dataclass(frozen=True)
class Film:
    """Size in pixels, and where the last line stands, from the top."""

    width: int
    height: int
    baseline: float = 0.95


FILMS = [
    Film(960, 540),
    Film(540, 960),
    Film(1280, 720, 0.9),
    Film(640, 360),
    Film(854, 480, 0.88),
    Film(1920, 1080),
    Film(720, 576, 0.92),
    Film(480, 854, 0.75),
    Film(1024, 436, 0.97),
    Film(960, 540, 0.12),
]


def check(film: Film, path: Path) -> tuple[CropRegion, float]:
    """Make a film and ask for its crop; the suggestion, and its height over that of the captions.

    Raises:
        AssertionError: it is too small or too large.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_video, "BASELINE", film.baseline)
        films.make_film(path, [(at, at + 50) for at in range(10, 420, 60)], width=film.width, height=film.height)
        left, top, right, bottom = films.caption_box(film.width, film.height)
    bands, _ = suggest_crop(path)
    region = bands[0].region
    assert region.crop_left <= left, (film, region)
    assert right <= region.crop_right, (film, region)
    assert region.crop_top <= top, (film, region)
    assert bottom <= region.crop_bottom, (film, region)
    ratio = (region.crop_bottom - region.crop_top) / (bottom - top)
    assert ratio <= 2, (film, region)
    return region, ratio


def main() -> None:
    """Command line."""
    with tempfile.TemporaryDirectory() as folder:
        for number, film in enumerate(FILMS):
            region, ratio = check(film, Path(folder) / f"{number}.mp4")
            print(f"{film}: {region.as_tuple()}, {ratio:.2f} times as high as the captions")
    for video in sys.argv[1:]:
        bands, _ = suggest_crop(Path(video))
        print(f"{video}: {bands[0].region.as_tuple()}")


if __name__ == "__main__":
    main()
