"""What may be opened, and what is found out about it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from caption_extents.errors import CropError, VideoError
from caption_extents.region import CropRegion
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from tests.media import Recipe, make_video


def test_facts_of_a_video(tmp_path: Path) -> None:
    facts = probe(make_video(Recipe("facts", "mp4", rotation=90, sample_aspect_ratio=Fraction(4, 3)), tmp_path))
    assert (facts.codec, facts.width, facts.height) == ("h264", 160, 96)
    assert (facts.display_width, facts.display_height) == (96, 160)
    assert facts.sample_aspect_ratio == Fraction(3, 4)
    assert facts.orientation.transpose


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.mp4", b"this is no video" * 100, "cannot open"),
        ("empty.mp4", b"", "is empty"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:10,\nvideo.mp4\n", "cannot open"),
        (
            "list.mp4",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://localhost/video.ts\n#EXT-X-ENDLIST\n",
            "cannot open",
        ),
        ("concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot open"),
        ("picture.mp4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot open"),
    ],
)
def test_what_is_no_video_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        probe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no such video file: .*gone\.mp4"):
        probe(tmp_path / "gone.mp4")


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts = 48000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


@pytest.mark.parametrize("keep", [0.001, 0.02, 0.5])
def test_a_cut_off_header(keep: float, tmp_path: Path) -> None:
    whole = make_video(Recipe("whole"), tmp_path).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: max(8, int(len(whole) * keep))])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        probe(path)


def test_a_codec_that_is_not_known(tmp_path: Path) -> None:
    path = make_video(Recipe("exotic", "avi", codec="huffyuv", pixel_format="yuv422p"), tmp_path)
    with pytest.raises(VideoError, match="codec 'huffyuv'"):
        probe(path)


@pytest.mark.parametrize(
    "values", [(-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (0, 0, float("nan"), 1)]
)
def test_regions_outside_the_picture(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(CropError):
        CropRegion(*values)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "0.1;0.2;0.3;0.4", "0,0,1,1,1"])
def test_regions_that_are_no_numbers(text: str) -> None:
    with pytest.raises(CropError, match="form LEFT,TOP,RIGHT,BOTTOM"):
        CropRegion.parse(text)


def test_crops_are_rounded_outwards_to_even_pixels(tmp_path: Path) -> None:
    facts = probe(make_video(Recipe("crop"), tmp_path))
    assert resolve_crop(CropRegion(0.11, 0.31, 0.89, 0.99), facts).as_tuple() == (16, 28, 144, 96)
    assert resolve_crop(CropRegion(0.1, 0.25, 0.9, 0.75), facts).as_tuple() == (16, 24, 144, 72)
    assert resolve_crop(CropRegion(0, 0, 1, 1), facts).as_tuple() == (0, 0, 160, 96)


def test_small_crops_are_refused(tmp_path: Path) -> None:
    facts = probe(make_video(Recipe("crop"), tmp_path))
    with pytest.raises(CropError, match="at least 16x16"):
        resolve_crop(CropRegion(0.5, 0.5, 0.55, 0.9), facts)
