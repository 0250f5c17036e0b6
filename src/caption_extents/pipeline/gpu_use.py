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
        added_memory_bytes: that, less what was in use before the run, or if nobody asked then, when it was first asked.
    """

    decoder: float
    compute: float
    pcie_in_bytes_per_second: float
    pcie_out_bytes_per_second: float
    peak_memory_bytes: int
    added_memory_bytes: int


class GpuSampler:
    """Asks a GPU's driver (NVML) ten times a second while somebody watches; one for all runs of a process.

    An answer takes some 40 ms, and the driver gives one at a time: asked for each run, it would answer none in time.
    Only a thread of the sampler waits for it.

    Args:
        uuid: UUID of the GPU; None to measure nothing.
    """

    def __init__(self, uuid: str | None) -> None:
        self._uuid = uuid
        self._gpu: _Gpu | None = None
        self._memory_in_use: int | None = None
        self._watching: list[GpuWatch] = []
        self._is_asking = False
        self._lock = threading.Lock()

    def watch(self, origin: float, memory_before: Mapping[str, int] | None = None) -> GpuWatch:
        """A watch, a context manager.

        Args:
            origin: start of the run, on the clock of ``time.perf_counter``.
            memory_before: memory in use on each GPU before the run, in bytes, by UUID; by default what was read last,
                or is read first.
        """
        before = (memory_before or {}).get(self._uuid or "", self._memory_in_use)
        return GpuWatch(self, origin, before)

    def add(self, watch: GpuWatch) -> None:
        """Tell a watch what is read from now on."""
        if self._uuid is None:
            return
        with self._lock:
            self._watching.append(watch)
            if not self._is_asking:
                self._is_asking = True
                threading.Thread(target=self._ask, args=(self._uuid,), name="gpu-sampler", daemon=True).start()

    def remove(self, watch: GpuWatch) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._watching = [one for one in self._watching if one is not watch]

    def _ask(self, uuid: str) -> None:
        gpu = self._gpu = self._gpu or _Gpu.open(uuid)
        if gpu is None:
            return
        before = time.perf_counter()
        while True:
            time.sleep(_INTERVAL_SECONDS)
            reading, now = gpu.read(), time.perf_counter()
            self._memory_in_use = int(reading.get(MEMORY, 0)) or None
            with self._lock:
                for watch in self._watching:
                    watch.add(before, now, reading)
                if not self._watching:
                    self._is_asking = False
                    return
            before = now


class GpuWatch:
    """What is seen of a GPU during one run; made by :meth:`GpuSampler.watch`."""

    def __init__(self, sampler: GpuSampler, origin: float, memory_before: int | None) -> None:
        self.activities: dict[str, Activity] = {}
        """By name, over the run's time: shares in 0..1, bytes, or bytes a second."""
        self._sampler, self._origin, self._memory_before = sampler, origin, memory_before
        self._sums = _Sums()

    def __enter__(self) -> GpuWatch:
        self._sampler.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.remove(self)

    def add(self, since: float, until: float, reading: dict[str, float]) -> None:
        """Add what was read at the end of some time."""
        for name, value in reading.items():
            self.activities.setdefault(name, Activity(self._origin)).add(since, until, value)
        self._sums.add(reading)

    @property
    def use(self) -> GpuUse | None:
        """What has been seen; None where there is no GPU or no answer."""
        return self._sums.use(self._memory_before)


class _Sums:
    """Readings, added up: an engine makes them for days."""

    def __init__(self) -> None:
        self._count, self._totals = 0, dict[str, float]()
        self._first_memory = self._peak = 0.0

    def add(self, reading: dict[str, float]) -> None:
        """Add what was read."""
        for name, value in reading.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        memory = reading.get(MEMORY, 0.0)
        self._first_memory = self._first_memory or memory
        self._peak = max(self._peak, memory)
        self._count += 1

    def use(self, memory_before: int | None) -> GpuUse | None:
        """What has been seen so far; None before the first reading."""
        count, totals, peak = self._count, self._totals, int(self._peak)
        before = int(self._first_memory) if memory_before is None else memory_before
        if not count:
            return None
        decoder, compute, pcie_in, pcie_out = (
            totals.get(name, 0.0) / count for name in (DECODER, COMPUTE, PCIE_IN, PCIE_OUT)
        )
        return GpuUse(decoder, compute, pcie_in, pcie_out, peak, max(0, peak - before))


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
