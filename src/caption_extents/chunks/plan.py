"""Which sample goes into which chunk.

Level 16 holds every sixteenth sample, level 4 every fourth of the rest, level 1 all others, so that a browser can scrub
coarsely at once and finer as more arrives. A chunk is up to 32 consecutive samples of one level. All of it is
arithmetic on sample numbers: nothing is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LEVELS = (16, 4, 1)
CHUNK_SAMPLES = 32


def level_of(sample: int) -> int:
    """The level of a sample: 16, 4 or 1."""
    if sample % 16 == 0:
        return 16
    return 4 if sample % 4 == 0 else 1


def rank_in_level(sample: int) -> int:
    """How many samples of the same level come before a sample."""
    level = level_of(sample)
    position = sample // level
    # Within its level's grid, every fourth position belongs to the level above, position 0 included.
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
