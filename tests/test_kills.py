"""A few of the runs that ``python -m tests.kills`` kills and stops, and that ``python -m tests.soak`` does in a row."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("server", ["folder", "seaweedfs"])
def test_killed_and_stopped_runs_lose_nothing(server: str) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.kills",
        "--runs",
        "3",
        "--stops",
        "2",
        "--samples",
        "160",
        "--server",
        server,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stores equal to an undisturbed run" in done.stdout


@pytest.mark.undisturbed
def test_many_runs_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.soak", "--runs", "80"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
