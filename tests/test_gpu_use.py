"""What a GPU's driver tells while a run goes on."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from caption_extents.pipeline import gpu_use
from caption_extents.pipeline.gpu_use import GpuSampler, GpuWatch, memory_in_use, open_nvml
from caption_extents.video.nvdec.driver import device_uuid


class UnansweredError(Exception):
    pass


def driver(**answers: Any) -> ModuleType:
    """A driver's library that answers some questions and refuses the others."""

    def refuse(*_: object) -> None:
        raise UnansweredError

    names = ["Count", "HandleByIndex", "UUID", "MemoryInfo", "DecoderUtilization", "UtilizationRates", "PcieThroughput"]
    library: Any = ModuleType("nvml")
    library.NVMLError = UnansweredError
    library.NVML_PCIE_UTIL_RX_BYTES, library.NVML_PCIE_UTIL_TX_BYTES = 1, 0
    for name in names:
        setattr(library, f"nvmlDeviceGet{name}", answers.get(name, refuse))
    return library  # type: ignore[no-any-return]


def watch(monkeypatch: pytest.MonkeyPatch, library: ModuleType, before: dict[str, int] | None = None) -> GpuWatch:
    monkeypatch.setattr(gpu_use, "_INTERVAL_SECONDS", 0.005)
    monkeypatch.setattr(gpu_use._Gpu, "open", classmethod(lambda cls, uuid: cls(library, None, uuid)))
    read, readings = gpu_use._Gpu.read, []

    def counted(self: gpu_use._Gpu) -> dict[str, float]:
        readings.append(read(self))
        return readings[-1]

    monkeypatch.setattr(gpu_use._Gpu, "read", counted)
    deadline = time.monotonic() + 30
    with GpuSampler("GPU-1").watch(time.perf_counter(), before) as watched:
        while len(readings) < 20 and time.monotonic() < deadline:
            time.sleep(0.005)
    return watched


def test_means_and_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([100, 500, 300])
    shares = iter([0, 100])
    watched = watch(
        monkeypatch,
        driver(
            Count=lambda: 1,
            HandleByIndex=lambda _: None,
            UUID=lambda _: "GPU-1",
            MemoryInfo=lambda _: SimpleNamespace(used=next(used, 300)),
            DecoderUtilization=lambda _: (50, 0),
            UtilizationRates=lambda _: SimpleNamespace(gpu=next(shares, 25)),
            PcieThroughput=lambda _, counter: 3 if counter == 1 else 2,
        ),
    )
    use = watched.use
    assert use is not None
    assert (use.peak_memory_bytes, use.added_memory_bytes) == (500, 400)
    assert use.decoder == pytest.approx(0.5)
    assert 0.2 < use.compute < 0.4
    assert (use.pcie_in_bytes_per_second, use.pcie_out_bytes_per_second) == pytest.approx((3072, 2048))
    assert set(watched.activities) == {"decoder", "compute", "memory", "pcie in", "pcie out"}


def test_memory_counts_from_before_the_decoders_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    library = driver(MemoryInfo=lambda _: SimpleNamespace(used=500))
    use = watch(monkeypatch, library, {"GPU-0": 300, "GPU-1": 100}).use
    assert use is not None
    assert (use.peak_memory_bytes, use.added_memory_bytes) == (500, 400)


def test_memory_in_use_is_told_of_each_gpu_that_answers() -> None:
    def used(handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=handle)

    def uuid(handle: int) -> str:
        if handle == 11:
            raise UnansweredError
        return f"GPU-{handle}"

    library: Any = driver(MemoryInfo=used, Count=lambda: 3, HandleByIndex=lambda index: 10 + index, UUID=uuid)
    assert memory_in_use(library) == {"GPU-10": 10, "GPU-12": 12}
    assert memory_in_use(driver()) == memory_in_use(None) == {}


def test_what_the_driver_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(monkeypatch, driver(DecoderUtilization=lambda _: (20, 0)))
    assert watched.use is not None
    assert watched.use.decoder == pytest.approx(0.2)
    assert watched.use.peak_memory_bytes == 0
    assert set(watched.activities) == {"decoder"}


def test_nothing_is_watched_without_a_gpu() -> None:
    with GpuSampler(None).watch(0.0) as watched:
        pass
    assert watched.use is None
    assert watched.activities == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_tells() -> None:
    pytest.importorskip("pynvml")
    uuid = device_uuid(0)
    assert uuid in memory_in_use(open_nvml())
    with GpuSampler(uuid).watch(time.perf_counter()) as watched:
        time.sleep(0.5)
    assert watched.use is not None
    assert watched.use.peak_memory_bytes > 0
