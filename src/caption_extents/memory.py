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
    return _kibibytes(process, "status", "VmHWM")


def own_peak_memory_of(process: int) -> int:
    """As :func:`peak_memory_of`, but of pages that several processes share now, like libraries, only its part."""
    shared = _kibibytes(process, "smaps_rollup", "Rss") - _kibibytes(process, "smaps_rollup", "Pss")
    return max(0, peak_memory_of(process) - shared)


def _kibibytes(process: int | str, file: str, name: str) -> int:
    """A size out of a file of ``/proc``, in bytes."""
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


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
