"""Blocks of consecutive samples, packed losslessly, to be sent to encoders on other machines.

A block holds 512 samples and begins at a multiple of 512, so that it consists of whole chunks: one of level 16, three
of level 4 and twelve of level 1. It is packed as lossless H.264 (constant quantiser 0), whose inter prediction exploits
that most of a crop does not change from sample to sample: it is several times smaller and faster than an intra-only
codec.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.error
import numpy as np

from caption_extents.chunks.encode import to_frame
from caption_extents.chunks.plan import CHUNK_SAMPLES, LEVELS, ChunkAssembler, ChunkFrames, ChunkPlan, level_of
from caption_extents.errors import EncodeError
from caption_extents.samples import Planes, plane_view

BLOCK_SAMPLES = LEVELS[0] * CHUNK_SAMPLES

_PACKING = {"preset": "ultrafast", "qp": "0"}


@dataclass(frozen=True, repr=False)
class SampleBlock:
    """Consecutive samples.

    Attributes:
        first_sample: number of the first, a multiple of ``BLOCK_SAMPLES``.
        planes: Y, U and V, uint8 (N, H, W) and twice (N, H/2, W/2).
    """

    first_sample: int
    planes: Planes

    def __len__(self) -> int:
        return len(self.planes[0])

    def __repr__(self) -> str:
        return f"SampleBlock(first {self.first_sample}, {len(self)} samples)"

    def plans(self) -> list[ChunkPlan]:
        """The chunks that these samples form."""
        by_level: dict[int, list[int]] = {}
        for sample in range(self.first_sample, self.first_sample + len(self)):
            by_level.setdefault(level_of(sample), []).append(sample)
        return [
            ChunkPlan(level, tuple(samples[start : start + CHUNK_SAMPLES]))
            for level, samples in by_level.items()
            for start in range(0, len(samples), CHUNK_SAMPLES)
        ]

    def chunks(self) -> list[ChunkFrames]:
        """All chunks of these samples, as they would be without blocks."""
        assembler = ChunkAssembler(self.first_sample)
        return [*assembler.add(self.first_sample, self.planes), *assembler.flush()]


class BlockAssembler:
    """Collects samples, which must be added in order, into blocks."""

    def __init__(self) -> None:
        self.sample_count = 0
        """Samples taken so far."""
        self._open: Planes | None = None

    def add(self, first_sample: int, planes: Planes) -> Iterator[SampleBlock]:
        """Take consecutive samples (copied) and give the blocks that they complete.

        Raises:
            ValueError: a sample was left out or came twice.
        """
        if first_sample != self.sample_count:
            raise ValueError(f"sample {self.sample_count} was expected, but {first_sample} came")
        done = 0
        while done < len(planes[0]):
            if self._open is None:
                y, u, v = (np.empty((BLOCK_SAMPLES, *plane.shape[1:]), np.uint8) for plane in planes)
                self._open = (y, u, v)
            at = self.sample_count % BLOCK_SAMPLES
            count = min(len(planes[0]) - done, BLOCK_SAMPLES - at)
            for target, source in zip(self._open, planes, strict=True):
                target[at : at + count] = source[done : done + count]
            done += count
            self.sample_count += count
            if at + count == BLOCK_SAMPLES:
                yield from self.flush()

    def flush(self) -> list[SampleBlock]:
        """The last, partial block; an empty list if there is none."""
        if self._open is None:
            return []
        count = (self.sample_count - 1) % BLOCK_SAMPLES + 1
        y, u, v = (plane[:count] for plane in self._open)
        self._open = None
        return [SampleBlock(self.sample_count - count, (y, u, v))]


def pack(block: SampleBlock) -> bytes:
    """A block as bytes."""
    buffer = io.BytesIO()
    height, width = block.planes[0].shape[1:]
    with av.open(buffer, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=1, options=_PACKING)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(len(block)):
            container.mux(stream.encode(to_frame(block.planes, index)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def unpack(data: bytes, first_sample: int, count: int) -> SampleBlock:
    """The block of :func:`pack`.

    Raises:
        EncodeError: the data are damaged, or of another number of samples.
    """
    planes: Planes | None = None
    at = 0
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            for frame in container.decode(video=0):
                views = [plane_view(plane) for plane in frame.planes]
                if planes is None:
                    y, u, v = (np.empty((count, *view.shape), np.uint8) for view in views)
                    planes = (y, u, v)
                for target, view in zip(planes, views, strict=True):
                    target[at] = view
                at += 1
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise EncodeError(f"the block of sample {first_sample} is damaged: {error}") from error
    if planes is None or at != count:
        raise EncodeError(f"the block of sample {first_sample} has {at} samples, and {count} were sent")
    return SampleBlock(first_sample, planes)
