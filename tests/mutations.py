"""Damaged videos by the thousand: ``python -m tests.mutations --count 2000``.

A seeded script flips bits, cuts, splices and swaps headers of made videos in many containers and codecs, and runs the
whole job on each in a worker process. No file may crash the process, keep it for 20 seconds without progress, leave it
more than 200 MB larger, raise anything but the package's own errors, or write outside its prefix. Prints how
each ended.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from caption_extents.storage.folder import LOCK_NAME
from tests.media import Recipe, make_video

MAX_SECONDS = 20.0
STARTING_SECONDS = 40.0
MAX_GROWTH_BYTES = 200 << 20

FRAMES = tuple(range(60))
RECIPES = [
    Recipe("h264-mp4", "mp4", pts=FRAMES, options={"bf": "2", "g": "15"}),
    Recipe("h264-fragmented", "mp4", pts=FRAMES, muxer_options={"movflags": "frag_keyframe+empty_moov"}),
    Recipe("h264-ts", "ts", pts=FRAMES, options={"g": "15"}),
    Recipe("h264-flv", "flv", pts=FRAMES, options={"g": "15"}),
    Recipe("hevc-mkv", "mkv", codec="libx265", pts=FRAMES, options={"x265-params": "log-level=none:keyint=15"}),
    Recipe("vp9-webm", "webm", codec="libvpx-vp9", pts=FRAMES, options={"deadline": "realtime", "cpu-used": "8"}),
    Recipe("vp8-webm", "webm", codec="libvpx", pts=FRAMES, options={"deadline": "realtime", "cpu-used": "8"}),
    Recipe("av1-mp4", "mp4", codec="libsvtav1", pts=FRAMES, options={"preset": "12"}),
    Recipe("mpeg4-avi", "avi", codec="mpeg4", pts=FRAMES, options={"bf": "2"}),
    Recipe("mpeg2-ps", "mpg", codec="mpeg2video", pts=FRAMES),
    Recipe("mjpeg-avi", "avi", codec="mjpeg", pts=FRAMES, pixel_format="yuvj420p"),
    Recipe("ffv1-mkv", "mkv", codec="ffv1", pts=FRAMES),
]


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> tuple[str, bytes]:
    """One damaged version of a file, and the kind of damage."""
    changed = bytearray(data)
    kind = rng.choice(["flip few", "flip many", "flip header", "cut", "splice", "swap header", "zero", "repeat"])
    if kind == "flip few":
        for _ in range(rng.randint(1, 20)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "flip many":
        for _ in range(len(changed) // rng.choice([50, 200, 1000]) + 1):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "flip header":
        for _ in range(rng.randint(1, 30)):
            changed[rng.randrange(min(2000, len(changed)))] = rng.randrange(256)
    elif kind == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif kind == "splice":
        other = rng.choice(others)
        start, end = sorted(rng.randrange(len(other)) for _ in range(2))
        at = rng.randrange(len(changed))
        changed[at : at + rng.choice([0, end - start])] = other[start:end]
    elif kind == "swap header":
        size = rng.choice([16, 64, 512, 4096])
        changed[:size] = rng.choice(others)[:size]
    elif kind == "zero":
        start, end = sorted(rng.randrange(len(changed)) for _ in range(2))
        changed[start:end] = bytes(end - start)
    else:
        start, end = sorted(rng.randrange(len(changed)) for _ in range(2))
        changed[end:end] = changed[start:end]
    return kind, bytes(changed)


def cases(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Damaged files: recipe, kind of damage, path."""
    originals = {recipe.name: make_video(recipe, folder) for recipe in RECIPES}
    data = {name: path.read_bytes() for name, path in originals.items()}
    rng = random.Random(seed)
    for number in range(count):
        name = RECIPES[number % len(RECIPES)].name
        kind, damaged = mutate(rng, data[name], list(data.values()))
        path = folder / f"{number:05d}{originals[name].suffix}"
        path.write_bytes(damaged)
        yield name, kind, path


def _held_bytes() -> int:
    """Resident memory, without what Python no longer needs and what the C library keeps for later allocations."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    resident: int = psutil.Process().memory_info().rss
    return resident


def _work(connection: Any, warm_up: tuple[str, str, float]) -> None:
    """A worker: runs the job on each path that it is sent, and says how it ended."""
    import threading

    from caption_extents import CropRegion, InputError, ProcessingError, crop_and_infer_caption_frame_extents

    sending = threading.Lock()

    def still_alive(_: object) -> None:
        with sending:
            connection.send(None)

    job: tuple[str, str, float] | None = warm_up
    while job is not None:
        path, store, share = job
        before = _held_bytes()
        try:
            result = crop_and_infer_caption_frame_extents(
                path,
                "t1",
                "v1",
                CropRegion(0.1, 0.2, 0.9, 0.9),
                store=store,
                max_undecodable_share=share,
                progress=still_alive if job is not warm_up else None,
            )
            ended = "done, samples listed" if result.undecodable_samples else "done"
        except (InputError, ProcessingError) as error:
            ended = type(error).__name__
            if "unexpectedly" in str(error):
                ended = f"UNFORESEEN {error}"
        except BaseException as error:
            ended = f"UNFORESEEN {type(error).__name__}: {error}"
        if job is not warm_up:
            connection.send((ended, _held_bytes() - before))
        job = connection.recv()


class Worker:
    """A process that is started anew after it dies or is too slow."""

    def __init__(self, warm_up: tuple[str, str, float]) -> None:
        self._warm_up = warm_up
        self._process: Any = None
        self._fresh = True

    def run(self, job: tuple[str, str, float]) -> tuple[str, int]:
        """How the job ended, and by how many bytes the process grew."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_work, args=(there, self._warm_up), daemon=True)
            self._process.start()
            self._fresh = True
            there.close()
        self._connection.send(job)
        try:
            # A new process loads for some seconds before it works.
            while self._connection.poll(MAX_SECONDS + (STARTING_SECONDS if self._fresh else 0)):
                self._fresh = False
                ended: tuple[str, int] | None = self._connection.recv()
                if ended is not None:
                    return ended
            self.close(kill=True)
            return "HUNG", 0
        except EOFError:
            code = self._process.exitcode
            self.close(kill=True)
            return f"CRASHED {code}", 0

    def close(self, kill: bool = False) -> None:
        """End the process."""
        if self._process is not None:
            if kill:
                self._process.kill()
            else:
                self._connection.send(None)
            self._process.join()
            self._process = None


def run_all(count: int, seed: int, folder: Path, worker_count: int = 2) -> tuple[Counter[str], list[str], int]:
    """Run the job on ``count`` damaged files; how they ended, what must not happen, and the largest growth in bytes."""
    table: Counter[str] = Counter()
    bad: list[str] = []
    found = list(cases(count, seed, folder))
    store = folder / "stores"
    good = folder / f"{RECIPES[0].name}.{RECIPES[0].container}"
    largest = [0] * worker_count
    workers = [Worker((str(good), str(store / f"warm-{n}"), 0.0)) for n in range(worker_count)]

    def share(number: int) -> None:
        for position in range(number, len(found), worker_count):
            name, kind, path = found[position]
            own = store / str(position)
            ended, growth = workers[number].run((str(path), str(own), 1.0 if position % 2 else 0.01))
            table[f"{name:16} {ended}"] += 1
            largest[number] = max(largest[number], growth)
            if ended.split()[0] in {"HUNG", "CRASHED", "UNFORESEEN"} or growth > MAX_GROWTH_BYTES:
                bad.append(f"{path.name} ({name}, {kind}): {ended}, grew by {growth >> 20} MiB")

    with ThreadPoolExecutor(worker_count) as pool:
        list(pool.map(share, range(worker_count)))
    for worker in workers:
        worker.close()
    expected = {path for _, _, path in found} | {store} | {folder / f"{r.name}.{r.container}" for r in RECIPES}
    bad += [f"written outside: {path}" for path in folder.iterdir() if path not in expected]
    for path in store.rglob("*"):
        relative = path.relative_to(store).parts
        if len(relative) > 1 and relative[1] not in {"t1", LOCK_NAME}:
            bad.append(f"written outside its prefix: {path}")
    return table, bad, max(largest)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="write the damaged files here, and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(exist_ok=True)
        table, bad, growth = run_all(arguments.count, arguments.seed, folder)
    for what in sorted(table):
        print(f"{table[what]:6d} {what}")
    print(f"{sum(table.values())} files, {len(bad)} that did what must not happen; at most {growth >> 20} MiB larger")
    for line in bad:
        print(line)
    sys.exit(int(bool(bad)))


if __name__ == "__main__":
    main()
