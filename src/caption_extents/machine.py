"""Cores, memory and CPU time: what a process may use, and what it has used."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from caption_extents.errors import InputError

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Number of cores that this process may use, according to its CPU affinity (as set by ``taskset``) and CPU limits.

    The CPU quota of a container is counted as that number of cores, rounded up: the container may run on all cores, but
    is throttled when its quota is used up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, core_limit())))


def core_limit(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float:
    """CPU quota of the process in cores: the smallest limit of its control group and of the groups above it.

    Args:
        cgroups: mount point of the control groups (version 2, or the ``cpu`` controller of version 1 in a container).
        own: file that names the control group of the process.

    Returns:
        The quota, for example 1.5; infinity if there is no limit.
    """
    return min(_limits(cgroups, own), default=math.inf)


def _limits(cgroups: Path, own: Path) -> Iterator[float]:
    group = PurePosixPath("/")
    with suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                group = PurePosixPath(line.removeprefix("0::"))
    for above in (group, *group.parents):
        with suppress(OSError, ValueError):
            quota, period = (cgroups / above.relative_to("/") / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # "max" is no number, and no limit
    with suppress(OSError, ValueError):
        files = (cgroups / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        quota_us, period_us = (float(file.read_text()) for file in files)
        if quota_us > 0:
            yield quota_us / period_us


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less if its container has a limit."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        machine = _UNKNOWN_MEMORY_BYTES
    limits = [machine]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


_UNKNOWN_MEMORY_BYTES = 8 << 30


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return peak_memory_of("self") or _peak_by_usage()


def peak_memory_of(process: int | str) -> int:
    """Largest resident set of a process so far; 0 where the system does not tell."""
    return _sizes(process, "status", "VmHWM")[0]


def own_peak_memory_of(process: int) -> int:
    """As :func:`peak_memory_of`, but pages shared with other processes, such as libraries, count proportionally.

    Computed from the current resident and proportional set sizes (Rss and Pss).
    """
    resident, in_part = _sizes(process, "smaps_rollup", "Rss", "Pss")
    return max(0, peak_memory_of(process) - (resident - in_part))


def _sizes(process: int | str, file: str, *names: str) -> list[int]:
    """Read named sizes from a file in ``/proc/PID``, in bytes; 0 for those that are missing."""
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        text = ""
    found = [re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in names]
    return [int(size[1]) * 1024 if size else 0 for size in found]


def _peak_by_usage() -> int:
    # Not used on Linux, where ru_maxrss includes the memory of the parent process at the time of the fork.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_seconds_of(process: int) -> float:
    """CPU seconds that a process has taken so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported."""
    return find_spec("torch") is not None


def need_torch(what: str) -> None:
    """Check that PyTorch is installed.

    Raises:
        InputError: it is not; says what needs it.
    """
    if not has_torch():
        raise InputError(f"{what} needs PyTorch, which is not installed: pip install 'caption-extents[gpu]'")
