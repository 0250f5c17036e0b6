"""How many cores a process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Those that the process may run on, which a scheduler or ``taskset`` may have made fewer than the machine has.

    A container's limit counts as that many cores: it may run on all of them, but is stopped when its share is used up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, core_limit())))


def core_limit(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float:
    """Cores' worth of time that Linux lets the process take, by its control group and those above; infinite without.

    Args:
        cgroups: where control groups are mounted (version 2, or the ``cpu`` controller of version 1 in a container).
        own: names the process's own.
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
