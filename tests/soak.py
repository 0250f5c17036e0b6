"""Short runs of all kinds in one process, one after the other: ``python -m tests.soak --runs 2000``.

Some fail in mid-run and are gone on with, some are done by other processes that are killed or stopped at random
moments. Each run must end; no thread, process, descriptor, temporary file or shared memory may be left; and memory must
not grow.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import multiprocessing.util
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from tests.media import Recipe, make_video

LEASE_SECONDS = 0.5
MAX_RUN_SECONDS = 120.0
MAX_GROWTH_BYTES = 48 << 20
"""Of the resident set, from the first quarter of the runs to the last."""
_SETTLE_SECONDS = 8.0

RECIPES = [
    Recipe("h264", pts=tuple(range(36)), options={"bf": "2", "g": "15"}),
    Recipe("ts", "ts", pts=tuple(range(36)), options={"g": "15"}),
    Recipe("vp9", "webm", codec="libvpx-vp9", pts=tuple(range(36)), options={"deadline": "realtime", "cpu-used": "8"}),
    Recipe("avi", "avi", codec="mpeg4", pts=tuple(range(36))),
]


class PlannedError(Exception):
    """Ends a run in the middle."""


def run(video: str, store: str, **options: Any) -> int:
    """One run; its version."""
    from caption_extents import CropRegion, crop_and_infer_caption_frame_extents

    region = CropRegion(0, 0.3, 1, 0.9)
    return crop_and_infer_caption_frame_extents(
        video, "t1", "v1", region, store=store, lease_seconds=LEASE_SECONDS, device="cpu", **options
    ).version


def fails(video: str, store: str) -> None:
    """A run that ends in the middle, which is then gone on with."""
    from caption_extents.errors import ProcessingError
    from caption_extents.pipeline.stages import Upload

    def upload(*_: Any) -> Any:
        raise PlannedError

    with patch.object(Upload, "upload", upload), suppress(ProcessingError):
        run(video, store)
        raise AssertionError("the run should have failed")
    assert run(video, store) == 1


def is_refused(video: str, store: str) -> None:
    """A run of something that is no video."""
    from caption_extents.errors import InputError

    with suppress(InputError):
        run(__file__, store)
        raise AssertionError("the run should have been refused")


def many(video: str, store: str) -> None:
    """A list of videos, in processes of their own."""
    from fractions import Fraction

    from caption_extents.deploy.local import LocalExecutor
    from caption_extents.entries import Entry

    entries = [Entry(video, (0, 0.3, 1, 0.9), f"v{number}", "t1", Fraction(10)) for number in range(3)]
    outcomes = list(LocalExecutor(2).outcomes(entries, {"store": store, "device": "cpu"}))
    assert [outcome.error for outcome in outcomes] == [None] * 3


class Others:
    """Runs in other processes, which can be killed and stopped; forked by one that has loaded everything."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["caption_extents.job.run", "obstore"])

    def _start(self, video: str, store: str) -> Any:
        process = self._context.Process(target=_may_lose, args=(video, store))
        process.start()
        return process

    def killed(self, video: str, store: str) -> None:
        """One that is killed, and gone on with."""
        process = self._start(video, store)
        process.join(self._rng.uniform(0.1, 0.9))
        process.kill()
        process.join()
        process.close()
        assert run(video, store) in {1, 2}

    def stopped(self, video: str, store: str) -> None:
        """One that is stopped while another goes on with its version."""
        process = self._start(video, store)
        process.join(self._rng.uniform(0.1, 0.9))
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(3.0, _continue, (process.pid,)).start()
        run(video, store)
        process.join(MAX_RUN_SECONDS)
        assert process.exitcode is not None, "a run that was stopped does not end"
        process.close()


def _may_lose(video: str, store: str) -> None:
    """A run that another may take over."""
    from caption_extents.errors import LeaseLostError

    with suppress(LeaseLostError):
        run(video, store)


def _continue(process_id: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGCONT)


def kinds(rng: random.Random) -> dict[str, tuple[float, Callable[[str, str], Any]]]:
    """What runs there are, and how often each."""
    others = Others(rng)
    return {
        "pipelined": (6, run),
        "sequential": (4, lambda *a: run(*a, implementation="sequential")),
        "refined": (3, lambda *a: run(*a, refine=True) if "avi" not in a[0] else run(*a)),
        "encoder processes": (2, lambda *a: run(*a, encoder="processes")),
        "isolated": (2, lambda *a: run(*a, isolate=True)),
        "failed, then gone on with": (3, fails),
        "refused": (1, is_refused),
        "killed, then gone on with": (2, others.killed),
        "stopped": (1, others.stopped),
        "a list": (0.1, many),
    }


class Leaks:
    """What this process holds, compared with what it held before."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._before = self._held()

    def _held(self) -> dict[str, set[str]]:
        processes = psutil.Process().children(recursive=True)
        names = {f"{process.pid}" for process in processes if not _is_helper(process)}
        shared = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
        return {
            "threads": {thread.name for thread in threading.enumerate()},
            "processes": names,
            "temporary files": {path.name for path in self._temporary.iterdir()},
            "shared memory": {name for name in shared if not name.startswith(("sem.", "protocol-"))},
        }

    def check(self) -> None:
        """Raise if there is more, once what is ending has ended."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            held = self._held()
            more = {kind: held[kind] - self._before[kind] for kind in held if held[kind] - self._before[kind]}
            if not more:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"left behind: {more}")
            time.sleep(0.2)


def _is_helper(process: psutil.Process) -> bool:
    """Of Python's multiprocessing, one for the whole process."""
    with suppress(psutil.Error):
        return any(name in " ".join(process.cmdline()) for name in ("forkserver", "resource_tracker"))
    return True


def soak(runs: int, seed: int, folder: Path) -> None:
    """All runs; prints how they ended, and what the process held."""
    rng, counts = random.Random(seed), Counter[str]()
    videos = [str(make_video(recipe, folder)) for recipe in RECIPES]
    known = kinds(rng)
    names, weights = list(known), [weight for weight, _ in known.values()]
    multiprocessing.util.get_temp_dir()  # its own, for the whole process
    temporary = folder / "temporary"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    leaks: Leaks | None = None
    process, memory, files, slowest = psutil.Process(), [], [], 0.0
    for number in range(runs):
        # Each kind once first: what is loaded for it then stays.
        name = names[number] if number < len(names) else rng.choices(names, weights)[0]
        store, started = folder / "store", time.monotonic()
        known[name][1](rng.choice(videos), str(store))
        seconds = time.monotonic() - started
        slowest = max(slowest, seconds)
        if seconds > MAX_RUN_SECONDS:
            raise SystemExit(f"run {number} ({name}) took {seconds:.0f} s")
        counts[name] += 1
        shutil.rmtree(store, ignore_errors=True)
        if number >= len(names):
            leaks = leaks or Leaks(temporary)
            leaks.check()
            gc.collect()
            memory.append(process.memory_info().rss)
            files.append(process.num_fds())
        if number % 50 == 0:
            print(f"{number} runs, {process.memory_info().rss >> 20} MiB", file=sys.stderr, flush=True)
    for name, count in counts.items():
        print(f"{count:6d} {name}")
    quarter = max(1, len(memory) // 4)
    first, last = max(memory[:quarter]), max(memory[-quarter:])
    print(
        f"slowest {slowest:.1f} s; at most {max(memory) >> 20} MiB; first quarter {first >> 20}, last {last >> 20} MiB"
    )
    print(f"descriptors: {files[0]} in the beginning, {files[-1]} in the end, at most {max(files)}")
    if last - first > MAX_GROWTH_BYTES:
        raise SystemExit("memory grows")
    if files[-1] > files[0] + 4:
        raise SystemExit("descriptors are left open")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak(arguments.runs, arguments.seed, Path(folder))


if __name__ == "__main__":
    main()
