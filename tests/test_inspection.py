"""What ``doctor VIDEO`` says of a file."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caption_extents.cli import app
from caption_extents.video.inspection import Finding, inspect_video
from tests.media import Recipe, make_video
from tests.test_exactness import cut_off_beginning
from tests.test_player_clock import make_sound, remux


def findings(path: Path, stream: int | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in inspect_video(path, stream)}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(Recipe("film", options={"g": "15"}), tmp_path_factory.mktemp("film"))


def test_a_plain_film(film: Path) -> None:
    found = findings(film)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["file"].detail.startswith("MP4, MOV, ")
    assert found["stream 0"].detail == "video, h264 160x96, default: the captions are looked for here"
    assert found["timing"].detail == "45 frames in 1.50 s, 30.00 a second"


def test_streams_and_clock(film: Path, tmp_path: Path) -> None:
    preview = make_video(Recipe("preview", width=64, height=48), tmp_path)
    sound = make_sound(tmp_path / "sound.m4a", 4.0)
    path = remux(tmp_path / "film.mkv", [(preview, 0.8, ""), (film, 0.8, "default"), (sound, 0.0, "")])
    found = findings(path)
    assert [found[f"stream {index}"].detail for index in range(3)] == [
        "video, h264 64x48",
        "video, h264 160x96, default: the captions are looked for here",
        "audio, aac",
    ]
    assert (found["streams"].state, found["streams"].remedy) == ("unusual", "--stream N takes another")
    assert found["clock"].detail == "the picture begins 0.821 s after the file"
    assert found["end"].detail.startswith("the last picture stands for 1.7")
    assert findings(path, 0)["picture"].detail == "64x48 yuv420p"


@pytest.mark.parametrize(
    ("recipe", "name", "detail"),
    [
        (Recipe("phone", rotation=90), "picture", "displayed as 96x160"),
        (Recipe("wide", sample_aspect_ratio=Fraction(4, 3)), "picture", "pixels are 4/3 times as wide as high"),
        (Recipe("uneven", pts=(0, 1, 2, 5, 6, 9, 10)), "timing", "a frame is shown for 33 to 100 ms, most for 33"),
        (Recipe("old", "avi", codec="mpeg4"), "refining", "AVI files do not time every frame: no --refine"),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "",
)
def test_what_is_unusual(recipe: Recipe, name: str, detail: str, tmp_path: Path) -> None:
    found = findings(make_video(recipe, tmp_path))
    assert found[name].state == "unusual"
    assert detail in found[name].detail


def test_frames_before_an_edit_list_and_a_file_that_is_cut_off(film: Path, tmp_path: Path) -> None:
    trimmed = cut_off_beginning(film, tmp_path / "trimmed.mp4", Fraction(20, 30))
    assert "frames are in it that players do not show" in findings(trimmed)["edit list"].detail
    whole = make_video(Recipe("whole", "mkv"), tmp_path)
    whole.write_bytes(whole.read_bytes()[:-2000])
    assert findings(whole)["file"].remedy == "fetch it again, or run with --partial"


def test_the_command(film: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(film), "--json"])
    assert done.exit_code == 0
    assert [one["name"] for one in json.loads(done.stdout)] == [
        "file", "stream 0", "picture", "clock", "timing", "decoding"
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["doctor", str(film), "--stream", "5"])
    assert done.exit_code == 2
    assert "stream 5 of" in done.output
    (tmp_path / "text.mp4").write_text("no video")
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "text.mp4")])
    assert done.exit_code == 2
