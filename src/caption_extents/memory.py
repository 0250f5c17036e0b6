"""How much memory and CPU time processes have taken."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return peak_memory_of("self") or _peak_by_usage()


def peak_memory_of(process: int | str) -> int:
    """Largest resident set of a process so far; 0 where the system does not tell."""
    return _sizes(process, "status", "VmHWM")[0]


def own_peak_memory_of(process: int) -> int:
    """As :func:`peak_memory_of`, but of pages that several processes share now, like libraries, only its part."""
    resident, in_part = _sizes(process, "smaps_rollup", "Rss", "Pss")
    return max(0, peak_memory_of(process) - (resident - in_part))


def _sizes(process: int | str, file: str, *names: str) -> list[int]:
    """Sizes out of a file of ``/proc``, in bytes; 0 for what it does not tell."""
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        text = ""
    found = [re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in names]
    return [int(size[1]) * 1024 if size else 0 for size in found]


def _peak_by_usage() -> int:
    # On Linux this would count what a parent held when it started this process.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_seconds_of(process: int) -> float:
    """CPU seconds that a process has taken so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
