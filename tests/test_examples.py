from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pysubs2
import pytest

import caption_extents
from caption_extents import CropRegion
from caption_extents.training.sample_video import CROP
from tests.films import make_film

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_read_results(captioned_video: Path, tmp_path: Path) -> None:
    result = caption_extents.crop_and_infer_caption_frame_extents(
        str(captioned_video), "me", "film", CropRegion(*CROP), store=tmp_path
    )
    command = [sys.executable, str(EXAMPLES / "read_results.py"), str(tmp_path), "me", "film", "37"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.count("confidence") == result.caption_count
    assert "sample 37: 512x52 pixels" in out


def test_the_way_of_a_first_time_user(tmp_path: Path) -> None:
    """As in the guide: doctor, crop, run, subtitles, report; what comes out is the film's text."""
    film = tmp_path / "映画 1.mp4"
    planned = make_film(film, [(15, 60), (75, 120), (135, 190), (190, 240)])
    bin_folder = str(Path(sys.executable).parent)
    command = ["sh", str(EXAMPLES / "first_time.sh"), str(film), str(tmp_path / "results")]
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    subtitles = pysubs2.load(str(tmp_path / "results" / "film.srt"))
    assert [event.plaintext for event in subtitles] == ["\n".join(caption.lines) for caption in planned]
    times = [(round(event.start * 30 / 1000), round(event.end * 30 / 1000)) for event in subtitles]
    assert times == [(caption.start_frame, caption.end_frame) for caption in planned]
    assert Path(done.stdout.splitlines()[-1]).name == "report.html"
    assert Path(done.stdout.splitlines()[-1]).is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_examples_of_the_pages(
    page: str,
    captioned_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they stand, one after the other, in a folder with a film."""
    blocks = re.findall(r"^```python\n(.*?)^```", (EXAMPLES.parent / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    (tmp_path / "film.mp4").write_bytes(captioned_video.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_the_page_of_public_names_is_up_to_date() -> None:
    pytest.importorskip("griffe2md")
    command = [sys.executable, str(EXAMPLES.parent / "docs" / "make_api.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("caption_extents.job", "Job", caption_extents.Job),
        ("caption_extents.job", "CropInferResult", caption_extents.CropInferResult),
    ],
)
def test_names_that_were_public_stay_for_a_release(module: str, name: str, now: object) -> None:
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(importlib.import_module(module), name) is now
    with pytest.raises(AttributeError):
        importlib.import_module(module).no_such_name  # noqa: B018
