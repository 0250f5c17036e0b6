"""The Modal app without Modal: what its functions are configured with, and that their bodies do the job."""

from __future__ import annotations

import importlib
import inspect
import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from caption_extents import CropRegion, engine
from caption_extents.cli import app as command_line
from caption_extents.deploy import executors
from caption_extents.encoders import modal_workers
from caption_extents.encoders.modal_settings import ModalSettings
from caption_extents.encoders.tasks import EncodeResult, EncodeTask
from caption_extents.entries import Entry
from caption_extents.errors import EncodeError, InputError, ProcessingError
from caption_extents.options import Job
from caption_extents.storage.store import open_store
from tests.media import Recipe, make_video
from tests.models import QuickModel
from tests.servers import Server, seaweedfs
from tests.test_pipeline import files, outcome, run
from tests.test_s3 import use

modal = pytest.importorskip("modal")

CROP = (0.0, 0.2, 1.0, 1.0)
JOBS = ("crop_and_infer_caption_frame_extents", "crop_and_infer_caption_frame_extents_sequential")


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, Any]]]:
    """The options of every function of the app, by name, as they were given to Modal; no network meanwhile."""
    given: dict[str, dict[str, Any]] = {}
    original = modal.App.function

    def record(self: Any, **options: Any) -> Any:
        decorate = original(self, **options)

        def decorator(function: Any) -> Any:
            # A function that takes several inputs at once is wrapped.
            raw = function if inspect.isfunction(function) else function._get_raw_f()
            given[raw.__name__] = {**options, "is_wrapped": raw is not function}
            return decorate(function)

        return decorator

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    with monkeypatch.context() as patch:
        patch.setattr(modal.App, "function", record)
        patch.setattr(socket.socket, "connect", refuse)
        _import_app()
        yield given
    sys.modules.pop("caption_extents.deploy.modal_app", None)


def _import_app() -> ModuleType:
    sys.modules.pop("caption_extents.deploy.modal_app", None)
    return importlib.import_module("caption_extents.deploy.modal_app")


def test_functions_carry_the_defaults(configured: dict[str, dict[str, Any]]) -> None:
    assert set(configured) == {*JOBS, f"{JOBS[0]}_v2", "encode_segment"}
    for name in (*JOBS, f"{JOBS[0]}_v2"):
        options = configured[name]
        assert (options["gpu"], options["timeout"], options["retries"]) == ("A10G", 3600, 0)
        assert [secret.name for secret in options["secrets"]] == ["caption-extents-store"]
        assert options["enable_memory_snapshot"]
        assert options["is_wrapped"]
    assert "gpu" not in configured["encode_segment"]
    assert configured["encode_segment"]["cpu"] == 2


def test_functions_carry_what_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "APP_NAME": "captions-staging",
        "GPU": "L4",
        "CPU": "4.5",
        "MEMORY_MIB": "9000",
        "TIMEOUT_SECONDS": "600",
        "RETRIES": "2",
        "SECRETS": "wasabi, other",
        "PACKAGE_V2": "caption-extents==9.9",
        "IMPLEMENTATION": "sequential",
    }.items():
        monkeypatch.setenv(f"CAPTION_EXTENTS_MODAL_{name}", value)
    given: list[dict[str, Any]] = []
    installed: list[tuple[str, dict[str, str]]] = []
    original = modal.App.function
    monkeypatch.setattr(modal.App, "function", lambda self, **o: given.append(o) or original(self, **o))
    image = modal.Image
    pip_install, env = image.pip_install, image.env
    packages: list[str] = []
    monkeypatch.setattr(image, "pip_install", lambda self, *p: packages.extend(p) or pip_install(self, *p))
    monkeypatch.setattr(image, "env", lambda self, v: installed.append((packages[-1], v)) or env(self, v))
    module = _import_app()
    sys.modules.pop("caption_extents.deploy.modal_app")
    assert module.app.name == "captions-staging"
    for options in given[:3]:
        assert (options["gpu"], options["cpu"], options["memory"]) == ("L4", 4.5, 9000)
        assert (options["timeout"], options["retries"]) == (600, 2)
        assert [secret.name for secret in options["secrets"]] == ["wasabi", "other"]
    assert [package for package, _ in installed][2] == "caption-extents==9.9"
    assert installed[0][0].startswith("caption-extents[gpu,modal]==")
    for _, variables in installed[:3]:
        assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,video"
        assert variables["CAPTION_EXTENTS_IMPLEMENTATION"] == "sequential"
        assert variables["CAPTION_EXTENTS_MODAL_GPU"] == "L4"


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 16), ({"encoder_workers": 3}, 3), ({"encoder": "threads"}, 16), ({"encoder": "ray"}, None)],
)
def test_a_job_encodes_on_its_cores(
    options: dict[str, Any], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_EXTENTS_MODAL_CPU", "16.5")
    module = _import_app()
    asked: list[Job] = []

    class Result:
        def to_dict(self) -> dict[str, Any]:
            return {}

    class FakeEngine:
        def run(self, job: Job) -> Result:
            asked.append(job)
            return Result()

    monkeypatch.setattr(module, "engine_of_process", lambda videos_at_once: FakeEngine())
    module.crop_and_infer_caption_frame_extents.local("film.mp4", "local", "v", CROP, **options)
    (job,) = asked
    assert job.encoder_workers == (expected or Job.encoder_workers)
    assert job.encoder == options.get("encoder", "auto")
    sys.modules.pop("caption_extents.deploy.modal_app")


def test_settings_that_are_none() -> None:
    with pytest.raises(InputError, match="MEMORY_MIB is 'much'; give a int"):
        ModalSettings.from_environment({"CAPTION_EXTENTS_MODAL_MEMORY_MIB": "much"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


def contents(address: str, video_id: str) -> dict[str, bytes]:
    """All chunks of a video, by what is the same in every version."""
    store = open_store(address)
    return {
        key.partition("cropped_frames_")[2].partition("/")[2]: store.get(key)
        for key in store.keys(f"local/client/videos/{video_id}/")
        if key.endswith(".webm")
    }


@pytest.mark.parametrize("name", [*JOBS, f"{JOBS[0]}_v2"])
def test_a_function_does_what_the_command_line_does(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _import_app()
    video = make_video(Recipe("film", pts=tuple(range(90))), tmp_path)
    address = use(server, monkeypatch, name.replace("_", "-"))
    open_store(address).put("film.mp4", video.read_bytes(), "video/mp4")
    monkeypatch.setenv("CAPTION_EXTENTS_STORE", address)
    result = getattr(module, name).local("film.mp4", "local", "by-modal", CROP)
    again = getattr(module, name).local("film.mp4", "local", "by-modal", CROP, new_version=True)
    assert result["cold_start_seconds"] > 0
    assert again["cold_start_seconds"] == 0
    json.dumps(result)
    assert result["metrics"]["implementation"] == ("sequential" if "sequential" in name else "pipelined")
    arguments = ["run", "film.mp4", "--crop", "0,0.2,1,1", "--video-id", "by-hand", "--json"]
    by_hand = CliRunner().invoke(command_line, arguments)
    assert by_hand.exit_code == 0, by_hand.output
    assert json.loads(by_hand.stdout)["label_counts"] == result["label_counts"]
    assert contents(address, "by-hand") == contents(address, "by-modal")
    engine.engine_of_process().close()
    engine._engine = None
    sys.modules.pop("caption_extents.deploy.modal_app")


class FakeCall:
    def __init__(self, function: Any, task: EncodeTask) -> None:
        self._function, self._task = function, task

    def get(self) -> EncodeResult:
        return self._function.body(self._task)

    def cancel(self) -> None:
        self._function.cancelled += 1


class FakeFunction:
    """Stands where Modal's deployed functions would be."""

    def __init__(self, body: Any) -> None:
        self.body, self.cancelled = body, 0

    def spawn(self, task: EncodeTask) -> FakeCall:
        return FakeCall(self, task)

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return self.body(*arguments, **options)

    def hydrate(self) -> None:
        pass


def deployed(monkeypatch: pytest.MonkeyPatch, body: Any) -> FakeFunction:
    function = FakeFunction(body)
    monkeypatch.setattr(modal.Function, "from_name", staticmethod(lambda app, name: function))
    return function


def test_encoding_by_modal_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _import_app()
    deployed(monkeypatch, module.encode_segment.local)
    video = make_video(Recipe("film", pts=tuple(range(600))), tmp_path)
    options: dict[str, Any] = {"region": CropRegion(*CROP), "frame_rate": 30.0, "model": QuickModel()}
    here = run(video, tmp_path / "here", **options)
    there = run(video, tmp_path / "there", **options, encoder="modal")
    assert outcome(there, tmp_path / "there") == outcome(here, tmp_path / "here")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    sys.modules.pop("caption_extents.deploy.modal_app")


def test_workers_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: Any) -> EncodeResult:
        raise task

    function = deployed(monkeypatch, fail)
    workers = modal_workers.ModalEncoderWorkers(3)
    futures: list[Future[EncodeResult]] = [
        workers.submit(error)  # type: ignore[arg-type]
        for error in (EncodeError("chunk 3 is bad"), ConnectionError("no route"))
    ]
    with pytest.raises(EncodeError, match="chunk 3"):
        futures[0].result()
    with pytest.raises(ProcessingError, match="Modal worker failed: ConnectionError: no route"):
        futures[1].result()
    workers.close()
    assert function.cancelled == 2


def test_an_app_that_is_not_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = deployed(monkeypatch, None)

    def fail() -> None:
        raise LookupError("no such app")

    monkeypatch.setattr(function, "hydrate", fail)
    video = make_video(Recipe("film"), tmp_path)
    with pytest.raises(ProcessingError, match="modal deploy -m"):
        run(video, tmp_path / "store", CropRegion(*CROP), encoder="modal")


def test_a_list_on_modal(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(video: str, tenant: str, video_id: str, crop: list[float], rate: float, **options: Any) -> dict[str, Any]:
        if video == "bad.mp4":
            raise ValueError("cannot open 'bad.mp4'")
        return {
            "processing_duration_seconds": 2.0,
            "frame_count": 100,
            "caption_count": 3,
            "version": 1,
            "metrics": {"cost": {"money": 0.5}},
        }

    deployed(monkeypatch, body)
    entries = [Entry(f"{name}.mp4", CROP, name, "local", 10.0) for name in ("good", "bad")]
    executor = executors.ModalExecutor(2)
    good, bad = sorted(executor.outcomes(entries, {"store": "s3://bucket"}), key=lambda o: o.error or "")
    assert (good.video_id, good.cost, good.video_seconds) == ("good", 0.5, 10.0)
    assert "cannot open" in (bad.error or "")
    with pytest.raises(InputError, match="Modal cannot reach the store"):
        list(executor.outcomes(entries, {"store": "a/folder"}))
