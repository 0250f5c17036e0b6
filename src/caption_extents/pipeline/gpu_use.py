"""How busy a GPU is while a run goes on, asked of its driver (NVML)."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

from caption_extents.pipeline.clocks import Activity


def open_nvml() -> ModuleType | None:
    """Initialise NVML and return NVIDIA's Python bindings (pynvml); None if they or the driver are missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        # A run does not fail because figures about the GPU are missing.
        return None
    return pynvml  # type: ignore[no-any-return]


def memory_in_use(nvml: ModuleType | None) -> dict[str, int]:
    """Bytes in use of each GPU's memory, by the GPU's UUID, of those that answer."""
    found: dict[str, int] = {}
    if nvml is None:
        return found
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found[str(nvml.nvmlDeviceGetUUID(handle))] = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return found


_INTERVAL_SECONDS = 0.1

DECODER, COMPUTE, MEMORY, PCIE_IN, PCIE_OUT = "decoder", "compute", "memory", "pcie in", "pcie out"


@dataclass(frozen=True)
class GpuUse:
    """A GPU during a run, all of its processes together.

    Attributes:
        decoder: mean share of the time that the decode engines were busy, in 0..1.
        compute: mean share of the time that a kernel was running, in 0..1.
        pcie_in_bytes_per_second, pcie_out_bytes_per_second: mean traffic to and from the GPU.
        peak_memory_bytes: most memory in use.
        added_memory_bytes: that, less what was in use before the run.
    """

    decoder: float
    compute: float
    pcie_in_bytes_per_second: float
    pcie_out_bytes_per_second: float
    peak_memory_bytes: int
    added_memory_bytes: int


class GpuWatch:
    """A context manager that samples the utilisation of a GPU ten times a second with NVML, as far as it is available.

    Args:
        uuid: UUID of the GPU; None to measure nothing.
        origin: start of the run, on the clock of ``time.perf_counter``.
        memory_before: memory in use on each GPU before the run, in bytes, by UUID; by default that in use now.
    """

    def __init__(self, uuid: str | None, origin: float, memory_before: Mapping[str, int] | None = None) -> None:
        self.activities: dict[str, Activity] = {}
        """By name, over the run's time: shares in 0..1, bytes, or bytes a second."""
        self._sums = _Sums()
        self._origin = origin
        self._gpu = None if uuid is None else _Gpu.open(uuid)
        self._memory_before = 0
        if self._gpu is not None:
            before = {**memory_in_use(self._gpu.nvml), **(memory_before or {})}
            self._memory_before = before.get(self._gpu.uuid, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-watch", daemon=True)

    def __enter__(self) -> GpuWatch:
        if self._gpu is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._gpu is not None
        before = time.perf_counter()
        while not self._stop.wait(_INTERVAL_SECONDS):
            reading, now = self._gpu.read(), time.perf_counter()
            for name, value in reading.items():
                self.activities.setdefault(name, Activity(self._origin)).add(before, now, value)
            self._sums.add(reading)
            before = now

    @property
    def use(self) -> GpuUse | None:
        """What has been seen; None where there is no GPU or no answer."""
        return self._sums.use(self._memory_before)


class _Sums:
    """Readings, added up: an engine makes them for days."""

    def __init__(self) -> None:
        self._count, self._totals, self._peak = 0, dict[str, float](), 0.0

    def add(self, reading: dict[str, float]) -> None:
        """Add what was read."""
        for name, value in reading.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._peak = max(self._peak, reading.get(MEMORY, 0.0))
        self._count += 1

    def use(self, memory_before: int) -> GpuUse | None:
        """What has been seen so far; None before the first reading."""
        count, totals, peak = self._count, self._totals, int(self._peak)
        if not count:
            return None
        decoder, compute, pcie_in, pcie_out = (
            totals.get(name, 0.0) / count for name in (DECODER, COMPUTE, PCIE_IN, PCIE_OUT)
        )
        return GpuUse(decoder, compute, pcie_in, pcie_out, peak, max(0, peak - memory_before))


class _Gpu:
    """One GPU, as NVML shows it. What its driver does not answer is left out."""

    def __init__(self, nvml: ModuleType, handle: Any, uuid: str) -> None:
        self.nvml, self._handle, self.uuid = nvml, handle, uuid

    @classmethod
    def open(cls, uuid: str) -> _Gpu | None:
        """None where NVML is not installed or does not know the GPU."""
        nvml = open_nvml()
        if nvml is None:
            return None
        try:
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid.encode()), uuid)
        except Exception:
            # A run does not fail because figures about the GPU are missing.
            return None

    def read(self) -> dict[str, float]:
        """What is in use now."""
        nvml, handle, found = self.nvml, self._handle, dict[str, float]()
        with suppress(nvml.NVMLError):
            found[MEMORY] = nvml.nvmlDeviceGetMemoryInfo(handle).used
        with suppress(nvml.NVMLError):
            found[DECODER] = nvml.nvmlDeviceGetDecoderUtilization(handle)[0] / 100
        with suppress(nvml.NVMLError):
            found[COMPUTE] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        for name, counter in ((PCIE_IN, nvml.NVML_PCIE_UTIL_RX_BYTES), (PCIE_OUT, nvml.NVML_PCIE_UTIL_TX_BYTES)):
            with suppress(nvml.NVMLError):
                found[name] = nvml.nvmlDeviceGetPcieThroughput(handle, counter) * 1024.0
        return found
