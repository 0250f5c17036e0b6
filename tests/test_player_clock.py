"""Times and streams as players have them: pictures that start late, and files with several video streams."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pysubs2
import pytest
from av.stream import Disposition

import caption_extents as ce
from caption_extents.captions.extents import Caption
from caption_extents.captions.subtitles import render_subtitles
from caption_extents.errors import VideoError
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import open_store
from caption_extents.video.info import probe
from caption_extents.video.timeline import build_timeline
from tests.media import Recipe, make_video

CROP = (0.0, 0.5, 1.0, 1.0)
MARKS = {"": Disposition(0), "default": Disposition.default, "cover": Disposition.attached_pic}
CONTAINERS = ("mkv", "mp4", "ts", "flv")


def make_sound(path: Path, seconds: float = 2.0) -> Path:
    """Silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        for index in range(int(seconds * 48000 / 1024)):
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48000, index * 1024, Fraction(1, 48000)
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return path


def remux(out: Path, parts: Sequence[tuple[Path, float, str]]) -> Path:
    """A file with the first stream of each part, so many seconds later, and marked as default, as a cover or not."""
    inputs = [av.open(str(path)) for path, _, _ in parts]
    with av.open(str(out), "w") as container:
        packets = []
        for source, (_, delay, mark) in zip(inputs, parts, strict=True):
            stream = container.add_stream_from_template(source.streams[0])
            stream.disposition = MARKS[mark]
            for packet in source.demux(source.streams[0]):
                if packet.size:
                    ticks = round(delay / packet.time_base)
                    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                    packet.stream = stream
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    for source in inputs:
        source.close()
    return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        "film": make_video(Recipe("film", "mp4", options={"g": "15"}), folder),
        "preview": make_video(Recipe("preview", "mp4", width=64, height=48, pts=range(0, 45, 6)), folder),
        "still": make_video(Recipe("still", "mp4", "mjpeg", "yuvj420p", width=320, height=320, pts=(0,)), folder),
        "sound": make_sound(folder / "sound.m4a"),
    }


def first_frame_by_ffmpeg(path: Path) -> float:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the program ffmpeg")
    command = ["ffmpeg", "-hide_banner", "-i", str(path), "-map", "0", "-vf", "showinfo", "-f", "null", "-"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return float(re.findall(r"pts_time:([\d.]+)", told)[0])


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("picture", "sound"), [(0.8, 0.0), (0.0, 0.8), (1.5, 1.0)])
def test_the_clock_starts_where_the_container_does(
    container: str, picture: float, sound: float, parts: dict[str, Path], tmp_path: Path
) -> None:
    path = remux(tmp_path / f"late.{container}", [(parts["film"], picture, ""), (parts["sound"], sound, "")])
    begins = float(probe(path).first_sample_seconds)
    assert begins == pytest.approx(first_frame_by_ffmpeg(path), abs=1e-5)
    # Encoders of AAC put a frame of silence before the sound, which some containers play and others leave out.
    assert begins == pytest.approx(picture - min(picture, sound), abs=0.025)


def as_mpv_plays(path: Path) -> tuple[float, int]:
    """When mpv shows the first picture, and of which stream."""
    if shutil.which("mpv") is None:
        pytest.skip("needs the player mpv")
    command = ["mpv", "--no-config", "--vo=null", "--ao=null", "--untimed", "--frames=1"]
    message = "--term-playing-msg=shown ${=time-pos} of ${current-tracks/video/ff-index}."
    told = subprocess.run([*command, message, str(path)], check=True, capture_output=True, text=True).stdout
    found = re.search(r"shown ([\d.]+) of (\d+)\.", told)
    assert found is not None
    return float(found[1]), int(found[2])


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("picture", "sound"), [(0.8, 0.0), (0.0, 0.8)])
def test_a_player_has_the_same_clock(
    container: str, picture: float, sound: float, parts: dict[str, Path], tmp_path: Path
) -> None:
    path = remux(tmp_path / f"late.{container}", [(parts["film"], picture, ""), (parts["sound"], sound, "")])
    # Its own demuxer of MKV starts at the first packet of the file, a frame of silence later.
    tolerance = 0.025 if container == "mkv" else 1e-3
    assert as_mpv_plays(path)[0] == pytest.approx(float(probe(path).first_sample_seconds), abs=tolerance)


def test_a_player_takes_the_same_stream(parts: dict[str, Path], tmp_path: Path) -> None:
    for number, names in enumerate([["preview", "film"], ["still", "film"], ["film", "preview"]]):
        marks = ["default" if name == "film" else "" for name in names]
        streams = [(parts[name], 0.0, mark) for name, mark in zip(names, marks, strict=True)]
        path = remux(tmp_path / f"{number}.mkv", streams)
        assert as_mpv_plays(path)[1] == probe(path).stream_index


def test_a_video_alone_starts_at_zero(parts: dict[str, Path], tmp_path: Path) -> None:
    for container in ("mkv", "ts", "flv"):
        assert probe(remux(tmp_path / f"alone.{container}", [(parts["film"], 3.0, "")])).first_sample_seconds == 0


def test_times_are_those_of_the_player_everywhere(captioned_video: Path, tmp_path: Path) -> None:
    path = remux(tmp_path / "late.mkv", [(captioned_video, 0.8, ""), (make_sound(tmp_path / "sound.m4a"), 0.0, "")])
    crop, begins = ce.CropRegion(0.1, 0.82, 0.9, 0.96), probe(path).first_sample_seconds
    assert float(begins) == pytest.approx(0.8, abs=0.025)
    plain = ce.find_captions(captioned_video, crop)
    late = ce.find_captions(path, crop)
    assert [(c.first_sample, c.end_sample) for c in late] == [(c.first_sample, c.end_sample) for c in plain]
    assert [c.start for c in late] == [float(begins + Fraction(c.first_sample, 10)) for c in plain]
    assert [(c.start, c.end) for c in ce.iter_captions(path, crop)] == [(c.start, c.end) for c in late]
    result = ce.run_job(ce.Job(path, "t", "v", crop, store=tmp_path / "store", refine=True))
    # A shift changes nothing but the times, also where they are exact to a frame.
    exact = ce.run_job(ce.Job(captioned_video, "t", "plain", crop, store=tmp_path / "store", refine=True))
    for one, other in zip(result.captions, exact.captions, strict=True):
        assert one.start - float(begins) == pytest.approx(other.start, abs=1e-3)
    store, keys = open_store(tmp_path / "store"), VideoKeys("t", "v")
    manifest = Manifest.from_json(store.get(keys.manifest(1)))
    assert manifest.first_sample_seconds == float(begins)
    assert manifest.source.stream == 0


def test_manifests_of_before_and_of_later() -> None:
    """Those without a clock's start, and those that say what this version does not know."""
    fields = {
        "version": 1, "run_id": "r", "source": {"key": "k", "size_bytes": 1, "fingerprint": "f"}, "crop": [0, 0, 1, 1],
        "crop_px": [0, 0, 2, 2], "sample_aspect_ratio": "1", "frame_rate": "10", "sample_count": 1, "preset": "fast",
        "model_version": "m", "chunks": [], "format_version": 1, "of_later": 5,
    }  # fmt: skip
    manifest = Manifest.from_json(json.dumps(fields).encode())
    assert (manifest.first_sample_seconds, manifest.source.stream) == (0.0, None)


@pytest.mark.parametrize(
    ("streams", "chosen"),
    [
        ([("still", ""), ("film", "")], 1),
        ([("still", "default"), ("film", "")], 1),
        ([("still", "cover"), ("film", "default")], 1),
        ([("preview", ""), ("film", "")], 1),
        ([("preview", ""), ("film", "default")], 1),
        ([("film", ""), ("preview", "default")], 1),
        ([("film", ""), ("film", "")], 0),
        ([("sound", ""), ("preview", ""), ("film", "")], 2),
        ([("still", "")], 0),
    ],
)
def test_the_film_is_chosen_as_players_do(
    streams: list[tuple[str, str]], chosen: int, parts: dict[str, Path], tmp_path: Path
) -> None:
    path = remux(tmp_path / "film.mkv", [(parts[name], 0.0, mark) for name, mark in streams])
    assert probe(path).stream_index == chosen


def test_a_stream_may_be_named(parts: dict[str, Path], tmp_path: Path) -> None:
    path = remux(
        tmp_path / "two.mkv", [(parts["film"], 0.0, "default"), (parts["preview"], 0.0, ""), (parts["sound"], 0, "")]
    )
    with ce.open_video(path, stream=1, device="cpu") as video:
        assert (video.width, video.height) == (64, 48)
        assert sum(len(batch.y) for batch in video.samples(CROP)) == video.sample_count
    with pytest.raises(
        VideoError, match=r"stream 2 of .* is no video; its video streams are 0 \(h264 160x96, default\), 1"
    ):
        ce.open_video(path, stream=2)
    result = ce.run_job(ce.Job(path, "t", "v", CROP, store=tmp_path / "s", stream=1, isolate=True))
    manifest = Manifest.from_json(open_store(tmp_path / "s").get(VideoKeys("t", "v").manifest(result.version)))
    assert manifest.source.stream == 1
    assert manifest.crop_px == (0, 24, 64, 48)


def test_a_file_with_only_a_cover_has_no_video(parts: dict[str, Path], tmp_path: Path) -> None:
    path = remux(tmp_path / "music.mp4", [(parts["sound"], 0.0, ""), (parts["still"], 0.0, "cover")])
    with pytest.raises(VideoError, match="no video stream, only a cover picture"):
        probe(path)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("delay", [0.0, 2.0])
def test_the_last_picture_stands_while_the_sound_goes_on(
    container: str, delay: float, parts: dict[str, Path], tmp_path: Path
) -> None:
    sound = make_sound(tmp_path / "sound.m4a", 6.0)
    path = remux(tmp_path / f"slides.{container}", [(parts["film"], delay, ""), (sound, 0.0, "")])
    facts = probe(path)
    timeline = build_timeline(facts, Fraction(10))
    # 1.5 s of film, and 6 s of sound that begin with a frame of silence; samples begin with the film.
    assert len(timeline) in {round((6.0 - delay) * 10) + step for step in (-1, 0, 1)}
    assert timeline.sample_pts[-1] == timeline.sample_pts[20]
    with ce.open_video(path, device="cpu") as video:
        planes = np.concatenate([batch.y for batch in video.samples(CROP)])
    assert len(planes) == len(timeline)
    assert (planes[20:] == planes[20]).all()


def test_a_sound_that_ends_a_moment_later_changes_nothing(parts: dict[str, Path], tmp_path: Path) -> None:
    alone = len(build_timeline(probe(parts["film"]), Fraction(10)))
    for seconds in (1.0, 1.5, 1.9):
        sound = make_sound(tmp_path / "sound.m4a", seconds)
        path = remux(tmp_path / "film.mp4", [(parts["film"], 0.0, ""), (sound, 0.0, "")])
        assert len(build_timeline(probe(path), Fraction(10))) == alone


def test_a_length_that_is_only_said_is_not_believed(parts: dict[str, Path], tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "sound.m4a", 1.5)
    path = remux(tmp_path / "film.mkv", [(parts["film"], 0.0, ""), (sound, 0.0, "")])
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Segment/Info/Duration, a float64 in milliseconds
    path.write_bytes(data[:at] + struct.pack(">d", 9e7) + data[at + 8 :])
    with av.open(str(path)) as container:
        assert container.duration == 9e10
    assert len(build_timeline(probe(path), Fraction(10))) == 15


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass"])
def test_times_beyond_ten_hours(kind: str) -> None:
    rendered = render_subtitles([Caption(36_001.5, 36_003.25, 0, 1, 1.0, "late"), Caption(0, 1, 0, 1, 1.0, "x")], kind)
    events = pysubs2.SSAFile.from_string(rendered)
    assert {(36_001_500, 36_003_250), (0, 1000)} == {(event.start, event.end) for event in events}
