"""Work that other threads do for a stage."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from caption_extents.effort import counted, map_counted
from caption_extents.pipeline.clocks import INFERENCE, StageClock


def work(number: int) -> int:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return number * number


def test_a_stage_counts_what_its_threads_do() -> None:
    clock = StageClock(INFERENCE)
    with ThreadPoolExecutor(3) as pool, clock.busy(samples=6):
        assert map_counted(pool, 3, work, range(6)) == [0, 1, 4, 9, 16, 25]
    assert clock.workers == 3
    assert clock.busy_seconds >= clock.thread_seconds - 0.01 >= 0.11


def test_a_stage_that_works_itself_is_one_worker() -> None:
    clock = StageClock(INFERENCE)
    with clock.busy():
        work(1)
    assert clock.workers == 1
    assert clock.busy_seconds >= 0.02


def test_work_of_one_thread_is_not_counted_in_another() -> None:
    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as elsewhere, counted() as here:
        elsewhere.submit(map_counted, pool, 2, work, range(2)).result()
        assert here.seconds == 0
        with counted() as inner:
            map_counted(pool, 2, work, range(2))
        assert inner.thread_seconds == pytest.approx(0.04, abs=0.02)
        assert here.seconds == 0


def test_an_error_in_a_thread_is_raised() -> None:
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        map_counted(pool, 2, lambda number: 1 // number, range(3))
