"""A hidden Markov model of the labels of consecutive pairs.

The hidden state says whether a caption is shown and how old it is; each label is a transition between two states. The
Viterbi algorithm finds the most likely sequence of states, the forward-backward algorithm the posterior probability of
each transition (Viterbi, 1967; Rabiner, 1989). Both process the pairs sequentially, which is slow in Python for the
36,000 pairs of an hour. Therefore P pairs are cut into about sqrt(P) parts of sqrt(P) pairs; all parts are processed at
once with NumPy, and the results are joined (a parallel scan: Blelloch, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caption_extents.labels import Label

STATES = 4
_EMPTY, _NEW, _YOUNG, _OLD = range(STATES)
_SHOWN = (_NEW, _YOUNG, _OLD)

_STEPS: tuple[tuple[Label, int, int], ...] = (
    (Label.SAME, _NEW, _YOUNG),
    (Label.SAME, _YOUNG, _OLD),
    (Label.SAME, _OLD, _OLD),
    *((Label.DIFFERENT, state, _NEW) for state in _SHOWN),
    (Label.EMPTY_EMPTY, _EMPTY, _EMPTY),
    (Label.EMPTY_VALID, _EMPTY, _NEW),
    *((Label.VALID_EMPTY, state, _EMPTY) for state in _SHOWN),
)
"""Allowed transitions: label, state before, state after. Each pair of states has at most one label. A caption is in
state ``_NEW`` on its first sample, ``_YOUNG`` on its second, and ``_OLD`` afterwards."""

_STARTS = (_EMPTY, _OLD)
"""States of the first sample: no caption, or a caption that may have begun before the video."""


def _is_hasty(label: Label, before: int) -> bool:
    """Whether a step ends a caption after one or two samples, which is too short to read."""
    return label in {Label.DIFFERENT, Label.VALID_EMPTY} and before in {_NEW, _YOUNG}


def likeliest_labels(scores: np.ndarray, hasty: float = 0.0) -> np.ndarray:
    """The consistent sequence of labels with the highest sum of scores (Viterbi algorithm).

    Args:
        scores: score of each label at each pair, float64 (P, 5).
        hasty: cost of a caption that ends after one or two samples.

    Returns:
        The label of each pair, int64 (P,).
    """
    steps = _in_parts(step_scores(scores, hasty), -math.inf, 0.0)
    parts, length = steps.shape[:2]
    begun = _starts(steps, _max_plus, -math.inf, 0.0)
    choices = np.empty((parts, length, STATES), np.int64)
    reached = begun[:-1]
    for at in range(length):
        values = reached[:, :, None] + steps[:, at]
        choices[:, at] = values.argmax(axis=1)
        reached = values.max(axis=1)
    # For each part, find the start state of each end state; then trace back over the parts, and within them.
    origin = np.broadcast_to(np.arange(STATES), (parts, STATES))
    for at in range(length - 1, -1, -1):
        origin = np.take_along_axis(choices[:, at], origin, axis=1)
    ends = np.empty(parts, np.int64)
    state = int(begun[-1].argmax())
    for part in range(parts - 1, -1, -1):
        ends[part], state = state, int(origin[part, state])
    every, labels = np.arange(parts), np.empty((parts, length), np.int64)
    for at in range(length - 1, -1, -1):
        before = choices[every, at, ends]
        labels[:, at] = _LABELS[before, ends]
        ends = before
    return labels.reshape(-1)[: len(scores)]


def label_posteriors(scores: np.ndarray, hasty: float) -> np.ndarray:
    """Posterior probability of each label at each pair, given the scores of all pairs; float64 (P, 5).

    Args:
        scores: score of each label at each pair, float64 (P, 5).
        hasty: cost of a caption that ends after one or two samples.
    """
    # Subtracting the maximum of a pair scales its factors alike, which does not change the posteriors.
    steps = np.exp(step_scores(scores - scores.max(axis=1, keepdims=True), hasty))
    steps = _in_parts(steps, 0.0, 1.0)
    forward = _through(steps, _starts(steps, _product, 0.0, 1.0)[:-1])
    mirrored = steps[::-1, ::-1].swapaxes(2, 3)
    ones = np.ones(STATES)
    backward = _through(mirrored, _carried(mirrored, _product, ones)[:-1])[::-1, ::-1]
    joint = forward[..., :, None] * steps * backward[..., None, :]
    joint = joint.reshape(-1, STATES, STATES)[: len(scores)]
    found = np.zeros((len(scores), len(Label)))
    for label, before, after in _STEPS:
        found[:, label] += joint[:, before, after]
    posteriors: np.ndarray = found / found.sum(axis=1, keepdims=True)
    return posteriors


_LABELS = np.zeros((STATES, STATES), np.int64)
for _label, _before, _after in _STEPS:
    _LABELS[_before, _after] = _label


def label_of_step(before: int, after: int) -> int:
    """The label that leads from one state to another."""
    return int(_LABELS[before, after])


def start_scores() -> np.ndarray:
    """Log score of each state at the beginning of a video: 0 if a video can begin in it, else -inf; float64 (S,)."""
    start = np.full(STATES, -math.inf)
    start[list(_STARTS)] = 0.0
    return start


def step_scores(scores: np.ndarray, hasty: float) -> np.ndarray:
    """Log score of each transition at each pair, float64 (P, S, S) by state before and after; -inf if not allowed."""
    steps = np.full((len(scores), STATES, STATES), -math.inf)
    for label, before, after in _STEPS:
        steps[:, before, after] = scores[:, label] - (hasty if _is_hasty(label, before) else 0.0)
    return steps


def _in_parts(steps: np.ndarray, nothing: float, unit: float) -> np.ndarray:
    """Transitions (P, S, S) cut into parts, (parts, length, S, S); the last part is padded with identity transitions.

    ``nothing`` and ``unit`` are the zero and the one of the semiring: -inf and 0 for max-plus, 0 and 1 for sums.
    """
    length = max(1, math.isqrt(len(steps)))
    parts = -(-len(steps) // length)
    filled = np.full((parts * length, STATES, STATES), nothing)
    filled[:, range(STATES), range(STATES)] = unit
    filled[: len(steps)] = steps
    return filled.reshape(parts, length, STATES, STATES)


Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Composes two transitions: matrices (..., S, S) of the first and the second to the matrix of both in sequence."""


def _max_plus(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    joined: np.ndarray = (first[..., :, :, None] + second[..., None, :, :]).max(axis=-2)
    return joined


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    joined: np.ndarray = first @ second
    joined /= joined.max(axis=(-2, -1), keepdims=True)
    return joined


def _starts(steps: np.ndarray, join: Join, nothing: float, unit: float) -> np.ndarray:
    start = np.full(STATES, nothing)
    start[list(_STARTS)] = unit
    return _carried(steps, join, start)


def _carried(steps: np.ndarray, join: Join, start: np.ndarray) -> np.ndarray:
    """Propagate a start vector (S,) through the parts: state scores at the start of each part and at the end.

    Returns:
        float64 (parts + 1, S).
    """
    whole = steps[:, 0]
    for at in range(1, steps.shape[1]):
        whole = join(whole, steps[:, at])
    carried = [start]
    for part in whole:
        carried.append(join(carried[-1][None], part)[0])
    return np.stack(carried)


def _through(steps: np.ndarray, begun: np.ndarray) -> np.ndarray:
    """State scores before each transition, (parts, length, S), from those at the start of each part, (parts, S)."""
    known = np.empty(steps.shape[:3])
    for at in range(steps.shape[1]):
        known[:, at] = begun
        begun = _product(begun[:, None], steps[:, at])[:, 0]
    return known
