"""Which sample goes into which chunk.

Level 16 holds the samples divisible by 16, level 4 those divisible by 4 and not by 16, and level 1 all others, so that
a browser can scrub coarsely as soon as the first level is loaded, and finer as more chunks arrive. A chunk holds up to
32 consecutive samples of one level. Level, chunk and position of a sample are computed from its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caption_extents.errors import InputError
from caption_extents.samples import Planes, slice_planes

LEVELS = (16, 4, 1)
CHUNK_SAMPLES = 32


def level_of(sample: int) -> int:
    """The level of a sample: 16, 4 or 1."""
    if sample % 16 == 0:
        return 16
    return 4 if sample % 4 == 0 else 1


def rank_in_level(sample: int) -> int:
    """Number of samples of the same level before this sample."""
    level = level_of(sample)
    position = sample // level
    # Among the multiples of the level, every fourth one (beginning with 0) belongs to a coarser level.
    return position if level == 16 else position - position // 4 - 1


def sample_at(level: int, rank: int) -> int:
    """The sample of a level that has ``rank`` of its level before it; inverse of :func:`rank_in_level`."""
    return level * rank if level == 16 else level * (rank + rank // 3 + 1)


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk: its level and its samples in order."""

    level: int
    samples: tuple[int, ...]

    @property
    def first_sample(self) -> int:
        """The sample that names the chunk."""
        return self.samples[0]


def chunk_of(sample: int) -> tuple[int, int, int]:
    """Where a sample is: level, first sample of the chunk, and position in the chunk."""
    level, rank = level_of(sample), rank_in_level(sample)
    return level, sample_at(level, rank - rank % CHUNK_SAMPLES), rank % CHUNK_SAMPLES


def plan_chunks(sample_count: int) -> Iterator[ChunkPlan]:
    """All chunks of a video of ``sample_count`` samples, level after level."""
    for level in LEVELS:
        in_level = _count_in_level(level, sample_count)
        for start in range(0, in_level, CHUNK_SAMPLES):
            ranks = range(start, min(start + CHUNK_SAMPLES, in_level))
            yield ChunkPlan(level, tuple(sample_at(level, rank) for rank in ranks))


def _count_in_level(level: int, sample_count: int) -> int:
    multiples = -(-sample_count // level)
    return multiples if level == 16 else multiples - -(-sample_count // (4 * level))


@dataclass(frozen=True, repr=False)
class ChunkFrames:
    """The frames of one chunk, not yet encoded.

    Attributes:
        plan: level and samples.
        planes: Y, U and V in host memory, uint8 (N, H, W) and twice (N, H/2, W/2).
    """

    plan: ChunkPlan
    planes: Planes

    def __repr__(self) -> str:
        return f"ChunkFrames(level {self.plan.level}, first {self.plan.first_sample}, {len(self.plan.samples)} samples)"


class ChunkAssembler:
    """Collects samples into chunks: :meth:`add` returns full chunks, :meth:`flush` the partial ones at the end.

    It holds at most one open chunk per level in memory.

    Args:
        first_sample: number of the first sample that will be added; a multiple of 512, where a chunk of every level
            begins.
    """

    def __init__(self, first_sample: int = 0) -> None:
        self._open: dict[int, tuple[list[int], Planes]] = {}
        self.sample_count = first_sample
        """Number of the next sample to add."""

    def add(self, first_sample: int, planes: Planes) -> list[ChunkFrames]:
        """Take consecutive samples (copied) and give the chunks that they complete.

        Raises:
            InputError: a sample was left out or came twice.
        """
        if first_sample != self.sample_count:
            raise InputError(f"sample {self.sample_count} was expected, but {first_sample} came")
        count = len(planes[0])
        self.sample_count += count
        by_level: dict[int, list[int]] = {}
        for offset in range(count):
            by_level.setdefault(level_of(first_sample + offset), []).append(offset)
        finished = [
            chunk for level, offsets in by_level.items() for chunk in self._add(level, first_sample, offsets, planes)
        ]
        return sorted(finished, key=lambda chunk: chunk.plan.samples[-1])

    def _add(self, level: int, first_sample: int, offsets: list[int], planes: Planes) -> Iterator[ChunkFrames]:
        """Take samples of one level; a copy for each chunk that they go to, not for each sample."""
        while offsets:
            if level not in self._open:
                self._open[level] = [], _chunk_buffers(planes)
            samples, buffers = self._open[level]
            taken, offsets = offsets[: CHUNK_SAMPLES - len(samples)], offsets[CHUNK_SAMPLES - len(samples) :]
            for buffer, plane in zip(buffers, planes, strict=True):
                # mode="clip": in its default mode np.take copies twice, to leave `out` unchanged if an index is wrong.
                np.take(plane, taken, axis=0, out=buffer[len(samples) : len(samples) + len(taken)], mode="clip")
            samples.extend(first_sample + offset for offset in taken)
            if len(samples) == CHUNK_SAMPLES:
                del self._open[level]
                yield ChunkFrames(ChunkPlan(level, tuple(samples)), buffers)

    def flush(self) -> list[ChunkFrames]:
        """The last, partial chunk of each level."""
        return list(self._flush())

    def _flush(self) -> Iterator[ChunkFrames]:
        for level in LEVELS:
            if level in self._open:
                samples, buffers = self._open.pop(level)
                yield ChunkFrames(ChunkPlan(level, tuple(samples)), slice_planes(buffers, 0, len(samples)))


def _chunk_buffers(planes: Planes) -> Planes:
    y, u, v = (np.empty((CHUNK_SAMPLES, *plane.shape[1:]), np.uint8) for plane in planes)
    return y, u, v
