"""The library that tells how NVIDIA's GPUs are used (NVML), where it is installed."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType


def open_nvml() -> ModuleType | None:
    """NVIDIA's own bindings, ready to be asked; None where they or a driver are missing."""
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
