from __future__ import annotations

from caption_extents.training.scoring import score_captions


def test_a_perfect_score() -> None:
    score = score_captions([(1, 5), (5, 9)], [(1, 5), (5, 9)])
    assert (score.f1, score.precision, score.recall, score.exact, score.boundary_error_samples) == (1, 1, 1, 2, 0)


def test_ends_may_be_off_by_the_tolerance() -> None:
    score = score_captions([(2, 6)], [(1, 5)])
    assert (score.f1, score.exact, score.boundary_error_samples) == (1, 0, 1)
    assert score_captions([(3, 5)], [(1, 5)]).matched == 0
    assert score_captions([(3, 5)], [(1, 5)], tolerance=2).matched == 1


def test_a_split_caption_is_two_errors_and_a_miss() -> None:
    score = score_captions([(0, 10), (10, 20)], [(0, 20)])
    assert (score.matched, score.precision, score.recall, score.f1) == (0, 0, 0, 0)


def test_a_true_caption_counts_once() -> None:
    assert score_captions([(0, 5), (1, 5)], [(0, 5)]).matched == 1


def test_nothing_to_find_and_nothing_found() -> None:
    assert score_captions([], []).f1 == 1
    assert score_captions([], [(0, 1)]).recall == 0
    assert score_captions([(0, 1)], []).precision == 0
