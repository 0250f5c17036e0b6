from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from caption_extents import machine
from caption_extents.machine import core_limit, usable_cores


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_container_is_limited(tmp_path: Path) -> None:
    own = write(tmp_path / "own", "0::/\n")
    assert core_limit(tmp_path / "none", tmp_path / "nothing") == math.inf
    assert core_limit(tmp_path / "none", own) == math.inf
    write(tmp_path / "groups/cpu.max", "max 100000\n")
    assert core_limit(tmp_path / "groups", own) == math.inf
    write(tmp_path / "groups/cpu.max", "350000 100000\n")
    assert core_limit(tmp_path / "groups", own) == 3.5


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    own = write(tmp_path / "own", "12:cpuset:/other\n0::/pods/one/container\n")
    write(tmp_path / "groups/pods/one/container/cpu.max", "800000 100000\n")
    write(tmp_path / "groups/pods/one/cpu.max", "200000 100000\n")
    write(tmp_path / "groups/pods/cpu.max", "max 100000\n")
    assert core_limit(tmp_path / "groups", own) == 2.0


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    own = write(tmp_path / "own", "3:cpu,cpuacct:/docker/abc\n")
    quota = write(tmp_path / "groups/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "groups/cpu/cpu.cfs_period_us", "100000\n")
    assert core_limit(tmp_path / "groups", own) == math.inf
    quota.write_text("150000\n")
    assert core_limit(tmp_path / "groups", own) == 1.5


@pytest.mark.parametrize(("limit", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (1000.0, 1000), (math.inf, 1000)])
def test_usable_are_the_fewest(limit: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_limit", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000)), raising=False)
    assert usable_cores() == expected
