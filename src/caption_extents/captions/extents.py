"""From label probabilities of pairs to captions and their extents.

The labels of consecutive pairs must fit together: after ``same`` a caption is on screen, so ``empty_valid`` cannot
follow. Whether a caption is shown is the hidden state of a chain with two states, each label is a step between two of
them, and the likeliest chain is found by Viterbi's algorithm (Viterbi, 1967; Rabiner, 1989). The evidence for a step
is the mean log probability of the label forward and of its reverse backward.

One part of the evidence is weighed down: while nothing changes, whether what stands there is a caption. The chain takes
steps for independent, but a sign that looks like a caption does so in every sample, and a hundred equal mistakes would
outvote the one step at which the model saw a caption go. How sure a caption is comes from the
forward-backward algorithm over the same chain: the smallest posterior probability among its steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caption_extents.model.labels import REVERSED_ORDER, Label

_EMPTY, _SHOWN = 0, 1

_STEPS: dict[Label, tuple[int, int]] = {
    Label.SAME: (_SHOWN, _SHOWN),
    Label.DIFFERENT: (_SHOWN, _SHOWN),
    Label.EMPTY_EMPTY: (_EMPTY, _EMPTY),
    Label.EMPTY_VALID: (_EMPTY, _SHOWN),
    Label.VALID_EMPTY: (_SHOWN, _EMPTY),
}


@dataclass(frozen=True)
class DecodingCosts:
    """What a boundary costs, in nats, against the model's evidence for it.

    Without a cost, one doubtful pair in a long caption splits it in two; with too high a cost, neighbours merge.

    Attributes:
        different: of a caption that follows another.
        appear, disappear: of a caption's first and last sample.
        presence: weight, in 0..1, of the evidence whether an unchanged sample shows a caption.
    """

    different: float = 2.0
    appear: float = 1.0
    disappear: float = 1.0
    presence: float = 0.3


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
    scores = _scores(probabilities, costs or DecodingCosts())
    labels = likeliest_labels(scores)
    certainty = _posteriors(scores)[np.arange(len(labels)), labels]
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


def likeliest_labels(scores: np.ndarray) -> np.ndarray:
    """The consistent sequence of labels with the highest sum of scores (P, 5); int64 (P,)."""
    count = len(scores)
    best = [0.0, 0.0]
    choices: list[tuple[Label, Label]] = []
    for row in scores.tolist():
        reached: dict[int, tuple[float, Label]] = {}
        for label, (before, after) in _STEPS.items():
            value = best[before] + row[label]
            if after not in reached or value > reached[after][0]:
                reached[after] = (value, label)
        best = [reached[_EMPTY][0], reached[_SHOWN][0]]
        choices.append((reached[_EMPTY][1], reached[_SHOWN][1]))
    state = int(best[_SHOWN] > best[_EMPTY])
    labels = np.empty(count, np.int64)
    for at in range(count - 1, -1, -1):
        label = choices[at][state]
        labels[at] = label
        state = _STEPS[label][0]
    return labels


def _posteriors(scores: np.ndarray) -> np.ndarray:
    """Probability of each label at each pair, given all of them (forward-backward); (P, 5)."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    count = len(weights)
    forward, backward = np.full((count + 1, 2), 0.5), np.full((count + 1, 2), 0.5)
    steps = [(int(label), before, after) for label, (before, after) in _STEPS.items()]
    rows = weights.tolist()
    state = [0.5, 0.5]
    for at, row in enumerate(rows):
        following = [0.0, 0.0]
        for label, before, after in steps:
            following[after] += state[before] * row[label]
        total = following[0] + following[1]
        state = [following[0] / total, following[1] / total]
        forward[at + 1] = state
    state = [0.5, 0.5]
    for at in range(count - 1, -1, -1):
        previous = [0.0, 0.0]
        for label, before, after in steps:
            previous[before] += state[after] * rows[at][label]
        total = previous[0] + previous[1]
        state = [previous[0] / total, previous[1] / total]
        backward[at] = state
    joint = np.stack(
        [forward[:-1, before] * weights[:, label] * backward[1:, after] for label, before, after in steps], axis=1
    )
    posteriors: np.ndarray = joint / joint.sum(axis=1, keepdims=True)
    return posteriors


def _captions(labels: np.ndarray, certainty: np.ndarray) -> list[Caption]:
    """Cut the samples where a caption appears, disappears or becomes another one."""
    states = [_STEPS[Label(int(labels[0]))][0], *(_STEPS[Label(int(label))][1] for label in labels)]
    captions: list[Caption] = []
    start: int | None = 0 if states[0] == _SHOWN else None
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
