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

from dataclasses import dataclass, fields

import numpy as np

from caption_extents.captions.chain import label_posteriors, likeliest_labels
from caption_extents.errors import ModelError
from caption_extents.model.labels import REVERSED_ORDER, Label


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
    certainty = label_posteriors(scores, costs.hasty)[np.arange(len(labels)), labels]
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


def _captions(labels: np.ndarray, certainty: np.ndarray) -> list[Caption]:
    """Cut the samples where a caption appears, disappears or becomes another one."""
    captions: list[Caption] = []
    start: int | None = 0 if labels[0] in {Label.SAME, Label.DIFFERENT, Label.VALID_EMPTY} else None
    for pair in np.flatnonzero((labels != Label.SAME) & (labels != Label.EMPTY_EMPTY)).tolist():
        if start is not None:
            captions.append(_caption(start, pair + 1, certainty))
        start = pair + 1 if labels[pair] != Label.VALID_EMPTY else None
    if start is not None:
        captions.append(_caption(start, len(labels) + 1, certainty))
    return captions


def _caption(start: int, end: int, certainty: np.ndarray) -> Caption:
    # Pair k joins samples k and k+1, so the pairs that decide about samples start..end-1 are start-1..end-1.
    return Caption(start, end, float(certainty[max(0, start - 1) : end].min()))
