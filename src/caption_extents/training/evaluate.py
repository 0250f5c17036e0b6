"""How right the model is on videos with known captions.

A labelled video is a JSON file beside a video: ``crop`` (fractions), ``rate`` (samples a second) and ``captions``,
each with ``start_frame`` and ``end_frame`` in samples, or ``start`` and ``end`` in seconds. ``video`` names the file;
without it the video has the name of the JSON file. What else stands there (``style``, ``script``, ``background``)
groups the results.
"""

from __future__ import annotations

import glob
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caption_extents.captions.extents import Caption, DecodingCosts, decode_captions, pair_evidence
from caption_extents.errors import InputError
from caption_extents.labels import LABEL_TEXTS, REVERSED_ORDER
from caption_extents.machine import usable_cores
from caption_extents.model.captioner import CaptionModel
from caption_extents.options import device_number, exact_rate
from caption_extents.region import CropRegion
from caption_extents.training.labels import pair_labels
from caption_extents.training.scoring import Extent, Score, first_sample_at, match_captions, score_of
from caption_extents.video.video import Decoding, open_local

GROUPS = ("style", "script", "background", "codec", "hard")
_NO_VIDEOS = frozenset({".json", ".srt", ".vtt", ".ass", ".txt", ".png", ".jpg"})
_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0001)


@dataclass(frozen=True)
class LabelledVideo:
    """A video and its true captions, in samples."""

    name: str
    video: Path
    crop: CropRegion
    rate: Fraction
    captions: tuple[Extent, ...]
    facets: dict[str, str]


@dataclass(frozen=True)
class Examined:
    """What the model said of one video.

    Attributes:
        probabilities: float32 (P, 2, 5).
        truth: label of every pair, int64 (P,).
        found: captions.
        matches: pairs of a found and a true extent.
        costs: with which the captions were found.
    """

    labelled: LabelledVideo
    probabilities: np.ndarray
    truth: np.ndarray
    found: tuple[Caption, ...]
    matches: tuple[tuple[Extent, Extent], ...]
    costs: DecodingCosts

    @property
    def score(self) -> Score:
        """Captions that match."""
        return score_of(self.matches, len(self.found), len(self.labelled.captions))


def find_labelled(paths: Iterable[Path]) -> list[LabelledVideo]:
    """Labelled videos in folders, or of single JSON files.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    files = [file for path in paths for file in _label_files(path)]
    if not files:
        raise InputError("there is no labelled video (a JSON file beside a video) in the given folders")
    return [_read_labelled(file) for file in files]


def _label_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder; the report page's corrections may lie beside the labels made of them."""
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.glob("*.json")) if not file.name.endswith(".corrections.json")]


def _read_labelled(file: Path) -> LabelledVideo:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is no object with crop, rate and captions")
        rate = exact_rate("rate", Fraction(str(data["rate"])))
        if "video" in data:
            videos = [file.parent / data["video"]]
        else:
            videos = sorted(file.parent.glob(f"{glob.escape(file.stem)}.*"))
        video = next((path for path in videos if path.suffix.lower() not in _NO_VIDEOS), None)
        if video is None:
            raise ValueError("there is no video of its name beside it; name one in 'video'")
        return LabelledVideo(
            name=file.stem,
            video=video,
            crop=CropRegion(*data["crop"]),
            rate=rate,
            captions=tuple(_extent(caption, rate) for caption in data["captions"]),
            facets={name: str(data[name]) for name in GROUPS if data.get(name)},
        )
    except (ArithmeticError, OSError, ValueError, KeyError, TypeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{str(file)!r} does not describe a labelled video (docs/formats.md): {what}") from error


def _extent(caption: dict[str, Any], rate: Fraction) -> Extent:
    if "start_frame" in caption:
        start, end = int(caption["start_frame"]), int(caption["end_frame"])
    else:
        start, end = first_sample_at(caption["start"], rate), first_sample_at(caption["end"], rate)
    if not 0 <= start < end:
        raise ValueError(f"a caption is from sample {start} to {end}")
    return start, end


def true_labels(captions: Iterable[Extent], pairs: int) -> np.ndarray:
    """The label of each pair, int64 (P,)."""
    ids = np.zeros(pairs + 1, np.int64)
    for number, (start, end) in enumerate(captions, start=1):
        ids[start:end] = number
    known = torch.from_numpy(ids)
    labels: np.ndarray = pair_labels(known[:-1], known[1:]).numpy()
    return labels


def open_model(weights: Path | None, device: str) -> CaptionModel:
    """The model that a run would use.

    Raises:
        InputError: no such device, or weights that cannot be loaded.
    """
    return CaptionModel(weights, device, usable_cores())


def pair_probabilities(labelled: LabelledVideo, model: CaptionModel) -> np.ndarray:
    """The model's probabilities for every pair of a video; float32 (P, 2, 5)."""
    gpu = None if model.device == "cpu" else device_number(model.device)
    with open_local(labelled.video, labelled.rate, Decoding(gpu)) as video:
        return model.label(video.samples(labelled.crop))


def examine(
    labelled: LabelledVideo, probabilities: np.ndarray, tolerance: int, costs: DecodingCosts | None = None
) -> Examined:
    """Decode the probabilities of a video and compare with its truth."""
    costs = costs or DecodingCosts()
    found = tuple(decode_captions(probabilities, labelled.rate, costs))
    matches = tuple(match_captions([(c.first_sample, c.end_sample) for c in found], labelled.captions, tolerance))
    truth = true_labels(labelled.captions, len(probabilities))
    return Examined(labelled, probabilities, truth, found, matches, costs)


@dataclass
class Report:
    """Figures over a set of videos.

    Attributes:
        videos: how many.
        captions: true captions in all.
        score: captions that match, over all videos.
        boundary_error_ms: mean distance of matched ends from the truth.
        pair_accuracy: share of pairs whose forward label is right; and by true label.
        decoded_pair_accuracy: the same for the labels after decoding.
        groups: F1, true and found captions for each style, script, ...
        captionless_minutes: length of the videos without captions.
        captionless_found: captions found in them, none of which is there.
        confidence: for bins of a caption's confidence: how many were found, and the share that is right.
        pair_confidence: the same for forward labels.
        directions: F1 when decoding with the forward, the backward, and both probabilities.
        worst: names of the videos with most errors, and those errors.
    """

    videos: int
    captions: int
    score: Score
    boundary_error_ms: float
    pair_accuracy: float
    pair_accuracy_by_label: dict[str, float]
    decoded_pair_accuracy: float
    groups: dict[str, dict[str, dict[str, float]]]
    captionless_minutes: float
    captionless_found: int
    confidence: list[dict[str, float]]
    pair_confidence: list[dict[str, float]]
    directions: dict[str, float]
    worst: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        score = self.score
        rates = {"precision": score.precision, "recall": score.recall, "f1": score.f1, "exact_share": score.exact_share}
        return {**asdict(self), "score": asdict(score) | rates}


def summarise(examined: list[Examined], tolerance: int) -> Report:
    """Figures over all videos; see :class:`Report`."""
    shown = [e for e in examined if e.labelled.captions]
    empty = [e for e in examined if not e.labelled.captions]
    total = _pooled(examined)
    truth = np.concatenate([e.truth for e in examined])
    forward = np.concatenate([e.probabilities[:, 0] for e in examined])
    labels = forward.argmax(axis=1)
    decoded = np.concatenate([true_labels(_extents(e.found), len(e.truth)) for e in examined])
    milliseconds = [
        1000 * abs(a - b) / float(e.labelled.rate)
        for e in examined
        for match in e.matches
        for a, b in zip(*match, strict=True)
    ]
    return Report(
        videos=len(examined),
        captions=sum(len(e.labelled.captions) for e in examined),
        score=total,
        boundary_error_ms=float(np.mean(milliseconds)) if milliseconds else 0.0,
        pair_accuracy=float((labels == truth).mean()),
        pair_accuracy_by_label={
            text: float((labels == truth)[truth == index].mean())
            for index, text in enumerate(LABEL_TEXTS)
            if (truth == index).any()
        },
        decoded_pair_accuracy=float((decoded == truth).mean()),
        groups={facet: _by_facet(shown, facet) for facet in GROUPS},
        captionless_minutes=sum((len(e.truth) + 1) / float(e.labelled.rate) / 60 for e in empty),
        captionless_found=sum(len(e.found) for e in empty),
        confidence=_reliability(
            [caption.confidence for e in examined for caption in e.found],
            [_is_matched(caption, e) for e in examined for caption in e.found],
        ),
        pair_confidence=_reliability(forward.max(axis=1), labels == truth),
        directions={
            **{name: _direction_f1(examined, tolerance, change) for name, change in _DIRECTIONS.items()},
            "both": total.f1,
        },
        worst=_worst(examined),
    )


def _extents(captions: Iterable[Caption]) -> list[Extent]:
    return [(caption.first_sample, caption.end_sample) for caption in captions]


def _is_matched(caption: Caption, examined: Examined) -> bool:
    return any(found == (caption.first_sample, caption.end_sample) for found, _ in examined.matches)


def _pooled(examined: Iterable[Examined]) -> Score:
    listed = list(examined)
    matches = [match for e in listed for match in e.matches]
    return score_of(matches, sum(len(e.found) for e in listed), sum(len(e.labelled.captions) for e in listed))


def _by_facet(examined: list[Examined], facet: str) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Examined]] = defaultdict(list)
    for e in examined:
        if facet in e.labelled.facets:
            groups[e.labelled.facets[facet]].append(e)
    scores = {value: _pooled(members) for value, members in sorted(groups.items())}
    return {
        value: {"f1": score.f1, "precision": score.precision, "recall": score.recall, "captions": score.true}
        for value, score in scores.items()
    }


def _reliability(confidence: Any, right: Any) -> list[dict[str, float]]:
    sure, correct = np.asarray(confidence, np.float64), np.asarray(right, bool)
    rows = []
    for low, high in itertools.pairwise(_BINS):
        inside = (sure >= low) & (sure < high)
        if inside.any():
            rows.append(
                {
                    "from": low,
                    "to": min(high, 1.0),
                    "count": int(inside.sum()),
                    "mean_confidence": float(sure[inside].mean()),
                    "right": float(correct[inside].mean()),
                }
            )
    return rows


_DIRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "forward": lambda p: np.stack([p[:, 0], p[:, 0][:, REVERSED_ORDER]], axis=1),
    "backward": lambda p: np.stack([p[:, 1][:, REVERSED_ORDER], p[:, 1]], axis=1),
}


def _direction_f1(examined: list[Examined], tolerance: int, change: Callable[[np.ndarray], np.ndarray]) -> float:
    return _pooled(examine(e.labelled, change(e.probabilities), tolerance, e.costs) for e in examined).f1


def false_and_missed(examined: Examined) -> tuple[list[Extent], list[Extent]]:
    """Captions that were found and are none, and captions that were not found."""
    matched_found, matched_true = {found for found, _ in examined.matches}, {true for _, true in examined.matches}
    false = [extent for extent in _extents(examined.found) if extent not in matched_found]
    return false, [extent for extent in examined.labelled.captions if extent not in matched_true]


def _worst(examined: list[Examined]) -> list[dict[str, Any]]:
    rows = []
    for e in examined:
        false, missed = false_and_missed(e)
        if missed or false:
            rows.append({"video": e.labelled.name, **e.labelled.facets, "missed": missed, "false": false})
    return sorted(rows, key=lambda row: -len(row["missed"]) - len(row["false"]))


_GRID = (
    (0.05, 0.1, 0.3, 1.0),
    (0.0, 0.5, 1.1, 1.5, 2.0, 3.0),
    (0.0, 0.5, 1.0),
    (2.0, 4.0, 6.0),
)
"""Costs that are tried: ``presence``, ``different``, ``appear`` and ``disappear``, ``hasty``."""


def tune_costs(examined: list[Examined], tolerance: int) -> tuple[DecodingCosts, float]:
    """The boundary costs that suit these videos, which must not be those that are reported, and their F1.

    Not simply those with the highest F1: among many costs some are best by chance. Those nearest to the usual ones
    whose F1 is at most a standard error below the highest (the rule of Breiman et al., 1984).
    """
    scores = {
        costs: _pooled(examine(e.labelled, e.probabilities, tolerance, costs) for e in examined).f1
        for costs in (DecodingCosts(d, e, e, h, p) for p, d, e, h in itertools.product(*_GRID))
    }
    best = max(scores.values())
    captions = sum(len(e.labelled.captions) for e in examined)
    enough = best - math.sqrt(best * (1 - best) / max(1, captions))
    near = [costs for costs, f1 in scores.items() if f1 >= enough]
    chosen = min(near, key=lambda costs: (_steps_from_usual(costs), -scores[costs]))
    return chosen, scores[chosen]


def _steps_from_usual(costs: DecodingCosts) -> int:
    """On the grid, in all dimensions together."""
    usual = DecodingCosts()
    return sum(
        abs(values.index(getattr(costs, name)) - values.index(getattr(usual, name)))
        for name, values in zip(("presence", "different", "appear", "hasty"), _GRID, strict=True)
    )


def format_report(report: Report, tolerance: int) -> str:
    """The report as a person reads it."""
    score = report.score
    lines = [
        f"{report.videos} videos, {report.captions} captions, tolerance {tolerance} samples",
        f"captions   F1 {score.f1:.4f}  precision {score.precision:.4f}  recall {score.recall:.4f}  "
        f"both ends exact {score.exact_share:.3f}  mean boundary error {report.boundary_error_ms:.1f} ms",
        f"pairs      {report.pair_accuracy:.5f} right, {report.decoded_pair_accuracy:.5f} after decoding; "
        + ", ".join(f"{name} {value:.4f}" for name, value in report.pair_accuracy_by_label.items()),
        "decoding   F1 " + ", ".join(f"{name} {value:.4f}" for name, value in report.directions.items()),
    ]
    if report.captionless_minutes:
        lines.append(
            f"none       {report.captionless_found} false captions in {report.captionless_minutes:.1f} minutes"
        )
    for facet, groups in report.groups.items():
        for value, figures in groups.items():
            lines.append(
                f"{facet:10} {value:18} F1 {figures['f1']:.4f}  precision {figures['precision']:.4f}  "
                f"recall {figures['recall']:.4f}  {figures['captions']:.0f} captions"
            )
    for name, rows in (("caption", report.confidence), ("pair", report.pair_confidence)):
        for row in rows:
            lines.append(
                f"{name} confidence {row['from']:.2f} to {row['to']:.2f}: {row['right']:.4f} right "
                f"(mean confidence {row['mean_confidence']:.4f}) of {row['count']}"
            )
    return "\n".join(lines)


def evidence_at(examined: Examined, pair: int) -> str:
    """The evidence for each label at a pair, for looking into an error."""
    logs = pair_evidence(examined.probabilities[pair : pair + 1])[0]
    return ", ".join(f"{text} {value:.2f}" for text, value in zip(LABEL_TEXTS, logs, strict=True))
