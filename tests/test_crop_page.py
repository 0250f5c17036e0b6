"""The page on which a region is chosen by mouse, in a real browser."""

from __future__ import annotations

import http.client
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import pytest

from caption_extents.pictures import to_jpeg
from caption_extents.region import CropRegion
from caption_extents.report.crop_page import choose_region
from tests.browser import open_browser
from tests.media import Recipe, make_video

START = CropRegion(0.1, 0.8, 0.9, 0.95)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


def test_the_printed_region_is_the_one_that_was_drawn(browser: Any, tmp_path: Path) -> None:
    """The command, as people run it."""
    video = make_video(Recipe("film", pts=tuple(range(120)), width=640, height=360), tmp_path)
    command = [sys.executable, "-m", "caption_extents", "crop", str(video), "--browser", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "http://127.0.0.1" in line)
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto(said.split()[-1])
        page.wait_for_selector("#region")
        page.locator("#picture").evaluate("image => image.decode()")
        box = page.locator("#stage").bounding_box()

        def drag(begin: tuple[float, float], end: tuple[float, float]) -> None:
            for (x, y), act in ((begin, page.mouse.down), (end, page.mouse.up)):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
                act()

        # Drawn anew from outside, then moved from inside, then its right side pulled out.
        drag((0.3, 0.1), (0.5, 0.2))
        drag((0.4, 0.15), (0.45, 0.65))
        drag((0.55, 0.65), (0.8, 0.65))
        option = page.locator("#option").inner_text()
        page.locator("#which").fill("5")
        page.click("#done")
        out, _ = process.communicate(timeout=30)
        page.close()
    assert process.returncode == 0
    assert option == f"--crop {out.strip()}"
    assert CropRegion.parse(out.strip()).as_tuple() == pytest.approx((0.35, 0.6, 0.8, 0.7), abs=0.01)
    assert errors == []


def picture() -> bytes:
    return to_jpeg(av.VideoFrame(64, 32, "rgb24"), (64, 32))


def test_strangers_are_turned_away() -> None:
    asked: list[int] = []

    def visit(address: str) -> None:
        parts = urlsplit(address)

        def ask(method: str, path: str, body: str = "", host: str = parts.netloc) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(parts.netloc, timeout=10)
            connection.request(method, path, body, {"Host": host})
            answer = connection.getresponse()
            found = answer.status, answer.read()
            connection.close()
            return found

        def go() -> None:
            assert ask("GET", parts.path)[0] == 200
            with av.open(io.BytesIO(ask("GET", f"{parts.path}pictures/0.jpg")[1])) as opened:
                assert opened.streams.video[0].width == 64
            refused = [("/", ""), ("/etc/passwd", ""), (f"{parts.path}../x", ""), (f"{parts.path}pictures/1.jpg", "")]
            for path, _ in refused:
                asked.append(ask("GET", path)[0])
            asked.append(ask("GET", parts.path, host="evil.example")[0])
            asked.append(ask("POST", "/region", "[0,0,1,1]")[0])
            for body in ("", "[1]", "[0,0,2,1]", "x" * 2000, '{"a": 1}', "[0.5,0,0.1,1]"):
                asked.append(ask("POST", f"{parts.path}region", body)[0])
            assert ask("POST", f"{parts.path}region", "[0,0.5,1,0.75]")[0] == 200

        threading.Thread(target=go).start()

    assert choose_region([picture()], START, visit) == CropRegion(0, 0.5, 1, 0.75)
    assert asked == [404] * 6 + [400] * 6
