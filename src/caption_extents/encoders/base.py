"""What every encoder of chunks promises, and the encoder in this process."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from caption_extents.chunks.encode import ChunkFormat, EncodedChunk, encode_chunk
from caption_extents.chunks.plan import ChunkFrames
from caption_extents.chunks.presets import EncoderPreset


class Effort(NamedTuple):
    """Time taken to encode a chunk.

    Attributes:
        seconds: wall time.
        thread_seconds: CPU time of the thread that called the encoder, without the encoder's own threads.
    """

    seconds: float
    thread_seconds: float


class ChunkEncoder(Protocol):
    """Encodes chunks; called from several threads at once. The same frames give the same bytes in every encoder."""

    @property
    def calls(self) -> int:
        """Number of concurrent calls of :meth:`encode` that keep all encoders busy."""
        ...

    def encode(self, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """Encode a chunk.

        Raises:
            EncodeError: it could not be encoded; names the chunk.
        """
        ...

    def start(self) -> None:
        """Begin to get ready, while the video is opened."""
        ...

    def end(self) -> None:
        """Abort running calls of :meth:`encode`, without waiting for them."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class ThreadEncoder:
    """Encodes in the calling thread.

    Args:
        preset: of all chunks.
        encoders: chunks encoded at once.
    """

    def __init__(self, preset: EncoderPreset, encoders: int) -> None:
        self._preset = preset
        self.calls = encoders

    def encode(self, frames: ChunkFrames, form: ChunkFormat) -> tuple[EncodedChunk, Effort]:
        """See the protocol."""
        started, started_thread = time.perf_counter(), time.thread_time()
        chunk = encode_chunk(frames, self._preset, form)
        return chunk, Effort(time.perf_counter() - started, time.thread_time() - started_thread)

    def start(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
