"""From label probabilities of pairs to captions and their extents.

The labels of consecutive pairs must fit together: after ``same`` a caption is on screen, so ``empty_valid`` cannot
follow. Captions are cut where the likeliest consistent labels say so (:mod:`caption_extents.captions.chain`). The
evidence for a label is its mean log probability, forward and, of its reverse, backward.

One part of the evidence is weighed down: while nothing changes, whether what stands there is a caption. The chain takes
steps for independent, but a sign that looks like a caption does so in every sample, and a hundred equal mistakes would
outvote the one step at which the model saw a caption go. How sure a caption is, is the smallest posterior probability
among its labels.
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
        confidence: how sure its least sure boundary is, in 0..1.
        text: its text; None if it was not read.
        text_confidence: how sure the text is, in 0..1; None if it was not read.
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
    """What a boundary costs, in nats, against the model's evidence for it.

    With too low a cost, doubtful pairs split captions; with too high a cost, neighbours merge. The values are among
    those that suit the package's weights best on a validation set (``python -m benchmarks.accuracy --tune``, which
    keeps what suits other weights in their file); training weighs changes three times, and ``different`` gives that
    back: log 3 is 1.1.

    Attributes:
        different: of a caption that follows another.
        appear, disappear: of a caption's first and last sample.
        hasty: added for a caption of one or two samples.
        presence: weight, in 0..1, of the evidence whether an unchanged sample shows a caption.
    """

    different: float = 1.1
    appear: float = 0.5
    disappear: float = 0.5
    hasty: float = 6.0
    presence: float = 0.1

    @classmethod
    def of(cls, model: object) -> DecodingCosts:
        """Those that a model has in its attribute ``costs``; the usual ones where it has none.

        Raises:
            ModelError: it names a cost that there is not.
        """
        costs = dict(getattr(model, "costs", {}))
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(costs) - known):
            raise ModelError(f"the model has decoding costs {unknown}; there are {sorted(known)}")
        return cls(**costs)


def pair_evidence(probabilities: np.ndarray) -> np.ndarray:
    """Log evidence (P, 5) for each label out of forward and backward probabilities (P, 2, 5)."""
    logs = np.log(np.clip(probabilities.astype(np.float64), 1e-6, 1.0))
    return 0.5 * (logs[:, 0] + logs[:, 1][:, REVERSED_ORDER])


def decode_captions(
    probabilities: np.ndarray,
    sample_rate: float | Fraction = 10,
    costs: DecodingCosts | None = None,
    *,
    first_sample_seconds: float | Fraction = 0,
) -> list[Caption]:
    """The captions of a video all of whose pairs of consecutive samples were labelled.

    The likeliest sequence of labels that fit together says where captions begin, change and end (Viterbi's algorithm).

    Args:
        probabilities: (P, 2, 5) for pairs (0, 1) to (P-1, P), as :meth:`CaptionModel.label` gives them: forward and
            backward, of the labels ``same``, ``different``, ``empty_empty``, ``empty_valid`` and ``valid_empty``.
        sample_rate: samples a second; a float is taken as the decimal number that it prints as.
        costs: of boundaries; by default those that suit the package's own model.
        first_sample_seconds: when the first sample is shown, as :attr:`Video.first_sample_seconds` tells it.

    Returns:
        Captions in order, not overlapping, within samples 0..P; they have no text.

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
    cutter = CaptionCutter(sample_rate, first_sample_seconds)
    return [*cutter.add(labels, certainty), *cutter.end()]


def check_probabilities(probabilities: np.ndarray) -> None:
    """Raise an InputError if these cannot be probabilities of pairs."""
    if probabilities.ndim != 3 or probabilities.shape[1:] != (2, len(Label)) or not np.isfinite(probabilities).all():
        raise InputError(
            f"probabilities {probabilities.shape} must be finite numbers of shape (pairs, 2, {len(Label)})"
        )


def pair_scores(probabilities: np.ndarray, costs: DecodingCosts) -> np.ndarray:
    """What each label adds to a chain; float64 (P, 5)."""
    scores = pair_evidence(probabilities)
    unchanged = np.logaddexp(scores[:, Label.SAME], scores[:, Label.EMPTY_EMPTY])
    for label in (Label.SAME, Label.EMPTY_EMPTY):
        scores[:, label] = unchanged + costs.presence * (scores[:, label] - unchanged)
    scores[:, Label.DIFFERENT] -= costs.different
    scores[:, Label.EMPTY_VALID] -= costs.appear
    scores[:, Label.VALID_EMPTY] -= costs.disappear
    return scores


class CaptionCutter:
    """Cuts the samples where a caption appears, disappears or becomes another one; labels come in order.

    Args:
        sample_rate: samples a second.
        first_sample_seconds: when the first sample is shown.
    """

    def __init__(self, sample_rate: float | Fraction, first_sample_seconds: float | Fraction = 0) -> None:
        self._rate, self._begin = exact_rate("sample_rate", sample_rate), Fraction(first_sample_seconds)
        self._pair = 0
        self._start: int | None = None
        self._certainty = 1.0
        """Of the least sure pair since the caption that is shown began."""

    def add(self, labels: np.ndarray, certainty: np.ndarray) -> Iterator[Caption]:
        """Take the labels of the next pairs, int64 (P,), and how sure each is, in 0..1; the captions that end there."""
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
        """The caption that is shown to the end, if there is one."""
        if self._start is not None:
            self._pair += 1
            yield self._caption(self._start)

    def _caption(self, start: int) -> Caption:
        begin, end = (float(self._begin + sample / self._rate) for sample in (start, self._pair))
        return Caption(begin, end, start, self._pair, self._certainty)


_UNCHANGED = frozenset({Label.SAME.value, Label.EMPTY_EMPTY.value})
_BEGIN_SHOWN = frozenset({Label.SAME.value, Label.DIFFERENT.value, Label.VALID_EMPTY.value})
"""Labels that a video begins with if its first sample shows a caption."""
