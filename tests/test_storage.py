from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from caption_extents.errors import InputError, LeaseLostError, StoreAccessError, StoreError, UploadError
from caption_extents.options import check_id
from caption_extents.storage import claims, leases
from caption_extents.storage.claims import change_claim, read_claim
from caption_extents.storage.folder import LOCK_NAME
from caption_extents.storage.keys import VideoKeys, check_key
from caption_extents.storage.leases import VersionLease, acquire_version, complete_versions
from caption_extents.storage.manifest import ChunkRecord, Manifest, SourceRecord, content_fingerprint
from caption_extents.storage.objects import CloudObjects
from caption_extents.storage.store import RetryPolicy, Store, open_store
from caption_extents.storage.versions import (
    change_database,
    list_versions,
    prunable_versions,
    read_manifest,
    remove_version,
)

KEYS = VideoKeys("t1", "v1")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store") if request.param == "folder" else "memory://")


def manifest(version: int = 1) -> Manifest:
    return Manifest(
        version=version,
        run_id="r",
        source=SourceRecord("video.mp4", 12, "sampled-sha256:00"),
        crop=(0.1, 0.2, 0.9, 1.0),
        crop_px=(2, 4, 100, 60),
        sample_aspect_ratio="4/3",
        frame_rate="10",
        sample_count=2,
        preset="reference",
        model_version="m",
        chunks=(ChunkRecord("k", 16, (0, 16), 3, "ab"),),
    )


def test_keys_are_the_promised_ones() -> None:
    assert KEYS.chunk(3, 16, 1536) == "t1/client/videos/v1/cropped_frames_v3/modulo_16/chunk_0000001536.webm"
    assert KEYS.manifest(3) == "t1/client/videos/v1/cropped_frames_v3/manifest.json"
    assert KEYS.database(3) == "t1/server/videos/v1/caption_frame_extents_v3.db.gz"
    assert KEYS.database() == "t1/server/videos/v1/caption_frame_extents.db.gz"


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a..b", "a b", "a\n", "x" * 129, "é", "a\x00b"]
)
def test_ids_cannot_climb(bad: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        check_id(bad, "video_id")
    with pytest.raises(InputError):
        VideoKeys(bad, "v")


@given(st.text(max_size=40))
def test_whatever_passes_as_an_id_is_one_part_of_a_key(text: str) -> None:
    try:
        key = VideoKeys(text, text).chunk(1, 1, 1)
    except InputError:
        return
    assert check_key(key).split("/")[0] == text
    assert Path("/root", key).resolve() == Path("/root", key)


@pytest.mark.parametrize("bad", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a\\..\\b", "a/\x00"])
def test_keys_cannot_climb(bad: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        check_key(bad)


def test_put_get_list_delete(store: Store) -> None:
    assert not store.exists("a/b")
    assert list(store.keys("a/")) == []
    with pytest.raises(StoreError, match="no object 'a/b'"):
        store.get("a/b")
    store.put("a/b", b"one", "text/plain")
    store.put("a/b", b"two", "text/plain")
    assert store.get("a/b") == b"two"
    assert store.exists("a/b")
    assert list(store.keys("a/")) == ["a/b"]
    store.delete(["a/b", "a/missing"])
    assert list(store.keys("a/")) == []


def test_create_succeeds_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: store.create("claim", str(n).encode(), "text/plain"), range(16)))
    winners = [n for n, tag in enumerate(outcomes) if tag is not None]
    assert store.get("claim") == str(winners[0]).encode()
    assert len(winners) == 1


def test_replace_succeeds_once_for_each_content(store: Store) -> None:
    tag = store.create("object", b"first", "text/plain")
    assert tag is not None
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: store.replace("object", str(n).encode(), tag, "text/plain"), range(16)))
    winners = [n for n, new in enumerate(outcomes) if new is not None]
    assert store.get("object") == str(winners[0]).encode()
    assert len(winners) == 1
    assert store.replace("missing", b"x", tag, "text/plain") is None


def test_nothing_is_published_once_its_source_is_gone(store: Store) -> None:
    store.put("staged", b"content", "text/plain")
    assert store.publish("staged", "t/visible")
    assert store.get("t/visible") == b"content"
    store.delete(["staged", "t/visible"])
    assert not store.publish("staged", "t/visible")
    assert not store.exists("t/visible")


def test_opening_a_folder_store_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "later"))
    assert not store.exists("x")
    assert not (tmp_path / "later").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        open_store(str(tmp_path / "file"))
    store = open_store(str(tmp_path / "store"))
    store.put("a", b"", "text/plain")
    with pytest.raises(UploadError, match="'a/b'"):
        store.put("a/b", b"", "text/plain")


def test_a_folder_by_its_address(tmp_path: Path) -> None:
    folder = tmp_path / "my results"
    assert "%20" in folder.as_uri()
    assert open_store(folder.as_uri()).folder == folder


def test_missing_credentials_are_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What obstore says outside of AWS's machines, when the environment has no credentials."""

    def ask_the_machine(*_: Any) -> None:
        raise GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 850us")

    store = open_store("memory://", RetryPolicy(seconds=60, refused_seconds=0.2))
    monkeypatch.setattr(store._objects, "get", ask_the_machine)
    began = time.monotonic()
    with pytest.raises(StoreAccessError, match="there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        store.read("t/object")
    assert time.monotonic() - began < 10


def test_unknown_kinds_of_store() -> None:
    with pytest.raises(StoreError, match="known kind"):
        open_store("ftp://host/x")


def test_versions_are_claimed_alone(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda n: acquire_version(store, KEYS, "same", fresh=True), range(8)))
    assert sorted(lease.version for lease in leases) == list(range(1, 9))


def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs") as lease:
        store.put(KEYS.chunk(lease.version, 16, 0), b"x", "video/webm")
        assert complete_versions(store, KEYS) == []
        with pytest.raises(StoreError, match="no complete version"):
            read_manifest(store, KEYS)
        lease.commit(manifest(), b"db")
    assert complete_versions(store, KEYS) == [1]
    assert read_manifest(store, KEYS) == manifest()
    assert store.get(KEYS.database()) == store.get(KEYS.database(1)) == b"db"
    assert_only_claims(store)


def assert_only_claims(store: Store, versions: int = 1) -> None:
    """Nothing is left of the protocol but each version's claim, and the clock."""
    left = {key for key in store.keys(f"{KEYS.claims}/") if key != KEYS.clock}
    assert left == {KEYS.claim(version) for version in range(1, versions + 1)}


def test_a_lease_that_stored_nothing_gives_its_number_back(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs"):
        pass
    with acquire_version(store, KEYS, "others") as lease:
        assert (lease.version, lease.done) == (1, {})
        stored_chunk(store, lease, 0)
    with acquire_version(store, KEYS, "others too") as lease:
        assert lease.version == 2


def stored_chunk(store: Store, lease: VersionLease, sample: int, data: bytes = b"chunk") -> ChunkRecord:
    key = KEYS.chunk(lease.version, 16, sample)
    record = ChunkRecord(key, 16, (sample,), len(data), hashlib.sha256(data).hexdigest())
    lease.record(record, lease.store_chunk(key, data, "video/webm"))
    return record


def test_an_interrupt_while_a_version_is_claimed_leaves_none_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **changes: Any) -> None:
            function(*arguments, **changes)
            raise KeyboardInterrupt

        return change

    for name in ("create_claim", "change_claim"):
        with monkeypatch.context() as patch:
            function = interrupted(getattr(leases, name))
            once = iter([function])
            usual = getattr(leases, name)
            patch.setattr(leases, name, lambda *a, once=once, usual=usual, **c: next(once, usual)(*a, **c))
            with pytest.raises(KeyboardInterrupt):
                acquire_version(store, KEYS, "inputs")
        held = read_claim(store, KEYS, 1)
        assert held is not None
        assert held.claim.state == "released", name


def test_a_failed_run_is_taken_over_at_once(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs") as first:
        records = [stored_chunk(store, first, sample) for sample in (0, 512, 1024)]
    store.put(records[1].key, b"chunK", "video/webm")
    store.delete([records[2].key])
    with acquire_version(store, KEYS, "other inputs") as other:
        assert (other.version, other.done) == (2, {})
    started = time.monotonic()
    with acquire_version(store, KEYS, "inputs") as second:
        assert time.monotonic() - started < 6  # its lease is twice as long
        assert second.version == 1
        assert second.done == {(16, 0): records[0]}
        # What the first has left damaged is written anew.
        assert [stored_chunk(store, second, sample) for sample in (512, 1024)] == records[1:]
        second.commit(manifest(), b"db")
    assert store.get(records[1].key) == b"chunk"
    assert_only_claims(store, 2)


class MortalStore(Store):
    """Answers a number of requests, and then none."""

    lifetime = 10**9

    def _with_retries(self, *arguments: Any, **options: Any) -> Any:
        self.lifetime -= 1
        if self.lifetime < 0:
            raise KeyboardInterrupt
        return super()._with_retries(*arguments, **options)


def test_after_a_run_killed_at_any_request_the_next_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_CLOCK_STEP_SECONDS", 0.0)
    monkeypatch.setattr(VersionLease, "start_heartbeat", lambda self: None)  # requests come from one thread, in order

    def start(store: Store) -> VersionLease:
        return acquire_version(store, KEYS, "inputs", lease_seconds=0.001)

    for lifetime in range(200):
        # Whether it honours conditions is to be found out, as of a server.
        backend = CloudObjects(MemoryStore(), "memory://", conditional=None)
        stored_chunk(Store(backend), start(Store(backend)), 0)
        mortal = MortalStore(backend)
        mortal.lifetime = lifetime
        with suppress(KeyboardInterrupt):
            start(mortal).commit(manifest(), b"db")
        start(Store(backend)).commit(manifest(), b"db")
        if mortal.lifetime >= 0:
            break
        assert_only_claims(Store(backend))
    assert lifetime > 20, "the run should have died at more places"
    assert mortal.lifetime >= 0, "the run should have finished in the end"


def test_a_living_run_is_left_alone(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs", lease_seconds=0.6) as first:
        stored_chunk(store, first, 0)
        time.sleep(1)
        with acquire_version(store, KEYS, "inputs", lease_seconds=0.6) as second:
            assert second.version == 2


def test_a_dead_run_is_taken_over_by_one(store: Store) -> None:
    dead = acquire_version(store, KEYS, "inputs", lease_seconds=0.5)
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda n: acquire_version(store, KEYS, "inputs", lease_seconds=0.5), range(4)))
    for lease in leases:
        lease.__exit__()
    versions = sorted(lease.version for lease in leases)
    assert dead.version == 1
    assert versions[0] == 1
    assert len({lease.version for lease in leases}) == 4


def test_a_run_that_was_taken_over_notices(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs", lease_seconds=0.4) as first:
        stored_chunk(store, first, 0)
        steal(store)
        time.sleep(0.5)
        with pytest.raises(LeaseLostError, match="taken over by another run"):
            stored_chunk(store, first, 16)
    held = read_claim(store, KEYS, 1)
    assert held is not None
    assert held.claim.run_id == "thief"


def steal(store: Store) -> None:
    while (held := read_claim(store, KEYS, 1)) and change_claim(store, KEYS, held, run_id="thief") is None:
        pass


def test_what_another_run_has_stored_is_not_replaced_by_one_that_lost_the_version(store: Store) -> None:
    first = acquire_version(store, KEYS, "inputs", lease_seconds=60)
    record = stored_chunk(store, first, 0, b"of the first")
    steal(store)
    assert stored_chunk(store, first, 0, b"of the first") == record  # it is there already
    with pytest.raises(LeaseLostError):
        stored_chunk(store, first, 0, b"of another size")
    assert store.get(record.key) == b"of the first"


def test_a_run_that_was_taken_over_commits_nothing(store: Store) -> None:
    """It slept, and had nothing to store when it woke."""
    sleeper = acquire_version(store, KEYS, "inputs", lease_seconds=0.2)
    with acquire_version(store, KEYS, "inputs", lease_seconds=0.2) as second:
        assert second.version == 1
        with pytest.raises(LeaseLostError):
            sleeper.commit(manifest(), b"of the sleeper")
        assert not store.exists(KEYS.manifest(1))
        second.commit(manifest(), b"of the second")
    with pytest.raises(LeaseLostError):
        sleeper.commit(manifest(), b"of the sleeper")
    assert store.get(KEYS.database(1)) == b"of the second"
    assert_only_claims(store)


def test_what_was_visible_is_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that died in its commit had finished; a person may have corrected its captions since."""
    dead = acquire_version(store, KEYS, "inputs", lease_seconds=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(leases, "change_claim", _dies_at_last(change_claim))
        with pytest.raises(KeyboardInterrupt):
            dead.commit(manifest(), b"found")
    change_database(store, KEYS, 1, lambda _: b"corrected")
    with acquire_version(store, KEYS, "inputs", lease_seconds=0.2) as second:
        assert second.version == 1
        second.commit(manifest(), b"found")
    assert store.get(KEYS.database(1)) == store.get(KEYS.database()) == b"corrected"
    assert_only_claims(store)


def _dies_at_last(change: Any) -> Any:
    def changing(*arguments: Any, **changes: Any) -> Any:
        if changes.get("state") == claims.COMPLETE:
            raise KeyboardInterrupt
        return change(*arguments, **changes)

    return changing


def test_a_number_is_not_given_twice(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs") as lease:
        stored_chunk(store, lease, 0)
    assert remove_version(store, KEYS, 1, "abandoned") > 0
    assert list_versions(store, KEYS) == []
    with acquire_version(store, KEYS, "inputs") as lease:
        assert lease.version == 2


def test_a_damaged_claim_stands_in_nobodys_way(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs") as lease:
        stored_chunk(store, lease, 0)
    store.put(KEYS.claim(1), b"\0", "application/json")
    with acquire_version(store, KEYS, "inputs") as lease:
        assert lease.version == 2
    assert [s.version for s in prunable_versions(store, KEYS)] == [1, 2]
    assert remove_version(store, KEYS, 1) == 2


def test_what_is_being_written_is_not_removed(store: Store) -> None:
    with acquire_version(store, KEYS, "inputs", lease_seconds=5.0) as lease:
        stored_chunk(store, lease, 0)
        with pytest.raises(StoreError, match="is being written"):
            remove_version(store, KEYS, 1)
        lease.commit(manifest(), b"db")
    with pytest.raises(StoreError, match="has been finished"):
        remove_version(store, KEYS, 1, "abandoned")
    assert remove_version(store, KEYS, 1, "complete") > 1


def test_files_of_people_are_not_leftovers(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("notes #2.txt", "chunk.webm#1"):
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / name).touch()
    store.remove_leftovers("t")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["notes #2.txt"]


@pytest.mark.parametrize("address", ["s3://KEY:abc/def@bucket/x", "az://c/x?sig=SECRET", "s3://KEY:abc@bucket"])
def test_secrets_in_addresses_are_refused_and_not_shown(address: str) -> None:
    with pytest.raises(StoreError, match="carries credentials") as caught:
        open_store(address)
    assert "abc" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_an_older_version_that_finishes_late_does_not_become_the_newest(store: Store) -> None:
    with acquire_version(store, KEYS, "slow") as slow:
        with acquire_version(store, KEYS, "fast") as fast:
            fast.commit(manifest(2), b"new")
        slow.commit(manifest(1), b"old")
    assert store.get(KEYS.database()) == b"new"
    assert complete_versions(store, KEYS) == [1, 2]


def test_states_and_pruning(store: Store) -> None:
    for inputs in ("a", "b"):
        with acquire_version(store, KEYS, inputs) as lease:
            stored_chunk(store, lease, 0)
            lease.commit(manifest(lease.version), b"db")
    with acquire_version(store, KEYS, "c") as failed:
        stored_chunk(store, failed, 0)
    with acquire_version(store, KEYS, "d") as running:
        states = [(s.version, s.state, s.chunk_count) for s in list_versions(store, KEYS)]
        assert states == [(1, "complete", 1), (2, "complete", 1), (3, "abandoned", 1), (4, "running", 0)]
        assert [s.version for s in prunable_versions(store, KEYS)] == [3]
        assert [s.version for s in prunable_versions(store, KEYS, keep=1)] == [1, 3]
        for state in prunable_versions(store, KEYS, keep=1):
            assert remove_version(store, KEYS, state.version) > 0
        assert [(s.version, s.state) for s in list_versions(store, KEYS)] == [(2, "complete"), (4, "running")]
        assert running.version == 4


def test_what_a_late_run_leaves_of_a_removed_version_is_pruned(store: Store) -> None:
    with acquire_version(store, KEYS, "a") as failed:
        stored_chunk(store, failed, 0)
    remove_version(store, KEYS, failed.version)
    assert list_versions(store, KEYS) == []
    store.put(KEYS.chunk(failed.version, 1, 1), b"late", "video/webm")
    assert [(s.version, s.state) for s in list_versions(store, KEYS)] == [(1, "removed")]
    assert [remove_version(store, KEYS, s.version, s.state) for s in prunable_versions(store, KEYS)] == [1]
    assert list_versions(store, KEYS) == []


def test_damaged_manifests_are_errors() -> None:
    good = json.loads(manifest().to_json())
    for damage in (b"{", b"[]", json.dumps({**good, "chunks": 5}).encode(), json.dumps({"format_version": 1}).encode()):
        with pytest.raises(StoreError, match="damaged manifest"):
            Manifest.from_json(damage)
    with pytest.raises(StoreError, match="newer"):
        Manifest.from_json(json.dumps({**good, "format_version": 9}).encode())


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    path, prints = tmp_path / "f", set()
    for content in (b"", b"a", b"b", b"a" * 5_000_000, b"a" * 2_500_000 + b"b" + b"a" * 2_499_999):
        path.write_bytes(content)
        prints.add(content_fingerprint(path))
    assert len(prints) == 5


@pytest.fixture(params=["no links", "no replacing", "neither"])
def poor_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """On a file system without hard links, or whose rename cannot replace a file."""

    def no_link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links")

    def no_replacing(self: Path, target: Path) -> Path:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "there is a file")
        return self.rename(target)

    if request.param != "no replacing":
        monkeypatch.setattr(Path, "hardlink_to", no_link)
    if request.param != "no links":
        monkeypatch.setattr(Path, "replace", no_replacing)
    return open_store(tmp_path / "store")


def test_a_folder_on_a_poor_file_system_works(poor_folder: Store) -> None:
    test_create_succeeds_once(poor_folder)
    test_replace_succeeds_once_for_each_content(poor_folder)
    for inputs in ("a", "b"):
        with acquire_version(poor_folder, KEYS, inputs) as lease:
            stored_chunk(poor_folder, lease, 0)
            lease.commit(manifest(lease.version), inputs.encode())
    assert poor_folder.get(KEYS.database()) == b"b"
    assert complete_versions(poor_folder, KEYS) == [1, 2]
    assert poor_folder.folder is not None
    assert not [path for path in poor_folder.folder.rglob("*#*") if path.is_file()]


def test_a_writer_that_dies_while_it_replaces_loses_nothing(
    poor_folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor_folder.put("t/object", b"old", "text/plain")
    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if target.name == "object":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with suppress(KeyboardInterrupt):
            poor_folder.put("t/object", b"new", "text/plain")
    content = poor_folder.get("t/object")
    assert content in {b"old", b"new"}
    assert poor_folder.keys("t/") == ["t/object"]
    assert poor_folder.exists("t/object")
    assert poor_folder.create("t/object", b"newer", "text/plain") is None
    poor_folder.put("t/object", b"newest", "text/plain")
    assert poor_folder.get("t/object") == b"newest"
    poor_folder.delete(["t/object"])
    assert not poor_folder.exists("t/object")


def test_a_folder_without_locks_works_by_tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("caption_extents.storage.folder.flock", no_locks)
    store = open_store(tmp_path / "store")
    assert not store.honours_conditions("t/x")
    assert "tickets" in store.protocol("t/x")
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda n: acquire_version(store, KEYS, "same", fresh=True), range(4)))
    assert sorted(lease.version for lease in leases) == [1, 2, 3, 4]


def test_live_writers_keep_their_temporary_files(tmp_path: Path) -> None:
    writer, sweeper = open_store(tmp_path), open_store(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / f"dead#{'0' * 12}").touch()
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            sweeper.remove_leftovers("t")

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for number in range(2000):
            writer.put("t/object", bytes(200_000) + bytes([number % 256]), "text/plain")
    finally:
        stop.set()
        thread.join()
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["object"]


def test_a_process_that_keeps_the_lock_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_extents.storage.folder._LOCK_SECONDS", 0.3)
    store = open_store(tmp_path)
    tag = store.put("t/object", b"old", "text/plain")
    with FileLock(tmp_path / LOCK_NAME), pytest.raises(UploadError, match=r"has kept .*lock for 0\.3 s; end the one"):
        store.replace("t/object", b"new", tag, "text/plain")
    assert store.replace("t/object", b"new", tag, "text/plain") is not None


def test_reading_a_folder_writes_nothing(tmp_path: Path) -> None:
    with acquire_version(open_store(tmp_path / "s"), KEYS, "inputs") as lease:
        lease.commit(manifest(), b"db")
    before = sorted(path.name for path in (tmp_path / "s").rglob("*"))
    (tmp_path / "s" / LOCK_NAME).unlink()
    store = open_store(tmp_path / "s")
    assert read_manifest(store, KEYS) == manifest()
    assert [state.state for state in list_versions(store, KEYS)] == ["complete"]
    assert sorted(path.name for path in (tmp_path / "s").rglob("*")) == [name for name in before if name != LOCK_NAME]


def test_a_folder_that_can_only_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a disk takes root")
    try:
        with acquire_version(open_store(disk / "s"), KEYS, "inputs") as lease:
            lease.commit(manifest(), b"db")
        with acquire_version(open_store(disk / "s"), KEYS, "others", lease_seconds=900):
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = open_store(disk / "s")
        assert read_manifest(store, KEYS) == manifest()
        # Whether a run lives cannot be told where nothing can be written.
        assert [state.state for state in list_versions(store, KEYS)] == ["complete", "unfinished"]
        assert prunable_versions(store, KEYS) == []
        for write in (lambda: acquire_version(store, KEYS, "inputs"), lambda: store.put("t/x", b"", "text/plain")):
            with pytest.raises(UploadError, match="Read-only file system"):
                write()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
