"""Captions as soon as they are sure, while the probabilities of later pairs are still computed.

Viterbi's algorithm follows the likeliest chain to each state. Where the chains to all states have the same beginning,
nothing that comes later can change it, and the captions in it are given out.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from caption_extents.captions.chain import label_of_step, label_posteriors, start_scores, step_scores
from caption_extents.captions.extents import Caption, CaptionCutter, DecodingCosts, pair_scores

_CONTEXT_PAIRS = 200
"""Pairs before those whose labels are sure that their probabilities still depend on; those before count for nothing."""

_LATER_PAIRS = 20
"""Pairs that must have come after one whose label is given: its certainty depends on them most."""
_MAX_UNSURE_PAIRS = 6000
"""Ten minutes at ten samples a second."""


class CaptionStream:
    """Finds captions in probabilities that come in parts.

    They are those that :func:`~caption_extents.captions.extents.decode_captions` finds when all are there, except where
    two ways to cut the video are equally likely. The confidence of a caption is computed from what is known when it is
    given.

    Args:
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        costs: of boundaries; by default those that suit the package's own model.
        first_sample_seconds: when the first sample is shown.
    """

    def __init__(
        self,
        sample_rate: float | Fraction = 10,
        costs: DecodingCosts | None = None,
        *,
        first_sample_seconds: float | Fraction = 0,
    ) -> None:
        self._costs = costs or DecodingCosts()
        self._cutter = CaptionCutter(sample_rate, first_sample_seconds)
        self._labels = _LabelStream(self._costs.hasty)
        self._scores = np.empty((0, 5))
        """Of the last pairs whose labels were given, and of all whose labels are not sure yet."""

    def add(self, probabilities: np.ndarray) -> Iterator[Caption]:
        """Take the probabilities of the next pairs, (P, 2, 5); the captions that are sure now."""
        if not len(probabilities):
            return
        scores = pair_scores(probabilities, self._costs)
        self._scores = np.concatenate([self._scores, scores])
        yield from self._cut(self._labels.add(scores))

    def end(self) -> Iterator[Caption]:
        """The captions that are left when there are no more pairs."""
        yield from self._cut(self._labels.end())
        yield from self._cutter.end()

    def _cut(self, labels: np.ndarray) -> Iterator[Caption]:
        if not len(labels):
            return
        first = len(self._scores) - self._labels.pending - len(labels)
        posteriors = label_posteriors(self._scores, self._costs.hasty)
        certainty = posteriors[np.arange(first, first + len(labels)), labels]
        yield from self._cutter.add(labels, certainty)
        self._scores = self._scores[max(0, first + len(labels) - _CONTEXT_PAIRS) :]


class _LabelStream:
    """The likeliest labels, as soon as later pairs cannot change them."""

    def __init__(self, hasty: float) -> None:
        self._hasty = hasty
        self._reached = start_scores()
        self._choices: list[np.ndarray] = []
        """For each pair whose label is not sure: from which state each state is reached best."""

    @property
    def pending(self) -> int:
        """Pairs whose labels are not sure."""
        return len(self._choices)

    def add(self, scores: np.ndarray) -> np.ndarray:
        """Take the scores of the next pairs, (P, 5); the labels that are sure now, int64."""
        for steps in step_scores(scores, self._hasty):
            values = self._reached[:, None] + steps
            self._choices.append(values.argmax(axis=0))
            self._reached = values.max(axis=0)
        states = np.flatnonzero(np.isfinite(self._reached))
        for at in range(len(self._choices) - 1, 0, -1):
            states = np.unique(self._choices[at][states])
            if len(states) == 1 and len(self._choices) - at > _LATER_PAIRS:
                return self._give(at, int(states[0]))
        if len(self._choices) <= _MAX_UNSURE_PAIRS:
            return np.empty(0, np.int64)
        # Decide for what is likeliest now, so that neither memory nor time grows.
        state = int(self._reached.argmax())
        for choices in self._choices[: _MAX_UNSURE_PAIRS // 2 : -1]:
            state = int(choices[state])
        return self._give(_MAX_UNSURE_PAIRS // 2 + 1, state)

    def end(self) -> np.ndarray:
        """The labels that are left."""
        return self._give(len(self._choices), int(self._reached.argmax()))

    def _give(self, count: int, state: int) -> np.ndarray:
        """The labels of the first pairs that are not given yet, after which the chain is in a state."""
        labels = np.empty(count, np.int64)
        for at in range(count - 1, -1, -1):
            before = int(self._choices[at][state])
            labels[at] = label_of_step(before, state)
            state = before
        del self._choices[:count]
        return labels
