"""Runs killed at random moments, then finished: ``python -m tests.kills --runs 100 [--server seaweedfs]``.

While runs are killed and finished, a reader polls: every version that it sees must have all its chunks, with the
checksums of the manifest. In the end the objects must be those of an undisturbed run, and no others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import obstore  # noqa: F401
import spdl.pipeline  # noqa: F401
import torch  # noqa: F401

# Children are forked from a process that has loaded everything and started no thread.
import caption_extents.pipeline.run  # noqa: F401
from caption_extents import CropRegion, crop_and_infer_caption_frame_extents
from caption_extents.results.database import open_database
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import complete_versions
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


def _run(video: Path, address: str) -> int:
    result = crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(0, 0, 1, 1), 30.0, store=address, lease_seconds=LEASE_SECONDS
    )
    return result.version


def _content(address: str) -> dict[str, object]:
    """Everything in the store, but for what names the run and its time."""
    store = open_store(address)
    content: dict[str, object] = {}
    for key in store.keys("t1/"):
        if key == KEYS.clock or "/temporary/conditions/" in key:
            continue  # what runs share, made when one needs it
        data = store.get(key)
        if key.endswith(".db.gz"):
            database = open_database(data)
            tables = [database.execute(f"SELECT * FROM {name}") for name in ("pair_results", "captions")]
            content[key] = [[tuple(row) for row in table] for table in tables]
        elif key.endswith("manifest.json"):
            content[key] = [(c.key, c.sha256) for c in read_manifest(store, KEYS).chunks]
        elif key.startswith(f"{KEYS.claims}/"):
            claim = json.loads(data)
            content[key] = claim.get("state")
        else:
            content[key] = hashlib.sha256(data).hexdigest()
    if store.folder is not None:
        content["files"] = sorted(
            str(p.relative_to(store.folder)) for p in store.folder.rglob("*") if p.is_file() and p.name != "clock"
        )
    return content


def _settled_content(address: str) -> dict[str, object]:
    """Once what a run that was killed had asked for last, to remove its claim, has been done."""
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


def kill_and_finish(runs: int, seed: int, prefix: str, video: Path) -> Counter[str]:
    """Kill one to three runs of each store at random moments, then finish; what happened, counted."""
    rng, counts = random.Random(seed), Counter[str]()
    started = time.monotonic()
    undisturbed = f"{prefix}/undisturbed"
    _child(_run, video, undisturbed)
    usual_seconds = time.monotonic() - started
    expected = _child(_content, undisturbed)
    killed = 0
    for number in range(5 * runs):
        if killed >= runs:
            break
        address = f"{prefix}/{number}"
        stop, seen = _forked.Event(), _forked.Value("i", 0)
        reader = _forked.Process(target=_poll, args=(address, stop, seen), daemon=True)
        reader.start()
        for _ in range(rng.choice([1, 1, 2, 3])):
            outcome = _kill_once(video, address, rng.uniform(0.02, usual_seconds))
            counts[outcome] += 1
            killed += outcome == "killed"
            if outcome == "killed" and _child(_settled_content, address) == expected:
                outcome = "killed when all was done"
                counts[outcome] += 1
            if outcome != "killed":
                break  # another run would make another version
        if outcome == "killed":
            version = _child(_run, video, address)
            counts["finished as version 1" if version == 1 else "finished as a new version"] += 1
        time.sleep(0.1)
        stop.set()
        reader.join()
        counts["versions seen by the reader"] += seen.value
        if reader.exitcode:
            raise SystemExit(f"run {number}: a reader saw a version without all its chunks")
        content = _child(_content, address)
        if content != expected:
            extra, missing = content.keys() - expected.keys(), expected.keys() - content.keys()
            raise SystemExit(f"run {number}: objects differ: extra {sorted(extra)}, missing {sorted(missing)}")
        counts["stores equal to an undisturbed run"] += 1
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="runs to kill")
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
        counts = kill_and_finish(arguments.runs, arguments.seed, prefix, video)
    for what, count in counts.items():
        print(f"{count:6d} {what}")
    sys.exit(int(counts["killed"] < arguments.runs))


if __name__ == "__main__":
    main()
