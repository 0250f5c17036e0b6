"""Encoding elsewhere gives the bytes of encoding here, whatever happens to the workers; forecasts and costs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_extents import CropInferResult, CropRegion
from caption_extents.chunks.plan import ChunkAssembler, plan_chunks
from caption_extents.chunks.presets import PRESETS
from caption_extents.encoders.blocks import BLOCK_SAMPLES, BlockAssembler, SampleBlock, pack, unpack
from caption_extents.encoders.tasks import EncodeResult, EncodeTask, run_encode_task
from caption_extents.errors import EncodeError, InputError
from caption_extents.job import run as run_module
from caption_extents.pipeline.analysis import Prices, cost_of_run
from caption_extents.pipeline.forecast import Work
from caption_extents.pipeline.offload import Offload, remove_old_blocks
from caption_extents.pipeline.report import format_metrics
from caption_extents.samples import Planes
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import acquire_version
from caption_extents.storage.store import Store, open_store
from tests.media import Recipe, make_video
from tests.models import QuickModel
from tests.test_pipeline import files, outcome
from tests.test_pipeline import run as run_with

REGION = CropRegion(0, 0.2, 1, 1)
KEYS = VideoKeys("t1", "v1")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 samples at 30 a second: three segments, the last one not full."""
    return make_video(
        Recipe("long", pts=tuple(range(1100)), options={"preset": "ultrafast"}), tmp_path_factory.mktemp("v")
    )


def run(video: Path, store: Path, region: CropRegion = REGION, **options: Any) -> CropInferResult:
    return run_with(video, store, region, **{"model": QuickModel(), "preset": "fast", "frame_rate": 30.0, **options})


def numbered(first: int, count: int) -> Planes:
    """Planes whose pixels are the sample's number, in two bytes."""
    numbers = np.arange(first, first + count)
    y = np.zeros((count, 2, 2), np.uint8)
    y[:, 0, 0], y[:, 0, 1] = numbers % 256, numbers // 256
    chroma = np.zeros((count, 1, 1), np.uint8)
    return y, chroma, chroma.copy()


@settings(max_examples=60)
@given(count=st.integers(1, 1700), batch=st.integers(1, 600))
def test_segments_hold_whole_chunks(count: int, batch: int) -> None:
    assembler, segments = BlockAssembler(), []
    direct = ChunkAssembler()
    expected = []
    for first in range(0, count, batch):
        planes = numbered(first, min(batch, count - first))
        segments += list(assembler.add(first, planes))
        expected += direct.add(first, planes)
    segments += assembler.flush()
    expected += direct.flush()
    assert [segment.first_sample for segment in segments] == list(range(0, count, BLOCK_SAMPLES))
    chunks = {frames.plan: frames.planes for segment in segments for frames in segment.chunks()}
    assert {plan for segment in segments for plan in segment.plans()} == set(chunks)
    assert set(chunks) == set(plan_chunks(count)) == {frames.plan for frames in expected}
    for frames in expected:
        assert all(np.array_equal(a, b) for a, b in zip(frames.planes, chunks[frames.plan], strict=True))


@pytest.mark.parametrize("size", [(16, 16), (56, 1024), (130, 322)])
@pytest.mark.parametrize("kind", ["noise", "still"])
def test_packing_loses_nothing(size: tuple[int, int], kind: str) -> None:
    rng, (height, width), count = np.random.default_rng(1), size, 40
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    y, u, v = (rng.integers(0, 256, (count, *shape), np.uint8) for shape in shapes)
    if kind == "still":
        y[1:], u[1:], v[1:] = y[0], u[0], v[0]
    segment = SampleBlock(512, (y, u, v))
    data = pack(segment)
    again = unpack(data, 512, count)
    assert all(np.array_equal(a, b) for a, b in zip(segment.planes, again.planes, strict=True))
    if kind == "still":
        assert len(data) < (y.nbytes + u.nbytes + v.nbytes) / 5


def test_a_damaged_block_is_an_error() -> None:
    y, u, v = numbered(0, 20)
    large = tuple(np.kron(plane, np.ones((1, 16, 16), np.uint8)) for plane in (y, u, v))
    data = pack(SampleBlock(0, (large[0], large[1], large[2])))
    for damaged in (data[: len(data) // 2], b"", b"no video", data[:400]):
        with pytest.raises(EncodeError, match="block of sample 0"):
            unpack(damaged, 0, 20)
    with pytest.raises(EncodeError, match=r"20 samples, and 19 were sent|damaged"):
        unpack(data, 0, 19)


@dataclass
class PoolWorkers:
    """Workers that are threads; some tasks can be made to fail."""

    count: int = 2
    fail_after: int = 10**9
    name: str = "pool"

    def __post_init__(self) -> None:
        self.tasks: list[EncodeTask] = []
        self._running: list[Future[EncodeResult]] = []
        self._pool = ThreadPoolExecutor(self.count)

    def submit(self, task: EncodeTask) -> Future[EncodeResult]:
        self.tasks.append(task)
        if len(self.tasks) > self.fail_after:
            # What was sent before is done, and has been collected, when this one fails.
            wait(self._running)
            time.sleep(1.0)
            failed: Future[EncodeResult] = Future()
            failed.set_exception(EncodeError("the worker is out of luck"))
            return failed
        self._running.append(self._pool.submit(run_encode_task, task))
        return self._running[-1]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def offloaded(monkeypatch: pytest.MonkeyPatch, workers: PoolWorkers, *arguments: Any, **options: Any) -> Any:
    monkeypatch.setattr(run_module, "open_workers", lambda name, count: workers)
    return run(*arguments, encoder="ray", **options)


def test_offloaded_encoding_gives_the_same_bytes(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = run(video, tmp_path / "here")
    workers = PoolWorkers()
    there = offloaded(monkeypatch, workers, video, tmp_path / "there")
    assert outcome(there, tmp_path / "there") == outcome(here, tmp_path / "here")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert [task.first_sample for task in sorted(workers.tasks, key=lambda task: task.first_sample)] == [0, 512, 1024]
    offload, stage = there.metrics.offload, there.metrics.stages["encoding"]
    assert offload.worker_count == stage.workers == 2
    assert stage.samples == 1100
    assert offload.worker_cpu_seconds > 0
    assert 0 < offload.segment_bytes == there.metrics.stages["upload"].nbytes
    assert "Offloaded    to 2 ray workers" in format_metrics(there.metrics)


def test_a_run_whose_worker_fails_is_finished_by_the_next(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    with pytest.raises(EncodeError, match="out of luck"):
        offloaded(monkeypatch, PoolWorkers(fail_after=2), video, store)
    assert not [name for name in files(store) if "temporary" in name]
    again = PoolWorkers()
    result = offloaded(monkeypatch, again, video, store, lease_seconds=1.0)
    assert len(again.tasks) < 3
    here = run(video, tmp_path / "here")
    assert outcome(result, store) == outcome(here, tmp_path / "here")
    assert files(store) == files(tmp_path / "here")


def test_what_a_dead_run_left_is_removed(video: Path, tmp_path: Path) -> None:
    """By age, because another run may still live; by the run that takes its version over, in the next test."""
    store = open_store(tmp_path)
    lease = acquire_version(store, KEYS, "other inputs")
    segment = KEYS.segment(1, lease.run_id, 0)
    store.put(segment, b"packed samples", "video/x-matroska")
    assert remove_old_blocks(store, KEYS) == 0
    run(video, tmp_path, frame_rate=2.0)
    assert store.exists(segment)
    assert remove_old_blocks(store, KEYS, timedelta(0)) == 1
    assert not store.exists(segment)


def test_what_a_killed_run_left_is_removed_by_the_next(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_below", lambda *_: None)
        with pytest.raises(EncodeError):
            offloaded(patch, PoolWorkers(fail_after=1), video, store)
    left = [name for name in files(store) if "temporary" in name]
    assert left
    # A folder's object is written beside its place first.
    (store / f"{left[0]}#1").write_bytes(b"half a segment")
    run(video, store, lease_seconds=1.0)
    assert not [name for name in files(store) if "temporary" in name]


@pytest.mark.undisturbed
def test_ctrl_c_does_not_wait_for_workers(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    class Stuck(PoolWorkers):
        def submit(self, task: EncodeTask) -> Future[EncodeResult]:
            self.tasks.append(task)
            return Future()

    workers = Stuck()

    def interrupt(progress: Any) -> None:
        if workers.tasks:
            never.set()
            raise RuntimeError("stopped from outside")

    with pytest.raises(Exception, match="stopped"):
        offloaded(monkeypatch, workers, video, tmp_path, progress=interrupt)
    assert never.is_set()
    assert not [name for name in files(tmp_path) if "temporary" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "gpu"}, "encoder 'gpu' is unknown"),
        ({"encoder": "ray", "implementation": "sequential"}, "sequential"),
        ({"encoder": "ray", "store": "memory://"}, "memory"),
    ],
)
def test_encoders_that_cannot_be(options: dict[str, str], message: str, video: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(video, **{"store": tmp_path, **options})  # type: ignore[arg-type]


WORK = Work(
    fixed_wall_seconds=1.0,
    gpu_wall_seconds=0.0,
    pipeline_seconds=10.0,
    encoding_seconds=60.0,
    packing_seconds=1.0,
    segments=20,
    cores=2,
    encoder_workers=4,
    threads_busy=1.85,
    encoded_here=True,
)


def test_forecasts() -> None:
    assert WORK.seconds_here() == pytest.approx(1 + 70 / 2)
    # Eleven CPU seconds on two cores, then one segment's three and a twentieth; or twenty segments on two workers.
    assert WORK.seconds_offloaded(100) == pytest.approx(1 + 5.5 + 3.05)
    assert WORK.seconds_offloaded(2) == pytest.approx(1 + 5.5 / 20 + 30.5)
    assert WORK.seconds_sharing() == pytest.approx(1 + 72 / 2)
    assert WORK.workers_that_keep_up() == 12
    on_gpu = replace(WORK, gpu_wall_seconds=8.0, cores=64)
    assert on_gpu.seconds_here() == pytest.approx(1 + max(8, 60 / 1.85 / 4))
    assert on_gpu.seconds_offloaded(100) == pytest.approx(1 + 8 + 3.05)


@settings(max_examples=100)
@given(workers=st.integers(1, 200), more=st.integers(1, 50), pipeline=st.floats(0.1, 100), encoding=st.floats(0.1, 500))
def test_more_workers_are_never_slower(workers: int, more: int, pipeline: float, encoding: float) -> None:
    work = replace(WORK, pipeline_seconds=pipeline, encoding_seconds=encoding)
    assert work.seconds_offloaded(workers + more) <= work.seconds_offloaded(workers) + 1e-9


def test_costs(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('job = "gpu"\nworker = "core"\n[price_per_hour]\ngpu = 3.6\ncore = 0.36\n')
    prices = Prices.read(path)
    preset = PRESETS["reference"]
    cost = cost_of_run(prices, WORK, preset, total_seconds=100, cpu_seconds=70, on_gpu=True)
    assert (cost.gpu_seconds, cost.cpu_seconds) == (100, 70)
    assert cost.money == pytest.approx(0.1)
    offloaded, *others = cost.alternatives
    assert {other.what for other in others} == {f"preset {name}" for name in PRESETS if name != "reference"}
    (fast,) = (other for other in others if other.what == "preset fast")
    assert offloaded.what == "offloaded to 12 workers"
    assert offloaded.money == pytest.approx((offloaded.seconds * 3.6 + 61 * 0.36) / 3600)
    assert fast.seconds < 36
    there = replace(WORK, encoded_here=False)
    cost = cost_of_run(prices, there, preset, total_seconds=10, cpu_seconds=11, on_gpu=False)
    assert (cost.gpu_seconds, cost.cpu_seconds) == (0, 72)
    assert cost.money == pytest.approx((10 * 3.6 + 61 * 0.36) / 3600)
    assert cost.alternatives[0].what == "encoded here"
    assert cost_of_run(Prices(), WORK, preset, total_seconds=1, cpu_seconds=1, on_gpu=True).money is None


@pytest.mark.parametrize(
    "text", ["[price", 'job = "gpu"', 'job = "gpu"\n[price_per_hour]\ngpu = "much"', 'job="g"\n[price_per_hour]\ng=-1']
)
def test_prices_that_are_none(text: str, video: Path, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"prices\.toml"):
        run(video, tmp_path / "store", prices=path)
    assert files(tmp_path / "store") == []


class Late(Future[Any]):
    """Ends just as the wait for it does."""

    first = True

    def result(self, timeout: float | None = None) -> Any:
        if self.first:
            self.first = False
            self.set_result("the report")
            raise TimeoutError
        return super().result(timeout)


def test_a_report_that_comes_as_the_wait_ends_is_the_result() -> None:
    waiting = object.__new__(Offload)
    waiting._stopping = threading.Event()
    assert waiting._wait(Late()) == "the report"  # type: ignore[comparison-overlap]
    failed: Future[Any] = Future()
    failed.set_exception(TimeoutError("of the worker's own"))
    with pytest.raises(TimeoutError, match="own"):
        waiting._wait(failed)
