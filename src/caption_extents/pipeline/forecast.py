"""How long a run would take if its encoding were done elsewhere, or here.

The forecasts rest on one thought: a stage takes its CPU seconds wherever it runs. On a machine whose stages all compute
on the CPU, the time is that of all CPU seconds on all cores, or of the one stage that cannot use them; offloaded
encoding takes its seconds elsewhere, and leaves packing behind. ``benchmarks/offload.py`` compares them with runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a run had to do. Seconds are of CPU unless a name says otherwise.

    Attributes:
        fixed_wall_seconds: before the first stage starts and after the last has ended.
        gpu_wall_seconds: what the slowest of decoding and inference takes on its GPU; 0 where both are on the CPU.
        pipeline_seconds: of this process, for everything but encoding.
        encoding_seconds: wherever it was done.
        packing_seconds: of packing all samples for other encoders, whether that was done or not; unpacking takes as
            much of theirs.
        segments: how many there are.
        cores: of this machine.
        encoder_workers: chunks encoded at once, when encoding is done here.
        threads_busy: cores that one encoder keeps busy.
        encoded_here: whether encoding was part of this process.
    """

    fixed_wall_seconds: float
    gpu_wall_seconds: float
    pipeline_seconds: float
    encoding_seconds: float
    packing_seconds: float
    segments: int
    cores: int
    encoder_workers: int
    threads_busy: float
    encoded_here: bool

    @property
    def worker_seconds(self) -> float:
        """CPU seconds of workers elsewhere."""
        return self.encoding_seconds + self.packing_seconds

    def seconds_here(self) -> float:
        """Forecast of the whole run's wall time with encoding in this process."""
        everything = (self.pipeline_seconds + self.encoding_seconds) / self.cores
        alone = self.encoding_seconds / self.threads_busy / self.encoder_workers
        return self.fixed_wall_seconds + max(self.gpu_wall_seconds, everything, alone)

    def seconds_offloaded(self, workers: int) -> float:
        """Forecast of the whole run's wall time with encoding by a number of workers, a core each, elsewhere.

        Workers begin when the first segment has come and end one segment after the last was sent.
        """
        sending = self._sending_seconds()
        segment = self.worker_seconds / self.segments
        encoding = sending / self.segments + math.ceil(self.segments / workers) * segment
        return self.fixed_wall_seconds + max(sending + segment, encoding)

    def seconds_sharing(self) -> float:
        """Forecast of the whole run's wall time with encoding by workers on this very machine."""
        everything = (self.pipeline_seconds + self.packing_seconds + self.worker_seconds) / self.cores
        return self.fixed_wall_seconds + max(self.gpu_wall_seconds, everything)

    def workers_that_keep_up(self) -> int:
        """How many workers encode as fast as samples come."""
        return max(1, math.ceil(self.worker_seconds / max(self._sending_seconds(), 1e-9)))

    def _sending_seconds(self) -> float:
        return max(self.gpu_wall_seconds, (self.pipeline_seconds + self.packing_seconds) / self.cores, 1e-9)
