"""Forecasts of a run's wall time with encoding on this machine or on other machines.

The forecasts assume that a stage takes the same CPU time on every machine. If all stages run on the CPU, the wall time
is the total CPU time divided by the number of cores, or the time of a stage that cannot use all cores, whichever is
longer. Offloading moves the CPU time of encoding to other machines and adds the CPU time of packing.
``benchmarks/offload.py`` compares forecasts with measured runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The work of a run. Seconds are CPU time unless the name contains ``wall``.

    Attributes:
        fixed_wall_seconds: wall time before the first stage starts and after the last stage has ended.
        gpu_wall_seconds: wall time of the slower of decoding and inference on a GPU; 0 if both run on the CPU.
        pipeline_seconds: CPU time of this machine for everything except set-up, encoding and packing.
        encoding_seconds: CPU time of encoding, on whichever machine.
        packing_seconds: estimated CPU time of packing all samples for other machines, whether or not it was done;
            unpacking takes the workers the same time.
        segments: number of blocks (of 512 samples).
        cores: number of cores of this machine.
        encoder_workers: number of chunks encoded at once on this machine.
        threads_busy: number of cores that one encoder keeps busy.
        encoded_here: whether the chunks were encoded on this machine.
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
