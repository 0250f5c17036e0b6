from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_extents.captions.chain import label_posteriors, likeliest_labels
from caption_extents.captions.extents import Caption, DecodingCosts, decode_captions, pair_evidence
from caption_extents.captions.stream import CaptionStream
from caption_extents.captions.subtitles import render_subtitles
from caption_extents.errors import ModelError
from caption_extents.labels import LABEL_TEXTS, REVERSED_ORDER, Label

SAME, DIFFERENT, EMPTY, APPEARS, GOES = Label


def probabilities(labels: list[Label], sure: float = 0.95) -> np.ndarray:
    result = np.full((len(labels), 2, 5), (1 - sure) / 4, np.float32)
    for pair, label in enumerate(labels):
        result[pair, 0, label] = sure
        result[pair, 1, label.reversed] = sure
    return result


def extents(labels: list[Label], sure: float = 0.9999) -> list[tuple[int, int]]:
    return [(c.first_sample, c.end_sample) for c in decode_captions(probabilities(labels, sure))]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], []),
        ([EMPTY, EMPTY], []),
        ([SAME, SAME], [(0, 3)]),
        ([EMPTY, APPEARS, SAME, GOES, EMPTY], [(2, 4)]),
        ([APPEARS, GOES], [(1, 2)]),
        ([SAME, DIFFERENT, SAME], [(0, 2), (2, 4)]),
        ([DIFFERENT, DIFFERENT], [(0, 1), (1, 2), (2, 3)]),
        ([SAME, GOES, EMPTY, APPEARS], [(0, 2), (4, 5)]),
        ([GOES], [(0, 1)]),
        ([APPEARS], [(1, 2)]),
    ],
)
def test_captions_of_clear_labels(labels: list[Label], expected: list[tuple[int, int]]) -> None:
    assert extents(labels) == expected


def test_an_impossible_label_is_overruled() -> None:
    # empty_valid after same cannot be: the caption was already there.
    assert extents([APPEARS, SAME, APPEARS, SAME, GOES]) == [(1, 5)]


def test_one_doubtful_pair_does_not_split_a_caption() -> None:
    doubtful = probabilities([APPEARS, *[SAME] * 8, GOES])
    doubtful[4, :, SAME], doubtful[4, :, DIFFERENT] = 0.3, 0.66
    assert [(c.first_sample, c.end_sample) for c in decode_captions(doubtful, costs=DecodingCosts(different=2.0))] == [
        (1, 10)
    ]
    assert len(decode_captions(doubtful, costs=DecodingCosts(different=0.0))) == 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_caption_that_moves_as_it_comes_is_one(at: int) -> None:
    """Captions that pop in or fade in look different on their first samples."""
    moving = probabilities([*[EMPTY] * 4, APPEARS, *[SAME] * 8, GOES], 0.99)
    moving[4 + at, :, SAME], moving[4 + at, :, DIFFERENT] = 0.05, 0.92
    for costs in (DecodingCosts(), DecodingCosts(different=0.0, hasty=6.0)):
        assert [(c.first_sample, c.end_sample) for c in decode_captions(moving, costs=costs)] == [(5, 14)]
    assert len(decode_captions(moving, costs=DecodingCosts(different=0.0, hasty=0.0))) == 2


def test_confidence_is_lower_where_the_model_doubts() -> None:
    labels = [APPEARS, *[SAME] * 6, GOES]
    sure = decode_captions(probabilities(labels, 0.99))[0].confidence
    unsure = decode_captions(probabilities(labels, 0.5))[0].confidence
    assert 0 <= unsure < sure <= 1


def test_a_swap_of_directions_swaps_labels() -> None:
    forward = probabilities([EMPTY, APPEARS, SAME, GOES])
    swapped = forward[:, ::-1][:, :, list(REVERSED_ORDER)]
    np.testing.assert_allclose(pair_evidence(forward), pair_evidence(swapped))


scores = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-5, 0), min_size=5, max_size=5), min_size=n, max_size=n)
)


def value(labels: tuple[Label, ...], rows: list[list[float]], hasty: float, shown_before: bool) -> float | None:
    """What a sequence of labels adds up to; None if it is not consistent."""
    age = 3 if shown_before else 0
    total = 0.0
    for label, row in zip(labels, rows, strict=True):
        if (label in {SAME, DIFFERENT, GOES}) != (age > 0):
            return None
        total += row[label] - (hasty if label in {DIFFERENT, GOES} and age in {1, 2} else 0.0)
        age = {SAME: min(age + 1, 3), DIFFERENT: 1, EMPTY: 0, APPEARS: 1, GOES: 0}[label]
    return total


@given(scores, st.sampled_from([0.0, 1.5, 6.0]))
@settings(max_examples=150)
def test_viterbi_finds_the_best_of_all_consistent_sequences(rows: list[list[float]], hasty: float) -> None:
    values = {}
    for labels in itertools.product(Label, repeat=len(rows)):
        either = [value(labels, rows, hasty, shown) for shown in (False, True)]
        if any(v is not None for v in either):
            values[labels] = max(v for v in either if v is not None)
    found = tuple(Label(int(label)) for label in likeliest_labels(np.asarray(rows), hasty))
    assert found in values
    assert values[found] == pytest.approx(max(values.values()))


@given(scores, st.sampled_from([0.0, 1.5, 6.0]))
@settings(max_examples=100)
def test_posteriors_are_the_shares_of_all_consistent_sequences(rows: list[list[float]], hasty: float) -> None:
    expected = np.zeros((len(rows), 5))
    for labels in itertools.product(Label, repeat=len(rows)):
        for shown in (False, True):
            total = value(labels, rows, hasty, shown)
            for pair, label in enumerate(labels) if total is not None else ():
                expected[pair, label] += np.exp(total)
    np.testing.assert_allclose(
        label_posteriors(np.asarray(rows), hasty), expected / expected.sum(axis=1, keepdims=True), atol=1e-9
    )


def test_an_hour_with_little_hope_anywhere_stays_finite() -> None:
    rows = np.random.default_rng(1).uniform(-14, 0, (36_000, 5))
    assert np.isfinite(label_posteriors(rows, 6.0)).all()
    assert len(likeliest_labels(rows, 6.0)) == 36_000


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=10, max_size=10), max_size=40))
def test_captions_never_overlap_and_stay_inside(rows: list[list[float]]) -> None:
    values = np.asarray(rows, np.float64).reshape(-1, 2, 5)
    captions = decode_captions(values / values.sum(axis=2, keepdims=True))
    edges = [edge for c in captions for edge in (c.first_sample, c.end_sample)]
    assert edges == sorted(edges)
    assert all(0 <= c.first_sample < c.end_sample <= len(rows) + 1 and 0 <= c.confidence <= 1 for c in captions)


@given(
    st.lists(st.lists(st.floats(0.001, 1), min_size=10, max_size=10), max_size=120),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_captions_that_come_in_parts_are_those_of_all_at_once(rows: list[list[float]], sizes: list[int]) -> None:
    values = np.asarray(rows, np.float64).reshape(-1, 2, 5)
    values = values / values.sum(axis=2, keepdims=True)
    stream, found, at = CaptionStream(10), list[Caption](), 0
    for size in itertools.cycle(sizes):
        found += stream.add(values[at : at + size])
        at += size
        if at >= len(values):
            break
    found += stream.end()
    expected = decode_captions(values)
    assert [(c.first_sample, c.end_sample, c.start, c.end) for c in found] == [
        (c.first_sample, c.end_sample, c.start, c.end) for c in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=0.5)


def test_a_caption_is_given_out_soon_after_it_is_over() -> None:
    stream = CaptionStream(10)
    one = [*[EMPTY] * 20, APPEARS, *[SAME] * 20, GOES, *[EMPTY] * 40]
    assert list(stream.add(probabilities(one[:41], 0.99))) == []
    (caption,) = stream.add(probabilities(one[41:], 0.99))
    assert (caption.first_sample, caption.end_sample) == (21, 42)
    (expected,) = decode_captions(probabilities(one, 0.99))
    assert caption.confidence == pytest.approx(expected.confidence, abs=0.005)
    assert list(stream.end()) == []


def test_label_names_are_the_promised_ones() -> None:
    assert LABEL_TEXTS == ("same", "different", "empty_empty", "empty_valid", "valid_empty")


def test_subtitles() -> None:
    srt = render_subtitles([Caption(1.0, 2.5, 10, 25, 0.9), Caption(2.5, 3661.2, 25, 36612, 0.9, "two\nlines")])
    assert "\n[1]\n" in srt
    assert "00:00:01,000 --> 00:00:02,500" in srt
    assert "01:01:01,200" in srt
    assert "two\nlines" in srt


def test_costs_of_a_model_that_names_others() -> None:
    class Model:
        costs: ClassVar = {"differnt": 1.0}

    with pytest.raises(ModelError, match="differnt"):
        DecodingCosts.of(Model())
