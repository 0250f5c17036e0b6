"""Where captions stand, from the video itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from caption_extents.bands import Band, TextBox, draw_regions, find_bands, pieces, suggest_crop, without_static
from caption_extents.cli import app
from caption_extents.errors import VideoError
from caption_extents.region import CropRegion
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from tests.films import caption_box, make_film
from tests.media import Recipe, make_video


def box(picture: int, left: float, top: float, right: float, bottom: float) -> TextBox:
    return TextBox(picture, left, top, right, bottom)


def captions(pictures: range, top: float, bottom: float) -> list[TextBox]:
    """Lines of other widths in every picture."""
    return [box(p, 0.3 - 0.02 * (p % 7), top, 0.7 + 0.03 * (p % 5), bottom) for p in pictures]


def test_the_band_of_captions_is_found_beside_a_logo_and_signs() -> None:
    signs = [box(p, 0.1 * (p % 7), 0.02 * p, 0.1 * (p % 7) + 0.2, 0.02 * p + 0.04) for p in range(0, 40, 5)]
    (band, *_) = find_bands([*signs, *captions(range(5, 30), 0.86, 0.92)])
    assert band.pictures >= 25
    assert 0.8 < band.region.crop_top < 0.86
    assert 0.92 < band.region.crop_bottom < 0.98
    assert band.region.crop_left <= 0.04
    assert band.region.crop_right >= 0.96


def test_two_lines_are_one_band() -> None:
    boxes = [*captions(range(20), 0.80, 0.86), *captions(range(0, 20, 3), 0.88, 0.94)]
    (band,) = find_bands(boxes)
    assert band.region.crop_top < 0.80
    assert band.region.crop_bottom > 0.94


def test_captions_at_the_top_are_a_second_band() -> None:
    boxes = [*captions(range(20), 0.86, 0.92), *captions(range(20, 30), 0.05, 0.11)]
    first, second = find_bands(boxes)
    assert (first.pictures, second.pictures) == (20, 10)
    assert second.region.crop_bottom < 0.2


def test_text_that_always_stays_is_no_caption() -> None:
    """A logo on a background that changes beside it; captions at one place and of one width, each shown for a while."""
    rng = np.random.default_rng(1)
    luma = rng.uniform(0, 60, (40, 108, 192)).astype(np.float32)
    luma[:, 5:12, 160:186] = rng.uniform(0, 255, (7, 26))
    for first in range(0, 40, 4):
        luma[first : first + 4, 93:100, 58:134] = rng.uniform(0, 255, (7, 76))
    logo = [box(p, 160 / 192, 5 / 108, 186 / 192, 12 / 108) for p in range(40)]
    captions_ = [box(p, 58 / 192, 93 / 108, 134 / 192, 100 / 108) for p in range(40)]
    assert without_static([*logo, *captions_], luma) == captions_


@pytest.mark.parametrize("size", [(960, 540), (540, 960)], ids=["wide", "vertical"])
def test_the_suggestion_holds_every_caption(size: tuple[int, int], tmp_path: Path) -> None:
    extents = [(start, start + 50) for start in range(10, 420, 60)]
    make_film(tmp_path / "film.mp4", extents, width=size[0], height=size[1])
    command = ["crop", str(tmp_path / "film.mp4"), "--picture", str(tmp_path / "crop.png"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    region = CropRegion(*json.loads(result.stdout)[0]["crop"])
    left, top, right, bottom = caption_box(*size)
    assert region.crop_left <= left < right <= region.crop_right
    assert region.crop_top <= top < bottom <= region.crop_bottom
    assert region.crop_bottom - region.crop_top <= 2 * (bottom - top)
    picture = np.asarray(Image.open(tmp_path / "crop.png"))
    row = round(region.crop_top * picture.shape[0])
    assert (picture[row, picture.shape[1] // 2] == (255, 40, 40)).all()


@pytest.mark.parametrize(("height", "lines"), [(540, 2), (144, 1), (180, 1)])
def test_two_lines_and_small_videos(height: int, lines: int, tmp_path: Path) -> None:
    extents = [(start, start + 50) for start in range(10, 300, 60)]
    make_film(tmp_path / "film.mp4", extents, width=height * 16 // 9, height=height, lines=lines)
    ((region, *_), _) = suggest_crop(tmp_path / "film.mp4")
    _, top, _, bottom = caption_box(height * 16 // 9, height)
    assert region.region.crop_top <= top - (lines - 1) * (bottom - top)
    assert region.region.crop_bottom >= bottom
    resolve_crop(region.region, probe(tmp_path / "film.mp4"))  # high enough


def test_a_run_finds_its_own_crop(tmp_path: Path) -> None:
    extents = [(start, start + 50) for start in range(12, 300, 60)]
    make_film(tmp_path / "film.mp4", extents)
    result = CliRunner().invoke(app, ["run", str(tmp_path / "film.mp4"), "--store", str(tmp_path / "store"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["caption_count"] == len(extents)


def test_a_video_without_text(tmp_path: Path) -> None:
    video = make_video(Recipe("plain", pts=tuple(range(30))), tmp_path)
    with pytest.raises(VideoError, match="no text comes and goes"):
        suggest_crop(video, lambda picture: [])


def test_letters_side_by_side_are_one_piece() -> None:
    cells = np.zeros((12, 30), bool)
    cells[2, [1, 2, 5, 8, 11]] = cells[3, 12] = True  # one line, with room between its letters
    cells[7, 4:9] = True  # another below it
    cells[10, 25] = True  # too few
    assert sorted(pieces(cells)) == [(1, 2, 13, 4), (4, 7, 9, 8)]


def test_regions_are_drawn_inside_the_picture() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_regions(picture, [Band(CropRegion(0, 0, 1, 1), 3), Band(CropRegion(0.1, 0.1, 0.5, 0.5), 2)])
    assert drawn.shape == picture.shape
    assert drawn.any()
    assert not picture.any()
