"""The protocol of versions, searched for schedules that break it: ``python -m tests.protocol --pairs 20000``.

Real storage code runs under :mod:`tests.schedules`: runs of one video, ``prune``, corrections, OCR and readers.
The search is exhaustive for one disturbance at any request of any process, and takes a sample of all pairs of them.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from obstore.exceptions import GenericError

from caption_extents.captions.extents import Caption
from caption_extents.errors import CaptionExtentsError, LeaseLostError, ProcessingError, StoreError
from caption_extents.ocr import captions as ocr_captions
from caption_extents.ocr.reader import ReadText
from caption_extents.report import corrections as corrections_module
from caption_extents.report.corrections import Corrections, import_corrections
from caption_extents.results import database as databases
from caption_extents.results.database import build_database, open_database
from caption_extents.storage import claims, folder, leases, objects, versions
from caption_extents.storage.claims import Held
from caption_extents.storage.folder import FolderObjects
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.manifest import ChunkRecord, Manifest, SourceRecord
from caption_extents.storage.objects import CloudObjects
from caption_extents.storage.store import RetryPolicy, Store
from tests.schedules import (
    KINDS,
    PAUSE,
    Plan,
    Process,
    SimulatedEvent,
    SimulatedLock,
    SimulatedStore,
    SimulatedThread,
    Simulation,
    SteppedPath,
    Violation,
)

KEYS = VideoKeys("t", "v")
LEASE_SECONDS = 2.0
CHUNKS = 2
CLOUD, WEAK, FOLDER, NO_LINKS = "cloud", "weak", "folder", "no-links"
"""Kinds of store: one that honours conditional writes, one that ignores them, folders with and without hard links."""
FOLDERS = (FOLDER, NO_LINKS)
_DISTURBANCES = {
    CLOUD: KINDS,
    # A process that stops between looking and writing is what such a store cannot fence.
    WEAK: tuple(kind for kind in KINDS if kind != PAUSE),
    FOLDER: KINDS,
    NO_LINKS: KINDS,
}
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_RETRY = RetryPolicy(seconds=1.0, refused_seconds=1.0, first_pause_seconds=0.01, longest_pause_seconds=0.02)
_VERSION = re.compile(r"(?:cropped_frames|caption_frame_extents)_v(\d+)[/.]")

_METADATA = {
    "cropped_frames_version": 1, "model_version": "m", "model_checkpoint_path": "m", "started_at": "",
    "completed_at": "",
    "total_pairs": 1, "processing_time_seconds": 1.0, "frame_rate": "10", "frame_count": 2, "crop": "", "crop_px": "",
    "source_key": "", "source_fingerprint": "", "encoder_preset": "", "implementation": "", "decoder": "",
    "undecodable_samples": "", "package_version": "", "metrics": "",
}  # fmt: skip


@lru_cache
def run_database(run: str) -> bytes:
    """What a run of this name finds: two captions."""
    rows = [Caption(0.0, 0.5, 0, 5, 0.9), Caption(0.7, 0.9, 7, 9, 0.8)]
    return build_database({**_METADATA, "run_id": run}, np.full((1, 2, 5), 0.2, np.float32), rows)


_with_captions, _with_texts = lru_cache(databases.with_captions), databases.with_texts


@lru_cache
def texts_of(data: bytes) -> dict[tuple[int, int], str | None]:
    """Texts in a database, by extent."""
    rows = open_database(data).execute("SELECT * FROM captions")
    return {(row["start_frame"], row["end_frame"]): row["text"] for row in rows}


@lru_cache
def is_database_of(data: bytes) -> str:
    return str(open_database(data).execute("SELECT run_id FROM run_metadata").fetchone()[0])


class _Pool:
    """As a pool of threads, without threads."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


@dataclass
class World:
    """A simulation of one video's store, and what must be true of it."""

    plan: Plan
    kind: str = CLOUD
    simulation: Simulation = field(init=False)
    backend: SimulatedStore = field(init=False)
    imported: dict[int, str] = field(default_factory=dict)
    """The last correction that was imported into a version, and said to be."""
    removed: set[int] = field(default_factory=set)
    committed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.simulation = Simulation(self.plan, OSError if self.kind in FOLDERS else GenericError)
        self.cloud = SimulatedStore(self.simulation, self.kind == CLOUD, self._check_change)
        self.root = Path(tempfile.mkdtemp(prefix="protocol-", dir=_MEMORY)) if self.kind in FOLDERS else None
        place = SimpleNamespace(
            simulation=self.simulation, root=self.root, links=self.kind != NO_LINKS, on_change=self._check_change
        )
        self._path = type("WorldPath", (SteppedPath,), {"world": place})

    def store(self) -> Store:
        """As each process opens it."""
        if self.root is not None:
            return Store(FolderObjects(self._path(self.root)), _RETRY)
        return Store(CloudObjects(self.cloud, "sim://", conditional=True if self.kind == CLOUD else None), _RETRY)

    def object(self, key: str) -> bytes | None:
        """An object, without a step."""
        if self.root is not None:
            path = self.root / key
            return path.read_bytes() if path.exists() else None
        found = self.cloud.objects.get(key)
        return found.data if found else None

    def is_complete(self, version: int) -> bool:
        return self.object(KEYS.manifest(version)) is not None

    def _check_change(self, key: str, data: bytes | None) -> None:
        found = _VERSION.search(key)
        if found is None or not self.is_complete(version := int(found[1])):
            return
        there = self.object(key)
        who = self._who()
        if data is None:
            if not who.startswith("prune"):
                raise Violation(f"{who} removes {key} of a complete version")
        elif (
            there is not None
            and there != data
            and not (key == KEYS.database(version) and who.startswith(("correct", "ocr")))
        ):
            raise Violation(f"{who} overwrites {key} of a complete version")

    def _who(self) -> str:
        from greenlet import getcurrent

        process = getattr(getcurrent(), "process", None)
        return process.name if process else "nobody"

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The program's threads, clock and requests are the simulation's."""
        simulation = self.simulation
        threads = SimpleNamespace(
            Lock=lambda: SimulatedLock(simulation),
            Event=lambda: SimulatedEvent(simulation),
            Thread=lambda target, **_: SimulatedThread(simulation, target),
        )
        lock = SimulatedLock(simulation)
        file_lock = SimpleNamespace(
            acquire=lock.__enter__,
            release=lock.__exit__,
        )

        with ExitStack() as stack:
            for target, name, new in (
                (objects, "obstore", self.cloud),
                (leases, "ThreadPoolExecutor", _Pool),
                (claims, "ThreadPoolExecutor", _Pool),
                (leases, "threading", threads),
                (folder, "threading", threads),
                (folder, "FileLock", lambda *_, **__: file_lock),
                (corrections_module, "with_captions", lambda data, rows: _with_captions(data, tuple(rows))),
                (ocr_captions, "caption_picture", lambda *_: None),
                (ocr_captions, "SampleReader", lambda *_: None),
                (ocr_captions, "Watchdog", lambda: SimpleNamespace(call=lambda what, function: function())),
            ):
                stack.enter_context(patch.object(target, name, new))
            stack.enter_context(simulation.clock())
            yield

    # What processes do.

    def run(self, inputs: str = "inputs", seconds: float = 1.5, fails: bool = False) -> Callable[[], int]:
        """A job: claims, stores chunks, commits, unless it fails before; its version."""

        def work() -> int:
            store = self.store()
            lease = leases.acquire_version(store, KEYS, inputs, lease_seconds=LEASE_SECONDS)
            with lease:
                records = []
                for number in range(CHUNKS):
                    time.sleep(seconds / CHUNKS)
                    key, data = KEYS.chunk(lease.version, 16, 512 * number), f"{inputs} {number}".encode()
                    record = ChunkRecord(key, 16, (512 * number,), len(data), hashlib.sha256(data).hexdigest())
                    records.append(record)
                    if (16, 512 * number) not in lease.done:
                        lease.record(record, lease.store_chunk(key, data, "video/webm"))
                if fails:
                    raise ProcessingError("planned: the run failed")
                lease.commit(_manifest(lease.version, lease.run_id, records), run_database(lease.run_id))
            self._note_commit(lease)
            return lease.version

        return work

    def _note_commit(self, lease: Any) -> None:
        if self.committed.setdefault(lease.version, lease.run_id) != lease.run_id:
            raise Violation(f"version {lease.version} was committed by two runs")

    def correct(self, text: str) -> Callable[[], None]:
        """A person exports a version's captions once there is one, corrects one, and imports them."""

        def work() -> None:
            store = self.store()
            manifest = self._wait_for_version(store)
            rows = [Caption(0.0, 0.5, 0, 5, 1.0, text)]
            corrections = Corrections(KEYS, manifest.version, manifest.run_id, rows)
            import_corrections(store, corrections)
            self.imported[manifest.version] = text

        return work

    def ocr(self) -> Callable[[], None]:
        """Texts are read and written for the newest version, once there is one."""

        def work() -> None:
            store = self.store()
            version = self._wait_for_version(store).version
            reader = SimpleNamespace(read=lambda _: ReadText("read", 0.9))
            ocr_captions.store_texts(store, KEYS, reader, version)  # type: ignore[arg-type]

        return work

    def prune(self, keep: int | None = None, wait: float = 0.0) -> Callable[[], None]:
        """``prune``, after a while."""

        def work() -> None:
            time.sleep(wait)
            store = self.store()
            for state in versions.prunable_versions(store, KEYS, keep):
                self.removed.add(state.version)
                try:
                    versions.remove_version(store, KEYS, state.version, state.state)
                except StoreError:
                    if self.is_complete(state.version):
                        self.removed.discard(state.version)

        return work

    def read(self, times: int = 6) -> Callable[[], None]:
        """A reader that looks at all versions again and again."""

        def work() -> None:
            store = self.store()
            for _ in range(times):
                time.sleep(0.7)
                for version in leases.complete_versions(store, KEYS):
                    self.check_whole(store, version)

        return work

    def _wait_for_version(self, store: Store) -> Manifest:
        for _ in range(40):
            if leases.complete_versions(store, KEYS):
                break
            time.sleep(0.5)
        return versions.read_manifest(store, KEYS)

    def check_whole(self, store: Store, version: int) -> None:
        """A complete version has everything that its manifest names, unless it was removed meanwhile."""
        try:
            manifest = versions.read_manifest(store, KEYS, version)
            for chunk in manifest.chunks:
                if hashlib.sha256(store.get(chunk.key)).hexdigest() != chunk.sha256:
                    raise Violation(f"version {version}: {chunk.key} is not what the manifest says")
            open_database(store.get(KEYS.database(version)))
        except StoreError as error:
            if self.is_complete(version):
                raise Violation(f"a reader sees half of version {version}: {error}") from error

    # What must be true in the end.

    def check_ends(self) -> None:
        """Whoever nothing has happened to has done what it began; a mended store is whole."""
        for process in self.simulation.processes:
            error = process.error
            if error is None or process.dead:
                continue
            if isinstance(error, Violation):
                raise error
            if not isinstance(error, CaptionExtentsError):
                raise Violation(f"{process.name} ends with {error!r}") from error
            if isinstance(error, LeaseLostError) and not process.disturbed:
                raise Violation(f"{process.name} lost its version, and lived all the time")
            if not isinstance(error, LeaseLostError) and not self._excused(process, error):
                raise Violation(f"{process.name} failed: {error}") from error
        self._check_corrections()

    def _excused(self, process: Process, error: CaptionExtentsError) -> bool:
        message = str(error)
        if "planned" in message or ("has been removed since" in message and process.disturbed):
            return True
        # What was removed cannot be corrected, and where no run has ended there is nothing to correct.
        nothing = "no complete version" in message or "has no versions" in message
        return nothing and process.name.startswith(("correct", "ocr"))

    def _check_corrections(self) -> None:
        for version, text in self.imported.items():
            if not self.is_complete(version):
                if version not in self.removed:
                    raise Violation(f"version {version}, which was corrected, is gone")
                continue
            data = self.object(KEYS.database(version))
            assert data is not None
            if text not in texts_of(data).values():
                raise Violation(f"the correction {text!r} of version {version} is lost")

    def heal(self) -> None:
        """A run that nobody disturbs ends well, and so does pruning; then nothing is left but complete versions."""
        self.plan.clear()
        self.simulation.processes.clear()
        self.simulation._order.clear()
        last = self.simulation.start("healer", self.run())
        self.simulation.run()
        if last.error is not None:
            raise Violation(f"a run that nobody disturbs fails: {last.error}") from last.error
        store = self.store()
        self.simulation.now += 100.0
        for state in versions.prunable_versions(store, KEYS):
            versions.remove_version(store, KEYS, state.version, state.state)
        for state in versions.list_versions(store, KEYS):
            if state.state != claims.COMPLETE:
                raise Violation(f"version {state.version} is {state.state} for ever")
            self.check_whole(store, state.version)
        newest = leases.complete_versions(store, KEYS)[-1]
        if store.get(KEYS.database()) != store.get(KEYS.database(newest)):
            raise Violation("the newest database is not that of the newest version")
        self._check_corrections()


def _manifest(version: int, run_id: str, records: list[ChunkRecord]) -> Manifest:
    source = SourceRecord("a", 1, "f")
    return Manifest(version, run_id, source, (0, 0, 1, 1), (0, 0, 16, 16), "1", "10", 1, "fast", "m", tuple(records))


Scenario = Callable[[World], None]


def two_runs(world: World) -> None:
    """Two runs with the same inputs, corrections and a reader."""
    world.simulation.start("run A", world.run(seconds=5.0))
    world.simulation.start("run B", world.run())
    world.simulation.start("correct", world.correct("corrected"))
    world.simulation.start("read", world.read())


def texts_and_corrections(world: World) -> None:
    """OCR and a person write into the database of one version, while a run makes another."""
    world.simulation.start("run A", world.run(seconds=0.5))
    world.simulation.start("ocr", world.ocr())
    world.simulation.start("correct", world.correct("corrected"))
    world.simulation.start("run B", world.run("other inputs"))


def pruning(world: World) -> None:
    """A run has failed; one with its inputs begins while its version is pruned."""
    world.simulation.start("run A", world.run(fails=True))
    world.simulation.run()
    world.simulation.start("prune", world.prune())
    world.simulation.start("run B", world.run())
    world.simulation.start("correct", world.correct("corrected"))
    world.simulation.start("prune too", world.prune(keep=1, wait=6.0))
    world.simulation.start("run C", world.run("other inputs", seconds=1.0))
    world.simulation.start("read", world.read())


SCENARIOS: dict[str, Scenario] = {f.__name__: f for f in (two_runs, texts_and_corrections, pruning)}


@dataclass
class Found:
    """What a search has seen."""

    schedules: int = 0
    steps: int = 0
    orders: set[int] = field(default_factory=set)
    violations: Counter[str] = field(default_factory=Counter)
    plans: dict[str, tuple[str, Plan]] = field(default_factory=dict)


def play(scenario: Scenario, plan: Plan, kind: str = CLOUD) -> tuple[World, str | None]:
    """One schedule on a kind of store; what it violates."""
    world = World(dict(plan), kind)
    with world.patched():
        try:
            scenario(world)
            world.simulation.run()
            processes = list(world.simulation.processes)
            world.check_ends()
            world.heal()
        except Violation as violation:
            return world, str(violation)
        finally:
            if world.root is not None:
                shutil.rmtree(world.root, ignore_errors=True)
    world.simulation.processes = processes
    return world, None


def _requests(world: World) -> list[tuple[str, int]]:
    return [(process.name, step) for process in world.simulation.processes for step in range(1, process.steps + 1)]


def search(
    name: str, kind: str, pairs: int, seed: int, found: Found, every: int = 1, stop_at_first: bool = False
) -> None:
    """All single disturbances of a scenario on a kind of store, or every n-th of them, and a sample of pairs."""
    scenario, rng, kinds = SCENARIOS[name], random.Random(seed), _DISTURBANCES[kind]

    def look(plan: Plan) -> World | None:
        world, problem = play(scenario, plan, kind)
        _count(found, f"{name}, {kind}", world, plan, problem)
        return world if problem is None else None

    base = look({})
    singles: list[tuple[Plan, list[tuple[str, int]]]] = []
    plans = [{request: what} for request in _requests(base) for what in kinds] if base else []
    for plan in plans[:: max(1, every)]:
        if stop_at_first and found.violations:
            return
        world = look(plan)
        if world is not None:
            singles.append((plan, _requests(world)))
    for _ in range(pairs if singles else 0):
        if stop_at_first and found.violations:
            return
        plan, requests = rng.choice(singles)
        look({**plan, rng.choice(requests): rng.choice(kinds)})


def _count(found: Found, name: str, world: World, plan: Plan, problem: str | None) -> None:
    found.schedules += 1
    found.steps += sum(process.steps for process in world.simulation.processes)
    found.orders.add(hash(tuple((p.name, tuple(p.trace)) for p in world.simulation.processes)))
    if problem is not None:
        kind = re.sub(r"[0-9a-f]{32}|tag-\d+|_\d{10}", "…", problem)
        found.violations[f"{name}: {kind}"] += 1
        found.plans.setdefault(f"{name}: {kind}", (name, plan))


# Faults that this program or others like it had, each as a change of the program that has it again.


def _changes_whatever_is_there(store: Store, keys: VideoKeys, held: Held, **changes: Any) -> Held:
    """A run that was paused in a heartbeat brings its claim back, over that of whoever took over."""
    claim = replace(held.claim, beat=held.claim.beat + 1, **changes)
    return Held(held.version, claim, store.put(keys.claim(held.version), claim.to_json(), "application/json"))


def _ends_at_an_odd_error(lease: leases.VersionLease) -> None:
    """A heartbeat that ends with the first error that nobody thought of, and tells nobody."""
    while not lease._stop.wait(LEASE_SECONDS / 4):
        lease._write_journal(lease.store)
        lease._change(lease.store)


def _looks_and_then_removes(store: Store, keys: VideoKeys, version: int, expected: str | None) -> Held:
    """``prune`` looks whether a version is abandoned, and then removes what another run has taken over since."""
    held = claims.read_claim(store, keys, version)
    assert held is not None
    if claims.ended(store, keys, held) is None:
        raise StoreError("a run is at work on it")
    return held


def _writes_over_what_is_there(store: Store, keys: VideoKeys, version: int, change: Callable[[bytes], bytes]) -> None:
    """Corrections and texts that are written at once: the last takes the other's away."""
    store.put(keys.database(version), change(store.get(keys.database(version))), "application/gzip")
    leases.publish_newest_database(store, keys)


def _publishes_what_it_has_read(store: Store, source: str, target: str) -> bool:
    """A run that was paused in its commit makes a manifest of a version that has been removed since."""
    there = store.read(source)
    if there is not None:
        store.put(target, there.data, "application/json")
    return there is not None


PLANTED: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "claim": ("two_runs", CLOUD, lambda: patch.object(leases, "change_claim", _changes_whatever_is_there)),
    "heartbeat": ("two_runs", CLOUD, lambda: patch.object(leases.VersionLease, "_keep_alive", _ends_at_an_odd_error)),
    "prune": ("pruning", CLOUD, lambda: patch.object(versions, "_claim_for_removal", _looks_and_then_removes)),
    "leftovers": ("pruning", FOLDER, lambda: patch.object(folder, "_try_lock", lambda file: True)),
    "corrections": (
        "texts_and_corrections",
        CLOUD,
        lambda: patch.object(ocr_captions, "change_database", _writes_over_what_is_there),
    ),
    "manifest": ("pruning", CLOUD, lambda: patch.object(Store, "publish", _publishes_what_it_has_read)),
}
"""Each with a scenario and a kind of store that show it."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--plant", choices=PLANTED, help="break the program in this way first: it must be found")
    parser.add_argument("--kind", choices=_DISTURBANCES, action="append", help="of store")
    parser.add_argument("--every", type=int, default=1, help="take only each n-th single disturbance")
    parser.add_argument("--pairs", type=int, default=1000, help="of each scenario and kind")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found, started = Found(), time.monotonic()
    with PLANTED[arguments.plant][2]() if arguments.plant else nullcontext():
        for kind in arguments.kind or _DISTURBANCES:
            for name in arguments.scenario or SCENARIOS:
                search(name, kind, arguments.pairs, arguments.seed, found, arguments.every)
    print(f"{found.schedules} schedules, {len(found.orders)} orders of requests, {found.steps} requests", end=" ")
    print(f"in {time.monotonic() - started:.0f} s; {sum(found.violations.values())} violate the protocol")
    for problem, count in found.violations.most_common():
        print(f"{count:6d} {problem}\n         first by {found.plans[problem][1]}")
    sys.exit(bool(found.violations))


if __name__ == "__main__":
    main()
