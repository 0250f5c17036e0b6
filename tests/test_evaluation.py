"""Figures over labelled videos, against small cases worked out by hand."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from caption_extents.captions.extents import DecodingCosts
from caption_extents.cli import app
from caption_extents.errors import InputError
from caption_extents.labels import Label
from caption_extents.region import CropRegion
from caption_extents.training import sample_video
from caption_extents.training.augment import augment
from caption_extents.training.data import ClipPool, Group
from caption_extents.training.evaluate import (
    LabelledVideo,
    examine,
    false_and_missed,
    find_labelled,
    format_report,
    summarise,
    true_labels,
    tune_costs,
)
from caption_extents.training.evaluation_set import SECONDS, Event, Film, frames_of_samples
from caption_extents.training.visibility import letters, which_are_seen, which_are_told
from tests.films import make_film

SAME, DIFFERENT, EMPTY, APPEARS, GOES = Label


def labelled(name: str, *captions: tuple[int, int], **facets: str) -> LabelledVideo:
    return LabelledVideo(name, Path(name), CropRegion(0, 0, 1, 1), Fraction(10), captions, facets)


def certain(captions: list[tuple[int, int]], pairs: int) -> np.ndarray:
    """Probabilities of a model that is sure of these captions."""
    result = np.full((pairs, 2, 5), 0.0025, np.float32)
    for pair, label in enumerate(true_labels(captions, pairs)):
        result[pair, 0, label] = result[pair, 1, Label(int(label)).reversed] = 0.99
    return result


def test_labels_of_extents() -> None:
    found = [Label(int(label)) for label in true_labels([(2, 4), (4, 5), (6, 7)], 8)]
    assert found == [EMPTY, APPEARS, SAME, DIFFERENT, GOES, APPEARS, GOES, EMPTY]


def test_figures_of_three_videos() -> None:
    right = examine(labelled("a", (10, 30), (30, 50), style="box"), certain([(10, 30), (30, 50)], 60), 1)
    wrong = examine(labelled("b", (10, 30), style="plain"), certain([(10, 31), (40, 50)], 60), 1)
    empty = examine(labelled("c"), certain([(20, 30)], 599), 1)
    report = summarise([right, wrong, empty], 1)
    assert (report.score.matched, report.score.found, report.score.true) == (3, 5, 3)
    assert report.score.exact == 2
    assert report.boundary_error_ms == pytest.approx(100 / 6)
    assert report.captionless_minutes == pytest.approx(1.0)
    assert report.captionless_found == 1
    assert report.groups["style"]["box"]["f1"] == 1.0
    assert report.groups["style"]["plain"]["precision"] == 0.5
    # Of 719 pairs: one around the late end, two at each end of the two captions that are none, and those within them.
    mistakes = 2 + 11 + 11
    assert report.pair_accuracy == pytest.approx(1 - mistakes / 719)
    assert sum(row["count"] for row in report.pair_confidence) == 719
    assert [row["video"] for row in report.worst] == ["b", "c"]
    assert false_and_missed(wrong) == ([(40, 50)], [])
    assert "3 videos, 3 captions" in format_report(report, 1)


def test_costs_stay_the_usual_ones_where_others_are_no_better() -> None:
    examined = [examine(labelled("a", (10, 30)), certain([(10, 30)], 60), 1)]
    assert tune_costs(examined, 1) == (DecodingCosts(), 1.0)


def test_costs_are_as_far_from_the_usual_ones_as_they_must_be() -> None:
    """A model that sees changes where there are none, with odds of nine to one."""
    probabilities = certain([(10, 30)], 60)
    probabilities[20, :, SAME], probabilities[20, :, DIFFERENT] = 0.1, 0.9
    examined = [examine(labelled("a", (10, 30)), probabilities, 1)]
    assert not examined[0].matches
    costs, f1 = tune_costs(examined, 1)
    assert f1 == 1.0
    assert costs.different > math.log(9)
    assert costs == replace(DecodingCosts(), different=costs.different)


def test_directions_are_told_apart() -> None:
    """A model that is blind backwards is found out."""
    probabilities = certain([(10, 30)], 60)
    probabilities[:, 1] = 0.0025
    probabilities[:, 1, EMPTY] = 0.99
    report = summarise([examine(labelled("a", (10, 30)), probabilities, 0)], 0)
    assert report.directions["forward"] == 1.0
    assert report.directions["backward"] == 0.0


@pytest.mark.parametrize("rate", ["24000/1001", "25", "30", "60000/1001"])
def test_truth_of_the_evaluation_set(rate: str) -> None:
    events = [Event(103, 250, "a"), Event(250, 251, "too short for a sample at most rates"), Event(3000, 3333, "b")]
    film = Film("f", "box", "latin", "x", "footage", 640, 360, rate, "0", events)
    shown = np.zeros(SECONDS * 10, np.int64)
    for sample in range(SECONDS * 10):
        frame = int(Fraction(sample, 10) * Fraction(rate))
        for number, event in enumerate(events, start=1):
            if event.start * 10 <= frame * 1000 / Fraction(rate) < event.end * 10:
                shown[sample] = number
    expected = [
        (int(samples[0]), int(samples[-1]) + 1)
        for number in range(1, 4)
        if len(samples := np.flatnonzero(shown == number))
    ]
    frames = [(k * Fraction(rate)) // 10 for k in range(SECONDS * 10)]
    assert [(c["start_frame"], c["end_frame"]) for c in film.truth(frames)] == expected


@pytest.mark.parametrize(("name", "fourth_at_a_tenth"), [("film.mp4", False), ("film.mkv", True)])
def test_samples_go_by_the_times_in_the_file(name: str, fourth_at_a_tenth: bool, tmp_path: Path) -> None:
    """The fourth frame of 29.97 a second stands at 0.1001 s, which Matroska keeps as 0.100 s."""
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30000, 1001))
        stream.width, stream.height = 64, 48
        for index in range(12):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = index * 1001, Fraction(1, 30000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = frames_of_samples(tmp_path / name)
    assert frames[:3] == [0, 3 if fourth_at_a_tenth else 2, 6 if fourth_at_a_tenth else 5]
    assert frames[-1] == 11, "the last frame stays"


def test_captions_that_nobody_can_see_are_no_truth() -> None:
    grey = np.full((3, 20, 200), 128, np.uint8)
    drawn = grey.copy()
    drawn[0, 5:15, 50:150] = 255
    drawn[1, 5:15, 50:140] = 255
    drawn[2, 5:15, 60:150] = 255
    assert which_are_seen(drawn, [80, 80, 80]).tolist() == [True, True, True]
    assert which_are_seen(drawn, [80, 95, 80]).tolist() == [True, False, True], "letters over each other"
    assert which_are_seen(grey, [0, 0, 0]).tolist() == [False] * 3, "nothing drawn"
    drawn[1] = drawn[0]
    assert which_are_seen(drawn, [80, 80, 80]).tolist() == [True, False, True], "no change between two captions"


def test_captions_that_nobody_can_tell_from_the_picture_are_no_truth() -> None:
    drawn = np.full((3, 10, 100), 128, np.uint8)
    drawn[0, 2:8, 10:90] = drawn[1, 2:8, 10:50] = drawn[2, 2:8, 10:60] = 255
    without = np.full((40, 10, 100), 90, np.uint8)
    without[10:20] = 250
    captioned = without.copy()
    extents = [(2, 8), (8, 13), (24, 40)]
    for number, (start, end) in enumerate(extents):
        captioned[start:end][:, letters(drawn)[number]] = 255
    px = letters(drawn).sum((1, 2)).tolist()
    assert px == [480, 240, 300]
    assert which_are_told(without, captioned, extents, px).tolist() == [True, False, True], "white before white"
    assert which_are_told(without, captioned, extents, px, edge=2).tolist() == [True, False, True]
    captioned[30, :, 15:] = without[30, :, 15:]
    assert which_are_told(without, captioned, extents, px).tolist() == [True, False, True], "30 of 300 pixels"
    captioned[30, 2, 10] = without[30, 2, 10]
    assert which_are_told(without, captioned, extents, px).tolist() == [True, False, False], "29 of 300"
    without[24], captioned[24] = 255, 255
    captioned[30] = captioned[31]
    assert which_are_told(without, captioned, extents, px).tolist() == [True, False, True], "the first sample may"


def test_the_command_on_a_film(tmp_path: Path) -> None:
    planned = make_film(tmp_path / "film.mp4", [(10, 60), (60, 110), (140, 190)])
    description = {
        "crop": sample_video.CROP,
        "rate": 10,
        "captions": sample_video.truth(planned, 30),
        "style": "outline",
    }
    (tmp_path / "film.json").write_text(json.dumps(description))
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["captions"] == 3
    assert found["score"]["f1"] > 0.6
    assert found["groups"]["style"]["outline"]["captions"] == 3


def test_errors_are_pictured(tmp_path: Path) -> None:
    make_film(tmp_path / "film.mp4", [(10, 60)])
    wrong = {"crop": sample_video.CROP, "rate": 10, "captions": [{"start": 0.0, "end": 0.3}]}
    (tmp_path / "film.json").write_text(json.dumps(wrong))
    command = ["evaluate", str(tmp_path / "film.json"), "--quiet", "--worst", str(tmp_path / "worst")]
    assert CliRunner().invoke(app, command).exit_code == 0
    names = {path.name for path in (tmp_path / "worst").iterdir()}
    assert "film-missed-0-3.png" in names


def test_what_is_no_labelled_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled video"):
        find_labelled([tmp_path])
    (tmp_path / "odd.json").write_text('{"crop": [0, 0, 1, 1], "rate": 10, "captions": []}')
    with pytest.raises(InputError, match="does not describe a labelled video"):
        find_labelled([tmp_path])


def group(first: int, count: int = 2, shape: tuple[int, int] = (16, 32)) -> Group:
    pictures = torch.full((count, 3, 3, *shape), first, dtype=torch.uint8)
    ink = torch.zeros(count, 3, shape[0] // 8, shape[1] // 8, dtype=torch.uint8)
    return Group(pictures, torch.full((count, 3), first), torch.zeros(count, 3, dtype=torch.bool), ink)


def test_the_pool_keeps_the_newest_clips_of_each_shape() -> None:
    pool = ClipPool(torch.device("cpu"), capacity=4)
    for number in range(1, 6):
        pool.add(group(number))
    pool.add(group(9, shape=(8, 64)))
    rng = random.Random(1)
    drawn = [pool.draw(rng, pool.draw_shape(rng), 3) for _ in range(40)]
    assert {tuple(clip.pictures.shape[-2:]) for clip in drawn} == {(16, 32), (8, 64)}
    assert {int(i) for clip in drawn for i in clip.caption_ids.flatten()} == {4, 5, 9}
    assert all((clip.pictures[:, 0, 0, 0, 0] == clip.caption_ids[:, 0]).all() for clip in drawn)
    assert pool.draw(rng, (8, 40), 3).pictures.shape[-2:] == (8, 64)


def test_all_samples_of_a_clip_are_changed_alike() -> None:
    torch.manual_seed(0)
    still = torch.randint(0, 256, (6, 1, 3, 16, 64), dtype=torch.uint8).expand(-1, 4, -1, -1, -1).contiguous()
    ink = torch.randint(0, 256, (6, 1, 2, 8), dtype=torch.uint8).expand(-1, 4, -1, -1).contiguous()
    clips = Group(still, torch.ones(6, 4, dtype=torch.int64), torch.zeros(6, 4, dtype=torch.bool), ink)
    differences = []
    for seed in range(10):
        pictures, masks = augment(clips, torch.Generator().manual_seed(seed))
        assert pictures.shape == (24, 3, 16, 64)
        assert pictures.min() >= -2
        assert pictures.max() <= 2
        torch.testing.assert_close(masks.view(6, 4, 2, 8)[:, :1].expand(-1, 4, -1, -1), masks.view(6, 4, 2, 8))
        chroma = pictures.view(6, 4, 3, 16, 64)[:, :, 1:]
        differences.append((chroma - chroma[:, :1]).abs().amax((1, 2, 3, 4)))
    # Noise differs from sample to sample, and only some clips have any; nothing else may.
    per_clip = torch.cat(differences)
    assert (per_clip == 0).float().mean() > 0.3
    assert per_clip.max() < 1.0
