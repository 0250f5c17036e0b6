"""Encoders in processes beside the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from caption_extents.children import Children
from caption_extents.chunks.encode import ChunkFormat, encode_chunk
from caption_extents.chunks.plan import ChunkFrames, ChunkPlan
from caption_extents.chunks.presets import PRESETS
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.errors import EncodeError
from caption_extents.spawning import ENCODERS
from tests.test_chunks import planes_of

FORM = ChunkFormat(frame_rate=Fraction(10), colour_space=1)


def frames_of(count: int, first: int = 0, **size: int) -> ChunkFrames:
    samples = [first + 16 * index for index in range(count)]
    return ChunkFrames(ChunkPlan(16, tuple(samples)), planes_of(samples, **size))


@pytest.fixture
def processes() -> Iterator[ProcessEncoder]:
    with ProcessEncoder(PRESETS["fast"], ENCODERS + 1) as opened:
        yield opened


@pytest.mark.parametrize("preset", PRESETS)
def test_the_bytes_are_those_of_an_encoder_in_this_process(preset: str) -> None:
    works = [frames_of(count, 512 * count, height=16 * count, width=64) for count in (1, 7, 32)] * 3
    children = Children()
    with ProcessEncoder(PRESETS[preset], ENCODERS + 1, children) as processes, ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda frames: processes.encode(frames, FORM), works))
    for frames, (chunk, effort) in zip(works, done, strict=True):
        assert chunk.plan == frames.plan
        assert chunk.data == encode_chunk(frames, PRESETS[preset], FORM).data
        assert effort.seconds > 0
        assert effort.thread_seconds > 0
    assert children.cpu_seconds >= sum(effort.thread_seconds for _, effort in done) * 0.9
    assert children.peak_memory_bytes > 0


def test_a_process_holds_several_encoders(processes: ProcessEncoder) -> None:
    works = [frames_of(32, 512 * number, height=64, width=640) for number in range(40)]
    with ThreadPoolExecutor(ENCODERS + 1) as pool:
        list(pool.map(lambda frames: processes.encode(frames, FORM), works))
    assert len(children(os.getpid())) == 2


@pytest.mark.undisturbed
@pytest.mark.parametrize("calls", [2, 5])
def test_one_encoder_is_always_at_work_and_never_two(calls: int) -> None:
    works = [frames_of(32, 512 * number, height=128, width=1024) for number in range(10)]
    with ProcessEncoder(PRESETS["fast"], 1) as processes, ThreadPoolExecutor(calls) as pool:
        assert processes.calls == 2
        processes.encode(frames_of(2), FORM)
        started = time.perf_counter()
        done = list(pool.map(lambda frames: processes.encode(frames, FORM), works))
        took = time.perf_counter() - started
        assert len(children(os.getpid())) == 1
    assert took * 0.7 < sum(effort.seconds for _, effort in done) < took


def test_processes_are_there_before_the_first_chunk(processes: ProcessEncoder) -> None:
    processes.start()
    deadline = time.monotonic() + 10
    while len(before := children(os.getpid())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(before) == 2
    with ThreadPoolExecutor(ENCODERS + 1) as pool:
        list(pool.map(lambda number: processes.encode(frames_of(9, number * 512), FORM), range(20)))
    assert children(os.getpid()) == before


def test_planes_that_are_parts_of_others(processes: ProcessEncoder) -> None:
    whole = frames_of(9)
    y, u, v = (np.flip(plane, 0)[::2] for plane in whole.planes)
    part = ChunkFrames(ChunkPlan(16, whole.plan.samples[:5]), (y, u, v))
    assert processes.encode(part, FORM)[0].data == encode_chunk(part, PRESETS["fast"], FORM).data


def test_an_encoder_that_refuses_names_the_chunk_and_goes_on() -> None:
    wrong = replace(PRESETS["fast"], options=MappingProxyType({"deadline": "yesterday"}))
    with ProcessEncoder(wrong, 1) as processes:
        for number in (32, 64):
            with pytest.raises(
                EncodeError, match=rf"chunk {number} of level 16 could not be encoded with preset 'fast'"
            ):
                processes.encode(frames_of(2, number), FORM)


def test_what_nobody_foresaw_is_told_and_ends_nothing(processes: ProcessEncoder) -> None:
    short = ChunkFrames(ChunkPlan(16, (0, 16, 32)), frames_of(2).planes)
    with pytest.raises(EncodeError, match=r"chunk 0 of level 16 could not be encoded: IndexError"):
        processes.encode(short, FORM)
    for number in range(ENCODERS):
        assert processes.encode(frames_of(2, number * 512), FORM)[0].data


def test_a_chunk_whose_encoder_is_killed_is_encoded_by_another(processes: ProcessEncoder) -> None:
    processes.encode(frames_of(2), FORM)
    before = children(os.getpid())
    for child in before:
        os.kill(child, signal.SIGKILL)
    expected = encode_chunk(frames_of(2, 32), PRESETS["fast"], FORM).data
    assert processes.encode(frames_of(2, 32), FORM)[0].data == expected
    assert not set(children(os.getpid())) & set(before)
    works = [frames_of(9, number * 512) for number in range(20)]
    with ThreadPoolExecutor(ENCODERS + 1) as pool:
        list(pool.map(lambda frames: processes.encode(frames, FORM), works))
    assert len(children(os.getpid())) == len(before)


def test_a_chunk_that_kills_its_encoders_is_an_error() -> None:
    large = frames_of(32, 32, height=1024, width=2048)
    with ThreadPoolExecutor(1) as pool, ProcessEncoder(PRESETS["reference"], 1) as processes:
        processes.encode(frames_of(2), FORM)
        work = pool.submit(processes.encode, large, FORM)
        while not work.done():
            time.sleep(0.3)
            for child in children(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        with pytest.raises(EncodeError, match=r"chunk 32 of level 16 .* signal SIGKILL"):
            work.result(20)
        assert processes.encode(frames_of(2), FORM)[0].data


def test_closing_ends_calls_and_processes() -> None:
    large = frames_of(32, height=1024, width=2048)
    with ThreadPoolExecutor(1) as pool, ProcessEncoder(PRESETS["reference"], 1) as processes:
        processes.encode(frames_of(2), FORM)
        work = pool.submit(processes.encode, large, FORM)
        while not work.running():
            time.sleep(0.01)
        time.sleep(0.1)
        processes.close()
        with pytest.raises(EncodeError):
            work.result(5)
        assert children(os.getpid()) == []
        with pytest.raises(EncodeError, match="ended"):
            processes.encode(frames_of(2), FORM)


_PARENT = """
import sys, time
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.chunks.presets import PRESETS, EncoderPreset
from tests.test_encode_process import FORM, frames_of
processes = ProcessEncoder(PRESETS["fast"], 4)
processes.encode(frames_of(2), FORM)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_they_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = children(parent.pid)
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 5
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "encoders.processes" in line]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
