"""Incremental decoding: captions as soon as they are final, while the probabilities of later pairs are still computed.

The Viterbi algorithm keeps the most likely path to each state. Where the paths to all states share a prefix, later
pairs cannot change it any more, and the captions within this prefix are returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from caption_extents.captions.chain import label_of_step, label_posteriors, start_scores, step_scores
from caption_extents.captions.extents import Caption, CaptionBuilder, DecodingCosts, pair_scores

_CONTEXT_PAIRS = 200
"""Earlier pairs that are included when certainties are computed; the influence of pairs before these is negligible."""

_LATER_PAIRS = 20
"""Later pairs that must be known before a label is returned, because its certainty depends mostly on them."""
_MAX_UNSURE_PAIRS = 6000
"""Ten minutes at ten samples a second."""


class CaptionStream:
    """Finds captions in probabilities that arrive in parts.

    The captions are the same as those of :func:`~caption_extents.captions.extents.decode_captions` for all
    probabilities at once, except where two label sequences are equally likely. The confidence of a caption is computed
    from the pairs that are known when the caption is returned.

    Args:
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        costs: costs of caption boundaries; by default those for the package's own model.
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
        self._cutter = CaptionBuilder(sample_rate, first_sample_seconds)
        self._labels = _LabelStream(self._costs.hasty)
        self._scores = np.empty((0, 5))
        """Scores, float64 (P, 5): of the last pairs whose labels were returned, and of all pending pairs."""

    def add(self, probabilities: np.ndarray) -> Iterator[Caption]:
        """Add the probabilities of the next pairs, (P, 2, 5), and yield the captions that are now final."""
        if not len(probabilities):
            return
        scores = pair_scores(probabilities, self._costs)
        self._scores = np.concatenate([self._scores, scores])
        yield from self._cut(self._labels.add(scores))

    def end(self) -> Iterator[Caption]:
        """Yield the remaining captions when there are no more pairs."""
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
    """Incremental Viterbi decoder: returns labels as soon as later pairs cannot change them."""

    def __init__(self, hasty: float) -> None:
        self._hasty = hasty
        self._reached = start_scores()
        self._choices: list[np.ndarray] = []
        """Back pointers of each pending pair: for each state, the best state before it; int64 (S,)."""

    @property
    def pending(self) -> int:
        """Number of pairs whose labels have not been returned yet."""
        return len(self._choices)

    def add(self, scores: np.ndarray) -> np.ndarray:
        """Add the scores of the next pairs, float64 (P, 5); returns the labels that are now final, int64."""
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
        # Too many pending pairs: take the currently most likely path, so that memory and time stay bounded.
        state = int(self._reached.argmax())
        for choices in self._choices[: _MAX_UNSURE_PAIRS // 2 : -1]:
            state = int(choices[state])
        return self._give(_MAX_UNSURE_PAIRS // 2 + 1, state)

    def end(self) -> np.ndarray:
        """Return the labels of all pending pairs."""
        return self._give(len(self._choices), int(self._reached.argmax()))

    def _give(self, count: int, state: int) -> np.ndarray:
        """Remove the first ``count`` pending pairs and return their labels; ``state`` is the state after them."""
        labels = np.empty(count, np.int64)
        for at in range(count - 1, -1, -1):
            before = int(self._choices[at][state])
            labels[at] = label_of_step(before, state)
            state = before
        del self._choices[:count]
        return labels
