"""How well found captions match the truth: ``python -m caption_extents.training.scoring FOUND.srt TRUTH.json``.

A found caption counts when both its ends lie within a tolerance of a true caption's; each true caption counts once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pysubs2

Extent = tuple[int, int]


@dataclass(frozen=True)
class Score:
    """Captions that match, of those found and of those there are.

    Attributes:
        matched: pairs of a found and a true caption.
        found: captions found.
        true: captions in the truth.
        exact: matches with both ends exact.
        boundary_error_samples: mean distance of a matched end from the truth, in samples.
    """

    matched: int
    found: int
    true: int
    exact: int
    boundary_error_samples: float

    @property
    def precision(self) -> float:
        """Share of found captions that are right; 1 where none were found."""
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of true captions that were found; 1 where there are none."""
        return self.matched / self.true if self.true else 1.0

    @property
    def exact_share(self) -> float:
        """Share of matches with both ends exact; 1 where nothing matches."""
        return self.exact / self.matched if self.matched else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.found + self.true
        return 2 * self.matched / total if total else 1.0


def match_captions(found: Sequence[Extent], true: Sequence[Extent], tolerance: int = 1) -> list[tuple[Extent, Extent]]:
    """Match captions in order of time; extents are half-open ranges of samples that do not overlap."""
    matches: list[tuple[Extent, Extent]] = []
    waiting = sorted(true)
    for extent in sorted(found):
        match = next((t for t in waiting if max(abs(extent[0] - t[0]), abs(extent[1] - t[1])) <= tolerance), None)
        if match is not None:
            waiting.remove(match)
            matches.append((extent, match))
    return matches


def score_of(matches: Sequence[tuple[Extent, Extent]], found: int, true: int) -> Score:
    """The score of matches among so many found and true captions."""
    errors = [abs(a - b) for pair in matches for a, b in zip(*pair, strict=True)]
    return Score(
        matched=len(matches),
        found=found,
        true=true,
        exact=sum(a == b for a, b in matches),
        boundary_error_samples=sum(errors) / len(errors) if errors else 0.0,
    )


def score_captions(found: Sequence[Extent], true: Sequence[Extent], tolerance: int = 1) -> Score:
    """How well found captions match true ones; see :func:`match_captions`."""
    return score_of(match_captions(found, true, tolerance), len(found), len(true))


def first_sample_at(seconds: float, rate: Fraction) -> int:
    """The first sample that is not before a time, which may have been rounded to a millisecond."""
    return math.ceil((Fraction(str(seconds)) - Fraction(1, 2000)) * rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("found", type=Path, help="subtitle file")
    parser.add_argument("truth", type=Path, help="JSON beside a made video")
    parser.add_argument("--tolerance", type=int, default=1, help="samples")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with 1 when F1 is lower")
    arguments = parser.parse_args()
    truth = json.loads(arguments.truth.read_text(encoding="utf-8"))
    rate = Fraction(str(truth["rate"]))
    found = [
        (first_sample_at(event.start / 1000, rate), first_sample_at(event.end / 1000, rate))
        for event in pysubs2.load(str(arguments.found))
    ]
    true = [(caption["start_frame"], caption["end_frame"]) for caption in truth["captions"]]
    score = score_captions(found, true, arguments.tolerance)
    print(
        f"{score.matched} of {score.true} captions found within {arguments.tolerance} sample, "
        f"{score.exact} exactly; {score.found - score.matched} found that are none; F1 {score.f1:.3f}"
    )
    sys.exit(int(score.f1 < arguments.at_least))


if __name__ == "__main__":
    main()
