"""Reading and decoding a video on a GPU, from before there is PyTorch to ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from caption_extents.nvml import memory_in_use, open_nvml
from caption_extents.region import CropRegion
from caption_extents.video.gpu_sessions import GpuSessions
from caption_extents.video.isolated import DecoderLimits, IsolatedVideo


@dataclass(frozen=True)
class GpuStart:
    """Processes that have been started to read a video and to decode it on a GPU."""

    reader: IsolatedVideo
    sessions: GpuSessions
    memory_before: dict[str, int]
    """Bytes in use of each GPU's memory before they were, by the GPU's UUID."""

    @classmethod
    def begin(cls, path: Path, rate: Fraction, region: CropRegion, ordinal: int, stall_seconds: float) -> GpuStart:
        """Start them; they index the video and decode its first segments before anybody asks for these."""
        reader = IsolatedVideo(path, rate, DecoderLimits(stall_seconds=stall_seconds))
        try:
            memory_before = memory_in_use(open_nvml())
            sessions = GpuSessions(ordinal)
        except BaseException:
            reader.close()
            raise
        sessions.begin_early(reader, region)
        return cls(reader, sessions, memory_before)

    def close(self) -> None:
        """End them."""
        self.reader.close()
        self.sessions.close()
