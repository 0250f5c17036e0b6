"""The report page in a real browser: opened from a file, as people open it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import caption_extents
from caption_extents import CropRegion
from caption_extents.chunks.plan import chunk_of
from caption_extents.cli import app
from caption_extents.pictures import to_picture
from caption_extents.report.html import json_in_html
from caption_extents.results.database import open_database, with_texts
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import SampleReader, change_database
from caption_extents.training.evaluate import find_labelled
from caption_extents.training.sample_video import CROP
from tests.browser import open_browser

KEYS = VideoKeys("t1", "v1")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{\\b1}&amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def store(captioned_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a video with a hostile name, whose captions have texts; the first one's is hostile."""
    folder = tmp_path_factory.mktemp("report")
    video = folder / "<img src=x onerror=alert(1)>&'.mp4"
    video.write_bytes(captioned_video.read_bytes())
    store = folder / "store"
    caption_extents.crop_and_infer_caption_frame_extents(str(video), "t1", "v1", CropRegion(*CROP), store=store)
    opened = open_store(store)
    data = opened.get(KEYS.database(1))
    count = open_database(data).execute("SELECT count(*) FROM captions").fetchone()[0]
    texts = {index: (HOSTILE if index == 0 else f"caption number {index}", 0.9) for index in range(count)}
    change_database(opened, KEYS, 1, lambda _: with_texts(data, texts))
    result = CliRunner().invoke(app, ["report", "v1", "--store", str(store), "--tenant", "t1", "-q"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == store / KEYS.cropped_frames(1) / "report.html"
    return store


@pytest.fixture
def page(browser: Any, store: Path) -> Iterator[Any]:
    """The page as opened from the folder; it may say nothing on the console, and ask nobody for anything."""
    context = browser.new_context(viewport={"width": 512 + 32, "height": 900}, accept_downloads=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto((store / KEYS.cropped_frames(1) / "report.html").as_uri())
    page.wait_for_selector("#view[data-sample]")
    yield page
    context.close()
    assert said == []


def captions(store: Path) -> list[dict[str, Any]]:
    database = open_database(open_store(store).get(KEYS.database(1)))
    return [dict(row) for row in database.execute("SELECT * FROM captions ORDER BY caption_index")]


def scrub(page: Any, sample: int) -> None:
    page.evaluate("sample => show(sample, true)", sample)
    page.wait_for_selector(f'#view[data-sample="{sample}"]')


def shown(page: Any) -> np.ndarray:
    with av.open(io.BytesIO(page.locator("#view").screenshot()), "r", format="png_pipe") as picture:
        return next(picture.decode(video=0)).to_ndarray(format="rgb24").astype(float)


def test_scrubbing_shows_the_right_samples(page: Any, store: Path) -> None:
    read_sample = SampleReader(open_store(store), KEYS, 1)

    def picture(sample: int) -> np.ndarray:
        planes = read_sample(sample)
        return to_picture(planes, planes[0].shape).astype(float)

    # Pixel for pixel: where the page puts it, it may lie between two rows of the screen.
    page.evaluate("Object.assign(view.style, {position: 'fixed', left: 0, top: 0, width: '512px', zIndex: 9})")
    samples = [0, 1, 3, 4, 16, 17, 31, 60, 85, 86, 111, 119]
    for sample in samples:
        scrub(page, sample)
        seen = shown(page)
        assert seen.shape == picture(sample).shape
        errors = {other: float(np.abs(seen - picture(other)).mean()) for other in samples}
        assert min(errors, key=lambda other: errors[other]) == sample
        assert errors[sample] < 12


def test_the_script_knows_where_samples_are(page: Any) -> None:
    places = page.evaluate("[...Array(5000).keys()].map(chunkOf)")
    assert [(p["level"], p["first"], p["position"]) for p in places] == [chunk_of(sample) for sample in range(5000)]


def test_playing(page: Any) -> None:
    scrub(page, 0)
    page.keyboard.press("Space")
    deadline = time.monotonic() + 15
    while int(page.locator("#view").get_attribute("data-sample")) < 12:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    page.keyboard.press("Space")


def test_text_stays_text(page: Any, store: Path) -> None:
    assert page.title() == "v1: captions"
    assert page.locator("body img:not(.thumbs img)").count() == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert HOSTILE in page.locator("textarea").evaluate_all("areas => areas.map(area => area.value)")
    assert "onerror=alert(1)" in page.locator("#facts").inner_text()
    source = (store / KEYS.cropped_frames(1) / "report.html").read_text()
    assert source.count("</script>") == 2
    assert "\u2028" not in json_in_html({"text": "\u2028"})


def test_what_a_person_sees(page: Any, store: Path) -> None:
    rows = captions(store)
    assert page.locator(".caption").count() == len(rows)
    assert page.locator(".caption .thumbs img").count() >= 2 * len(rows)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    assert "bottleneck" in page.locator("#advice").inner_text()
    assert page.locator(".strip.busy").count() == 4
    assert "empty_valid" in page.locator("#labels").inner_text()
    confidences = page.locator(".caption").evaluate_all("items => items.map(i => captions[i.dataset.index].confidence)")
    assert confidences == sorted(confidences)


def test_filters_and_keys(page: Any, store: Path) -> None:
    rows = captions(store)
    page.fill("#filter", "number 2")
    assert page.locator(".caption").count() == 1
    page.fill("#filter", "")
    page.select_option("#which", "edited")
    assert page.locator(".caption").count() == 0
    page.select_option("#which", "all")
    page.locator("body").press("Escape")
    page.evaluate("document.activeElement.blur()")
    scrub(page, 0)
    page.keyboard.press("ArrowDown")
    target = next(row["start_frame"] for row in rows if row["start_frame"] > 0)
    page.wait_for_selector(f'#view[data-sample="{target}"]')
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector(f'#view[data-sample="{target + 10}"]')
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f'#view[data-sample="{target + 9}"]')


def test_typing_goes_on_in_the_next_text(page: Any) -> None:
    areas = page.locator(".caption textarea")
    count = areas.count()
    areas.nth(0).fill("one")
    areas.nth(1).click()
    page.keyboard.press("Control+End")  # of the text: it may be wrapped
    page.keyboard.type("sum")
    assert areas.nth(1).input_value().endswith("sum")
    assert page.locator(".caption").count() == count
    assert "corrected" in page.locator(".caption").nth(0).inner_text()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert page.evaluate("captions.some(caption => caption.edited)") is False


def test_an_edit_leaves_the_other_rows_as_they_are(page: Any, store: Path) -> None:
    rows = captions(store)
    page.select_option("#order", "time")
    page.evaluate("document.querySelectorAll('.caption').forEach((row, index) => row.number = index)")

    def numbers() -> list[int | None]:
        found: list[int | None] = page.evaluate(
            "[...document.querySelectorAll('.caption')].map(row => row.number ?? null)"
        )
        return found

    everything = list(range(len(rows)))
    scrub(page, rows[1]["start_frame"] + 2)
    page.keyboard.press("s")
    assert numbers() == [0, None, None, *everything[2:]]
    page.keyboard.press("u")
    assert numbers() == everything
    page.locator(".caption textarea").nth(0).fill("another text")
    page.locator(".caption textarea").nth(0).blur()
    assert numbers() == everything
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("u")
    assert page.locator(".caption textarea").nth(0).input_value() == HOSTILE
    assert numbers() == [None, *everything[1:]]


def test_one_caption_is_the_current_one(page: Any, store: Path) -> None:
    rows = captions(store)
    scrub(page, rows[1]["start_frame"])
    page.fill("#filter", "number 2")
    scrub(page, rows[2]["start_frame"])
    page.fill("#filter", "")
    current = page.locator(".caption.current")
    assert current.count() == 1
    assert current.locator("textarea").input_value() == "caption number 2"
    # Before the first there is none, and none to be merged with the next.
    page.evaluate("document.activeElement.blur()")
    scrub(page, rows[0]["start_frame"] - 1)
    assert current.count() == 0
    page.keyboard.press("m")
    assert page.locator(".caption").count() == len(rows)


def test_ends_can_be_moved_outwards(page: Any, store: Path) -> None:
    rows = captions(store)
    scrub(page, rows[0]["end_frame"] - 3)
    page.keyboard.press("]")
    scrub(page, rows[1]["start_frame"] + 2)
    page.keyboard.press("[")
    # Now there is room between them.
    scrub(page, rows[0]["end_frame"] - 1)
    page.keyboard.press("]")
    scrub(page, rows[1]["start_frame"] + 1)
    page.keyboard.press("[")
    moved = page.evaluate("captions.map(caption => [caption.start_frame, caption.end_frame])")
    assert moved[0] == [rows[0]["start_frame"], rows[0]["end_frame"]]
    assert moved[1] == [rows[1]["start_frame"] + 1, rows[1]["end_frame"]]


def test_corrections_come_back(page: Any, store: Path, tmp_path: Path) -> None:
    rows = captions(store)
    first, second = rows[0], rows[1]
    middle = (first["start_frame"] + first["end_frame"]) // 2
    scrub(page, middle)
    page.keyboard.press("s")
    scrub(page, second["start_frame"] + 2)
    page.keyboard.press("[")
    page.select_option("#order", "time")
    page.locator(".caption textarea").nth(2).fill("corrected\nin two lines")
    page.locator(".caption textarea").nth(2).blur()
    scrub(page, rows[2]["start_frame"])
    page.keyboard.press("Delete")
    page.keyboard.press("u")
    page.select_option("#which", "edited")
    assert page.locator(".caption").count() == 3
    with page.expect_download() as download:
        page.click("#export-json")
    path = tmp_path / "corrections.json"
    download.value.save_as(path)
    assert download.value.suggested_filename == "v1.corrections.json"
    with page.expect_download() as download:
        page.click("#export-srt")
    download.value.save_as(tmp_path / "corrected.srt")
    subtitles = (tmp_path / "corrected.srt").read_text()
    assert subtitles.count("-->") == len(rows) + 1
    assert "corrected\nin two lines" in subtitles
    assert "<" not in subtitles

    exported = json.loads(path.read_text())
    assert exported["captions"][0] == {
        "start_frame": first["start_frame"],
        "end_frame": middle,
        "start_seconds": first["start_seconds"],
        "end_seconds": middle / 10,
        "text": HOSTILE,
    }
    copy = tmp_path / "store"
    _copy(store, copy)
    truth = tmp_path / "truth.json"
    command = ["import-corrections", str(path), "--store", str(copy), "--truth", str(truth)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    after = captions(copy)
    assert len(after) == len(rows) + 1
    assert (after[1]["start_frame"], after[1]["end_frame"]) == (middle, first["end_frame"])
    assert after[2]["text"] == "corrected\nin two lines"
    assert after[2]["start_frame"] == second["start_frame"] + 2
    assert after[-1]["confidence"] == rows[-1]["confidence"]
    assert after[0]["confidence"] == 1
    labels = json.loads(truth.read_text())
    assert labels["captions"][2]["text"] == "corrected\nin two lines"
    assert CropRegion(*labels["crop"]) == CropRegion(*CROP)
    (tmp_path / "truth.mp4").touch()
    (labelled,) = find_labelled([truth])
    assert list(labelled.captions) == [(row["start_frame"], row["end_frame"]) for row in after]
    srt = tmp_path / "again.srt"
    assert CliRunner().invoke(app, ["subtitles", "v1", str(srt), "--store", str(copy), "--tenant", "t1"]).exit_code == 0
    assert srt.read_text().count("-->") == len(after)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "format 2"),
        (lambda c: c["captions"][0].update(end_frame=0), "end_frame"),
        (lambda c: c["captions"][0].update(end_frame=10**9), "end_frame"),
        (lambda c: c["captions"].append(dict(c["captions"][0])), "overlap"),
        (lambda c: c["captions"][0].update(text=7), "text"),
        (lambda c: c["captions"][0].update(text="\ud800"), "surrogates not allowed"),
        (lambda c: c.update(run_id="other"), "another run"),
        (lambda c: c.update(video_id="../x"), "video_id"),
        (lambda c: c.pop("captions"), "captions"),
        (lambda c: c["captions"][0].update(start_seconds="x"), "start_seconds"),
    ],
)
def test_corrections_that_cannot_be(change: Any, message: str, store: Path, tmp_path: Path) -> None:
    from caption_extents.storage.versions import read_manifest

    copy = tmp_path / "store"
    _copy(store, copy)
    manifest = read_manifest(open_store(copy), KEYS, 1)
    fields = ("start_frame", "end_frame", "start_seconds", "end_seconds", "text")
    corrections = {
        "format": 1,
        "tenant_id": "t1",
        "video_id": "v1",
        "version": 1,
        "run_id": manifest.run_id,
        "frame_rate": "10",
        "sample_count": manifest.sample_count,
        "captions": [{name: row[name] for name in fields} for row in captions(store)],
    }
    change(corrections)
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps(corrections))
    before = captions(copy)
    result = CliRunner().invoke(app, ["import-corrections", str(path), "--store", str(copy)])
    assert result.exit_code == 2
    assert message in result.output
    assert captions(copy) == before


@pytest.mark.parametrize(("name", "width", "scheme"), [("desktop", 1280, "light"), ("phone", 390, "dark")])
def test_it_fits_the_screen(browser: Any, store: Path, name: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto((store / KEYS.cropped_frames(1) / "report.html").as_uri())
    page.wait_for_selector("#view[data-sample]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()
