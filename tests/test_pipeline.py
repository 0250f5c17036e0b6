"""The whole job: both implementations, what they leave behind, and what they do when something breaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import caption_extents
from caption_extents import CropInferResult, CropRegion, InputError, ProcessingError
from caption_extents.chunks import encode as chunk_encoder
from caption_extents.chunks.encode import decode_chunk
from caption_extents.chunks.plan import chunk_of, plan_chunks
from caption_extents.encoders import base as encoders
from caption_extents.errors import DecodeError, EncodeError, UploadError
from caption_extents.model.identity import DEFAULT_WEIGHTS
from caption_extents.model.weights import write_costs
from caption_extents.pipeline import stages
from caption_extents.pipeline.pipelined import _Run
from caption_extents.pipeline.stages import Workers
from caption_extents.results.database import open_database
from caption_extents.storage.folder import LOCK_NAME
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.leases import complete_versions
from caption_extents.storage.store import open_store
from caption_extents.storage.versions import read_manifest
from caption_extents.training.sample_video import CROP
from caption_extents.video.decoders import cpu
from caption_extents.video.decoders.cpu import CpuDecoder
from caption_extents.watchdog import Watchdog
from tests.media import Recipe, make_video, reference_samples
from tests.models import QuickModel
from tests.test_exactness import B_FRAMES, QUICK_VP9, VARIABLE, X265

REGION = CropRegion(*CROP)
IMPLEMENTATIONS = ("sequential", "pipelined")


def run(video: Path, store: Path, region: CropRegion = REGION, **options: Any) -> CropInferResult:
    return caption_extents.crop_and_infer_caption_frame_extents(str(video), "t1", "v1", region, store=store, **options)


def outcome(result: CropInferResult, store: Path) -> dict[str, Any]:
    """All that must not depend on how a run was done."""
    opened = open_store(str(store))
    manifest = read_manifest(opened, VideoKeys("t1", "v1"), result.version)
    database = open_database(opened.get(result.caption_frame_extents_db_key))
    return {
        "chunks": {chunk.key.replace(f"_v{result.version}/", "/"): opened.get(chunk.key) for chunk in manifest.chunks},
        "pairs": [tuple(row) for row in database.execute("SELECT * FROM pair_results ORDER BY frame1_index")],
        "captions": [tuple(row) for row in database.execute("SELECT * FROM captions")],
        "labels": result.label_counts,
        "frames": result.frame_count,
    }


def files(store: Path) -> list[str]:
    """Of a store, without what belongs to all runs."""
    shared = (LOCK_NAME, VideoKeys("t1", "v1").clock)
    found = sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    return [name for name in found if name not in shared]


VIDEOS = [
    (Recipe("h264", pts=tuple(range(200)), options=B_FRAMES, width=320, height=180), Fraction(10)),
    (
        Recipe(
            "hevc",
            "mkv",
            codec="libx265",
            pts=tuple(range(110)),
            rate=Fraction(25),
            time_base=Fraction(1, 25),
            options=X265,
        ),
        10.0,
    ),
    (Recipe("vp9", "webm", codec="libvpx-vp9", pts=tuple(range(70)), options=QUICK_VP9), 12.5),
    (Recipe("variable", "mkv", pts=VARIABLE, time_base=Fraction(1, 1000)), Fraction(30000, 1001)),
    (Recipe("one", pts=(0,)), 10.0),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"encoder_workers": 1, "inference_workers": 1, "decode_threads": 1, "upload_workers": 1, "queue_size": 1},
    {"encoder_workers": 7, "inference_workers": 3, "decode_threads": 3, "queue_size": 9},
    {"encoder_workers": 3, "encoder": "processes"},
]


@pytest.mark.parametrize(("recipe", "rate"), VIDEOS, ids=lambda value: getattr(value, "name", ""))
def test_both_implementations_give_the_same_bytes(recipe: Recipe, rate: Any, tmp_path: Path) -> None:
    video, store = make_video(recipe, tmp_path), tmp_path / "store"
    region = CropRegion(0.0, 0.3, 1.0, 0.9)
    expected = outcome(run(video, store, region, frame_rate=rate, implementation="sequential"), store)
    assert expected["frames"] == len(expected["pairs"]) + 1
    for settings in SETTINGS:
        assert (
            outcome(run(video, store, region, frame_rate=rate, implementation="pipelined", **settings), store)
            == expected
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_captions_are_found(captioned_video: Path, implementation: str, tmp_path: Path) -> None:
    result = run(captioned_video, tmp_path, implementation=implementation)
    database = open_database(open_store(str(tmp_path)).get(result.caption_frame_extents_db_key))
    found = [(row["start_frame"], row["end_frame"]) for row in database.execute("SELECT * FROM captions")]
    truth = [(c["start_frame"], c["end_frame"]) for c in json.loads(captioned_video.with_suffix(".json").read_text())]
    assert len(found) == len(truth) == result.caption_count
    for a, b in zip(found, truth, strict=True):
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1


def test_stored_samples_are_the_source_frames(captioned_video: Path, tmp_path: Path) -> None:
    result = run(captioned_video, tmp_path)
    store = open_store(str(tmp_path))
    manifest = read_manifest(store, VideoKeys("t1", "v1"))
    assert {(c.level, c.samples) for c in manifest.chunks} == {
        (p.level, p.samples) for p in plan_chunks(result.frame_count)
    }
    assert files(tmp_path) == sorted(
        [chunk.key for chunk in manifest.chunks]
        + [getattr(VideoKeys("t1", "v1"), name)(1) for name in ("manifest", "database", "claim")]
        + [VideoKeys("t1", "v1").database()]
    )
    reference = reference_samples(captioned_video, Fraction(10))
    left, top, right, bottom = manifest.crop_px
    decoded = {(c.level, c.samples[0]): decode_chunk(store.get(c.key)) for c in manifest.chunks}
    for sample in range(result.frame_count):
        level, first, position = chunk_of(sample)
        original = reference[sample].planes[0][top:bottom, left:right].astype(float)
        error = np.mean((decoded[level, first][position][0].astype(float) - original) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 30, f"sample {sample}"


def test_metrics_add_up(captioned_video: Path, tmp_path: Path) -> None:
    result = run(captioned_video, tmp_path, price_per_hour=3.6)
    metrics = result.metrics
    for stage in metrics.stages.values():
        assert stage.samples == result.frame_count
        assert 0 < stage.busy_seconds <= stage.time_seconds * stage.workers * 1.01
    assert metrics.stages["inference"].items == result.frame_count - 1
    assert (
        metrics.stages["encoding"].items == metrics.stages["upload"].items == len(list(plan_chunks(result.frame_count)))
    )
    assert metrics.overlap.bottleneck in metrics.stages
    assert metrics.cost.money == pytest.approx(metrics.total_seconds / 1000)
    assert json.loads(json.dumps(result.to_dict()))["metrics"]["stages"]["upload"]["nbytes"] > 1000


@pytest.mark.undisturbed
def test_waits_tell_who_waits_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(Recipe("many", pts=tuple(range(500))), tmp_path)
    quick = chunk_encoder.encode_chunk

    def slow(*arguments: Any) -> Any:
        time.sleep(0.9)
        return quick(*arguments)

    monkeypatch.setattr(encoders, "encode_chunk", slow)
    # With the package's model, a busy machine's inference may take as long as this encoder.
    options: dict[str, Any] = {"frame_rate": 30.0, "encoder_workers": 1, "queue_size": 1, "model": QuickModel()}
    metrics = run(video, tmp_path / "store", CropRegion(0, 0, 1, 1), **options).metrics
    assert metrics.overlap.bottleneck == "encoding"
    assert "encoding is" in metrics.overlap.advice
    extraction, inference, encoding, upload = (
        metrics.stages[n] for n in ("extraction", "inference", "encoding", "upload")
    )
    assert extraction.wait_room_seconds > 0.3
    assert inference.wait_room_seconds == 0
    assert inference.wait_input_seconds > 0.3
    assert encoding.wait_room_seconds < 0.3
    assert upload.wait_input_seconds > 1


@pytest.mark.undisturbed
def test_encoders_do_not_wait_for_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(Recipe("many", pts=tuple(range(200))), tmp_path)
    encoded, quick = threading.Event(), chunk_encoder.encode_chunk

    def encode(*arguments: Any) -> Any:
        encoded.set()
        return quick(*arguments)

    class Waiting(QuickModel):
        def embed(self, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            assert encoded.wait(30)
            return super().embed(y, u, v)

    monkeypatch.setattr(encoders, "encode_chunk", encode)
    result = run(video, tmp_path / "store", CropRegion(0, 0, 1, 1), frame_rate=30.0, queue_size=1, model=Waiting())
    assert result.frame_count == 200


def test_costs_of_the_weights_decide_where_captions_end(captioned_video: Path, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    shutil.copyfile(DEFAULT_WEIGHTS, weights)
    write_costs(weights, dict.fromkeys(("different", "appear", "disappear"), 1000.0))
    assert run(captioned_video, tmp_path / "a", model=weights).caption_count <= 1
    assert run(captioned_video, tmp_path / "b").caption_count > 1


def test_progress_reaches_the_end(captioned_video: Path, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    result = run(captioned_video, tmp_path, progress=lambda p: seen.setdefault(p.stage, []).append(p.done))
    assert {stage: max(done) for stage, done in seen.items()} == dict.fromkeys(seen, result.frame_count)
    assert set(seen) == {"extraction", "inference", "encoding", "upload"}


def test_versions_count_up(captioned_video: Path, tmp_path: Path) -> None:
    video = make_video(Recipe("short"), tmp_path)
    region = CropRegion(0, 0, 1, 1)
    assert [run(video, tmp_path / "store", region).version for _ in range(3)] == [1, 2, 3]


def _fails_after(function: Callable[..., Any], calls: int, error: Exception) -> Callable[..., Any]:
    count = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise error
        return function(*args, **kwargs)

    return failing


@dataclass(frozen=True)
class Undisturbed:
    """A video, and what a run that nothing happens to makes of it."""

    video: Path
    region: CropRegion
    outcome: dict[str, Any]
    files: list[str]

    @classmethod
    def run(cls, video: Path, region: CropRegion, store: Path) -> Undisturbed:
        return cls(video, region, outcome(run(video, store, region), store), files(store))

    def assert_is_finished_in(self, store: Path) -> None:
        assert outcome(run(self.video, store, self.region, lease_seconds=1.0), store) == self.outcome
        assert files(store) == self.files


@pytest.fixture(scope="session")
def captioned(captioned_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.run(captioned_video, REGION, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("long")
    recipe = Recipe("long", pts=tuple(range(900)), width=640, height=360, options={"preset": "ultrafast"})
    return Undisturbed.run(make_video(recipe, folder), CropRegion(0, 0.6, 1, 1), folder / "store")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("target", "name", "error", "expected"),
    [
        (encoders, "encode_chunk", EncodeError("chunk 7 is bad"), EncodeError),
        (stages.Upload, "upload", UploadError("the store is gone"), UploadError),
        (cpu, "crop_planes", DecodeError("frame is bad"), DecodeError),
        (stages.Inference, "infer", MemoryError("too large"), ProcessingError),
    ],
    ids=["encode", "upload", "decode", "unforeseen"],
)
def test_a_failing_stage_stops_the_run_which_can_be_finished(
    implementation: str,
    target: Any,
    name: str,
    error: Exception,
    expected: type[Exception],
    captioned: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target, name, _fails_after(getattr(target, name), 2, error))
    store = tmp_path / "store"
    with pytest.raises(expected, match=str(error)):
        run(captioned.video, store, implementation=implementation)
    assert complete_versions(open_store(store), VideoKeys("t1", "v1")) == []
    monkeypatch.undo()
    captioned.assert_is_finished_in(store)


def test_all_threads_that_wait_for_items_see_that_the_run_has_stopped() -> None:
    """Also where they are more than their queue has room for."""
    stages: Any = SimpleNamespace(workers=Workers(queue_size=1), watchdog=Watchdog())
    run, gate = _Run(stages), threading.Event()
    step = run._step("encode", 8, lambda item: gate.wait(10))
    while len(step._threads) < 8:
        step.put(None)
        time.sleep(0.02)
    gate.set()
    deadline = time.monotonic() + 10
    while step._idle < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert step._idle == 8
    run.stopped.set()
    step.wake()
    for thread in step._threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in step._threads)


@pytest.mark.parametrize("error", [DecodeError("the video is damaged"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_run_ends_when_decoding_fails_while_encoders_are_behind(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full queue before them, in which another thread waits for room."""
    video = make_video(Recipe("many", pts=tuple(range(600))), tmp_path)
    over, quick = threading.Event(), chunk_encoder.encode_chunk

    def slow(*arguments: Any) -> Any:
        over.wait(60)
        return quick(*arguments)

    monkeypatch.setattr(encoders, "encode_chunk", slow)
    decode = CpuDecoder._decode

    def failing(self: CpuDecoder) -> Iterator[Any]:
        for number, batch in enumerate(decode(self)):
            if number == 5:  # as many as the queues take
                time.sleep(1)
                threading.Timer(0.5, over.set).start()
                raise error
            yield batch

    monkeypatch.setattr(CpuDecoder, "_decode", failing)
    started = time.monotonic()
    options: dict[str, Any] = {"frame_rate": 30.0, "encoder_workers": 1, "queue_size": 1, "model": QuickModel()}
    with pytest.raises(type(error)):
        run(video, tmp_path / "store", CropRegion(0, 0, 1, 1), **options)
    assert time.monotonic() - started < 20


def _heed_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and those of nohup a hang-up; what they start inherits that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.undisturbed
@pytest.mark.parametrize(
    ("implementation", "number"),
    [(IMPLEMENTATIONS[0], signal.SIGINT), (IMPLEMENTATIONS[1], signal.SIGINT), ("pipelined", signal.SIGTERM)],
)
def test_interrupt_stops_at_once_and_can_be_finished(
    implementation: str, number: signal.Signals, long: Undisturbed, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "caption_extents", "run", str(long.video), "--crop", "0,0.6,1,1", "--quiet"]
    command += ["--store", str(store), "--implementation", implementation, "--tenant", "t1", "--video-id", "v1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_heed_interrupts
    ) as process:
        deadline = time.monotonic() + 60
        while len(files(store)) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        assert process.poll() is None
        os.kill(process.pid, number)
        interrupted = time.monotonic()
        assert process.stderr is not None
        message = process.stderr.read().decode()
    assert process.returncode == 128 + number, message
    assert time.monotonic() - interrupted < 10
    assert "interrupted" in message
    assert "Traceback" not in message
    states = [json.loads(claim.read_text())["state"] for claim in store.rglob("claim.json")]
    assert states == ["released"]
    long.assert_is_finished_in(store)


def _damage(video: Path, share: float) -> None:
    """Overwrite packets in the middle of the file, as many as the share of all."""
    import av

    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets = [p for p in container.demux(video=0) if p.size and not p.is_keyframe]
        for packet in packets[30 : 30 + max(1, int(len(packets) * share))]:
            assert packet.pos is not None
            data[packet.pos + 4 : packet.pos + packet.size] = b"\xff" * (packet.size - 4)
    video.write_bytes(data)


def test_damage_is_listed(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=10:min-keyint=10:bframes=0:log-level=none"}
    video = make_video(Recipe("damaged", pts=tuple(range(300)), options=options), tmp_path)
    _damage(video, 0.02)
    region = CropRegion(0, 0, 1, 1)
    results = [
        run(video, tmp_path / "store", region, implementation=i, max_undecodable_share=0.2) for i in IMPLEMENTATIONS
    ]
    assert results[0].undecodable_samples == results[1].undecodable_samples
    assert results[0].undecodable_samples
    first, second = (outcome(result, tmp_path / "store") for result in results)
    assert first == second
    database = open_database(open_store(str(tmp_path / "store")).get(results[0].caption_frame_extents_db_key))
    listed = database.execute("SELECT undecodable_samples FROM run_metadata").fetchone()[0]
    assert listed == ",".join(map(str, results[0].undecodable_samples))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_too_much_damage_fails(implementation: str, tmp_path: Path) -> None:
    options = {"x264-params": "keyint=10:min-keyint=10:bframes=0:log-level=none"}
    video = make_video(Recipe("damaged", pts=tuple(range(300)), options=options), tmp_path)
    _damage(video, 0.5)
    with pytest.raises(DecodeError, match="max_undecodable_share"):
        run(video, tmp_path / "store", CropRegion(0, 0, 1, 1), implementation=implementation)
    assert files(tmp_path / "store") == [VideoKeys("t1", "v1").claim(1)]


def test_a_video_in_the_store(tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    key = "t1/client/videos/v1/video.mp4"
    open_store(str(tmp_path / "store")).put(key, video.read_bytes(), "video/mp4")
    result = caption_extents.crop_and_infer_caption_frame_extents_pipelined(
        video_key=key,
        tenant_id="t1",
        video_id="v1",
        crop_region=CropRegion(crop_left=0.0, crop_top=0.0, crop_right=1.0, crop_bottom=1.0),
        frame_rate=10.0,
        encoder_workers=4,
        store=tmp_path / "store",
    )
    assert result.version == 1
    assert result.caption_frame_extents_db_key == "t1/server/videos/v1/caption_frame_extents_v1.db.gz"
    assert result.cropped_frames_prefix == "t1/client/videos/v1/cropped_frames_v1"


def test_the_environment_chooses_implementation_and_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(Recipe("video"), tmp_path)
    monkeypatch.setenv("CAPTION_EXTENTS_IMPLEMENTATION", "sequential")
    monkeypatch.setenv("CAPTION_EXTENTS_STORE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CAPTION_EXTENTS_PRICE_PER_HOUR", "2")
    result = caption_extents.crop_and_infer_caption_frame_extents(str(video), "t1", "v1", CropRegion(0, 0, 1, 1))
    assert result.metrics.implementation == "sequential"
    assert result.metrics.cost.money
    assert files(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame_rate": 0.0},
        {"frame_rate": -1.0},
        {"frame_rate": float("nan")},
        {"frame_rate": float("inf")},
        {"frame_rate": 1000.0},
        {"frame_rate": "10"},
        {"encoder_workers": 0},
        {"encoder_workers": 2.5},
        {"queue_size": 0},
        {"implementation": "parallel"},
        {"device": "tpu"},
        {"preset": "nice"},
        {"max_undecodable_share": 1.5},
        {"model": "missing.safetensors"},
        {"store": "ftp://x"},
    ],
    ids=str,
)
def test_bad_arguments_say_what_was_wrong(wrong: dict[str, Any], tmp_path: Path) -> None:
    video = make_video(Recipe("video"), tmp_path)
    value = next(iter(wrong.values()))
    with pytest.raises(InputError, match=str(value).replace("+", r"\+")):
        run(video, **{"store": tmp_path / "store", "region": CropRegion(0, 0, 1, 1), **wrong})
    assert not (tmp_path / "store").exists()
