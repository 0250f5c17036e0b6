"""From label probabilities of pairs to captions and their extents.

The labels of consecutive pairs must be consistent: after ``same`` a caption is on screen, so ``empty_valid`` cannot
follow. The captions are derived from the most likely consistent sequence of labels
(:mod:`caption_extents.captions.chain`). The evidence for a label is the mean of its forward log probability and the
backward log probability of the reversed label.

One part of the evidence gets a lower weight: for an unchanged pair, the choice between ``same`` (a caption is shown)
and ``empty_empty`` (none is). The chain assumes that the evidence of successive pairs is independent, but a static sign
that looks like a caption does so in every sample, and a hundred repetitions of the same mistake would outweigh the
single pair in which the model saw a caption disappear. The confidence of a caption is the smallest posterior
probability among its labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np

from caption_extents.captions.chain import label_posteriors, likeliest_labels
from caption_extents.errors import InputError, ModelError
from caption_extents.labels import REVERSED_ORDER, Label
from caption_extents.options import exact_rate


@dataclass(frozen=True)
class Caption:
    """One caption of a video.

    Attributes:
        start: when it appears on a player's clock, in seconds.
        end: when it is gone, likewise.
        first_sample: number of the first sample that shows it.
        end_sample: number of the first sample after it that does not.
        confidence: smallest posterior probability among the labels of its pairs, in 0..1.
        text: the caption's text; None if no text was read.
        text_confidence: confidence of the text, in 0..1; None if no text was read, or if a person wrote it.
    """

    start: float
    end: float
    first_sample: int
    end_sample: int
    confidence: float
    text: str | None = None
    text_confidence: float | None = None


@dataclass(frozen=True)
class DecodingCosts:
    """Costs of caption boundaries, in nats, which are subtracted from the model's evidence for a boundary.

    With costs that are too low, uncertain pairs split captions; with costs that are too high, adjacent captions are
    merged. The default values are among the best for the package's weights on a validation set. ``python -m
    benchmarks.accuracy --tune`` chooses costs for other weights and stores them in the weights file. Training weights
    changes by a factor of three; the cost of ``different`` compensates for this (log 3 is 1.1).

    Attributes:
        different: cost of a boundary where one caption directly follows another.
        appear, disappear: cost of a boundary where a caption appears, and where it disappears.
        hasty: additional cost of a caption that lasts for one or two samples.
        presence: weight, in 0..1, of the evidence whether an unchanged pair shows a caption.
    """

    different: float = 1.1
    appear: float = 0.5
    disappear: float = 0.5
    hasty: float = 6.0
    presence: float = 0.1

    @classmethod
    def of(cls, model: object) -> DecodingCosts:
        """The costs in a model's attribute ``costs``; defaults for those that it does not name.

        Raises:
            ModelError: the attribute contains an unknown name.
        """
        costs = dict(getattr(model, "costs", {}))
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(costs) - known):
            raise ModelError(f"the model has decoding costs {unknown}; there are {sorted(known)}")
        return cls(**costs)


def pair_evidence(probabilities: np.ndarray) -> np.ndarray:
    """Log evidence for each label, float64 (P, 5), from forward and backward probabilities (P, 2, 5)."""
    logs = np.log(np.clip(probabilities.astype(np.float64), 1e-6, 1.0))
    return 0.5 * (logs[:, 0] + logs[:, 1][:, REVERSED_ORDER])


def decode_captions(
    probabilities: np.ndarray,
    sample_rate: float | Fraction = 10,
    costs: DecodingCosts | None = None,
    *,
    first_sample_seconds: float | Fraction = 0,
) -> list[Caption]:
    """Find the captions of a video from the label probabilities of all its pairs of consecutive samples.

    The most likely consistent sequence of labels (Viterbi algorithm) determines where captions begin, change and end.

    Args:
        probabilities: (P, 2, 5) for pairs (0, 1) to (P-1, P), as :meth:`CaptionModel.label` gives them: forward and
            backward, of the labels ``same``, ``different``, ``empty_empty``, ``empty_valid`` and ``valid_empty``.
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        costs: costs of caption boundaries; by default those for the package's own model.
        first_sample_seconds: when the first sample is shown, as :attr:`Video.first_sample_seconds` tells it.

    Returns:
        Captions in order of time, without overlap and without text; ``end_sample`` is at most P + 1.

    Raises:
        InputError: the probabilities have another shape or are not finite, or the rate cannot be used.
    """
    probabilities = np.asarray(probabilities)
    check_probabilities(probabilities)
    if len(probabilities) == 0:
        return []
    costs = costs or DecodingCosts()
    scores = pair_scores(probabilities, costs)
    labels = likeliest_labels(scores, costs.hasty)
    certainty = label_posteriors(scores, costs.hasty)[np.arange(len(labels)), labels]
    cutter = CaptionBuilder(sample_rate, first_sample_seconds)
    return [*cutter.add(labels, certainty), *cutter.end()]


_ROUNDING = 1e-3
"""By which computed probabilities may leave 0..1."""


def check_probabilities(probabilities: np.ndarray) -> None:
    """Raise an InputError if these cannot be probabilities of pairs."""
    is_right = probabilities.dtype.kind in "fiu" and probabilities.ndim == 3
    if not is_right or probabilities.shape[1:] != (2, len(Label)) or not np.isfinite(probabilities).all():
        raise InputError(
            f"probabilities {probabilities.shape} must be finite numbers of shape (pairs, 2, {len(Label)})"
        )
    if len(probabilities) and not -_ROUNDING <= probabilities.min() <= probabilities.max() <= 1 + _ROUNDING:
        raise InputError(
            f"probabilities are from {probabilities.min():g} to {probabilities.max():g}; give numbers between 0 and 1"
        )


def pair_scores(probabilities: np.ndarray, costs: DecodingCosts) -> np.ndarray:
    """Score of each label at each pair: its evidence minus the costs; float64 (P, 5)."""
    scores = pair_evidence(probabilities)
    unchanged = np.logaddexp(scores[:, Label.SAME], scores[:, Label.EMPTY_EMPTY])
    for label in (Label.SAME, Label.EMPTY_EMPTY):
        scores[:, label] = unchanged + costs.presence * (scores[:, label] - unchanged)
    scores[:, Label.DIFFERENT] -= costs.different
    scores[:, Label.EMPTY_VALID] -= costs.appear
    scores[:, Label.VALID_EMPTY] -= costs.disappear
    return scores


class CaptionBuilder:
    """Turns labels, which must be added in order of time, into captions.

    Args:
        sample_rate: samples a second.
        first_sample_seconds: when the first sample is shown.
    """

    def __init__(self, sample_rate: float | Fraction, first_sample_seconds: float | Fraction = 0) -> None:
        self._rate, self._begin = exact_rate("sample_rate", sample_rate), Fraction(first_sample_seconds)
        self._pair = 0
        self._start: int | None = None
        self._certainty = 1.0
        """Smallest posterior probability since the current caption began."""

    def add(self, labels: np.ndarray, certainty: np.ndarray) -> Iterator[Caption]:
        """Add the labels of the next pairs, and yield the captions that end within them.

        Args:
            labels: int64 (P,).
            certainty: posterior probability of each label, float64 (P,).
        """
        for label, sure in zip(labels.tolist(), certainty.tolist(), strict=True):
            if self._pair == 0 and label in _BEGIN_SHOWN:
                self._start = 0
            # Pair k joins samples k and k+1, so it decides about the caption that ends there and the one that begins.
            self._certainty = min(self._certainty, sure)
            self._pair += 1
            if label not in _UNCHANGED:
                if self._start is not None:
                    yield self._caption(self._start)
                self._start = None if label == Label.VALID_EMPTY else self._pair
                self._certainty = sure
            elif self._start is None:
                self._certainty = 1.0

    def end(self) -> Iterator[Caption]:
        """Yield the caption that lasts until the end of the video, if there is one."""
        if self._start is not None:
            self._pair += 1
            yield self._caption(self._start)

    def _caption(self, start: int) -> Caption:
        begin, end = (float(self._begin + sample / self._rate) for sample in (start, self._pair))
        return Caption(begin, end, start, self._pair, self._certainty)


_UNCHANGED = frozenset({Label.SAME.value, Label.EMPTY_EMPTY.value})
_BEGIN_SHOWN = frozenset({Label.SAME.value, Label.DIFFERENT.value, Label.VALID_EMPTY.value})
"""Labels that a video begins with if its first sample shows a caption."""
