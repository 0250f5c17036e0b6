"""The store's promises on real servers: one that honours conditional writes, one that does not, one that stumbles."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import caption_extents
from caption_extents import CropRegion
from caption_extents.errors import CaptionExtentsError, StoreAccessError, StoreError, UploadError
from caption_extents.pipeline import stages
from caption_extents.storage import download
from caption_extents.storage import store as store_module
from caption_extents.storage.backends import mask_secrets, open_backend
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import acquire_version
from caption_extents.storage.store import RetryPolicy, Store, open_store
from caption_extents.storage.versions import list_versions, read_manifest
from tests.media import Recipe, make_video
from tests.servers import BUCKET, FAULTS, KEY, SECRET, FaultProxy, Server, rclone, seaweedfs

KEYS = VideoKeys("t1", "v1")
QUICK = RetryPolicy(seconds=20, first_pause_seconds=0.02, longest_pause_seconds=0.3)


@pytest.fixture(scope="session")
def honest_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def weak_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def use(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Point the environment at a server; the address of an empty prefix."""
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)
    return f"s3://{BUCKET}/{name}-{time.time_ns()}"


@pytest.fixture(params=["folder", "memory", "honest", "weak"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "memory":
        return "memory://"
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return use(server, monkeypatch, request.node.name.partition("[")[0])


def test_the_contract(address: str, tmp_path: Path) -> None:
    store = open_store(address, QUICK)
    assert store.head("a/b.bin") is None
    with pytest.raises(StoreError, match=r"no object 'a/b\.bin'"):
        store.get("a/b.bin")
    store.put("a/b.bin", b"first", "application/octet-stream")
    store.put("a/b.bin", b"second", "application/octet-stream")
    store.put("a/c/d.bin", bytes(100_000), "application/octet-stream")
    store.put("empty", b"", "application/octet-stream")
    assert store.get("a/b.bin") == b"second"
    assert store.get("empty") == b""
    store.download("a/b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second"
    facts = store.head("a/c/d.bin")
    assert facts is not None
    assert facts.size_bytes == 100_000
    assert sorted(store.keys("a/")) == ["a/b.bin", "a/c/d.bin"]
    assert store.prefixes("a") == ["a/c"]
    store.delete(["a/b.bin", "a/missing"])
    assert list(store.keys("a/")) == ["a/c/d.bin"]


def test_a_download_in_parts(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 50_000)
    store = open_store(address, QUICK)
    data = random.Random(1).randbytes(1_234_567)
    store.put("film.mp4", data, "video/mp4")
    told: list[tuple[int, int]] = []
    store.download("film.mp4", tmp_path / "film.mp4", lambda done, total: told.append((done, total)))
    assert (tmp_path / "film.mp4").read_bytes() == data
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(data), len(data))


def test_a_download_from_a_store_that_stumbles(
    honest_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    data = random.Random(2).randbytes(1_000_000)
    proxy = FaultProxy(honest_server, 0.0)
    with proxy as spoiled:
        store = open_store(use(spoiled, monkeypatch, "stumbles"), QUICK)
        store.put("film.mp4", data, "video/mp4")
        proxy.share = 0.2
        store.download("film.mp4", tmp_path / "film.mp4")
        proxy.share = 0.0
    assert sum(proxy.counts[name] for name in FAULTS) > 3
    assert (tmp_path / "film.mp4").read_bytes() == data


def test_an_object_that_changes_while_it_is_downloaded(
    honest_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    monkeypatch.setattr(download, "AT_ONCE", 1)
    store = open_store(use(honest_server, monkeypatch, "changes"), QUICK)
    store.put("film.mp4", bytes(400_000), "video/mp4")

    def change(done: int, total: int) -> None:
        if done == 20_000:
            store.put("film.mp4", b"x" * 400_000, "video/mp4")

    with pytest.raises(StoreAccessError, match="could not read bytes"):
        store.download("film.mp4", tmp_path / "film.mp4", change)


@pytest.mark.parametrize("size", [400_000, 10_000])
def test_an_object_that_is_removed_while_it_is_downloaded(
    size: int, honest_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 20_000)
    store = open_store(use(honest_server, monkeypatch, "removed"), QUICK)
    store.put("film.mp4", bytes(size), "video/mp4")
    with store.start_download("film.mp4", tmp_path / "film.mp4") as arriving:
        store.delete(["film.mp4"])
        with suppress(CaptionExtentsError):  # all of it may have come before
            arriving.wait()
        if arriving._error is not None:
            assert re.search("was removed from the store while it was read|has no object", str(arriving._error))


def test_a_video_in_the_store(
    short_video: Path, honest_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = use(honest_server, monkeypatch, "keyed")
    open_store(address).put("t1/client/videos/v1/video.mp4", short_video.read_bytes(), "video/mp4")
    seen: list[str] = []
    result = caption_extents.crop_and_infer_caption_frame_extents(
        "t1/client/videos/v1/video.mp4",
        "t1",
        "v1",
        CropRegion(0, 0, 1, 1),
        store=address,
        progress=lambda progress: seen.append(progress.stage),
    )
    assert seen[0] == "download"
    assert read_manifest(open_store(address), KEYS, result.version).source.key == "t1/client/videos/v1/video.mp4"


def test_many_keys_are_listed_once(address: str) -> None:
    store = open_store(address, QUICK)
    names = [f"many/{n:04d}" for n in range(1100 if "s3://" in address else 50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"x", "text/plain"), names))
    assert sorted(store.keys("many/")) == names


def test_versions_are_claimed_alone(address: str) -> None:
    stores = (
        [open_store(address, QUICK)] * 8 if address == "memory://" else [open_store(address, QUICK) for _ in range(8)]
    )
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda store: acquire_version(store, KEYS, "same", fresh=True), stores))
    assert len({lease.version for lease in leases}) == 8


def test_what_each_server_honours(honest_server: Server, weak_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = open_store(use(honest_server, monkeypatch, "probe"))
    assert honest.honours_conditions("t1/first")
    assert open_store(honest.address).honours_conditions("t1/second")
    assert honest.keys("t1/") == ["t1/temporary/conditions/probe"]
    weak = open_store(use(weak_server, monkeypatch, "probe"))
    assert not weak.honours_conditions("t1/first")


def test_content_types_reach_the_server(honest_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import obstore

    address = use(honest_server, monkeypatch, "types")
    video = make_video(Recipe("video"), tmp_path)
    result = caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(0, 0, 1, 1), store=address
    )
    backend = open_backend(address).backend  # type: ignore[attr-defined]
    types = {
        key: obstore.get(backend, key).attributes["Content-Type"]
        for key in (KEYS.chunk(1, 16, 0), KEYS.manifest(1), result.caption_frame_extents_db_key)
    }
    assert list(types.values()) == ["video/webm", "application/json", "application/gzip"]


def run(video: Path, address: str, **options: Any) -> caption_extents.CropInferResult:
    return caption_extents.crop_and_infer_caption_frame_extents(
        str(video), "t1", "v1", CropRegion(0, 0, 1, 1), store=address, **options
    )


def objects(store: Store, version: int = 1) -> dict[str, bytes]:
    """The chunks of a version, by what follows its prefix."""
    prefix = KEYS.cropped_frames(version)
    return {c.key.removeprefix(prefix): store.get(c.key) for c in read_manifest(store, KEYS, version).chunks}


@pytest.fixture(scope="session")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(Recipe("short", pts=tuple(range(240))), tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("kind", ["honest", "weak"])
def test_runs_at_once_never_share_a_version(
    kind: str, count: int, short_video: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = use(request.getfixturevalue(f"{kind}_server"), monkeypatch, f"at-once-{count}")
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(lambda n: run(short_video, address, lease_seconds=3.0), range(count)))
    assert sorted(result.version for result in results) == list(range(1, count + 1))
    store = open_store(address)
    assert [state.state for state in list_versions(store, KEYS)] == ["complete"] * count
    first = objects(store, 1)
    assert all(objects(store, version) == first for version in range(2, count + 1))
    assert lasting(store) == {*_promised(store, count)}


def lasting(store: Store) -> set[str]:
    """Keys of all that is not shared by all runs of a video or a tenant, and made when one needs it."""
    return {key for key in store.keys("t1/") if key != KEYS.clock and "/temporary/conditions/" not in key}


def _promised(store: Store, versions: int) -> Iterator[str]:
    for version in range(1, versions + 1):
        yield from (chunk.key for chunk in read_manifest(store, KEYS, version).chunks)
        yield from (KEYS.manifest(version), KEYS.database(version), KEYS.claim(version))
    yield KEYS.database()


@pytest.mark.parametrize("fault", [*FAULTS, "all"])
def test_a_tenth_of_all_requests_failing_changes_nothing(
    fault: str, short_video: Path, honest_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faults = FAULTS if fault == "all" else (fault,)
    proxy = FaultProxy(honest_server, 0.1 if fault == "all" else 0.3, faults)
    with proxy as spoiled:
        run(short_video, use(spoiled, monkeypatch, f"faults-{fault}"), new_version=True)
        address = use(spoiled, monkeypatch, f"faults2-{fault}")
        run(short_video, address)
    assert sum(proxy.counts[name] for name in faults) > 0
    undisturbed = str(tmp_path / "undisturbed")
    run(short_video, undisturbed)
    use(honest_server, monkeypatch, "")
    store, expected = open_store(address), open_store(undisturbed)
    assert objects(store) == objects(expected)
    assert lasting(store) == lasting(expected)


@pytest.mark.undisturbed
@pytest.mark.parametrize("fault", ["500", "403", "reset"])
def test_a_store_that_always_fails_is_reported_in_time(
    fault: str, honest_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RetryPolicy(seconds=3, refused_seconds=1, first_pause_seconds=0.05, longest_pause_seconds=0.5)
    with FaultProxy(honest_server, 1.0, (fault,)) as dead:
        store = open_store(use(dead, monkeypatch, "dead"), policy)
        started = time.monotonic()
        with pytest.raises(UploadError, match=r"could not write 'a/key' to s3://.* attempts\)") as caught:
            store.put("a/key", b"data", "text/plain")
        assert time.monotonic() - started < 10
        with pytest.raises(StoreAccessError, match="could not list"):
            list(store.keys("a/"))
    assert SECRET not in str(caught.value)


def test_wrong_credentials_say_so(honest_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = use(honest_server, monkeypatch, "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-at-all")
    store = open_store(address, RetryPolicy(refused_seconds=0.5))
    with pytest.raises(UploadError, match="SignatureDoesNotMatch") as caught:
        store.put("a", b"", "text/plain")
    assert "not-the-secret-at-all" not in str(caught.value)


def test_settings_come_from_the_environment() -> None:
    wasabi = {
        "WASABI_ACCESS_KEY_READWRITE": "WASABIKEY",
        "WASABI_SECRET_KEY_READWRITE": "wasabisecret",
        "WASABI_BUCKET": "films",
        "WASABI_REGION": "eu-central-1",
        "AWS_REGION": "us-west-2",
    }
    opened = open_backend("s3://films/some/prefix", wasabi).backend  # type: ignore[attr-defined]
    assert opened.prefix == "some/prefix"
    assert opened.config["endpoint"] == "https://s3.eu-central-1.wasabisys.com"
    assert opened.config["access_key_id"] == "WASABIKEY"
    other = open_backend("s3://others", wasabi).backend  # type: ignore[attr-defined]
    assert other.config["region"] == "us-west-2"
    assert "endpoint" not in other.config


def test_secrets_are_masked() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "WASABI_ACCESS_KEY_READWRITE": KEY, "HOME": "/somewhere"}
    assert mask_secrets(f"{KEY}:{SECRET} in /somewhere", environment) == "***:*** in /somewhere"
    with pytest.raises(StoreError, match="carries credentials") as caught:
        open_store("s3://user:pass@bucket/x")
    assert "pass" not in str(caught.value)


def _breaks_after(proxy: FaultProxy, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the proxy spoil everything once a number of chunks has been uploaded; its heartbeats fail too."""
    original, count = stages.Upload.upload, 0

    def upload(self: stages.Upload, chunk: Any) -> Any:
        nonlocal count
        count += 1
        if count > chunks:
            proxy.share = 1.0
        return original(self, chunk)

    monkeypatch.setattr(stages.Upload, "upload", upload)


GONE, EXPIRED = ("reset", "could not write"), ("403", "AccessDenied")


@pytest.mark.parametrize(("fault", "message"), [GONE, EXPIRED], ids=["gone", "expired"])
def test_a_store_that_goes_away_in_mid_run(
    fault: str, message: str, honest_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    video = make_video(Recipe("video", pts=tuple(range(600))), tmp_path)
    quick = RetryPolicy(seconds=1, refused_seconds=1, first_pause_seconds=0.05, longest_pause_seconds=0.2)
    proxy = FaultProxy(honest_server, 0.0, (fault,))
    with proxy as between, monkeypatch.context() as patch:
        address = use(between, monkeypatch, f"away-{fault}")
        patch.setattr(store_module, "RetryPolicy", lambda: quick)
        _breaks_after(proxy, 3, patch)
        with pytest.raises(UploadError, match=message):
            run(video, address, lease_seconds=1.0)
    use(honest_server, monkeypatch, "")
    store = open_store(address)
    assert [state.state for state in list_versions(store, KEYS)] != ["complete"]
    assert run(video, address, lease_seconds=1.0).version == 1
    undisturbed = str(tmp_path / "undisturbed")
    run(video, undisturbed)
    assert objects(store) == objects(open_store(undisturbed))
    assert lasting(store) == lasting(open_store(undisturbed))


def test_a_full_disk(tmp_path: Path) -> None:
    video = make_video(Recipe("video", pts=tuple(range(600)), width=320, height=180), tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        with pytest.raises(UploadError, match="No space left on device"):
            run(video, str(disk / "store"), lease_seconds=1.0)
        # The full disk cannot take the release of the lease either, so the lease has to run out.
        time.sleep(2.0)
        assert [state.state for state in list_versions(open_store(disk / "store"), KEYS)] == ["abandoned"]
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert run(video, str(disk / "store"), lease_seconds=1.0).version == 1
        run(video, str(tmp_path / "undisturbed"))
        assert objects(open_store(disk / "store")) == objects(open_store(tmp_path / "undisturbed"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
