"""From label probabilities of pairs to captions and their extents.

The labels of consecutive pairs must fit together: after ``same`` a caption is on screen, so ``empty_valid`` cannot
follow. Whether a caption is shown, and whether it has just come, is the hidden state of a chain, each label is a step
between two states, and the likeliest chain is found by Viterbi's algorithm (Viterbi, 1967; Rabiner, 1989). The evidence
for a step is the mean log probability of the label forward and of its reverse backward.

One part of the evidence is weighed down: while nothing changes, whether what stands there is a caption. The chain takes
steps for independent, but a sign that looks like a caption does so in every sample, and a hundred equal mistakes would
outvote the one step at which the model saw a caption go. How sure a caption is comes from the
forward-backward algorithm over the same chain: the smallest posterior probability among its steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from caption_extents.model.labels import REVERSED_ORDER, Label

_EMPTY, _NEW, _YOUNG, _OLD = range(4)
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
"""What each label does to the state. A caption is new on its first sample and young on its second."""

_HASTY = tuple(
    label in {Label.DIFFERENT, Label.VALID_EMPTY} and before in {_NEW, _YOUNG} for label, before, _ in _STEPS
)
"""Which steps end a caption after one or two samples: nobody reads so fast."""


@dataclass(frozen=True)
class DecodingCosts:
    """What a boundary costs, in nats, against the model's evidence for it.

    With too low a cost, doubtful pairs split captions; with too high a cost, neighbours merge. The values are those
    that suit the package's weights best on a validation set (``python -m benchmarks.accuracy --tune``).

    Attributes:
        different: of a caption that follows another.
        appear, disappear: of a caption's first and last sample.
        hasty: added for a caption of one or two samples.
        presence: weight, in 0..1, of the evidence whether an unchanged sample shows a caption.
    """

    different: float = -1.0
    appear: float = 0.5
    disappear: float = 0.5
    hasty: float = 6.0
    presence: float = 0.1


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        start_frame: first sample that shows it.
        end_frame: first sample after it that does not.
        confidence: in 0..1; how sure its least sure step is.
    """

    start_frame: int
    end_frame: int
    confidence: float


def pair_evidence(probabilities: np.ndarray) -> np.ndarray:
    """Log evidence (P, 5) for each label out of forward and backward probabilities (P, 2, 5)."""
    logs = np.log(np.clip(probabilities.astype(np.float64), 1e-6, 1.0))
    return 0.5 * (logs[:, 0] + logs[:, 1][:, REVERSED_ORDER])


def find_captions(probabilities: np.ndarray, costs: DecodingCosts | None = None) -> list[Caption]:
    """Captions in a video of which every pair was looked at.

    Args:
        probabilities: (P, 2, 5) for pairs 0..P-1, forward and backward; labels in the order of
            :class:`~caption_extents.model.labels.Label`.
        costs: of boundaries.

    Returns:
        Captions in order, not overlapping, within samples 0..P.
    """
    if len(probabilities) == 0:
        return []
    costs = costs or DecodingCosts()
    scores = _scores(probabilities, costs)
    labels = likeliest_labels(scores, costs.hasty)
    certainty = _posteriors(scores, costs.hasty)[np.arange(len(labels)), labels]
    return _captions(labels, certainty)


def _scores(probabilities: np.ndarray, costs: DecodingCosts) -> np.ndarray:
    """What each label adds to a chain; float64 (P, 5)."""
    scores = pair_evidence(probabilities)
    unchanged = np.logaddexp(scores[:, Label.SAME], scores[:, Label.EMPTY_EMPTY])
    for label in (Label.SAME, Label.EMPTY_EMPTY):
        scores[:, label] = unchanged + costs.presence * (scores[:, label] - unchanged)
    scores[:, Label.DIFFERENT] -= costs.different
    scores[:, Label.EMPTY_VALID] -= costs.appear
    scores[:, Label.VALID_EMPTY] -= costs.disappear
    return scores


def likeliest_labels(scores: np.ndarray, hasty: float = 0.0) -> np.ndarray:
    """The consistent labels with the highest sum of scores (P, 5), less the cost of hasty ones; int64 (P,)."""
    steps = [
        (int(label), before, after, hasty * early) for (label, before, after), early in zip(_STEPS, _HASTY, strict=True)
    ]
    best = list(_START)
    choices: list[list[tuple[int, int]]] = []
    for row in scores.tolist():
        reached, choice = [-math.inf] * 4, [(0, 0)] * 4
        for label, before, after, cost in steps:
            value = best[before] + row[label] - cost
            if value > reached[after]:
                reached[after], choice[after] = value, (label, before)
        best = reached
        choices.append(choice)
    state = max(range(4), key=best.__getitem__)
    labels = np.empty(len(scores), np.int64)
    for at in range(len(scores) - 1, -1, -1):
        labels[at], state = choices[at][state]
    return labels


_START = (0.0, -math.inf, -math.inf, 0.0)
"""A video begins without a caption or with one of any age."""


def _posteriors(scores: np.ndarray, hasty: float) -> np.ndarray:
    """Probability of each label at each pair, given all of them (forward-backward); (P, 5)."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    factors = [math.exp(-hasty) if early else 1.0 for early in _HASTY]
    steps = [
        (int(label), before, after, factor) for (label, before, after), factor in zip(_STEPS, factors, strict=True)
    ]
    rows, count = weights.tolist(), len(weights)
    forward, backward = np.empty((count + 1, 4)), np.empty((count + 1, 4))
    state = [math.exp(value) for value in _START]
    forward[0] = state
    for at, row in enumerate(rows):
        following = [0.0] * 4
        for label, before, after, factor in steps:
            following[after] += state[before] * row[label] * factor
        total = sum(following)
        state = [value / total for value in following]
        forward[at + 1] = state
    state = [1.0] * 4
    backward[count] = state
    for at in range(count - 1, -1, -1):
        previous = [0.0] * 4
        for label, before, after, factor in steps:
            previous[before] += state[after] * rows[at][label] * factor
        total = sum(previous)
        state = [value / total for value in previous]
        backward[at] = state
    joint = np.zeros((count, len(Label)))
    for label, before, after, factor in steps:
        joint[:, label] += forward[:-1, before] * weights[:, label] * backward[1:, after] * factor
    posteriors: np.ndarray = joint / joint.sum(axis=1, keepdims=True)
    return posteriors


def _captions(labels: np.ndarray, certainty: np.ndarray) -> list[Caption]:
    """Cut the samples where a caption appears, disappears or becomes another one."""
    captions: list[Caption] = []
    start: int | None = 0 if labels[0] in {Label.SAME, Label.DIFFERENT, Label.VALID_EMPTY} else None
    for pair, label in enumerate(labels):
        if label == Label.SAME or label == Label.EMPTY_EMPTY:
            continue
        if start is not None:
            captions.append(_caption(start, pair + 1, certainty))
        start = pair + 1 if label != Label.VALID_EMPTY else None
    if start is not None:
        captions.append(_caption(start, len(labels) + 1, certainty))
    return captions


def _caption(start: int, end: int, certainty: np.ndarray) -> Caption:
    # Pair k joins samples k and k+1, so the pairs that decide about samples start..end-1 are start-1..end-1.
    return Caption(start, end, float(certainty[max(0, start - 1) : end].min()))
