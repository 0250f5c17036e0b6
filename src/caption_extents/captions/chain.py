"""The hidden chain behind the labels of pairs, and what is likeliest to have happened in it.

Whether a caption is shown, and how old it is, is the hidden state; each label is a step between two states. Viterbi's
algorithm finds the likeliest chain, the forward-backward algorithm the probability of each step (Viterbi, 1967;
Rabiner, 1989). Both go through the pairs one by one, and an hour has 36,000: so the pairs are cut into as many
parts as each has pairs, all parts are gone through at once, and then joined (Blelloch, 1990).
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
"""What each label does to the state; no two labels lead from one state to the same other. A caption is new on its first
sample and young on its second."""

_STARTS = (_EMPTY, _OLD)
"""A video begins without a caption or with one of any age."""


def _is_hasty(label: Label, before: int) -> bool:
    """Whether a step ends a caption after one or two samples, which is too short to read."""
    return label in {Label.DIFFERENT, Label.VALID_EMPTY} and before in {_NEW, _YOUNG}


def likeliest_labels(scores: np.ndarray, hasty: float = 0.0) -> np.ndarray:
    """The consistent labels with the highest sum of scores.

    Args:
        scores: float64 (P, 5), of each label at each pair.
        hasty: what ending a caption after one or two samples costs.

    Returns:
        int64 (P,).
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
    # Which state each part began in, for each that it may end in; then backwards through the parts, and into them.
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
    """Probability of each label at each pair, given all of them; float64 (P, 5)."""
    # A common factor at a pair changes nothing.
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
    """What each state counts for at the beginning of a video; float64 (S,)."""
    start = np.full(STATES, -math.inf)
    start[list(_STARTS)] = 0.0
    return start


def step_scores(scores: np.ndarray, hasty: float) -> np.ndarray:
    """What each step adds at each pair, (P, before, after); minus infinity where there is none."""
    steps = np.full((len(scores), STATES, STATES), -math.inf)
    for label, before, after in _STEPS:
        steps[:, before, after] = scores[:, label] - (hasty if _is_hasty(label, before) else 0.0)
    return steps


def _in_parts(steps: np.ndarray, nothing: float, unit: float) -> np.ndarray:
    """Steps (P, S, S) as (parts, length, S, S), filled up with steps from each state to itself."""
    length = max(1, math.isqrt(len(steps)))
    parts = -(-len(steps) // length)
    filled = np.full((parts * length, STATES, STATES), nothing)
    filled[:, range(STATES), range(STATES)] = unit
    filled[: len(steps)] = steps
    return filled.reshape(parts, length, STATES, STATES)


Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""One step after another: matrices (..., S, S) of both to those of the two together."""


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
    """A start (S,) carried through one part after the other; (parts + 1, S), at their beginnings and at the end."""
    whole = steps[:, 0]
    for at in range(1, steps.shape[1]):
        whole = join(whole, steps[:, at])
    carried = [start]
    for part in whole:
        carried.append(join(carried[-1][None], part)[0])
    return np.stack(carried)


def _through(steps: np.ndarray, begun: np.ndarray) -> np.ndarray:
    """What is known before each step of each part, (parts, length, S), out of what is known at its beginning."""
    known = np.empty(steps.shape[:3])
    for at in range(steps.shape[1]):
        known[:, at] = begun
        begun = _product(begun[:, None], steps[:, at])[:, 0]
    return known
