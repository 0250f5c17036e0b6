"""Runs killed or stopped at random moments: ``python -m tests.kills --runs 300 --stops 200 [--server seaweedfs]``.

A run that is killed is finished by the next. One that is stopped (``SIGSTOP``) for longer than its lease goes on while
another has its version, or has finished it. Meanwhile a reader polls: every version that it sees must have all its
chunks, with the checksums of the manifest. In the end each version must be that of an undisturbed run, and nothing else
may be there.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import obstore  # noqa: F401
import torch  # noqa: F401

# Children are forked from a process that has loaded everything and started no thread.
import caption_extents.job.run  # noqa: F401
from caption_extents import CaptionExtentsError, CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import complete_versions
from caption_extents.storage.manifest import Manifest
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest
from tests.media import Recipe, make_video
from tests.servers import BUCKET, seaweedfs_elsewhere

KEYS = VideoKeys("t1", "v1")
LEASE_SECONDS = 0.5

_forked = multiprocessing.get_context("fork")


def _child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a forked process and give back what it returns."""
    here, there = _forked.Pipe(duplex=False)
    process = _forked.Process(target=lambda: there.send(function(*arguments)))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _run(video: Path, address: str) -> int | str:
    """The version that a run has made, or the class of the error with which it ended."""
    faulthandler.enable()  # one that hangs is ended by a signal that shows where
    try:
        return _version(video, address)
    except CaptionExtentsError as error:
        return type(error).__name__


def _version(video: Path, address: str) -> int:
    result = crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(0, 0, 1, 1), 30.0, store=address, lease_seconds=LEASE_SECONDS
    )
    return result.version


_NUMBER = re.compile(r"(?<=_v|/v)[0-9]+(?=[/.])")


def _content(address: str) -> dict[int, dict[str, object]]:
    """Everything in the store by version, but for what names a run, its version and its time; 0 is for all versions."""
    store = open_store(address)
    content: dict[int, dict[str, object]] = {}
    for key in store.keys("t1/"):
        if key == KEYS.clock or "/temporary/conditions/" in key:
            continue  # what runs share, made when one needs it
        number = _NUMBER.search(key.removeprefix("t1/client/videos/v1").removeprefix("t1/server/videos/v1"))
        version = int(number[0]) if number else 0
        content.setdefault(version, {})[_NUMBER.sub("N", key)] = _comparable(key, store.get(key))
    if store.folder is not None:
        names = [p.name for p in store.folder.rglob("*") if p.is_file()]
        content.setdefault(0, {})["temporary files"] = [name for name in names if "#" in name]
    return content


def _comparable(key: str, data: bytes) -> object:
    if key.endswith(".db.gz"):
        database = open_database(data)
        wanted = ("undecodable_samples FROM run_metadata", "* FROM pair_results", "* FROM captions")
        return [[tuple(row) for row in database.execute(f"SELECT {what}")] for what in wanted]
    if key.endswith("manifest.json"):
        return [(_NUMBER.sub("N", c.key), c.sha256) for c in Manifest.from_json(data).chunks]
    if key.endswith("/claim.json"):
        return json.loads(data).get("state")
    return hashlib.sha256(data).hexdigest()


def _settled_content(address: str) -> dict[int, dict[str, object]]:
    """Once what a run that was killed had asked for last has been done."""
    if complete_versions(open_store(address), KEYS):
        time.sleep(0.5)
    return _content(address)


def _poll(address: str, stop: Any, seen: Any) -> None:
    """Read every version that is there, again and again; ends with 1 at the first incomplete one."""
    store, parent = open_store(address), os.getppid()
    # When its parent has been killed, nobody tells it to stop.
    while not stop.is_set() and os.getppid() == parent:
        for version in complete_versions(store, KEYS):
            for chunk in read_manifest(store, KEYS, version).chunks:
                if hashlib.sha256(store.get(chunk.key)).hexdigest() != chunk.sha256:
                    os._exit(1)
            seen.value += 1
        time.sleep(0.02)


def _kill_once(video: Path, address: str, after_seconds: float) -> str:
    process = _forked.Process(target=_run, args=(video, address))
    process.start()
    process.join(after_seconds)
    if process.exitcode is not None:
        return "finished before"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return "killed"


def _stop_once(video: Path, address: str, after_seconds: float, stop_seconds: float) -> str:
    """Stop a run while another begins; how both end."""
    first, second = _Started(video, address), None
    if first.process.exitcode is None:
        time.sleep(after_seconds)
        first.signal(signal.SIGSTOP)
        second = _Started(video, address)
        time.sleep(stop_seconds)
        first.signal(signal.SIGCONT)
    ends = [run.end() for run in (first, second) if run is not None]
    if "hangs" in ends:
        raise SystemExit(f"a run did not end: {ends}")
    lost = ends.count("LeaseLostError")
    if any(isinstance(end, str) and end != "LeaseLostError" for end in ends) or lost == len(ends):
        raise SystemExit(f"runs ended with {ends}")
    return "stopped, and lost its version" if lost else "stopped, and both ended well"


class _Started:
    """A run in a forked process."""

    def __init__(self, video: Path, address: str) -> None:
        self._here, there = _forked.Pipe(duplex=False)
        self.process = _forked.Process(target=lambda: there.send(_run(video, address)))
        self.process.start()
        there.close()

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def end(self) -> int | str:
        self.process.join(120)
        if self.process.exitcode is None:
            self.signal(signal.SIGABRT)
            self.process.join()
            return "hangs"
        try:
            return self._here.recv()
        except EOFError:
            return f"exit code {self.process.exitcode}"


def kill_and_finish(runs: int, stops: int, seed: int, prefix: str, video: Path) -> Counter[str]:
    """Kill one to three runs of each store, or stop one, at random moments, then finish; what happened, counted."""
    rng, counts = random.Random(seed), Counter[str]()
    started = time.monotonic()
    undisturbed = f"{prefix}/undisturbed"
    _child(_run, video, undisturbed)
    usual_seconds = time.monotonic() - started
    expected = _child(_content, undisturbed)
    killed = stopped = 0
    for number in range(5 * (runs + stops)):
        if killed >= runs and stopped >= stops:
            break
        address = f"{prefix}/{number}"
        stop, seen = _forked.Event(), _forked.Value("i", 0)
        reader = _forked.Process(target=_poll, args=(address, stop, seen), daemon=True)
        reader.start()
        try:
            if killed * stops <= stopped * runs and killed < runs:
                killed += _kill_some(video, address, rng, usual_seconds, expected, counts)
            else:
                counts[_stop_once(video, address, rng.uniform(0.02, usual_seconds), rng.uniform(2.0, 4.0))] += 1
                stopped += 1
            time.sleep(0.1)
        finally:
            stop.set()
            reader.join()
        counts["versions seen by the reader"] += seen.value
        if reader.exitcode:
            raise SystemExit(f"run {number}: a reader saw a version without all its chunks")
        _check(number, _child(_content, address), expected)
        counts["stores equal to an undisturbed run"] += 1
    return counts


def _kill_some(
    video: Path, address: str, rng: random.Random, usual_seconds: float, expected: Any, counts: Counter[str]
) -> int:
    """Kill one to three runs of a store and finish; how many were killed."""
    killed = 0
    for _ in range(rng.choice([1, 1, 2, 3])):
        outcome = _kill_once(video, address, rng.uniform(0.02, usual_seconds))
        counts[outcome] += 1
        killed += outcome == "killed"
        if outcome == "killed" and _child(_settled_content, address) == expected:
            outcome = "killed when all was done"
            counts[outcome] += 1
        if outcome != "killed":
            return killed  # another run would make another version
    version = _child(_run, video, address)
    counts["finished as version 1" if version == 1 else "finished as a new version"] += 1
    return killed


def _check(number: int, content: dict[int, dict[str, object]], expected: dict[int, dict[str, object]]) -> None:
    """All versions are those of an undisturbed run; there are several where runs did not meet."""
    for version, found in content.items():
        wanted = expected[min(version, 1)]
        if found != wanted:
            extra, missing = found.keys() - wanted.keys(), wanted.keys() - found.keys()
            other = sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key])
            differences = [_difference(found[key], wanted[key]) for key in other]
            raise SystemExit(
                f"run {number}: version {version} differs: extra {sorted(extra)}, missing {sorted(missing)}, "
                f"other {other}: {differences}"
            )


def _difference(found: object, wanted: object) -> str:
    """The first place in which two values differ."""
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)) and len(found) == len(wanted):
        at = next(number for number, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        return f"[{at}]{_difference(found[at], wanted[at])}"
    return f": {found!r} and not {wanted!r}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="runs to kill")
    parser.add_argument("--stops", type=int, default=None, help="runs to stop; by default two for each three killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=400, help="of the video")
    parser.add_argument("--server", choices=["folder", "seaweedfs"], default="folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        video = make_video(Recipe("video", pts=tuple(range(arguments.samples)), width=320, height=96), folder)
        if arguments.server == "seaweedfs":
            os.environ.update(stack.enter_context(seaweedfs_elsewhere(folder)).environment())
            prefix = f"s3://{BUCKET}/kills"
        else:
            prefix = str(folder / "kills")
        stops = arguments.runs * 2 // 3 if arguments.stops is None else arguments.stops
        counts = kill_and_finish(arguments.runs, stops, arguments.seed, prefix, video)
    for what, count in counts.items():
        print(f"{count:6d} {what}")
    sys.exit(int(counts["killed"] < arguments.runs))


if __name__ == "__main__":
    main()
