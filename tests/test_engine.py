"""Many jobs with what they share opened once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caption_extents import CropRegion, Engine, InputError, Job, run_job
from caption_extents import engine as engines
from caption_extents.children import Child, Children
from caption_extents.encoders.processes import ProcessEncoder
from caption_extents.engine import _Room, _SharedEncoder, _Shares
from caption_extents.errors import VideoError
from caption_extents.model.identity import DEFAULT_WEIGHTS
from caption_extents.spawning import ChildKind, decoder_sessions
from caption_extents.storage.keys import VideoKeys
from caption_extents.storage.store import Store, open_store
from caption_extents.training.sample_video import CROP
from caption_extents.video.nvdec import driver
from tests.films import make_film


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"film-{number}.mp4" for number in range(3)]
    for number, path in enumerate(paths):
        make_film(path, [(10 + 7 * number, 60), (60, 100), (110, 140 + number)], width=640 + 64 * number, height=360)
    return paths


def job(path: Path, store: Path, **options: Any) -> Job:
    return Job(str(path), "t", path.stem, CropRegion(*CROP), store=store, **options)


def chunks(store: Store, path: Path) -> dict[str, bytes]:
    keys = VideoKeys("t", path.stem)
    return {key: store.get(key) for key in store.keys(f"{keys.cropped_frames(1)}/") if key.endswith(".webm")}


def test_results_are_those_of_single_runs(films: list[Path], tmp_path: Path) -> None:
    """Three at once, and what they share is opened once."""
    alone = [run_job(job(path, tmp_path / "alone", device="cpu", encoder="processes")) for path in films]
    with Engine() as engine, ThreadPoolExecutor(3) as pool:
        jobs = [job(path, tmp_path / "engine", device="cpu", encoder="processes") for path in films]
        together = list(pool.map(engine.run, jobs))
        kinds = [str(key[0]) for key in engine._kept]
    assert sorted(kinds) == ["encoder", "model", "store"]
    stores = [open_store(str(tmp_path / name)) for name in ("alone", "engine")]
    for path, one, other in zip(films, alone, together, strict=True):
        assert one.captions == other.captions
        assert one.label_counts == other.label_counts
        assert chunks(stores[0], path) == chunks(stores[1], path) != {}


def test_figures_of_a_video_and_of_the_engine(films: list[Path], tmp_path: Path) -> None:
    with Engine() as engine, ThreadPoolExecutor(3) as pool:
        results = list(pool.map(engine.run, [job(path, tmp_path, device="cpu") for path in films]))
        metrics = engine.metrics()
    assert metrics.videos == 3
    assert metrics.video_seconds == pytest.approx(sum(result.frame_count for result in results) / 10)
    shares = [result.metrics.occupied_seconds for result in results]
    assert 0 < sum(shares) <= metrics.seconds * 1.1
    assert all(share <= result.metrics.total_seconds for share, result in zip(shares, results, strict=True))
    assert sum(result.metrics.cpu_seconds for result in results) <= metrics.seconds * 64
    assert set(metrics.busy) == {"cpu", "encoders"}
    assert all(0 < share <= 1 for share in metrics.busy.values())
    assert metrics.bottleneck == max(metrics.busy, key=lambda name: metrics.busy[name])


def test_a_video_that_fails_harms_only_itself(films: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(films[0].read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("no video")
    bad = [tmp_path / "broken.mp4", tmp_path / "text.mp4", tmp_path / "missing.mp4"]
    with Engine() as engine, ThreadPoolExecutor(6) as pool:
        futures = {path: pool.submit(engine.run, job(path, tmp_path / "s", device="cpu")) for path in [*bad, *films]}
        for path in bad:
            with pytest.raises(VideoError, match=path.name):
                futures[path].result()
        assert all(futures[path].result().caption_count == 3 for path in films)


def test_a_model_that_cannot_be_opened_is_tried_again(films: list[Path], tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    with Engine() as engine:
        with pytest.raises(InputError, match="there is no model file"):
            engine.run(job(films[0], tmp_path / "s", device="cpu", model=weights))
        weights.write_bytes(DEFAULT_WEIGHTS.read_bytes())
        assert engine.run(job(films[0], tmp_path / "s", device="cpu", model=weights)).caption_count == 3


def test_models_that_nobody_uses_are_closed(films: list[Path], tmp_path: Path) -> None:
    with Engine() as engine:
        for number in range(5):
            weights = tmp_path / f"{number}.safetensors"
            weights.write_bytes(DEFAULT_WEIGHTS.read_bytes())
            for region in (CropRegion(*CROP), CropRegion(0, 0.8, 1, 1)):
                one = Job(str(films[0]), "t", "v", region, store=tmp_path / "s", device="cpu", model=weights)
                assert engine.run(one).frame_count > 0
        models = [key for key in engine._kept if key[0] == "model"]
        assert [key[1] for key in models] == [tmp_path / "3.safetensors", tmp_path / "4.safetensors"]


def test_a_dead_encoder_is_replaced(films: list[Path], tmp_path: Path) -> None:
    with Engine() as engine:
        options: dict[str, Any] = {"device": "cpu", "encoder": "processes"}
        engine.run(job(films[0], tmp_path / "s", **options))
        (shared,) = [kept.opened for kept in engine._kept.values() if isinstance(kept.opened, _SharedEncoder)]
        encoder = shared._encoder
        assert isinstance(encoder, ProcessEncoder)
        for child in encoder._all:
            child._process.kill()
            child._process.wait()
        assert engine.run(job(films[1], tmp_path / "s", **options)).caption_count == 3


def test_closing_while_the_first_job_begins(films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, whose driver takes a while to say its name."""
    monkeypatch.setattr(engines, "choose_device", lambda *_: "cuda:0")
    monkeypatch.setattr(driver, "device_uuid", lambda number: time.sleep(0.3) or "GPU-1")
    monkeypatch.setattr(engines, "open_store", lambda address: time.sleep(0.6) or open_store(address))
    engine, errors = Engine(), list[Exception]()

    def run() -> None:
        try:
            engine.run(job(films[0], tmp_path / "store"))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.1)
    engine.close()
    thread.join()
    assert [type(error) for error in errors] == [InputError]


def test_a_closed_engine(films: list[Path], tmp_path: Path) -> None:
    engine = Engine()
    engine.close()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.run(job(films[0], tmp_path))
    for arguments in ({"videos_at_once": 0}, {"samples_mib": 0}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            Engine(**arguments)


class Runs:
    """Runs that take room, in threads that end when they are told to."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self.inside: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def begin(self, name: str, nbytes: int) -> None:
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._run, args=(name, nbytes), daemon=True))
        self._threads[-1].start()
        threading.Event().wait(0.05)

    def _run(self, name: str, nbytes: int) -> None:
        with self._room.taken(nbytes):
            with self._changed:
                self.inside.append(name)
            self._ends[name].wait()
            with self._changed:
                self.inside.remove(name)

    def end(self, name: str) -> None:
        self._ends[name].set()
        threading.Event().wait(0.1)

    def close(self) -> None:
        for event in self._ends.values():
            event.set()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def runs() -> Iterator[Runs]:
    with closing(Runs(_Room(100))) as opened:
        yield opened


def test_room_is_bounded(runs: Runs) -> None:
    runs.begin("a", 60)
    runs.begin("b", 60)
    assert runs.inside == ["a"]
    runs.begin("small", 10)
    assert runs.inside == ["a"], "b came first"
    runs.end("a")
    assert sorted(runs.inside) == ["b", "small"]


def test_what_is_too_large_runs_alone(runs: Runs) -> None:
    runs.begin("huge", 1000)
    runs.begin("small", 1)
    assert runs.inside == ["huge"]
    runs.end("huge")
    assert runs.inside == ["small"]


def test_time_is_divided_among_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = _Shares(Children())
    now = [0.0]
    monkeypatch.setattr(shares, "_now", lambda: (now[0], 2 * now[0]))
    shares._until = (0.0, 0.0)
    first = shares.begin()
    now[0] = 4.0
    second = shares.begin()
    now[0] = 10.0
    assert shares.read(first) == (7.0, 14.0)
    shares.end(first)
    now[0] = 11.0
    assert shares.read(second) == (4.0, 8.0)


def test_a_run_takes_what_was_started_ahead(films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU: all processes are those that it starts before it imports anything."""
    ahead, asked = Counter[ChildKind](), Counter[ChildKind]()

    class Watched(Children):
        def __init__(self, ready: Any) -> None:
            super().__init__(ready)
            ahead.update(kind for kind, _ in ready)

        def start(self, kind: ChildKind, **options: Any) -> Child:
            asked[kind] += 1
            return super().start(kind, **options)

    monkeypatch.setattr("caption_extents.children.Children", Watched)
    monkeypatch.setattr("caption_extents.job.ahead._GPU_DEVICES", ("/dev/null",))
    monkeypatch.setattr("caption_extents.video.nvdec.driver.device_count", lambda: 1)
    monkeypatch.setattr("caption_extents.video.nvdec.driver.device_name", lambda ordinal: "none")
    result = run_job(job(films[0], tmp_path / "gpu", encoder_workers=6))
    assert asked <= ahead
    assert ahead - asked == Counter([decoder_sessions(0)]), "the second process of decoders is for long films"
    alone = run_job(job(films[0], tmp_path / "cpu", device="cpu"))
    # With a GPU the model computes there: what it is sure of, it is sure of to other digits.
    assert [replace(caption, confidence=None) for caption in result.captions] == [
        replace(caption, confidence=None) for caption in alone.captions
    ]
    assert chunks(open_store(str(tmp_path / "gpu")), films[0]) == chunks(open_store(str(tmp_path / "cpu")), films[0])


def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_chunks_of_the_run_that_began_first_come_first() -> None:
    class Slow:
        calls = 2

        def __init__(self) -> None:
            self.order: list[int] = []
            self.go = threading.Semaphore(0)

        def encode(self, frames: Any, form: Any) -> Any:
            self.order.append(frames)
            self.go.acquire()
            return frames, None

    slow: Any = Slow()
    shared = _SharedEncoder(slow)
    with ThreadPoolExecutor(8) as pool:
        for count, run in enumerate((2, 2, 3, 1, 3, 2, 1), start=1):
            pool.submit(shared.encode, run, run, None)  # type: ignore[arg-type]
            _wait_for(lambda count=count: len(slow.order) + len(shared._waiting) == count)  # type: ignore[misc]
        for done in range(1, 8):
            slow.go.release()
            _wait_for(lambda done=done: len(slow.order) == min(7, 2 + done))  # type: ignore[misc]
    assert slow.order == [2, 2, 1, 1, 2, 3, 3], "the first two had begun when the others came"
