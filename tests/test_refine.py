"""Captions exact to a frame of the source."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caption_extents
from caption_extents import CropRegion
from caption_extents.captions.opacity import VISIBLE_OPACITY
from caption_extents.errors import InputError
from caption_extents.model.labeller import compare_with_ends
from caption_extents.model.torch_backend import TorchBackend
from caption_extents.pipeline.refine import Change, CompareWithEnds, find_change
from caption_extents.results.database import open_database
from caption_extents.storage.store import open_store
from caption_extents.training.sample_video import CROP
from caption_extents.video.crop import resolve_crop
from caption_extents.video.info import probe
from caption_extents.video.random_access import CroppedFrames, frames_between
from tests.films import make_film
from tests.media import Recipe, decode_everything, make_video

EXTENTS = [(11, 52), (52, 94), (103, 145), (163, 200)]
"""On frames that are no samples: at ten samples a second of thirty frames, every third frame is one."""


def run(video: Path, store: Path, **options: Any) -> list[Any]:
    result = caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(*CROP), store=store, **options
    )
    database = open_database(open_store(store).get(result.caption_frame_extents_db_key))
    return database.execute("SELECT * FROM captions ORDER BY caption_index").fetchall()


@pytest.mark.parametrize("rate", [30, 25])
def test_times_are_exact_to_a_frame(rate: int, tmp_path: Path) -> None:
    make_film(tmp_path / "film.mp4", EXTENTS, rate=rate)
    coarse = run(tmp_path / "film.mp4", tmp_path / "store")
    fine = run(tmp_path / "film.mp4", tmp_path / "store", refine=True)
    assert len(fine) == len(EXTENTS)
    for row, (start, end) in zip(fine, EXTENTS, strict=True):
        assert row["start_seconds"] == pytest.approx(start / rate, abs=1e-6)
        assert row["end_seconds"] == pytest.approx(end / rate, abs=1e-6)
    samples = [[(row["start_frame"], row["end_frame"]) for row in rows] for rows in (coarse, fine)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(60000, 1001)])
def test_gaps_that_no_sample_sees(rate: Fraction, tmp_path: Path) -> None:
    """One, two, three and no frames between captions; the last stands to the end of the film."""
    length, extents, start = round(rate), list[tuple[int, int]](), 10
    for gap in (1, 2, 3, 0, 2, 1):
        extents.append((start, start + length + len(extents)))
        start = extents[-1][1] + gap
    film = tmp_path / "film.mp4"
    make_film(film, extents, rate=rate, after=0)
    rows = run(film, tmp_path / "store", refine=True)
    found = [(round(row["start_seconds"] * rate), round(row["end_seconds"] * rate)) for row in rows]
    assert found == extents
    assert rows[-1]["end_seconds"] == pytest.approx(float(extents[-1][1] / rate), abs=1e-3)


def test_fades(tmp_path: Path) -> None:
    """Times are where 35% of full opacity is reached, between captions and beside longer gaps."""
    extents = [(12, 60), (60, 110), (112, 160), (190, 240)]
    planned = make_film(tmp_path / "film.mp4", extents, rate=25, fade_frames=6)
    rows = run(tmp_path / "film.mp4", tmp_path / "store", refine=True)
    found = [(round(row["start_seconds"] * 25), round(row["end_seconds"] * 25)) for row in rows]
    shown = [[frame for frame in range(250) if caption.opacity(frame) >= VISIBLE_OPACITY] for caption in planned]
    assert found == [(frames[0], frames[-1] + 1) for frames in shown]


def test_the_same_either_way(tmp_path: Path) -> None:
    make_film(tmp_path / "film.mp4", EXTENTS[:2])
    rows = [
        [tuple(row) for row in run(tmp_path / "film.mp4", tmp_path / name, refine=True, implementation=name)]
        for name in ("sequential", "pipelined")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("closed", pts=tuple(range(200)), options={"bf": "3", "x264-params": "keyint=20:log-level=none"}),
        Recipe("open", "mkv", pts=tuple(range(200)), options={"x264-params": "open-gop=1:keyint=20:log-level=none"}),
        Recipe("ts", "ts", pts=tuple(range(500, 700)), options={"bf": "2"}),
        Recipe("hevc", codec="libx265", pts=tuple(range(200)), options={"x265-params": "log-level=none:keyint=30"}),
        Recipe(
            "vp9", "webm", codec="libvpx-vp9", pts=tuple(range(200)), options={"deadline": "realtime", "cpu-used": "8"}
        ),
    ],
    ids=lambda recipe: recipe.name,
)
def test_frames_between_are_those_of_a_full_decode(recipe: Recipe, tmp_path: Path) -> None:
    path = make_video(recipe, tmp_path)
    facts = probe(path)
    crop = resolve_crop(CropRegion(0.1, 0.2, 0.9, 0.9), facts)
    everything, _ = decode_everything(path)
    times = [frame.pts for frame in everything]
    numbers = [(3, 6), (4, 9), (9, 9), (9, 12), (9, 10), (50, 55), (150, 150), (190, 199)]
    intervals = [(times[first], times[last]) for first, last in numbers]
    in_color = [(times[first], times[last]) for first, last in ((6, 9), (9, 12), (51, 52), (150, 150))]
    found = list(frames_between(facts, crop, intervals, in_color, threads=1))
    for (first, last), frames in zip(numbers, found, strict=True):
        assert frames.pts == times[first : last + 1]
        for index, number in enumerate(range(first, last + 1)):
            assert (frames.chroma[index] is not None) == any(a <= times[number] <= b for a, b in in_color)
            planes = frames.luma[index], *(frames.chroma[index] or ())
            for shift, plane, whole in zip((0, 1, 1), planes, everything[number].planes, strict=False):
                box = whole[crop.top >> shift : crop.bottom >> shift, crop.left >> shift : crop.right >> shift]
                np.testing.assert_array_equal(plane, box)


class ByLevel:
    """Frames are the same when their brightness is."""

    device, version, digest = "cpu", "by level", "1"

    def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return y.float().mean((1, 2), keepdim=True)

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        same = ((earlier - later).abs() < 10).float().flatten() * 0.9 + 0.05
        forward = torch.stack([same, 1 - same, *[torch.zeros_like(same)] * 3], dim=1)
        return torch.stack([forward, forward], dim=1)


class ByLevelAndEmptiness(ByLevel):
    """Frames of brightness 0 show no caption."""

    def compare(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        empty, then_empty = ((level < 10).flatten() for level in (earlier, later))
        same = ((earlier - later).abs() < 10).flatten()
        labels = torch.where(same, torch.where(empty, 2, 0), torch.where(empty, 3, torch.where(then_empty, 4, 1)))
        forward = torch.nn.functional.one_hot(labels, 5).float() * 0.9 + 0.02
        return torch.stack([forward, forward], dim=1)


def compare_by(model: Any) -> CompareWithEnds:
    return partial(compare_with_ends, TorchBackend(model))


def frames(levels: list[int]) -> CroppedFrames:
    luma = [np.full((4, 4), level, np.uint8) for level in levels]
    chroma = np.zeros((2, 2), np.uint8)
    return CroppedFrames([100 + index for index in range(len(levels))], luma, [(chroma, chroma)] * len(levels))


@pytest.mark.parametrize(
    ("levels", "change"),
    [
        ([0, 0, 0, 200], 103),
        ([0, 200, 200, 200], 101),
        ([0, 0, 200, 200], 102),
        ([0, 200], 101),
        ([0], None),
        ([], None),
        ([0, 0, 90, 200, 200], 102),
    ],
)
def test_where_the_change_is(levels: list[int], change: int | None) -> None:
    found = find_change(frames(levels), compare_by(ByLevel()), may_have_gap=False)
    assert found == (None if change is None else Change(change, change))


@pytest.mark.parametrize(
    ("levels", "first_ends", "second_starts"),
    [
        ([90, 90, 0, 200, 200], 102, 103),
        ([90, 0, 0, 0, 200], 101, 104),
        ([90, 0, 200], 101, 102),
        ([90, 200, 200], 101, 101),
        ([90, 90, 200], 102, 102),
        ([90, 90, 0, 0, 200], 102, 104),
    ],
)
def test_where_a_gap_is(levels: list[int], first_ends: int, second_starts: int) -> None:
    model = compare_by(ByLevelAndEmptiness())
    assert find_change(frames(levels), model, may_have_gap=True) == Change(first_ends, second_starts)
    at_once = find_change(frames(levels), model, may_have_gap=False)
    assert at_once is not None
    assert at_once.first_ends == at_once.second_starts


def test_what_cannot_be_refined(tmp_path: Path) -> None:
    video = make_video(Recipe("old", "avi", codec="mpeg4"), tmp_path)
    for options, message in (({}, "does not time every frame"), ({"isolate": True}, "refine reads the video")):
        with pytest.raises(InputError, match=message):
            run(video, tmp_path / "store", refine=True, **options)
    assert not (tmp_path / "store").exists()
