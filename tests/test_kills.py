"""A few of the runs that ``python -m tests.kills`` makes; it kills a hundred."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("server", ["folder", "seaweedfs"])
def test_killed_runs_are_finished_by_the_next(server: str) -> None:
    command = [sys.executable, "-m", "tests.kills", "--runs", "3", "--samples", "160", "--server", server]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stores equal to an undisturbed run" in done.stdout
