"""Which field is sample k: interlaced and telecined pictures, compared with FFmpeg's own detection of fields."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

import caption_extents as ce
from caption_extents.samples import plane_view
from caption_extents.video.info import probe
from caption_extents.video.inspection import inspect_video

WIDTH, HEIGHT, FIELDS = 320, 192, 100
X264 = {"crf": "4", "x264-params": "tff=1:keyint=10:bframes=2:log-level=none"}
MPEG2 = {"b": "9000000", "g": "10", "bf": "2", "flags": "+ilme+ildct", "top": "1"}


def field_picture(field: int) -> np.ndarray:
    """RGB; a slope that moves on in every field, so that a pixel tells the field."""
    slope = (np.arange(WIDTH) // 2 + 4 * field) % 200 + 30
    return np.tile(slope[None, :, None].astype(np.uint8), (HEIGHT, 1, 3))


def woven(frame: int) -> np.ndarray:
    """Top rows of an earlier field, bottom rows of a later one."""
    picture = field_picture(2 * frame)
    picture[1::2] = field_picture(2 * frame + 1)[1::2]
    return picture


def write(path: Path, codec: str, options: dict[str, str], pictures: list[np.ndarray], rate: Fraction) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def samples_of(path: Path) -> np.ndarray:
    with ce.open_video(path, device="cpu") as video:
        return np.concatenate([batch.y for batch in video.samples((0, 0, 1, 1))])


def luma(picture: np.ndarray) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
    return plane_view(frame.planes[0]).copy()


def detected(path: Path) -> str:
    """What FFmpeg's filter ``idet`` takes the frames for."""
    with av.open(str(path)) as container:
        graph = Graph()
        stream = container.streams.video[0]
        source, detector, sink = graph.add_buffer(template=stream), graph.add("idet"), graph.add("buffersink")
        source.link_to(detector)
        detector.link_to(sink)
        graph.configure()
        kinds: list[str] = []
        for frame in container.decode(stream):
            graph.push(frame)
            try:
                while True:
                    kinds.append(graph.pull().metadata["lavfi.idet.multiple.current_frame"])
            except (av.BlockingIOError, EOFError):
                continue
    return max(set(kinds), key=kinds.count)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", X264),
        ("mkv", "libx264", X264),
        ("ts", "libx264", X264),
        ("ts", "mpeg2video", MPEG2),
        ("mkv", "mpeg2video", MPEG2),
    ],
)
def test_a_sample_of_interlaced_video_is_both_fields(
    container: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Fifty fields a second: sample k is the frame that holds field 5k, with the one before or after it."""
    frames = FIELDS // 2
    path = write(tmp_path / f"film.{container}", codec, options, [woven(f) for f in range(frames)], Fraction(25))
    assert probe(path).interlaced
    assert detected(path) == "tff"
    found = samples_of(path)
    assert len(found) == 20
    for k, sample in enumerate(found):
        holding = 5 * k // 2
        for rows, field in ((slice(0, None, 2), 2 * holding), (slice(1, None, 2), 2 * holding + 1)):
            errors = [
                np.abs(sample[rows].astype(int) - luma(field_picture(other))[rows]).mean()
                for other in range(max(0, field - 4), min(FIELDS, field + 5))
            ]
            assert max(0, field - 4) + int(np.argmin(errors)) == field
    picture = next(finding for finding in inspect_video(path) if finding.name == "picture")
    assert "interlaced" in picture.detail


def test_progressive_video_is_not_interlaced(tmp_path: Path) -> None:
    options = {"crf": "4", "x264-params": "log-level=none"}
    pictures = [field_picture(2 * frame) for frame in range(FIELDS // 2)]
    path = write(tmp_path / "film.mp4", "libx264", options, pictures, Fraction(25))
    assert not probe(path).interlaced
    assert detected(path) == "progressive"


def test_telecined_film_is_taken_by_its_frames(tmp_path: Path) -> None:
    """24 frames a second as 30 (2:3 pulldown): sample k is a frame of the 30, which may hold fields of two pictures."""
    rate = Fraction(30000, 1001)
    pictures = []
    for frame in range(60):
        # Fields 2 and 3 of five pictures' ten come from neighbouring ones: A A B B B C C D D D.
        top, bottom = ((2 * frame + half) * 2 // 5 for half in (0, 1))
        picture = field_picture(3 * top)
        picture[1::2] = field_picture(3 * bottom)[1::2]
        pictures.append(picture)
    path = write(tmp_path / "film.ts", "mpeg2video", MPEG2, pictures, rate)
    found = samples_of(path)
    with av.open(str(path)) as container:
        shown = [
            (frame.pts * Fraction(frame.time_base), plane_view(frame.planes[0]).copy())
            for frame in container.decode(video=0)
        ]
    assert len(shown) == 60
    for k, sample in enumerate(found):
        time = shown[0][0] + Fraction(k, 10)
        np.testing.assert_array_equal(sample, [picture for pts, picture in shown if pts <= time][-1])
