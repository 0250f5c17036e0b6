from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.errors import InputError, StoreError, UploadError
from caption_extents.storage.keys import VideoKeys, check_id, check_key
from caption_extents.storage.manifest import ChunkRecord, Manifest, SourceRecord, content_fingerprint
from caption_extents.storage.store import Store, open_store
from caption_extents.storage.versions import claim_version, complete_versions, read_manifest

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
    assert outcomes.count(True) == 1
    assert store.get("claim") == str(outcomes.index(True)).encode()


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


def test_unknown_kinds_of_store() -> None:
    with pytest.raises(StoreError, match="known kind"):
        open_store("ftp://host/x")


def test_versions_are_claimed_alone(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: claim_version(store, KEYS, str(n)), range(8)))
    assert sorted(claim.version for claim in claims) == list(range(1, 9))


def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    with claim_version(store, KEYS, "r") as claim:
        store.put(KEYS.chunk(claim.version, 16, 0), b"x", "video/webm")
        assert complete_versions(store, KEYS) == []
        with pytest.raises(StoreError, match="no complete version"):
            read_manifest(store, KEYS)
        claim.commit(manifest(), b"db")
    assert complete_versions(store, KEYS) == [1]
    assert read_manifest(store, KEYS) == manifest()
    assert store.get(KEYS.database()) == store.get(KEYS.database(1)) == b"db"


def test_an_abandoned_claim_leaves_nothing(store: Store) -> None:
    claim = claim_version(store, KEYS, "r")
    store.put(KEYS.chunk(claim.version, 16, 0), b"x", "video/webm")
    with claim:
        assert len(list(store.keys("t1/"))) == 2
    assert list(store.keys("t1/")) == []


def test_an_older_version_that_finishes_late_does_not_become_the_newest(store: Store) -> None:
    with claim_version(store, KEYS, "slow") as slow:
        with claim_version(store, KEYS, "fast") as fast:
            fast.commit(manifest(2), b"new")
        slow.commit(manifest(1), b"old")
    assert store.get(KEYS.database()) == b"new"
    assert complete_versions(store, KEYS) == [1, 2]


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
