"""How many cores a process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that the process may run on, which a scheduler or ``taskset`` may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
