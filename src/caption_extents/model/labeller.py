"""Labelling the pairs of a video's samples with a model, each pair in the context of its neighbours.

Each sample is embedded once, although it belongs to several pairs, and each pair is described once, although the labels
of many pairs depend on it. Batches and slices are cut by sample number, never by time of arrival, so that every run
computes the same results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from caption_extents.errors import InputError
from caption_extents.labels import Label
from caption_extents.model.backend import Backend, Features
from caption_extents.samples import Planes, SampleBatch, slice_planes


class Labeller:
    """Labels the pairs of consecutive samples of one video; batches must come in order.

    Args:
        model: what embeds, compares and labels.
    """

    def __init__(self, model: Backend) -> None:
        self._model, self._next = model, 0
        self._pairs = _ContextLabeller(model) if model.has_context else _PairwiseLabeller(model)

    def add(self, batch: SampleBatch, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next samples.

        The probabilities of some pairs come with a later batch, when the pairs after them are known.

        Args:
            batch: the samples.
            is_last: whether the video ends with them.

        Yields:
            The first of some consecutive pairs, and their probabilities: float32 (P, 2, 5), forward and backward.

        Raises:
            InputError: these are not the next samples.
        """
        if batch.first_sample != self._next:
            raise InputError(f"sample {batch.first_sample} came where sample {self._next} was due; give all, in order")
        self._next += len(batch)
        yield from self._pairs.add(batch, self._model.embed(batch.planes), is_last=is_last)


def label_parts(model: Backend, samples: Iterable[SampleBatch]) -> Iterator[np.ndarray]:
    """Label the pairs of a video's samples; their probabilities in parts, as soon as they are known.

    Args:
        model: what labels them.
        samples: of the whole video, in order.

    Yields:
        Probabilities of consecutive pairs, float32 (P, 2, 5), forward and backward.
    """
    labeller, held = Labeller(model), None
    # A batch waits for the next: only then is it known not to be the last.
    for batch in samples:
        if held is not None:
            yield from (found for _, found in labeller.add(held, is_last=False))
        held = batch
    if held is None:
        raise InputError("no samples came; the samples of a video can be taken once, call video.samples again")
    yield from (found for _, found in labeller.add(held, is_last=True))


def label_samples(model: Backend, samples: Iterable[SampleBatch]) -> np.ndarray:
    """The probabilities of all pairs of a video's samples; see :func:`label_parts`."""
    parts = list(label_parts(model, samples))
    return np.concatenate(parts) if parts else np.empty((0, 2, len(Label)), np.float32)


_COMPARED_AT_ONCE = 32
"""Frames that are embedded at once: at a low sample rate there are many between two samples."""


def compare_with_ends(model: Backend, frames: Planes) -> tuple[np.ndarray, np.ndarray]:
    """Compare each frame but the first and the last with these two.

    Args:
        model: what compares them.
        frames: planes of N frames of one video, in order.

    Returns:
        Probabilities of the five labels, float32 (N - 2, 5): from the first frame to each, and from each to the last.
    """
    cuts = range(0, len(frames[0]), _COMPARED_AT_ONCE)
    parts = (slice_planes(frames, start, start + _COMPARED_AT_ONCE) for start in cuts)
    embeddings = model.join([model.embed(part) for part in parts])
    first, inner, last = embeddings[:1], embeddings[1:-1], embeddings[-1:]
    return model.compare(first, inner)[:, 0], model.compare(inner, last)[:, 0]


class _PairwiseLabeller:
    """Labels each pair by its own samples."""

    def __init__(self, model: Backend) -> None:
        self._model = model
        self._samples = _Held(model)

    def add(self, batch: SampleBatch, embeddings: Features, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next samples; the first pair that can be labelled now, and the probabilities from it on."""
        samples = self._samples
        samples.add(embeddings)
        if len(samples) > 1:
            yield samples.first, self._model.compare(samples.held[:-1], samples.held[1:])
            samples.keep_from(samples.end - 1)


class _ContextLabeller:
    """Labels each pair when its neighbours have been described; with a second look, all pairs are labelled twice."""

    def __init__(self, model: Backend) -> None:
        self._model = model
        self._samples = _Held(model)
        self._first_look = _Labelling(model)
        self._second_look = _SecondLook(model) if model.has_second_look else None

    def add(self, batch: SampleBatch, embeddings: Features, *, is_last: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next samples; the first pair that can be labelled now, and the probabilities from it on."""
        samples, first_pair = self._samples, self._first_look.end
        samples.add(embeddings)
        described = samples.end - (1 if is_last else 2)
        if self._second_look is not None:
            self._second_look.keep(batch)
        if described <= first_pair:
            return
        around = (samples.part(first_pair + step, described + step) for step in (-1, 0, 1, 2))
        descriptions = self._model.describe(*around)
        samples.keep_from(described - 1)
        for labelled in self._first_look.add(descriptions, is_last=is_last):
            if self._second_look is None:
                yield labelled.first, labelled.probabilities
            else:
                yield from self._second_look.add(labelled, sample_count=samples.end if is_last else None)


@dataclass(frozen=True)
class _Labelled:
    """Consecutive pairs.

    Attributes:
        first: number of the first.
        descriptions: (P, ...), as the model gives them.
        probabilities: float32 (P, 2, 5).
    """

    first: int
    descriptions: Features
    probabilities: np.ndarray


class _Labelling:
    """Labels each pair when the ``reach`` pairs after it have been described."""

    def __init__(self, model: Backend) -> None:
        self._model = model
        self._pairs = _Held(model)
        self._done = 0

    @property
    def end(self) -> int:
        """Number of the first pair that is not described."""
        return self._pairs.end

    def add(self, descriptions: Features, *, is_last: bool) -> Iterator[_Labelled]:
        """Take the next pairs' descriptions; what can be labelled now."""
        pairs, done, reach = self._pairs, self._done, self._model.reach
        pairs.add(descriptions)
        end = pairs.end - (0 if is_last else reach)
        if end > done:
            found = self._model.classify(pairs.held)
            now = slice(done - pairs.first, end - pairs.first)
            yield _Labelled(done, pairs.held[now], found[now])
            self._done = end
            pairs.keep_from(end - reach)


class _SecondLook:
    """Describes selected pairs again from more pixels, and labels all pairs again with the improved descriptions."""

    def __init__(self, model: Backend) -> None:
        self._model = model
        self._labelling = _Labelling(model)
        self._batches: deque[SampleBatch] = deque()
        self._end = 0
        """Number of the first sample that has not arrived. All samples around a pair arrive before the pair."""

    def keep(self, batch: SampleBatch) -> None:
        """Take the next samples, in the host's memory; they are kept until all their pairs have been added."""
        self._batches.append(batch)
        self._end = batch.first_sample + len(batch)

    def add(self, pairs: _Labelled, *, sample_count: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """Take pairs as they were labelled first, in order; the first that is labelled anew, and the probabilities.

        Args:
            pairs: the next ones.
            sample_count: of the video, when its last sample has come.
        """
        descriptions = self._looked_at(pairs)
        end = pairs.first + len(descriptions)
        while self._batches[0].first_sample + len(self._batches[0]) < end:
            self._batches.popleft()
        for labelled in self._labelling.add(descriptions, is_last=sample_count is not None and end == sample_count - 1):
            yield labelled.first, labelled.probabilities

    def _looked_at(self, pairs: _Labelled) -> Features:
        """Their descriptions, those that are worth a look by a closer one."""
        worth = self._model.needs_second_look(pairs.probabilities).nonzero()[0]
        if not len(worth):
            return pairs.descriptions
        numbers = np.stack([pairs.first + worth + step for step in (-1, 0, 1, 2)])
        samples, around = np.unique(numbers.clip(0, self._end - 1), return_inverse=True)
        closely = self._model.describe_closely(self._planes_of(samples), around.reshape(numbers.shape))
        return self._model.replaced(pairs.descriptions, worth, closely)

    def _planes_of(self, samples: np.ndarray) -> Planes:
        """Y, U and V of samples, by their numbers in order."""
        parts = []
        for batch in self._batches:
            inside = samples[(samples >= batch.first_sample) & (samples < batch.first_sample + len(batch))]
            parts.append([plane[inside - batch.first_sample] for plane in batch.planes])
        y, u, v = (np.concatenate(plane) for plane in zip(*parts, strict=True))
        return y, u, v


class _Held:
    """A sliding window over a sequence of features that arrives in parts: holds the items from ``first`` to ``end``."""

    def __init__(self, model: Backend) -> None:
        self._join = model.join
        self.first = self.end = 0
        """Number of the first item that is held, and number of the first item that has not arrived."""
        self.held: Features = ()

    def __len__(self) -> int:
        return self.end - self.first

    def add(self, following: Features) -> None:
        """Take the next ones."""
        self.held = self._join([self.held, following]) if len(self) else following
        self.end += len(following)

    def part(self, start: int, end: int) -> Features:
        """Those from one number up to another (half-open); beyond the ends of the video, the first and last again."""
        start, end = start - self.first, end - self.first
        before, after = max(0, -start), max(0, end - len(self))
        inside = self.held[start + before : end - after]
        if not before and not after:
            return inside
        return self._join([*[self.held[:1]] * before, inside, *[self.held[-1:]] * after])

    def keep_from(self, number: int) -> None:
        """Forget those before a number."""
        passed = max(0, number - self.first)
        # A copy, so that the memory of those before is freed.
        self.held, self.first = self._join([self.held[passed:]]), self.first + passed
